"""Several ranks as real processes under torchrun: they read, learn and stop together."""

import asyncio
import json
import os
import re
import signal

import httpx
import numpy as np
import pytest

from services.trainer.leader import EXCHANGE_SECONDS
from shared.adapters.versions.store import CheckpointStore
from shared.messages.codec import encode_trajectory
from shared.messages.streams import TRAJECTORIES
from shared.runtime.ports import free_port
from tests.services.trainer.processes import SESSION_BARS, System, drained, sendable
from tests.shared.messages.trajectories import random_trajectory
from tests.waiting import PATIENCE_SECONDS


@pytest.mark.parametrize("ranks", [2, pytest.param(3, marks=pytest.mark.soak)])
async def test_ranks_learn_together_refuse_stale_trajectories_and_stop_when_one_is_stopped(
    system: System, ranks: int
) -> None:
    torchrun = ("torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks), "-m")
    port = free_port()
    early, last, young = 10, 34, 1_000_000  # `young` is a version that is never stale
    rng = np.random.default_rng(0)
    await system.bus.append_all(TRAJECTORIES, sendable(system, 0, early, version=0))
    system.start(
        "trainer",
        torchrun,
        MM_TRAINER__MAX_VERSION_LAG="0",
        MM_TRAINER__DEVICE="cpu",
        MM_METRICS_PORT=str(port),
        GLOO_SOCKET_IFNAME="lo",
    )

    async def all_read_and_a_version_is_out() -> bool:
        present = len(await system.bus.heartbeats())
        return await system.detail("trainer", "version") >= 1 and present == ranks

    await system.until("all ranks read, and version 1 is published", all_read_and_a_version_is_out)
    for seed in range(early, last):
        version = 0 if seed % 2 else young
        await system.bus.append_all(TRAJECTORIES, sendable(system, seed, seed + 1, version=version))
        if seed % 10 == 0:  # a redelivery of a trajectory that was not stale at first
            await system.bus.append_all(TRAJECTORIES, sendable(system, 3, 4, version=0))
        if seed % 4 == 0:
            foreign = encode_trajectory(random_trajectory(1_000 + seed, SESSION_BARS, start_bar=500))
            await system.bus.append_all(TRAJECTORIES, [foreign])
        # Send at any time between two exchanges, also while the leader journals another rank's offer.
        await asyncio.sleep(rng.uniform(0.0, EXCHANGE_SECONDS))
    await system.until("the stream is empty", lambda: drained(system))
    foreign_seeds, stale_seeds = range(early + 2, last, 4), range(early + 1, last, 2)
    young_seeds = [*range(early), *range(early, last, 2)]
    owed = (len(young_seeds) * SESSION_BARS) // 16  # the same number as with one rank

    async def all_refused_are_counted() -> bool:
        return await _refused(port) == {"unusable": len(foreign_seeds), "stale": len(stale_seeds)}

    async def all_made() -> bool:
        return await system.detail("trainer", "update") >= owed

    await system.until("the leader has counted all refusals", all_refused_are_counted)
    await system.until(f"{owed} updates are made", all_made)
    extra = 0  # on a busy machine the leader may have read every refused entry so far
    while not _dead_lettering_ranks(system) - {"trainer-1"}:
        foreign = encode_trajectory(random_trajectory(2_000 + extra, SESSION_BARS, start_bar=500))
        await system.bus.append_all(TRAJECTORIES, [foreign])
        extra += 1
        await system.until("the stream is empty", lambda: drained(system))
    follower = await system.beat("trainer-rank")
    assert follower is not None
    assert re.fullmatch(r"trainer-1-rank-[12]", follower.instance)
    assert int(follower.detail["updates_here"] or 0) > 0
    os.kill(follower.pid, signal.SIGTERM)
    assert system.processes.pop("trainer").wait(PATIENCE_SECONDS) == 0
    assert system.log("trainer").count('"service_stopped"') == ranks
    assert await system.bus.heartbeats() == []

    assert sorted(system.journalled_ids()) == sorted(_id(seed) for seed in young_seeds)
    manifest, _ = CheckpointStore(system.home / "checkpoints").newest_valid()
    assert manifest is not None
    assert manifest.episode == manifest.journal_position == len(young_seeds)
    assert manifest.update == owed
    letters = [letter.reason for letter in await system.bus.dead.letters(count=1_000)]
    reasons = [reason for reason in letters if "data set" not in reason]
    assert len(letters) - len(reasons) == len(foreign_seeds) + extra
    assert sorted(reason.split(":")[0] for reason in reasons) == sorted(
        f"trajectory {_id(seed)}" for seed in stale_seeds
    )
    assert all("played by version 0, " in reason for reason in reasons)
    assert all(reason.endswith("; trainer.max_version_lag allows 0") for reason in reasons)


def _dead_lettering_ranks(system: System) -> set[str]:
    """The ranks whose log has a dead letter."""
    lines = system.log("trainer").splitlines()
    return {json.loads(line)["instance"] for line in lines if '"dead_lettered"' in line}


@pytest.mark.soak
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
async def test_stopping_torchrun_stops_its_ranks_gracefully_and_keeps_what_was_learned(
    system: System, signum: signal.Signals
) -> None:
    """Only torchrun gets the signal, as on a container's stop or Ctrl-C: ranks have their own sessions."""
    torchrun = ("torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m")
    sent = 60
    owed = (sent * SESSION_BARS) // 16
    await system.bus.append_all(TRAJECTORIES, sendable(system, 0, sent))
    system.start("trainer", torchrun, GLOO_SOCKET_IFNAME="lo", MM_TRAINER__DEVICE="cpu")

    async def some_made() -> bool:
        return await system.detail("trainer", "update") > 10

    await system.until("some updates are made", some_made)
    assert system.stop("trainer", signum) == 1  # torchrun's exit status after a signal
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
    assert await drained(system)
    ids = system.journalled_ids()
    assert len(ids) == len(set(ids)) == sent


def _id(seed: int) -> str:
    return str(random_trajectory(seed, SESSION_BARS).trajectory_id)


async def _refused(port: int) -> dict[str, float]:
    """The leader's exported counts by reason."""
    async with httpx.AsyncClient(trust_env=False) as client:
        metrics = (await client.get(f"http://127.0.0.1:{port}/metrics")).text
    found = re.findall(r'^mm_trainer_refused_total{reason="(\w+)"} (\S+)$', metrics, re.MULTILINE)
    return {reason: float(count) for reason, count in found}
