"""The validator against a real Redis and a real store."""

import asyncio
import contextlib
import json
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import duckdb
import numpy as np
import pytest
from redis.asyncio import Redis

from services.validator.gate import GateConfig
from services.validator.service import ValidatorService
from services.validator.storage import Storage
from services.validator.validation import Standards, Validator
from shared.adapters.streams.bus import Bus
from shared.adapters.streams.entries import READ_COUNT, Entry
from shared.adapters.tables.validations import ValidationScope
from shared.adapters.versions.manifest import Pointed, Pointer
from shared.adapters.versions.promotions import require_record
from shared.errors import PromotionError, ServiceError
from shared.market.session import Split
from shared.messages.schemas import CheckpointPublished, Message, VersionPromoted
from shared.messages.streams import ALERTS, CHECKPOINTS, PROMOTIONS, VALIDATIONS, Stream
from shared.runtime.lifecycle import Lifecycle
from shared.runtime.redis_server import RedisServer
from shared.runtime.settings import ServiceSettings
from tests.services.validator.cases import STANDARDS, save_version, small_dataset, store_with
from tests.shared.adapters.judgements import announcement_of, row_of
from tests.shared.adapters.versions.checkpoint_versions import folder
from tests.waiting import PATIENCE_SECONDS

M = TypeVar("M", bound=Message)

#: Makes a validation slow enough to be stopped in the middle.
SLOW = replace(STANDARDS, search=replace(STANDARDS.search, simulations=400))

pytestmark = pytest.mark.usefixtures("bus")


def storage_in(folder: Path, *versions: int) -> Storage:
    return Storage(store_with(folder, *versions), folder / "validations")


def service_of(lifecycle: Lifecycle, storage: Storage, standards: Standards) -> ValidatorService:
    validator = Validator(small_dataset(), Split.VALIDATION, standards)
    return ValidatorService(lifecycle, validator, storage, standards.validation)


@asynccontextmanager
async def running(
    redis: RedisServer, storage: Storage, standards: Standards = STANDARDS
) -> AsyncIterator[Lifecycle]:
    lifecycle = Lifecycle("validator", ServiceSettings(redis_url=redis.url, instance="v"))
    running = asyncio.create_task(service_of(lifecycle, storage, standards).run())
    try:
        yield lifecycle
    finally:
        lifecycle.stop()
        await asyncio.wait_for(running, 10)
        await lifecycle.bus.close()


async def until_sent(bus: Bus, stream: Stream[M], count: int, *, seconds: float = 30) -> list[M]:
    """The first `count` messages of a stream, in the order in which they were sent."""
    messages: list[M] = []
    async with asyncio.timeout(seconds):
        async for entries in bus.follow(stream):
            messages.extend(entry.message for entry in entries)
            if len(messages) >= count:
                break
    return messages


