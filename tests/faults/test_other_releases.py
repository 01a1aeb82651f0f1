"""Messages of other releases are read or become dead letters, and no service exits because of them."""

import asyncio
import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

import httpx
from redis.asyncio import Redis

from services.api.config import EXPECTED_SERVICES, GatewayConfig
from services.api.events import EVENT_NAMES
from shared.adapters.streams.bus import Bus
from shared.adapters.streams.dead_letters import read_letter
from shared.adapters.streams.entries import RawEntry, rows_of
from shared.messages.codec import encode
from shared.messages.schemas import (
    AlertRaised,
    CheckpointPublished,
    ControlIssued,
    DeadLettered,
    DecisionMade,
    Message,
    TradeClosed,
    ValidationReported,
    VersionPromoted,
    now,
)
from shared.messages.streams import (
    ALERTS,
    CHECKPOINTS,
    CONTROL,
    DEAD,
    DECISIONS,
    PROMOTIONS,
    STREAMS,
    TRADES,
    TRAINER_GROUP,
    TRAJECTORIES,
    VALIDATIONS,
    heartbeat_key,
)
from shared.runtime.redis_server import RedisServer
from tests.broken_connections import BREAKS_CONNECTIONS
from tests.faults.counts import print_figures, rounds, soaked, steps
from tests.faults.reading import in_background, until_drained
from tests.faults.whole_system import WholeSystem
from tests.services.api.conftest import running_system
from tests.services.api.test_alerts import webhook
from tests.services.api.test_events import listening
from tests.services.trainer.processes import System, sendable

pytestmark = BREAKS_CONNECTIONS

Fields = dict[str, bytes]

#: Differences between messages of another release and of this one.
DIFFERENCES = ("older", "newer", "before versions", "renamed", "a field more", "a field less")

#: Number of dead letters of an entry that existed before the services started, and of one that arrives while
#: they run. The consumer group writes one, and so does each follower. None: the gateway starts at the newest
#: entry that it can read. A service listed after "later" reads only entries that arrive while it runs.
LETTERS: dict[str, tuple[int | None, int]] = {
    TRAJECTORIES.key: (1, 1),  # trainer
    CHECKPOINTS.key: (2, 3),  # validator and gateway; later also self-play
    VALIDATIONS.key: (1, 1),  # gateway
    PROMOTIONS.key: (1, 2),  # gateway; later also inference
    CONTROL.key: (2, 3),  # trader and gateway; later also the trainer
    TRADES.key: (None, 1),  # gateway
    DECISIONS.key: (None, 1),  # gateway
    ALERTS.key: (None, 2),  # gateway, which shows them and sends them to the webhook
    DEAD.key: (None, 1),  # gateway
}

#: Names under which the newest announcement is stored beside its stream.
LATEST = {
    CHECKPOINTS.key: ("latest",),
    VALIDATIONS.key: ("latest",),
    PROMOTIONS.key: ("latest",),
    CONTROL.key: ("training", "trader"),
}


def one_of_each(system: System) -> dict[str, tuple[type[Message], Fields]]:
    """One message per stream, as this release writes it."""
    header, arrays = sendable(system, 0, 1)[0]
    moment = now()
    messages = {
        CHECKPOINTS: CheckpointPublished(version=7, episode=7, update=7, weights_sha256="0" * 64),
        VALIDATIONS: ValidationReported(
            version=7,
            split="validation",
            num_sessions=1,
            num_trades=1,
            expectancy_pips=1.0,
            sqn=1.0,
            net_pips=1.0,
            max_drawdown_pips=1.0,
            passed_gates=("paper",),
            seconds=1.0,
        ),
        PROMOTIONS: VersionPromoted(version=7, stage="paper", by="another release"),
        TRADES: TradeClosed(
            trade_id="7",
            instrument="GBP_JPY",
            side=1,
            units=1,
            entry_time=moment,
            exit_time=moment,
            entry_price=190.0,
            exit_price=190.1,
            pips=10.0,
        ),
        DECISIONS: DecisionMade(bar_time=moment, action="HOLD", executed=True, side=0, pnl_pips=0, close=190),
        CONTROL: ControlIssued(target="training", state="paused", by="another release"),
        ALERTS: AlertRaised(source="another release", name="test"),
        DEAD: DeadLettered(stream=TRAJECTORIES.key, entry_id="1-0", reason="another release's"),
    }
    fields = {stream.key: (type(message), encode(message)) for stream, message in messages.items()}
    return {TRAJECTORIES.key: (type(header), encode(header, arrays)), **fields}


def different(schema: type[Message], fields: Fields, difference: str) -> Fields:
    """The message as another release might have written it."""
    body = json.loads(fields["body"])
    required = [name for name, field in schema.model_fields.items() if field.is_required()]
    match difference:
        case "older":
            return {**fields, "version": b"0"}
        case "newer":
            return {**fields, "version": b"99"}
        case "before versions":
            return {name: value for name, value in fields.items() if name != "version"}
        case "renamed":
            return {**fields, "type": b"Old" + fields["type"]}
        case "a field more":
            return {**fields, "body": json.dumps({**body, "obsolete": 1}).encode()}
        case _:
            fewer = {name: value for name, value in body.items() if name != required[0]}
            return {**fields, "body": json.dumps(fewer).encode()}


