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
from services.validator.service import Desk, ValidatorService
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

#: A validation that is stopped in its middle.
SLOW = replace(STANDARDS, search=replace(STANDARDS.search, simulations=400))

pytestmark = pytest.mark.usefixtures("bus")


def desk_in(folder: Path, *versions: int) -> Desk:
    return Desk(store_with(folder, *versions), folder / "validations")


def service_of(lifecycle: Lifecycle, desk: Desk, standards: Standards) -> ValidatorService:
    validator = Validator(small_dataset(), Split.VALIDATION, standards)
    return ValidatorService(lifecycle, validator, desk, standards.validation)


@asynccontextmanager
async def running(
    redis: RedisServer, desk: Desk, standards: Standards = STANDARDS
) -> AsyncIterator[Lifecycle]:
    lifecycle = Lifecycle("validator", ServiceSettings(redis_url=redis.url, instance="v"))
    running = asyncio.create_task(service_of(lifecycle, desk, standards).run())
    try:
        yield lifecycle
    finally:
        lifecycle.stop()
        await asyncio.wait_for(running, 10)
        await lifecycle.bus.close()


async def until_told(bus: Bus, stream: Stream[M], count: int, *, seconds: float = 30) -> list[M]:
    """The first `count` messages of a stream, in the order in which they were sent."""
    messages: list[M] = []
    async with asyncio.timeout(seconds):
        async for entries in bus.follow(stream):
            messages.extend(entry.message for entry in entries)
            if len(messages) >= count:
                break
    return messages