async def until_heartbeat(lifecycle: Lifecycle, **wanted: int | None) -> None:
    """Wait until the heartbeat reports these details."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while any(lifecycle.heartbeat.detail.get(name) != value for name, value in wanted.items()):  # noqa: ASYNC110
            await asyncio.sleep(0.02)


async def publish(bus: Bus, *versions: int) -> None:
    for version in versions:
        message = CheckpointPublished(
            version=version, episode=version, update=version, weights_sha256="0" * 64
        )
        await bus.announce(CHECKPOINTS, message)


def done(storage: Storage) -> set[int]:
    return storage.records.done(ValidationScope(small_dataset().fingerprint, Split.VALIDATION))


async def test_versions_are_judged_newest_first_and_the_first_is_promoted(
    bus: Bus, redis_server: RedisServer, tmp_path: Path
) -> None:
    storage = storage_in(tmp_path, 1, 2, 3)
    await publish(bus, 1, 2, 3)
    async with running(redis_server, storage) as lifecycle:
        await until_heartbeat(lifecycle, done=3)
    validations = await until_sent(bus, VALIDATIONS, 3)
    assert [message.version for message in validations] == [3, 2, 1]
    assert done(storage) == {1, 2, 3}
    assert validations[0].num_trades > 0
    assert json.loads((storage.reports / "3.json").read_text())["passed_gates"] == ["paper"]
    assert (storage.reports / "2.html").is_file()
    reports = {v: json.loads((storage.reports / f"{v}.json").read_text()) for v in (1, 2, 3)}
    assert [reports[v]["superseded_by"] for v in (3, 2, 1)] == [None, 3, 3]
    promotions = await until_sent(bus, PROMOTIONS, 1)
    assert promotions[0].version == 3
    assert promotions[0].stage == "paper"
    passed = [message for message in validations if "paper" in message.passed_gates]
    assert len(promotions) == len(passed)
    best, promoted = storage.store.pointer(Pointer.BEST), storage.store.pointer(Pointer.PROMOTED)
    assert best is not None
    assert promoted is not None
    assert best.version == promoted.version == promotions[-1].version


async def test_a_restart_continues_with_the_unjudged_versions(
    bus: Bus, redis_server: RedisServer, tmp_path: Path
) -> None:
    storage = storage_in(tmp_path, 1, 2)
    await publish(bus, 1)
    async with running(redis_server, storage) as lifecycle:
        await until_heartbeat(lifecycle, done=1)
    assert done(storage) == {1}
    await publish(bus, 2)  # while the validator is down
    async with running(redis_server, storage) as lifecycle:
        await until_heartbeat(lifecycle, done=2)
    validations = await until_sent(bus, VALIDATIONS, 2)
    assert [message.version for message in validations] == [1, 2]


async def test_a_version_is_not_judged_on_bars_that_it_was_trained_on(
    bus: Bus, redis_server: RedisServer, tmp_path: Path
) -> None:
    """The same bars were split otherwise when version 2 was trained; their fingerprint is the same."""
    dataset, storage = small_dataset(), storage_in(tmp_path)
    first = dataset.bars.time_s[dataset.sessions.non_overlapping(Split.VALIDATION)[0]]
    save_version(storage.store, 1, trained_until=dataset.trained_until)
    save_version(storage.store, 2, trained_until=datetime.fromtimestamp(int(first), UTC))
    await publish(bus, 1, 2)
    async with running(redis_server, storage) as lifecycle:
        await until_heartbeat(lifecycle, done=2, skipped=1)
    assert [message.version for message in await until_sent(bus, VALIDATIONS, 1)] == [1]
    (alert,) = await until_sent(bus, ALERTS, 1)
    assert "version 2 cannot be judged: the version was trained on bars up to" in alert.detail


async def test_without_a_promoted_version_the_first_one_is_served_unproven(
    bus: Bus, redis_server: RedisServer, tmp_path: Path
) -> None:
    """The removed version 9 is the best. Its SQN is so high that versions 1 and 2 pass no gate."""
    storage = storage_in(tmp_path, 1, 2, 9)
    scope = ValidationScope(small_dataset().fingerprint, Split.VALIDATION)
    better = replace(row_of(scope, 9), sqn100=99.0)
    storage.records.record(better, np.array([1], np.int64), np.array([4.0]), announcement_of(9, scope))
    storage.records.mark_announced(scope, 9)
    storage.store.point(Pointer.BEST, 9)
    shutil.rmtree(folder(storage.store, 9))
    await publish(bus, 1)
    async with running(redis_server, storage) as lifecycle:
        await until_heartbeat(lifecycle, done=2)
        await publish(bus, 2)
        await until_heartbeat(lifecycle, done=3)
    validations = await until_sent(bus, VALIDATIONS, 2)
    assert [(message.version, message.passed_gates) for message in validations] == [(1, ()), (2, ())]
    promotions = await until_sent(bus, PROMOTIONS, await bus.length(PROMOTIONS))
    assert [(message.version, message.stage) for message in promotions] == [(1, "unproven")]
    assert storage.store.pointer(Pointer.PROMOTED) == Pointed(1, "unproven", ())
    assert storage.store.pointer(Pointer.BEST) == Pointed(9, None, ())


@pytest.mark.parametrize("wrong", ["edited", "of an earlier release", "judged by other settings"])
async def test_a_version_whose_report_cannot_promote_is_judged_again_at_start(
    bus: Bus, redis_server: RedisServer, tmp_path: Path, wrong: str
) -> None:
    storage = storage_in(tmp_path, 1, 2)
    report, manifest = storage.reports / "1.json", storage.store.manifest(1)
    await publish(bus, 1, 2)
    standards = STANDARDS
    if wrong == "judged by other settings":
        standards = replace(STANDARDS, gate=replace(STANDARDS.gate, live_min_years=0.0))
    async with running(redis_server, storage, standards) as lifecycle:
        await until_heartbeat(lifecycle, done=2)
    assert require_record(storage.reports, manifest).standards["gate"] == standards.document()["gate"]
    if wrong == "edited":
        report.write_text(report.read_text().replace('"validation"', '"train"'))
    if wrong == "of an earlier release":
        report.write_text('{"schema_version": 1, "version": 1, "passed_gates": ["paper"]}')
    if wrong != "judged by other settings":
        with pytest.raises(PromotionError):
            require_record(storage.reports, manifest)
    async with running(redis_server, storage) as lifecycle:
        await until_heartbeat(lifecycle, done=2, validating=None)
    assert require_record(storage.reports, manifest).standards["gate"] == STANDARDS.document()["gate"]
    again = [1, 2] if wrong == "judged by other settings" else [1]
    validations = await until_sent(bus, VALIDATIONS, 2 + len(again))
    assert sorted(message.version for message in validations[2:]) == again


async def test_after_a_long_absence_the_newest_version_is_judged_first(
    bus: Bus, redis_server: RedisServer, tmp_path: Path
) -> None:
    """More versions than one read of the stream returns; the store keeps only the last two."""
    last = 2 * READ_COUNT + 5
    storage = storage_in(tmp_path, last - 1, last)
    await publish(bus, *range(1, last + 1))
    async with running(redis_server, storage) as lifecycle:
        await until_heartbeat(lifecycle, done=last, skipped=last - 2)
    validations = await until_sent(bus, VALIDATIONS, 2)
    assert [message.version for message in validations] == [last, last - 1]
    alerts = await until_sent(bus, ALERTS, last - 2)
    assert [
        f"no version {version}" in alert.detail
        for version, alert in zip(range(last - 2, 0, -1), alerts, strict=True)
    ] == [True] * (last - 2)


async def test_a_version_that_cannot_be_judged_raises_an_alert_and_is_skipped(
    bus: Bus, redis_server: RedisServer, tmp_path: Path
) -> None:
    storage = storage_in(tmp_path, 1, 3)
    save_version(storage.store, 4, dataset="f" * 64)
    damaged = folder(storage.store, 3) / "weights.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    await publish(bus, 1, 2, 3, 4)
    async with running(redis_server, storage) as lifecycle:
        await until_heartbeat(lifecycle, done=4, skipped=3)
    validations = await until_sent(bus, VALIDATIONS, 1)
    assert [message.version for message in validations] == [1]
    assert done(storage) == {1, 2, 3, 4}
    alerts = await until_sent(bus, ALERTS, 3)
    assert [alert.name for alert in alerts] == ["validation_skipped"] * 3
    assert "was trained on data set ffff" in alerts[0].detail
    assert "the manifest says" in alerts[1].detail
    assert "no version 2" in alerts[2].detail


async def test_a_validation_stops_at_its_time_limit(
    bus: Bus, redis_server: RedisServer, tmp_path: Path
) -> None:
    storage = storage_in(tmp_path, 1)
    hasty = replace(STANDARDS, validation=replace(STANDARDS.validation, time_limit_seconds=1e-3))
    await publish(bus, 1)
    async with running(redis_server, storage, hasty) as lifecycle:
        await until_heartbeat(lifecycle, done=1, skipped=1)
    (alert,) = await until_sent(bus, ALERTS, 1)
    assert "reached its limit of 0.001 s" in alert.detail
    assert done(storage) == {1}
    assert await bus.length(VALIDATIONS) == 0


async def test_the_validator_waits_while_its_database_is_in_use(
    bus: Bus, redis_server: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It waits at its start, before a judgement and after it, and neither skips nor loses a version."""
    monkeypatch.setattr("shared.adapters.tables.validations.LOCK_SECONDS", 0.1)
    monkeypatch.setattr("services.validator.storage.STORE_RETRY_SECONDS", 0.05)
    storage = storage_in(tmp_path, 1)
    storage.reports.mkdir(exist_ok=True)
    await publish(bus, 1)
    with contextlib.closing(duckdb.connect(str(storage.records.path))):
        async with running(redis_server, storage):
            await asyncio.sleep(0.5)  # it stops when asked to
    async with running(redis_server, storage) as lifecycle:
        with contextlib.closing(duckdb.connect(str(storage.records.path))):
            await asyncio.sleep(2.0)
            assert await bus.length(VALIDATIONS) == 0
        await until_heartbeat(lifecycle, done=1, skipped=0)
    assert done(storage) == {1}
    assert await bus.length(ALERTS) == 0