async def append(plain: Redis, key: str, fields: Fields) -> str:
    """Append an entry unchanged; returns its id."""
    return cast("bytes", await plain.xadd(key, cast("dict[Any, Any]", fields))).decode()


async def leave(plain: Redis, system: System, keys: Iterable[str], times: int) -> dict[str, list[str]]:
    """Append messages of other releases to streams, also as the newest announcement; returns their ids."""
    good, ids = one_of_each(system), {key: list[str]() for key in keys}
    for number in steps(times * len(DIFFERENCES)):
        for key, sent in ids.items():
            entry = different(*good[key], DIFFERENCES[number % len(DIFFERENCES)])
            sent.append(await append(plain, key, entry))
            for name in LATEST.get(key, ()):
                await plain.delete(f"{key}:{name}")
                await plain.hset(f"{key}:{name}", mapping=cast("dict[Any, Any]", entry))
    return ids


async def count_letters(plain: Redis, letters: Counter[tuple[str, str]], after: str = "0-0") -> str:
    """Count the dead letters of each entry; returns the id of the last letter."""
    while rows := rows_of(await plain.xread({DEAD.key: after}, count=500, block=100)):
        for raw in rows:
            letter = read_letter(raw)
            if letter.stream and letter.entry_id:
                letters[letter.stream, letter.entry_id] += 1
        after = rows[-1][0].decode()
    return after


async def collect(plain: Redis, letters: Counter[tuple[str, str]]) -> None:
    """Count dead letters until cancelled, including those that are trimmed later."""
    after = "0-0"
    while True:
        after = await count_letters(plain, letters, after)


async def record_events(whole: WholeSystem, events: set[str], begun: asyncio.Event) -> None:
    """Collect the names of the gateway's events until cancelled."""
    async with (
        httpx.AsyncClient(trust_env=False, timeout=None) as client,
        client.stream("GET", f"{whole.url('api')}/events") as response,
    ):
        async for line in response.aiter_lines():
            begun.set()
            if line.startswith("event: "):
                events.add(line.removeprefix("event: "))


async def pause_training(whole: WholeSystem) -> None:
    """Pause training, and wait until the trainer has paused."""
    await whole.order("training", "paused")

    async def paused() -> bool:
        return await whole.system.detail("trainer", "paused") == 1

    await whole.system.until("the trainer pauses", paused)


async def make_worker_check_versions(whole: WholeSystem, plain: Redis) -> None:
    """Announce a version again: the worker, and no other service, then reads the newest version."""

    async def asked() -> int:
        return int((await plain.info("commandstats")).get("cmdstat_hgetall", {}).get("calls", 0))

    before = await asked()
    newest = (await whole.bus.recent(CHECKPOINTS, count=1_000))[0]
    await append(plain, CHECKPOINTS.key, encode(newest.message))

    async def has_asked() -> bool:
        return await asked() > before

    await whole.system.until("the worker asks for the newest version", has_asked)


@rounds(1, 20)
async def test_every_reader_of_every_stream_skips_messages_of_other_releases(
    tasks_or_processes: System, plain: Redis, count: int
) -> None:
    """Each difference `count` times, before the services start and again while they run."""
    system = tasks_or_processes
    whole = WholeSystem(system)
    assert set(LETTERS) == {stream.key for stream in STREAMS}
    for service in EXPECTED_SERVICES:
        await plain.set(heartbeat_key(service, "other"), b'{"schema_version":0,"service":"other"}')
    begun = [key for key, (before, _) in LETTERS.items() if before is not None]
    letters: Counter[tuple[str, str]] = Counter()
    events: set[str] = set()
    heard = asyncio.Event()
    async with webhook(200) as (url, posted), in_background(collect(plain, letters)):
        left = await leave(plain, system, begun, count)
        await whole.start(MM_ALERTS__WEBHOOK_URL=url)
        await pause_training(whole)  # otherwise the announcement of the next version replaces these
        met = await leave(plain, system, LETTERS, count)
        await make_worker_check_versions(whole, plain)
        await whole.order("training", "running")
        expected = Counter({(key, one): LETTERS[key][0] or 0 for key, ids in left.items() for one in ids})
        expected.update({(key, one): LETTERS[key][1] for key, ids in met.items() for one in ids})

        async def all_reported() -> bool:
            return letters >= expected

        await system.until("every reader has reported every such entry", all_reported)
        assert whole.exited() == []

        since = now()
        async with in_background(record_events(whole, events, heard)):
            await heard.wait()
            await pause_training(whole)
            await whole.order("training", "running")
            await whole.order("trader", "paused")
            await whole.promote_another()
            kept_an_excerpt = DeadLettered(stream=TRAJECTORIES.key, entry_id="2-0", reason="of version 1")
            body = kept_an_excerpt.model_dump_json(exclude={"schema_version", "size_bytes", "kept"})
            await plain.xadd(DEAD.key, {"type": "DeadLettered", "version": "1", "body": body})
            good = one_of_each(system)
            for key in (TRADES.key, ALERTS.key):
                await append(plain, key, good[key][1])

            async def all_received() -> bool:
                return events == set(EVENT_NAMES.values())

            await asyncio.gather(
                *(system.until(f"{service} works", works) for service, works in whole.signs(since).items()),
                system.until("the gateway sends events of all streams", all_received),
            )
        alert = await asyncio.wait_for(posted.get(), 60)
        while "another release" not in str(alert):
            alert = await asyncio.wait_for(posted.get(), 60)
        page = await whole.get("/dead?limit=200")
        rows = cast("list[RawEntry]", await plain.xrange(TRAJECTORIES.key))
        waiting = {entry_id.decode() for entry_id, _ in rows}
        statuses = await whole.stop()
    shown = len(await system.bus.dead.letters(count=10_000))
    print_figures(
        "messages of other releases",
        streams=len(LETTERS),
        differences=len(DIFFERENCES),
        left=sum(map(len, left.values())),
        met=sum(map(len, met.values())),
        letters=sum(letters[one] for one in expected),
        expected=expected.total(),
        exits=sum(status != 0 for status in statuses),
    )
    assert {one: letters[one] for one in expected} == dict(expected)
    assert waiting.isdisjoint(left[TRAJECTORIES.key] + met[TRAJECTORIES.key])
    assert statuses == [0] * len(EXPECTED_SERVICES)
    assert "of version 1" in json.dumps(page)
    assert shown == await plain.xlen(DEAD.key)


