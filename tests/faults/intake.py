"""A trainer that ingests trajectories and publishes versions without learning."""

from pathlib import Path

from pydantic import SecretStr

from services.trainer.config import TrainerConfig
from services.trainer.intake.journal import Journal
from services.trainer.settings import TrainerSettings
from shared.adapters.streams.bus import Bus
from shared.adapters.tables.dataset import Dataset
from shared.messages.codec import encode_trajectory
from shared.messages.streams import TRAJECTORIES
from shared.runtime.redis_server import RedisServer
from tests.faults.reading import journalled
from tests.services.trainer.runs import CONFIG
from tests.shared.messages.trajectories import random_trajectory


def settings_without_updates(server: RedisServer, bars: Path, home: Path) -> TrainerSettings:
    """Settings of a trainer that makes no updates."""
    return TrainerSettings(
        home=home,
        dataset=bars,
        redis_url=SecretStr(server.url),
        model=CONFIG.model,
        replay=CONFIG.replay,
        learner=CONFIG.learner,
        trainer=TrainerConfig(
            min_replay_steps=1_000_000,
            max_ahead_episodes=16,
            publish_every_episodes=10,
            keep_checkpoints=100,
        ),
    )


async def send_sessions(bus: Bus, dataset: Dataset, seeds: range) -> None:
    """Send one session per seed, about 25 kB each."""
    for seed in seeds:
        session = random_trajectory(seed, 360, start_bar=500, dataset=dataset.fingerprint)
        await bus.append(TRAJECTORIES, *encode_trajectory(session))


def journalled_by(settings: TrainerSettings) -> list[int]:
    """Numbers of the trajectories in the trainer's journal, in order."""
    journal = Journal(settings.journal_root)
    held = journalled(journal)
    journal.close()
    return held