async def test_a_missing_report_is_made_again_even_if_redis_lost_the_version(
    bus: Bus, redis_server: RedisServer, tmp_path: Path
) -> None:
    """Redis lost its data, and with it the stream of versions."""
    storage = storage_in(tmp_path, 1)
    await publish(bus, 1)
    async with running(redis_server, storage) as lifecycle:
        await until_heartbeat(lifecycle, done=1)
    (storage.reports / "1.json").unlink()
    async with Redis.from_url(redis_server.url) as plain:
        await plain.flushall()
    async with running(redis_server, storage) as lifecycle:
        await until_heartbeat(lifecycle, done=1)
    require_record(storage.reports, storage.store.manifest(1))


async def test_a_version_whose_judgement_was_stopped_is_judged_at_the_next_start(
    bus: Bus, redis_server: RedisServer, tmp_path: Path
) -> None:
    storage = storage_in(tmp_path, 1)
    await publish(bus, 1)
    async with running(redis_server, storage, SLOW) as lifecycle:
        await until_heartbeat(lifecycle, validating=1)
    assert await bus.length(VALIDATIONS) == 0
    assert done(storage) == set()
    assert not (storage.reports / "1.json").exists()
    async with running(redis_server, storage) as lifecycle:
        await until_heartbeat(lifecycle, done=1)
    assert done(storage) == {1}