async def until_heartbeat(lifecycle: Lifecycle, **wanted: int | None) -> None:
    """Wait until the heartbeat says so; it tells, it does not call."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while any(lifecycle.heartbeat.detail.get(name) != value for name, value in wanted.items()):  # noqa: ASYNC110
            await asyncio.sleep(0.02)


async def publish(bus: Bus, *versions: int) -> None:
    for version in versions:
        message = CheckpointPublished(
            version=version, episode=version, update=version, weights_sha256="0" * 64
        )
        await bus.announce(CHECKPOINTS, message)


def done(desk: Desk) -> set[int]:
    return desk.records.done(ValidationScope(small_dataset().fingerprint, Split.VALIDATION))


async def test_versions_are_judged_newest_first_and_the_first_is_promoted(
    bus: Bus, redis_server: RedisServer, tmp_path: Path
) -> None:
    desk = desk_in(tmp_path, 1, 2, 3)
    await publish(bus, 1, 2, 3)
    async with running(redis_server, desk) as lifecycle:
        await until_heartbeat(lifecycle, done=3)
    validations = await until_told(bus, VALIDATIONS, 3)
    assert [message.version for message in validations] == [3, 2, 1]
    assert done(desk) == {1, 2, 3}
    assert validations[0].num_trades > 0
    assert json.loads((desk.reports / "3.json").read_text())["passed_gates"] == ["paper"]
    assert (desk.reports / "2.html").is_file()
    reports = {v: json.loads((desk.reports / f"{v}.json").read_text()) for v in (1, 2, 3)}
    assert [reports[v]["superseded_by"] for v in (3, 2, 1)] == [None, 3, 3]
    promotions = await until_told(bus, PROMOTIONS, 1)
    assert promotions[0].version == 3
    assert promotions[0].stage == "paper"
    passed = [message for message in validations if "paper" in message.passed_gates]
    assert len(promotions) == len(passed)
    best, promoted = desk.store.pointer(Pointer.BEST), desk.store.pointer(Pointer.PROMOTED)
    assert best is not None
    assert promoted is not None
    assert best.version == promoted.version == promotions[-1].version


async def test_a_restart_goes_on_from_where_it_stood(
    bus: Bus, redis_server: RedisServer, tmp_path: Path
) -> None:
    desk = desk_in(tmp_path, 1, 2)
    await publish(bus, 1)
    async with running(redis_server, desk) as lifecycle:
        await until_heartbeat(lifecycle, done=1)
    assert done(desk) == {1}
    await publish(bus, 2)  # while it is away
    async with running(redis_server, desk) as lifecycle:
        await until_heartbeat(lifecycle, done=2)
    validations = await until_told(bus, VALIDATIONS, 2)
    assert [message.version for message in validations] == [1, 2]


async def test_a_version_is_not_judged_on_bars_that_it_was_trained_on(
    bus: Bus, redis_server: RedisServer, tmp_path: Path
) -> None:
    """The same bars were split otherwise when version 2 was trained; their fingerprint is the same."""
    dataset, desk = small_dataset(), desk_in(tmp_path)
    first = dataset.bars.time_s[dataset.sessions.non_overlapping(Split.VALIDATION)[0]]
    save_version(desk.store, 1, trained_until=dataset.trained_until)
    save_version(desk.store, 2, trained_until=datetime.fromtimestamp(int(first), UTC))
    await publish(bus, 1, 2)
    async with running(redis_server, desk) as lifecycle:
        await until_heartbeat(lifecycle, done=2, skipped=1)
    assert [message.version for message in await until_told(bus, VALIDATIONS, 1)] == [1]
    (alert,) = await until_told(bus, ALERTS, 1)
    assert "version 2 cannot be judged: the version was trained on bars up to" in alert.detail


async def test_where_none_is_promoted_the_first_version_is_served_unproven(
    bus: Bus, redis_server: RedisServer, tmp_path: Path
) -> None:
    """Version 9 was judged much better, so that 1 and 2 pass no gate, and is gone."""
    desk = desk_in(tmp_path, 1, 2, 9)
    ground = ValidationScope(small_dataset().fingerprint, Split.VALIDATION)
    better = replace(row_of(ground, 9), sqn100=99.0)
    desk.records.record(better, np.array([1], np.int64), np.array([4.0]), announcement_of(9, ground))
    desk.records.mark_announced(ground, 9)
    desk.store.point(Pointer.BEST, 9)
    shutil.rmtree(folder(desk.store, 9))
    await publish(bus, 1)
    async with running(redis_server, desk) as lifecycle:
        await until_heartbeat(lifecycle, done=2)
        await publish(bus, 2)
        await until_heartbeat(lifecycle, done=3)
    validations = await until_told(bus, VALIDATIONS, 2)
    assert [(message.version, message.passed_gates) for message in validations] == [(1, ()), (2, ())]
    promotions = await until_told(bus, PROMOTIONS, await bus.length(PROMOTIONS))
    assert [(message.version, message.stage) for message in promotions] == [(1, "unproven")]
    assert desk.store.pointer(Pointer.PROMOTED) == Pointed(1, "unproven", ())
    assert desk.store.pointer(Pointer.BEST) == Pointed(9, None, ())


@pytest.mark.parametrize("wrong", ["edited", "of an earlier release", "judged by other settings"])
async def test_at_the_start_a_report_that_cannot_promote_is_made_again(
    bus: Bus, redis_server: RedisServer, tmp_path: Path, wrong: str
) -> None:
    desk = desk_in(tmp_path, 1, 2)
    report, manifest = desk.reports / "1.json", desk.store.manifest(1)
    await publish(bus, 1, 2)
    standards = STANDARDS
    if wrong == "judged by other settings":
        standards = replace(STANDARDS, gate=replace(STANDARDS.gate, live_min_years=0.0))
    async with running(redis_server, desk, standards) as lifecycle:
        await until_heartbeat(lifecycle, done=2)
    assert require_record(desk.reports, manifest).standards["gate"] == standards.document()["gate"]
    if wrong == "edited":
        report.write_text(report.read_text().replace('"validation"', '"train"'))
    if wrong == "of an earlier release":
        report.write_text('{"schema_version": 1, "version": 1, "passed_gates": ["paper"]}')
    if wrong != "judged by other settings":
        with pytest.raises(PromotionError):
            require_record(desk.reports, manifest)
    async with running(redis_server, desk) as lifecycle:
        await until_heartbeat(lifecycle, done=2, validating=None)
    assert require_record(desk.reports, manifest).standards["gate"] == STANDARDS.document()["gate"]
    again = [1, 2] if wrong == "judged by other settings" else [1]
    validations = await until_told(bus, VALIDATIONS, 2 + len(again))
    assert sorted(message.version for message in validations[2:]) == again


async def test_after_a_long_absence_the_newest_of_all_is_judged_first(
    bus: Bus, redis_server: RedisServer, tmp_path: Path
) -> None:
    """More versions than one reading of the stream brings; only the last two are kept."""
    last = 2 * READ_COUNT + 5
    desk = desk_in(tmp_path, last - 1, last)
    await publish(bus, *range(1, last + 1))
    async with running(redis_server, desk) as lifecycle:
        await until_heartbeat(lifecycle, done=last, skipped=last - 2)
    validations = await until_told(bus, VALIDATIONS, 2)
    assert [message.version for message in validations] == [last, last - 1]
    alerts = await until_told(bus, ALERTS, last - 2)
    assert [
        f"no version {version}" in alert.detail
        for version, alert in zip(range(last - 2, 0, -1), alerts, strict=True)
    ] == [True] * (last - 2)


async def test_a_version_that_cannot_be_judged_is_told_of_and_left(
    bus: Bus, redis_server: RedisServer, tmp_path: Path
) -> None:
    desk = desk_in(tmp_path, 1, 3)
    save_version(desk.store, 4, dataset="f" * 64)
    damaged = folder(desk.store, 3) / "weights.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    await publish(bus, 1, 2, 3, 4)
    async with running(redis_server, desk) as lifecycle:
        await until_heartbeat(lifecycle, done=4, skipped=3)
    validations = await until_told(bus, VALIDATIONS, 1)
    assert [message.version for message in validations] == [1]
    assert done(desk) == {1, 2, 3, 4}
    alerts = await until_told(bus, ALERTS, 3)
    assert [alert.name for alert in alerts] == ["validation_skipped"] * 3
    assert "was trained on data set ffff" in alerts[0].detail
    assert "the manifest says" in alerts[1].detail
    assert "no version 2" in alerts[2].detail


async def test_the_time_limit_ends_a_validation(bus: Bus, redis_server: RedisServer, tmp_path: Path) -> None:
    desk = desk_in(tmp_path, 1)
    hasty = replace(STANDARDS, validation=replace(STANDARDS.validation, time_limit_seconds=1e-3))
    await publish(bus, 1)
    async with running(redis_server, desk, hasty) as lifecycle:
        await until_heartbeat(lifecycle, done=1, skipped=1)
    (alert,) = await until_told(bus, ALERTS, 1)
    assert "reached its limit of 0.001 s" in alert.detail
    assert done(desk) == {1}
    assert await bus.length(VALIDATIONS) == 0


async def test_while_its_database_is_in_use_the_validator_waits(
    bus: Bus, redis_server: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At its start, before a judgement and after it; no version is skipped and none lost."""
    monkeypatch.setattr("shared.adapters.tables.validations.LOCK_SECONDS", 0.1)
    monkeypatch.setattr("services.validator.service.STORE_RETRY_SECONDS", 0.05)
    desk = desk_in(tmp_path, 1)
    desk.reports.mkdir(exist_ok=True)
    await publish(bus, 1)
    with contextlib.closing(duckdb.connect(str(desk.records.path))):
        async with running(redis_server, desk):
            await asyncio.sleep(0.5)  # and it ends when it is asked to
    async with running(redis_server, desk) as lifecycle:
        with contextlib.closing(duckdb.connect(str(desk.records.path))):
            await asyncio.sleep(2.0)
            assert await bus.length(VALIDATIONS) == 0
        await until_heartbeat(lifecycle, done=1, skipped=0)
    assert done(desk) == {1}
    assert await bus.length(ALERTS) == 0