@soaked(500)
async def test_two_ranks_refuse_trajectories_of_other_releases_and_learn_from_the_rest(
    system: System, plain: Redis, count: int
) -> None:
    """Each difference `count` times; both ranks read."""
    torchrun = ("torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m")
    letters: Counter[tuple[str, str]] = Counter()
    async with in_background(collect(plain, letters)):
        left = await leave(plain, system, [TRAJECTORIES.key], count)
        system.start("trainer", torchrun, GLOO_SOCKET_IFNAME="lo", MM_TRAINER__DEVICE="cpu")

        async def both_read() -> bool:
            consumers = await plain.xinfo_consumers(TRAJECTORIES.key, TRAINER_GROUP)
            return {consumer["name"] for consumer in consumers} == {b"trainer", b"trainer-1"}

        await until_drained(system.bus)
        await system.until("both ranks read", both_read)
        for first in range(0, 40, 4):
            await system.bus.append_all(TRAJECTORIES, sendable(system, first, first + 4))
            met = await leave(plain, system, [TRAJECTORIES.key], 1)
            left[TRAJECTORIES.key] += met[TRAJECTORIES.key]
            await until_drained(system.bus)
        await system.learned_from(40)
        assert await asyncio.to_thread(system.stop, "trainer") == 1  # torchrun reports a signal this way
    print_figures(
        "trajectories of other releases, two ranks",
        entries=len(left[TRAJECTORIES.key]),
        letters=letters.total(),
        journalled=len(system.journalled_ids()),
    )
    assert letters == Counter({(TRAJECTORIES.key, one): 1 for one in left[TRAJECTORIES.key]})
    assert len(set(system.journalled_ids())) == len(system.journalled_ids()) == 40


async def test_an_unreadable_newest_entry_becomes_a_dead_letter_of_the_gateway(
    own_redis: RedisServer, own_bus: Bus, plain: Redis, system: System, tmp_path: Path
) -> None:
    """No other service reads these streams, so the entry would be lost silently."""
    good = one_of_each(system)
    keys = (TRADES.key, DECISIONS.key, ALERTS.key, DEAD.key)
    left: list[tuple[str, str]] = []
    for key in keys:
        others = [different(*good[key], difference) for difference in DIFFERENCES]
        left += [(key, await append(plain, key, other)) for other in others]
        await append(plain, key, good[key][1])
    letters: Counter[tuple[str, str]] = Counter()
    async with (
        running_system(own_redis.url, own_bus, tmp_path, GatewayConfig()) as gateway,
        listening(gateway.client) as events,
    ):
        for key in keys:
            await append(plain, key, good[key][1])
        heard: set[str] = set()
        while not heard >= {EVENT_NAMES[key] for key in keys}:
            heard.add((await events.next())["event"])
        await count_letters(plain, letters)
    assert {one: letters[one] for one in left} == dict.fromkeys(left, 1)


async def test_pages_of_the_gateway_continue_after_an_unreadable_entry(
    own_redis: RedisServer, own_bus: Bus, plain: Redis, system: System, tmp_path: Path
) -> None:
    schema, fields = one_of_each(system)[DECISIONS.key]
    for difference in ("", "older", ""):
        entry = different(schema, fields, difference) if difference else fields
        await append(plain, DECISIONS.key, entry)
    async with running_system(own_redis.url, own_bus, tmp_path, GatewayConfig()) as gateway:
        shown, path = 0, "/decisions?limit=1"
        while path:
            page = (await gateway.client.get(path)).json()
            shown += len(page["items"])
            path = f"/decisions?limit=1&before={page['next']}" if page["next"] else ""
    assert shown == 2
