"""One rank of several that make updates together, started by torchrun; it saves its results to a folder.

    ranks.py FOLDER

When all cases are saved, rank 1 is killed during further updates.
"""

import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from services.trainer.learning.distributed import LoadWeights, Part, Ranks, Stop
from services.trainer.learning.learner import Learner
from services.trainer.place import Device, Rank
from services.trainer.training import Training, TrainingConfig
from shared.errors import MuZeroError
from shared.model.network import initial_network
from tests.services.trainer.runs import CONFIG, advance, features, trajectories
from tests.shared.messages.trajectories import FINGERPRINT

UPDATES = 12
RESUMED_AFTER = 6

#: Without dropout, several ranks compute the same as one.
ALIKE = replace(
    CONFIG,
    model=replace(CONFIG.model, dropout=0.0),
    trainer=replace(CONFIG.trainer, device=Device.CPU),
)
CASES: dict[str, TrainingConfig] = {
    "steps": ALIKE,
    "stretches": replace(ALIKE, learner=replace(ALIKE.learner, batch_size=40, stretch_steps=8)),
    "averaged": replace(ALIKE, learner=replace(ALIKE.learner, average_decay=0.8, constant_updates=3)),
    "dropout": replace(ALIKE, model=replace(CONFIG.model, dropout=0.1)),
}


def main(folder: Path) -> None:
    """Take part in every case, then in the updates during which rank 1 is killed."""
    torch.set_num_threads(1)
    own = Rank.from_torchrun()
    ranks = Ranks(own, own.device(Device.CPU))
    for case, config in CASES.items():
        learner = _lead(config, ranks, folder / case) if own.is_leader else _follow(config, ranks)
        np.savez(folder / case / f"weights-{own.rank}.npz", **learner.weights())  # type: ignore[arg-type]
        np.savez(folder / case / f"moments-{own.rank}.npz", **learner.moments())  # type: ignore[arg-type]
    if own.is_leader:
        training = Training(ALIKE, features(), FINGERPRINT, ranks)
        training.pacing.target = float("inf")
        # torchrun also terminates this rank, maybe sooner; ignore that to see the rank's own error.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        advance(training, trajectories(40), 100_000)
    else:
        _follow(ALIKE, ranks, updates_to_live=3)


def _lead(config: TrainingConfig, ranks: Ranks, folder: Path) -> Learner:
    """Make some updates, then repeat the later half from a saved state."""
    journal = trajectories(40)
    training = Training(config, features(), FINGERPRINT, ranks)
    losses = advance(training, journal, RESUMED_AFTER)
    saved = training.save(0)
    losses += advance(training, journal, UPDATES - RESUMED_AFTER)
    resumed = Training(config, features(), FINGERPRINT)  # with a new replay
    resumed.learner = training.learner
    resumed.resume(*saved, journal.__getitem__)
    again = advance(resumed, journal, UPDATES - RESUMED_AFTER)
    np.savez(folder / "losses.npz", losses=losses, again=again)
    ranks.send_all(Stop())
    return training.learner


def _follow(config: TrainingConfig, ranks: Ranks, *, updates_to_live: int | None = None) -> Learner:
    network = initial_network(config.model, seed=99)  # replaced by the leader's weights
    learner = Learner(network, config.learner, config.trainer.seed, ranks.device, ranks)
    while not isinstance(order := ranks.receive(), Stop):
        match order:
            case Part():
                if learner.counters.updates == updates_to_live:
                    os.kill(os.getpid(), signal.SIGKILL)
                learner.learn(order)
            case LoadWeights():
                learner.restore(order.weights, order.moments)
            case _:
                raise AssertionError(order)
    return learner


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]))
    except MuZeroError as failure:
        sys.exit(f"error: {failure}")
