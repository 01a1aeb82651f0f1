"""Trainer and self-play as real processes over a real Redis: killed, stopped and started again.

What must hold at every moment: each trajectory that reached the stream is learned from once; versions
are whole, announced, and go on counting.
"""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

import duckdb
import numpy as np
import pytest
import pytest_asyncio
from redis.asyncio import Redis

from services.trainer.journal import Journal
from services.trainer.service import REPORT_SECONDS
from shared.adapters.bus import Bus
from shared.adapters.checkpoints import CheckpointStore
from shared.adapters.dataset import Dataset, write_dataset
from shared.market.session import SplitConfig
from shared.market.synthetic import Market, synthesize
from shared.messages.codec import encode_trajectory
from shared.messages.schemas import Heartbeat, TrajectoryFinished
from shared.messages.streams import CHECKPOINTS, DEAD, TRAINER_GROUP, TRAJECTORIES
from shared.runtime.redis_server import RedisServer
from tests.conftest import ROOT
from tests.shared.messages.trajectories import random_trajectory

SESSION_BARS = 40

TINY = {
    "MM_MODEL__TEMPORAL_CHANNELS": "12",
    "MM_MODEL__STATIC_CHANNELS": "4",
    "MM_MODEL__VALUE_BINS": "31",
    "MM_LEARNER__BATCH_SIZE": "16",
    "MM_LEARNER__UNROLL_STEPS": "2",
    "MM_REPLAY__CAPACITY_STEPS": "400",
    "MM_TRAINER__SAMPLES_PER_INSERT": "1.0",
    "MM_TRAINER__MIN_REPLAY_STEPS": "80",
    "MM_TRAINER__PUBLISH_EVERY_EPISODES": "10",
    "MM_TRAINER__KEEP_CHECKPOINTS": "1000",
    "MM_SELFPLAY__LANES": "4",
    "MM_ENVIRONMENT__SESSION_BARS": str(SESSION_BARS),
    "MM_HEARTBEAT_SECONDS": "0.2",
    "OMP_NUM_THREADS": "1",
}

#: A test that waits longer than this has failed; nothing depends on how much shorter it takes.
PATIENCE_SECONDS = 600.0


class Process(Protocol):
    """What is done with a service's process; `subprocess.Popen` is one."""

    @property
    def pid(self) -> int: ...
    def poll(self) -> int | None: ...
    def kill(self) -> None: ...
    def send_signal(self, sig: int, /) -> None: ...
    def wait(self, timeout: float | None = None) -> int: ...


@dataclass
class System:
    """Processes of one home, and what is known of them."""

    home: Path
    dataset: Dataset
    redis: RedisServer
    bus: Bus
    processes: dict[str, Process] = field(default_factory=dict)

    def start(self, service: str, launcher: Sequence[str] = (), **settings: str) -> Process:
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("MM_")},
            **TINY,
            "MM_HOME": str(self.home),
            "MM_DATASET": str(self.home / "bars.duckdb"),
            "MM_REDIS_URL": self.redis.url,
            "MM_INSTANCE": f"{service}-1",
            **settings,
        }
        self.processes[service] = self.begin(service, launcher, environment)
        return self.processes[service]

    def begin(self, service: str, launcher: Sequence[str], environment: Mapping[str, str]) -> Process:
        """Start a service's process."""
        with (self.home / f"{service}.log").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", *launcher, f"services.{service}"],
                env=environment,
                cwd=ROOT,
                stderr=log,
            )

    def stop(self, service: str, signum: signal.Signals = signal.SIGTERM) -> int:
        process = self.processes.pop(service)
        process.send_signal(signum)
        return process.wait(PATIENCE_SECONDS)

    def log(self, service: str) -> str:
        return (self.home / f"{service}.log").read_text()

    async def beat(self, service: str) -> Heartbeat | None:
        return next((beat for beat in await self.bus.heartbeats() if beat.service == service), None)

    async def detail(self, service: str, name: str) -> float:
        """A number that a service tells; -1 while it tells none."""
        beat = await self.beat(service)
        value = beat.detail.get(name) if beat else None
        return float(value) if isinstance(value, int | float) else -1.0

    async def until(self, what: str, holds: Callable[[], Awaitable[bool]]) -> None:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not await holds():
            for service, process in self.processes.items():
                assert process.poll() is None, f"{service} ended:\n{self.log(service)[-3000:]}"
            if time.monotonic() > deadline:
                logs = "\n".join(self.log(service)[-1500:] for service in self.processes)
                pytest.fail(f"{what} did not come to hold\n{logs}")
            await asyncio.sleep(0.05)

    async def learned_from(self, episodes: int) -> None:
        async def enough() -> bool:
            return await self.detail("trainer", "episode") >= episodes

        await self.until(f"{episodes} episodes learned from", enough)

    def recorded(self, table: str, column: str) -> list[int]:
        """A column of the run's record, ascending."""
        with contextlib.closing(duckdb.connect()) as connection:
            query = f"select {column} from '{self.home}/record/{table}-*.parquet' order by 1"
            return [value for (value,) in connection.execute(query).fetchall()]

    def journalled_ids(self) -> list[str]:
        journal = Journal(self.home / "journal")
        ids = [str(journal.read(n).trajectory_id) for n in range(journal.first, journal.position)]
        journal.close()
        return ids


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Dataset]:
    folder = tmp_path_factory.mktemp("bars")
    bars = synthesize(Market.OU, 6_000, seed=1)
    return folder / "bars.duckdb", write_dataset(
        folder / "bars.duckdb", bars, "synthetic ou", split_config=SplitConfig(train=0.5, validation=0.25)
    )