async def test_what_is_judged_again_needs_no_announcement(
    bus: Bus, redis_server: RedisServer, tmp_path: Path
) -> None:
    """Redis was lost, and with it the stream of versions."""
    desk = desk_in(tmp_path, 1)
    await publish(bus, 1)
    async with running(redis_server, desk) as lifecycle:
        await until_heartbeat(lifecycle, done=1)
    (desk.reports / "1.json").unlink()
    async with Redis.from_url(redis_server.url) as plain:
        await plain.flushall()
    async with running(redis_server, desk) as lifecycle:
        await until_heartbeat(lifecycle, done=1)
    require_record(desk.reports, desk.store.manifest(1))


async def test_a_stop_in_the_middle_leaves_the_version_for_the_next_start(
    bus: Bus, redis_server: RedisServer, tmp_path: Path
) -> None:
    desk = desk_in(tmp_path, 1)
    await publish(bus, 1)
    async with running(redis_server, desk, SLOW) as lifecycle:
        await until_heartbeat(lifecycle, validating=1)
    assert await bus.length(VALIDATIONS) == 0
    assert done(desk) == set()
    assert not (desk.reports / "1.json").exists()
    async with running(redis_server, desk) as lifecycle:
        await until_heartbeat(lifecycle, done=1)
    assert done(desk) == {1}