async def test_a_failure_to_follow_versions_stops_the_service_during_a_judgement(
    bus: Bus, redis_server: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = storage_in(tmp_path, 1)
    await publish(bus, 1)
    lifecycle = Lifecycle("validator", ServiceSettings(redis_url=redis_server.url, instance="v"))
    follow = lifecycle.bus.follow

    async def follow_until_judging(stream: Stream[M]) -> AsyncIterator[list[Entry[M]]]:
        async for entries in follow(stream):
            yield entries
            await until_heartbeat(lifecycle, validating=1)
            raise ServiceError("Redis refuses to follow mm:checkpoints")

    monkeypatch.setattr(lifecycle.bus, "follow", follow_until_judging)
    with pytest.raises(ServiceError, match="Redis refuses to follow mm:checkpoints"):
        await asyncio.wait_for(service_of(lifecycle, storage, SLOW).run(), 60)
    assert done(storage) == set()  # it is judged after the next start
    await lifecycle.bus.close()


async def test_a_live_version_is_not_replaced_by_a_paper_promotion(
    bus: Bus, redis_server: RedisServer, tmp_path: Path
) -> None:
    storage = storage_in(tmp_path, 1, 2)
    storage.store.point(Pointer.PROMOTED, 1, stage="live")
    await publish(bus, 2)
    async with running(redis_server, storage) as lifecycle:
        await until_heartbeat(lifecycle, done=1)
    promoted = storage.store.pointer(Pointer.PROMOTED)
    assert promoted is not None
    assert (promoted.version, promoted.stage) == (1, "live")
    assert await bus.length(PROMOTIONS) == 0


async def test_a_damaged_best_pointer_raises_one_alert_and_the_next_version_sets_it(
    bus: Bus, redis_server: RedisServer, tmp_path: Path
) -> None:
    """Version 2 does worse than 1, and 3 worse than 2."""
    storage = storage_in(tmp_path, 1, 2, 3)
    await publish(bus, 1)
    async with running(redis_server, storage) as lifecycle:
        await until_heartbeat(lifecycle, done=1)
        (tmp_path / "checkpoints" / "best.json").write_text("{")
        await publish(bus, 4)  # no such version in the store
        await until_heartbeat(lifecycle, done=2, skipped=1)
        await publish(bus, 2)
        await until_heartbeat(lifecycle, done=3, skipped=1)
        await publish(bus, 3)
        await until_heartbeat(lifecycle, done=4, skipped=1)
    incumbents = [json.loads((storage.reports / f"{v}.json").read_text())["incumbent"] for v in (1, 2, 3)]
    assert incumbents == [None, None, 2]
    assert storage.store.pointer(Pointer.BEST) == Pointed(2, None, ())
    alerts = await until_sent(bus, ALERTS, 2)
    assert [alert.name for alert in alerts] == ["best_damaged", "validation_skipped"]
    assert "best.json: damaged pointer" in alerts[0].detail
    assert "the next version that passes the paper gate sets it again" in alerts[0].detail


async def test_a_pass_by_earlier_settings_makes_no_version_the_best(
    bus: Bus, redis_server: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The validator was killed before it announced the pass, and starts again with a stricter gate."""
    storage = storage_in(tmp_path, 5)
    await publish(bus, 5)
    with monkeypatch.context() as patch:
        await killed(redis_server, storage, "judged", patch)
    async with running(redis_server, storage, replace(STANDARDS, gate=GateConfig())) as lifecycle:
        await until_heartbeat(lifecycle, done=1)
    validations = await until_sent(bus, VALIDATIONS, 2)
    assert [message.passed_gates for message in validations] == [("paper",), ()]
    assert storage.store.pointer(Pointer.BEST) is None
    assert storage.store.pointer(Pointer.PROMOTED) == Pointed(5, "unproven", ())


@pytest.mark.parametrize("moment", ["judged", "best moved", "promoted", "announced"])
async def test_a_validator_killed_while_announcing_reaches_the_same_result(
    bus: Bus, redis_server: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """Version 5 passes because there is no best version yet; version 6 does not beat it."""
    storage = storage_in(tmp_path, 5, 6)
    await publish(bus, 5)
    with monkeypatch.context() as patch:
        await killed(redis_server, storage, moment, patch)
    assert [version for version in (5, 6) if (storage.reports / f"{version}.json").exists()] == [5]
    await publish(bus, 6)  # while the validator is down
    async with running(redis_server, storage) as lifecycle:
        await until_heartbeat(lifecycle, done=2, skipped=0)
    results = {
        (message.version, message.created_at, message.passed_gates)
        for message in await until_sent(bus, VALIDATIONS, await bus.length(VALIDATIONS))
    }
    assert sorted((version, gates) for version, _, gates in results) == [(5, ("paper",)), (6, ())]
    assert storage.store.pointer(Pointer.BEST) == Pointed(5, None, ())
    assert storage.store.pointer(Pointer.PROMOTED) == Pointed(5, "paper", ())
    promotions = await until_sent(bus, PROMOTIONS, await bus.length(PROMOTIONS))
    assert {(message.version, message.stage) for message in promotions} == {(5, "paper")}
    assert done(storage) == {5, 6}
    num_announced = await bus.length(VALIDATIONS)
    async with running(redis_server, storage) as lifecycle:
        await until_heartbeat(lifecycle, done=2)
    assert await bus.length(VALIDATIONS) == num_announced


async def killed(redis: RedisServer, storage: Storage, moment: str, patch: pytest.MonkeyPatch) -> None:
    """Run a validator that fails at this moment while it announces its judgement."""
    lifecycle = Lifecycle("validator", ServiceSettings(redis_url=redis.url, instance="v"))
    announce = lifecycle.bus.announce
    fails_at: dict[str, Stream[Any]] = {
        "judged": VALIDATIONS,
        "promoted": PROMOTIONS,
        "announced": PROMOTIONS,
    }

    async def announce_or_fail(stream: Stream[M], message: M) -> None:
        if stream is not fails_at.get(moment):
            await announce(stream, message)
            return
        if moment == "announced":
            await announce(stream, message)
        raise ServiceError("killed")

    def fail(*_: object, **__: object) -> VersionPromoted:
        raise ServiceError("killed")

    patch.setattr(lifecycle.bus, "announce", announce_or_fail)
    if moment == "best moved":
        patch.setattr("services.validator.promotion.promote", fail)
    with pytest.raises(ServiceError, match="killed"):
        await asyncio.wait_for(service_of(lifecycle, storage, STANDARDS).run(), 120)
    await lifecycle.bus.close()