@pytest_asyncio.fixture
async def system(
    tmp_path: Path, made: tuple[Path, Dataset], redis_server: RedisServer, bus: Bus
) -> AsyncIterator[System]:
    (tmp_path / "bars.duckdb").symlink_to(made[0])
    system = System(tmp_path, made[1], redis_server, bus)
    yield system
    for process in system.processes.values():
        process.kill()
        process.wait()


def sendable(
    system: System, first: int, last: int, *, version: int = 3
) -> list[tuple[TrajectoryFinished, bytes]]:
    fingerprint = system.dataset.fingerprint
    return [
        encode_trajectory(
            random_trajectory(seed, SESSION_BARS, start_bar=500, dataset=fingerprint, version=version)
        )
        for seed in range(first, last)
    ]


async def test_worker_and_trainer_learn_and_stop_in_good_order(system: System) -> None:
    system.start("trainer")
    system.start("selfplay")
    await system.learned_from(25)

    async def plays_newer() -> bool:
        return await system.detail("selfplay", "version") >= 1

    await system.until("the worker plays a later version", plays_newer)
    assert system.stop("selfplay") == 0
    await system.until("the stream is learned from", lambda: _empty(system))
    assert system.stop("trainer") == 0

    store = CheckpointStore(system.home / "checkpoints")
    manifest, refused = store.newest_valid()
    assert manifest is not None
    assert refused == []
    newest = await system.bus.newest(CHECKPOINTS)
    assert newest is not None
    assert newest.version == manifest.version == store.versions()[-1]
    announced = [e.message.version for e in await system.bus.recent(CHECKPOINTS, count=1_000)]
    assert sorted(announced) == store.versions()
    assert manifest.dataset == system.dataset.fingerprint
    assert manifest.update > 0

    ids = system.journalled_ids()
    assert len(set(ids)) == len(ids) >= manifest.journal_position >= 25
    assert await system.bus.heartbeats() == []
    journal = Journal(system.home / "journal")
    versions = [journal.read(n).checkpoint_version for n in range(journal.position)]
    journal.close()
    assert max(versions) >= 1  # later games were played by a trained version
    assert await system.bus.length(DEAD) == 0


async def test_a_killed_trainer_loses_nothing_and_counts_nothing_twice(system: System) -> None:
    sent = 0
    for last in (False, False, True):
        system.start("trainer")
        await system.bus.append_all(TRAJECTORIES, sendable(system, sent, sent + 17))
        await system.bus.append_all(TRAJECTORIES, sendable(system, sent + 10, sent + 17))  # a lost reply
        sent += 17
        if not last:
            await system.learned_from(sent - 8)
            system.stop("trainer", signal.SIGKILL)
    await system.learned_from(sent)
    await system.until("the stream is learned from", lambda: _empty(system))
    assert system.stop("trainer") == 0

    wanted = {str(random_trajectory(seed, SESSION_BARS).trajectory_id) for seed in range(sent)}
    ids = system.journalled_ids()
    assert len(ids) == len(wanted)
    assert set(ids) == wanted
    manifest, _ = CheckpointStore(system.home / "checkpoints").newest_valid()
    assert manifest is not None
    assert manifest.episode == manifest.journal_position == sent
    # Exactly the updates that so many trajectories are worth, however often it was killed.
    assert manifest.update == (sent * SESSION_BARS) // 16
    # The record has each of them once, and every version.
    assert system.recorded("episodes", "episode") == list(range(1, sent + 1))
    assert system.recorded("updates", "attempt") == list(range(1, manifest.update + 1))
    versions = CheckpointStore(system.home / "checkpoints").versions()
    assert system.recorded("versions", "version") == versions


