"""Limits the number of draws per inserted step, as Reverb's rate limiter does.

Every inserted step allows `samples_per_insert` draws. The learner draws while at least one batch is owed,
and inserts the next trajectory only when no batch is owed. So what is learned depends only on the journal,
not on when its trajectories arrived. If the learner is slower than self-play, trajectories wait in the
journal up to a limit, then in the stream, and then the workers pause.
"""

from dataclasses import dataclass


@dataclass
class SamplesPerInsert:
    """Draws made and owed in one run."""

    target: float
    min_steps: int  # nothing is drawn from a smaller replay
    inserted: int = 0  # steps in total
    drawn: int = 0  # steps in total
    owed: float = 0.0  # steps that may still be drawn
    drawn_last: int = 0  # steps of the newest batch; stretches seldom add up to exactly `batch_size`

    def insert(self, steps: int) -> None:
        """Count inserted steps."""
        self.inserted += steps
        self.owed += self.target * steps

    def may_draw(self, batch_size: int, replay_steps: int) -> bool:
        """True when a batch is owed and the replay is large enough."""
        return replay_steps >= self.min_steps and self.owed >= batch_size

    def draw(self, steps: int) -> None:
        """Count the steps of a drawn batch."""
        self.drawn += steps
        self.owed -= steps
        self.drawn_last = steps

    @property
    def ratio(self) -> float:
        """Steps drawn per step inserted, so far."""
        return self.drawn / self.inserted if self.inserted else 0.0
