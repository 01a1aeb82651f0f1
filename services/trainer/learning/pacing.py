"""Samples per insert: how much may be learned from what came in, as Reverb's rate limiter counts it.

Every inserted step lets `samples_per_insert` steps be drawn. The learner draws while a whole batch is
owed, and takes in the next trajectory only when none is; so learning is a function of the journal
alone, whenever its trajectories arrived. When the learner is the slower side, trajectories wait: in
the journal up to a number, then in the stream, then the workers pause.
"""

from dataclasses import dataclass


@dataclass
class SamplesPerInsert:
    """The account of one run."""

    target: float
    min_steps: int  # nothing may be drawn from a replay smaller than this
    inserted: int = 0  # steps, ever
    drawn: int = 0  # steps, ever
    owed: float = 0.0  # steps that may be drawn yet
    drawn_last: int = 0  # steps of the newest batch; whole stretches are seldom exactly a batch

    def insert(self, steps: int) -> None:
        """Some steps came in."""
        self.inserted += steps
        self.owed += self.target * steps

    def may_draw(self, batch_size: int, replay_steps: int) -> bool:
        """True when a batch is owed and there is enough to draw from."""
        return replay_steps >= self.min_steps and self.owed >= batch_size

    def draw(self, steps: int) -> None:
        """A batch of so many steps was drawn."""
        self.drawn += steps
        self.owed -= steps
        self.drawn_last = steps

    @property
    def ratio(self) -> float:
        """Steps drawn for each inserted, so far."""
        return self.drawn / self.inserted if self.inserted else 0.0