@pytest.mark.parametrize(
    "learner",
    [
        pytest.param({}, id="reference", marks=pytest.mark.soak),
        pytest.param(
            {"MM_LEARNER__AVERAGE_DECAY": "0.9", "MM_LEARNER__CONSTANT_UPDATES": "7"}, id="averaged"
        ),
    ],
)
async def test_20_updates_are_10_a_kill_and_10_more_bit_for_bit(
    system: System, learner: dict[str, str]
) -> None:
    """On one thread; killed with version 1 at update 10, and with 5 updates after it that are lost."""
    setting = {**learner, "MM_TRAINER__PUBLISH_EVERY_EPISODES": "4"}  # worth 10 updates

    async def learn(sent: range, updates: int, version: int) -> None:
        for each in sendable(system, sent.start, sent.stop):
            await system.bus.append(TRAJECTORIES, *each)

        async def learned() -> bool:
            told = [await system.detail("trainer", name) for name in ("update", "version")]
            return told == [updates, version]

        await system.until(f"{updates} updates are made", learned)

    never_stopped = replace(system, home=system.home / "never_stopped", processes={})
    never_stopped.home.mkdir()
    (never_stopped.home / "bars.duckdb").symlink_to(system.home / "bars.duckdb")
    never_stopped.start("trainer", **setting)
    await learn(range(8), updates=20, version=2)
    assert never_stopped.stop("trainer") == 0

    system.start("trainer", **setting)
    await learn(range(6), updates=15, version=1)
    system.stop("trainer", signal.SIGKILL)
    system.start("trainer", **setting)
    await learn(range(6, 8), updates=20, version=2)
    assert system.stop("trainer") == 0

    one, other = (CheckpointStore(home.home / "checkpoints") for home in (never_stopped, system))
    assert one.versions() == other.versions() == [0, 1, 2]
    for version, update in enumerate((0, 10, 20)):
        wanted, got = one.manifest(version), other.manifest(version)
        assert wanted.update == got.update == update
        assert wanted.state == got.state
        assert wanted.files == got.files  # SHA-256 of weights, and of moments and what is behind an average
    hashes = {other.manifest(version).files["weights.safetensors"].sha256 for version in other.versions()}
    assert len(hashes) == 3  # each 10 updates changed something


async def test_two_ranks_read_and_learn_together_and_one_told_to_stop_stops_both(system: System) -> None:
    torchrun = ("torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m")
    system.start("trainer", torchrun, GLOO_SOCKET_IFNAME="lo", MM_TRAINER__DEVICE="cpu")

    async def both_read() -> bool:
        return await _consumers(system) == {"trainer", "trainer-1"}

    await system.until("both ranks read from the stream", both_read)
    sent = 0
    while sent < 40:  # a few at a time, so that either rank comes to read some
        await system.bus.append_all(TRAJECTORIES, sendable(system, sent, sent + 4))
        await system.bus.append_all(TRAJECTORIES, sendable(system, sent, sent + 2))  # a lost reply
        sent += 4
        await system.until("the stream is in the journal", lambda: _empty(system))
    owed = (sent * SESSION_BARS) // 16  # as many as one rank makes

    async def all_made() -> bool:
        return await system.detail("trainer", "update") >= owed

    await system.until(f"{owed} updates are made", all_made)
    follower = await system.beat("trainer-rank")
    assert follower is not None
    assert follower.instance == "trainer-1-rank-1"
    assert int(follower.detail["updates_here"] or 0) > 0
    os.kill(follower.pid, signal.SIGTERM)
    assert system.processes.pop("trainer").wait(PATIENCE_SECONDS) == 0
    assert system.log("trainer").count('"service_stopped"') == 2

    ids = system.journalled_ids()
    assert len(ids) == len(set(ids)) == sent
    manifest, _ = CheckpointStore(system.home / "checkpoints").newest_valid()
    assert manifest is not None
    assert manifest.episode == manifest.journal_position == sent
    assert manifest.update == owed
    assert await system.bus.heartbeats() == []


