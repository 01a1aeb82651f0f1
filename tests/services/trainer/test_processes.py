"""Trainer and self-play as real processes over a real Redis: killed, stopped and restarted.

Invariants: each trajectory in the stream is learned from once; versions are complete, announced, and
numbered without gaps.
"""

import signal
from dataclasses import replace

import pytest

from services.trainer.intake.journal import Journal
from shared.adapters.versions.store import CheckpointStore
from shared.messages.streams import CHECKPOINTS, DEAD, TRAJECTORIES
from tests.services.trainer.processes import System, drained, sendable


async def test_worker_and_trainer_learn_and_stop_gracefully(system: System) -> None:
    system.start("trainer")
    system.start("selfplay")
    await system.learned_from(25)

    async def plays_newer() -> bool:
        return await system.detail("selfplay", "version") >= 1

    await system.until("the worker plays a later version", plays_newer)
    assert system.stop("selfplay") == 0
    await system.until("the stream is learned from", lambda: drained(system))
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
    assert max(versions) >= 1  # later sessions were played by a trained version
    assert await system.bus.length(DEAD) == 0


#: Settings of the tuned profile that change an update.
TUNED = {
    "MM_LEARNER__AVERAGE_DECAY": "0.9",
    "MM_LEARNER__CONSTANT_UPDATES": "7",
    "MM_LEARNER__SHAPING": "unrealised",
    "MM_LEARNER__TRACE_FLOOR": "0.1",
}


@pytest.mark.parametrize(
    "learner",
    [
        pytest.param({}, id="reference", marks=pytest.mark.soak),
        pytest.param(TUNED, id="as tuned"),
        pytest.param(
            {**TUNED, "MM_LEARNER__PRECISION": "bfloat16"},
            id="as tuned, bfloat16",
            marks=pytest.mark.soak,
        ),
    ],
)
async def test_a_run_killed_5_updates_after_a_checkpoint_equals_an_uninterrupted_run(
    system: System, learner: dict[str, str]
) -> None:
    """On one thread, all bits are equal. Version 1 is saved at update 10; the kill loses 5 later updates."""
    setting = {**learner, "MM_TRAINER__PUBLISH_EVERY_EPISODES": "4"}  # worth 10 updates

    async def learn(sent: range, updates: int, version: int) -> None:
        for each in sendable(system, sent.start, sent.stop):
            await system.bus.append(TRAJECTORIES, *each)

        async def learned() -> bool:
            figures = [await system.detail("trainer", name) for name in ("update", "version")]
            return figures == [updates, version]

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
        expected, found = one.manifest(version), other.manifest(version)
        assert expected.update == found.update == update
        assert expected.state == found.state
        assert expected.files == found.files  # SHA-256 of weights, moments and the weights behind an average
    hashes = {other.manifest(version).files["weights.safetensors"].sha256 for version in other.versions()}
    assert len(hashes) == 3  # each 10 updates changed something
