"""A worker that misses 100 announcements plays the newest version next; no trajectory mixes versions."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from pydantic import SecretStr

from services.selfplay.config import SelfPlayConfig
from services.selfplay.exploration import exploration_at
from services.selfplay.service import SelfPlayService
from services.selfplay.settings import SelfPlaySettings
from services.selfplay.worker import SelfPlayWorker
from shared.adapters.streams import connection as redis_connection
from shared.adapters.streams.bus import Bus
from shared.adapters.tables.dataset import Dataset
from shared.adapters.versions.agents import load_agent
from shared.adapters.versions.store import CheckpointStore
from shared.agent.agent import Agent
from shared.agent.rollout import MarketView, play
from shared.agent.trajectory import Trajectory
from shared.environment.environment import EnvironmentConfig, Prices
from shared.messages.codec import decode_trajectory
from shared.messages.streams import TRAJECTORIES
from shared.runtime.lifecycle import Lifecycle
from shared.runtime.redis_server import RedisServer
from tests.broken_connections import BREAKS_CONNECTIONS
from tests.faults.counts import print_figures, rounds, steps
from tests.faults.proxy import Proxy
from tests.services.selfplay.test_service import EPISODES_A_VERSION, LANES, STEPS, alike, publish
from tests.waiting import until

pytestmark = BREAKS_CONNECTIONS

#: Versions announced while the worker receives nothing.
MISSED = 100


@rounds(1, 10)
async def test_a_worker_that_missed_a_hundred_versions_plays_the_newest_next(
    own_redis: RedisServer,
    bars: tuple[Path, Dataset],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    count: int,
) -> None:
    monkeypatch.setattr(redis_connection, "SOCKET_TIMEOUT_SECONDS", 0.5)
    begun = _versions_of_batches(monkeypatch)
    parted = asyncio.Event()

    async def swallow(piece: bytes) -> bytes | None:
        return b"" if parted.is_set() else piece

    bus = Bus(own_redis.url)
    async with Proxy(own_redis, request=swallow, reply=swallow) as proxy:
        settings = SelfPlaySettings(
            home=tmp_path,
            dataset=bars[0],
            instance="worker-1",
            redis_url=SecretStr(proxy.url),
            selfplay=SelfPlayConfig(lanes=LANES, high_water=10_000),
            environment=EnvironmentConfig(session_bars=STEPS),
        )
        await publish(bus, settings, 0)
        lifecycle = Lifecycle("selfplay", settings)
        working = asyncio.create_task(SelfPlayService(settings, lifecycle).run())
        newest = 0
        for _ in steps(count):
            await until(lambda: len(begun) > 5 and begun[-1] == newest)  # noqa: B023
            parted.set()
            await until(lambda: lifecycle.bus.degraded)
            for _ in range(MISSED):
                newest += 1
                await publish(bus, settings, newest)
            parted.clear()
            proxy.cut_all()
            await until(lambda: begun[-1] == newest)  # noqa: B023
        await until(lambda: lifecycle.heartbeat.detail.get("version") == newest)
        lifecycle.stop()
        await working
        await lifecycle.bus.close()
    played = [
        decode_trajectory(entry.message, entry.arrays)
        for entry in await bus.recent(TRAJECTORIES, count=100_000)
    ]
    await bus.close()

    replay = _replay(settings, bars[1])
    checked = played[:: max(len(played) // 40, 1)]
    mixed = [t for t in checked if not alike(replay(t, t.checkpoint_version), t)]
    heard = set(range(0, newest + 1, MISSED))
    others = set(begun) - heard
    print_figures(
        "announcements missed",
        times=count,
        missed=newest,
        batches=len(begun),
        batches_of_a_version_between=len(others),
        trajectories=len(played),
        replayed=len(checked),
        mixed=len(mixed),
    )
    assert others == set()
    assert {trajectory.checkpoint_version for trajectory in played} == heard
    assert mixed == []
    assert not alike(replay(checked[0], 1), checked[0])  # another version gives another trajectory


def _versions_of_batches(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A list to which each new batch of sessions adds its version."""
    begun: list[int] = []
    playing = SelfPlayWorker.play

    def recorded(worker: SelfPlayWorker, agent: Agent, *rest: object) -> object:
        begun.append(agent.version)
        return playing(worker, agent, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(SelfPlayWorker, "play", recorded)
    return begun


def _replay(settings: SelfPlaySettings, data: Dataset) -> Callable[[Trajectory, int], Trajectory]:
    """A function that plays the session of a trajectory again with a given version."""
    market = MarketView(data.features, Prices.of(data.bars), data.outcomes, data.fingerprint)
    store = CheckpointStore(settings.checkpoint_root)

    def replay(trajectory: Trajectory, version: int) -> Trajectory:
        *_, (again,) = play(
            load_agent(store, version),
            market,
            np.array([trajectory.start_bar]),
            settings.environment,
            settings.search,
            seeds=np.array([trajectory.seed]),
            exploration=exploration_at(EPISODES_A_VERSION * version, settings.selfplay),
            worker=trajectory.worker,
        )
        return again

    return replay