async def test_a_failure_to_hear_of_versions_ends_the_service_also_while_it_judges(
    bus: Bus, redis_server: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk = desk_in(tmp_path, 1)
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
        await asyncio.wait_for(service_of(lifecycle, desk, SLOW).run(), 60)
    assert done(desk) == set()  # its turn comes again
    await lifecycle.bus.close()


async def test_a_live_version_is_not_replaced_by_a_paper_promotion(
    bus: Bus, redis_server: RedisServer, tmp_path: Path
) -> None:
    desk = desk_in(tmp_path, 1, 2)
    desk.store.point(Pointer.PROMOTED, 1, stage="live")
    await publish(bus, 2)
    async with running(redis_server, desk) as lifecycle:
        await until_heartbeat(lifecycle, done=1)
    promoted = desk.store.pointer(Pointer.PROMOTED)
    assert promoted is not None
    assert (promoted.version, promoted.stage) == (1, "live")
    assert await bus.length(PROMOTIONS) == 0


async def test_a_damaged_best_pointer_is_told_once_and_set_again_by_the_next_version(
    bus: Bus, redis_server: RedisServer, tmp_path: Path
) -> None:
    """Version 2 does worse than 1 does, and 3 worse than 2."""
    desk = desk_in(tmp_path, 1, 2, 3)
    await publish(bus, 1)
    async with running(redis_server, desk) as lifecycle:
        await until_heartbeat(lifecycle, done=1)
        (tmp_path / "checkpoints" / "best.json").write_text("{")
        await publish(bus, 4)  # no such version in the store
        await until_heartbeat(lifecycle, done=2, skipped=1)
        await publish(bus, 2)
        await until_heartbeat(lifecycle, done=3, skipped=1)
        await publish(bus, 3)
        await until_heartbeat(lifecycle, done=4, skipped=1)
    incumbents = [json.loads((desk.reports / f"{v}.json").read_text())["incumbent"] for v in (1, 2, 3)]
    assert incumbents == [None, None, 2]
    assert desk.store.pointer(Pointer.BEST) == Pointed(2, None, ())
    alerts = await until_told(bus, ALERTS, 2)
    assert [alert.name for alert in alerts] == ["best_damaged", "validation_skipped"]
    assert "best.json: damaged pointer" in alerts[0].detail
    assert "the next version judged sets it again" in alerts[0].detail


async def test_a_pass_by_earlier_settings_makes_no_version_the_best(
    bus: Bus, redis_server: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The validator was killed before it announced the pass, and starts again with a stricter gate."""
    desk = desk_in(tmp_path, 5)
    await publish(bus, 5)
    with monkeypatch.context() as patch:
        await killed(redis_server, desk, "judged", patch)
    async with running(redis_server, desk, replace(STANDARDS, gate=GateConfig())) as lifecycle:
        await until_heartbeat(lifecycle, done=1)
    validations = await until_told(bus, VALIDATIONS, 2)
    assert [message.passed_gates for message in validations] == [("paper",), ()]
    assert desk.store.pointer(Pointer.BEST) is None
    assert desk.store.pointer(Pointer.PROMOTED) == Pointed(5, "unproven", ())


@pytest.mark.parametrize("moment", ["judged", "best moved", "promoted", "told"])
async def test_a_validator_killed_while_it_tells_comes_to_the_same(
    bus: Bus, redis_server: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """The first version passes with 14 trades. It would not as a later one, nor would 6 with it to beat."""
    desk = desk_in(tmp_path, 5, 6)
    await publish(bus, 5)
    with monkeypatch.context() as patch:
        await killed(redis_server, desk, moment, patch)
    assert [version for version in (5, 6) if (desk.reports / f"{version}.json").exists()] == [5]
    await publish(bus, 6)  # while it is away
    async with running(redis_server, desk) as lifecycle:
        await until_heartbeat(lifecycle, done=2, skipped=0)
    results = {
        (message.version, message.created_at, message.passed_gates)
        for message in await until_told(bus, VALIDATIONS, await bus.length(VALIDATIONS))
    }
    assert sorted((version, gates) for version, _, gates in results) == [(5, ("paper",)), (6, ())]
    assert desk.store.pointer(Pointer.BEST) == Pointed(5, None, ())
    assert desk.store.pointer(Pointer.PROMOTED) == Pointed(5, "paper", ())
    promotions = await until_told(bus, PROMOTIONS, await bus.length(PROMOTIONS))
    assert {(message.version, message.stage) for message in promotions} == {(5, "paper")}
    assert done(desk) == {5, 6}
    told = await bus.length(VALIDATIONS)
    async with running(redis_server, desk) as lifecycle:
        await until_heartbeat(lifecycle, done=2)
    assert await bus.length(VALIDATIONS) == told  # nothing is left to tell


async def killed(redis: RedisServer, desk: Desk, moment: str, patch: pytest.MonkeyPatch) -> None:
    """Run a validator that ends at a moment of telling what it judged."""
    lifecycle = Lifecycle("validator", ServiceSettings(redis_url=redis.url, instance="v"))
    announce = lifecycle.bus.announce
    ends_at: dict[str, Stream[Any]] = {"judged": VALIDATIONS, "promoted": PROMOTIONS, "told": PROMOTIONS}

    async def announce_or_end(stream: Stream[M], message: M) -> None:
        if stream is not ends_at.get(moment):
            await announce(stream, message)
            return
        if moment == "told":
            await announce(stream, message)
        raise ServiceError("killed")

    def end(*_: object, **__: object) -> VersionPromoted:
        raise ServiceError("killed")

    patch.setattr(lifecycle.bus, "announce", announce_or_end)
    if moment == "best moved":
        patch.setattr("services.validator.service.promote", end)
    with pytest.raises(ServiceError, match="killed"):
        await asyncio.wait_for(service_of(lifecycle, desk, STANDARDS).run(), 120)
    await lifecycle.bus.close()