@pytest.mark.soak
async def test_torchrun_told_to_stop_has_its_ranks_stop_in_order_and_what_was_learned_is_kept(
    system: System,
) -> None:
    """As a container's end tells the first process alone; as a rule in the midst of learning."""
    torchrun = ("torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m")
    sent = 60
    owed = (sent * SESSION_BARS) // 16
    await system.bus.append_all(TRAJECTORIES, sendable(system, 0, sent))
    system.start("trainer", torchrun, GLOO_SOCKET_IFNAME="lo", MM_TRAINER__DEVICE="cpu")

    async def some_made() -> bool:
        return await system.detail("trainer", "update") > 10

    await system.until("some updates are made", some_made)
    assert system.stop("trainer") == 1  # torchrun's word for a signal
    log = system.log("trainer")
    assert log.count('"service_stopped"') == 2
    assert not any(f'"{event}"' in log for event in ("service_stopped_at_once", "service_failed"))
    assert await system.bus.heartbeats() == []
    manifest, _ = CheckpointStore(system.home / "checkpoints").newest_valid()
    assert manifest is not None
    assert 10 < manifest.update <= owed
    assert system.recorded("updates", "attempt") == list(range(1, manifest.update + 1))  # all that were made

    system.start("trainer")

    async def all_made() -> bool:
        return await system.detail("trainer", "update") == owed

    await system.until(f"{owed} updates are made", all_made)
    assert system.stop("trainer") == 0
    assert await _empty(system)
    ids = system.journalled_ids()
    assert len(ids) == len(set(ids)) == sent


async def test_of_three_ranks_each_hands_on_all_it_read_and_refuses_what_is_too_old(system: System) -> None:
    torchrun = ("torch.distributed.run", "--standalone", "--nproc-per-node", "3", "-m")
    intake_alone = {
        "MM_TRAINER__MIN_REPLAY_STEPS": "1000000",
        "MM_TRAINER__MAX_VERSION_LAG": "0",
        "GLOO_SOCKET_IFNAME": "lo",
        "MM_TRAINER__DEVICE": "cpu",
    }
    early, last, young = 10, 60, 1_000_000  # a version that no limit refuses
    rng = np.random.default_rng(0)
    await system.bus.append_all(TRAJECTORIES, sendable(system, 0, early, version=0))
    system.start("trainer", torchrun, **intake_alone)

    async def all_read_and_a_version_is_out() -> bool:
        version = await system.detail("trainer", "version")
        return version >= 1 and await _consumers(system) == {"trainer", "trainer-1", "trainer-2"}

    await system.until("all ranks read, and version 1 is published", all_read_and_a_version_is_out)
    for seed in range(early, last):
        version = 0 if seed % 2 else young
        await system.bus.append_all(TRAJECTORIES, sendable(system, seed, seed + 1, version=version))
        if seed % 10 == 0:  # a lost reply, of what was young when it first came
            await system.bus.append_all(TRAJECTORIES, sendable(system, 3, 4, version=0))
        # Any time between two looks of the leader: ranks read also while it takes what another handed on.
        await asyncio.sleep(rng.uniform(0.0, REPORT_SECONDS))
    await system.until("all is taken", lambda: _empty(system))
    follower = await system.beat("trainer-rank")
    assert follower is not None
    os.kill(follower.pid, signal.SIGTERM)
    assert system.processes.pop("trainer").wait(PATIENCE_SECONDS) == 0

    young_ids = [_id(seed) for seed in (*range(early), *range(early, last, 2))]
    assert sorted(system.journalled_ids()) == sorted(young_ids)
    reasons = [letter.reason for letter in await system.bus.letters(count=1_000)]
    assert sorted(reason.split(":")[0] for reason in reasons) == sorted(
        f"trajectory {_id(seed)}" for seed in range(early + 1, last, 2)
    )
    assert all("played by version 0, " in reason for reason in reasons)
    assert all(reason.endswith("; trainer.max_version_lag allows 0") for reason in reasons)
    told = [json.loads(line) for line in system.log("trainer").splitlines() if '"dead_lettered"' in line]
    assert {line["instance"] for line in told} - {"trainer-1"}  # not the leader's alone


def _id(seed: int) -> str:
    return str(random_trajectory(seed, SESSION_BARS).trajectory_id)


async def _consumers(system: System) -> set[str]:
    async with Redis.from_url(system.redis.url) as client:
        if not await client.exists(TRAJECTORIES.key):
            return set()
        told = await client.xinfo_consumers(TRAJECTORIES.key, TRAINER_GROUP)
        return {consumer["name"].decode() for consumer in told}


async def _empty(system: System) -> bool:
    return await system.bus.length(TRAJECTORIES) == 0
