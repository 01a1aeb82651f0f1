"""The `dead` commands on a real Redis, and with a real trainer."""

import asyncio
import json
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import pytest_asyncio
from pydantic import SecretStr
from redis.asyncio import Redis
from typer.testing import CliRunner

from cli import redis_query
from cli.dead import LetterError, app
from cli.runs import NotUpError, Run, exclusive
from services.trainer.config import TrainerConfig
from services.trainer.settings import TrainerSettings
from shared.adapters.streams.bus import Bus
from shared.adapters.tables.dataset import write_dataset
from shared.errors import DataError, ServiceError, SettingsError
from shared.market.synthetic import Market, synthesize
from shared.messages.codec import decode, decode_trajectory, encode, encode_trajectory
from shared.messages.schemas import ControlIssued, Message
from shared.messages.streams import ALERTS, CONTROL, DEAD, TRAINER_GROUP, TRAJECTORIES, Stream
from shared.runtime.ports import free_port
from shared.runtime.redis_server import RedisServer
from tests.services.trainer.runs import CONFIG
from tests.services.trainer.test_service import detail, running
from tests.shared.messages.trajectories import random_trajectory, same
from tests.waiting import until

STEPS = 40

Fields = Mapping[str, bytes]


@pytest_asyncio.fixture
async def redis(redis_server: RedisServer, bus: Bus, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Redis]:
    """A plain client beside the bus; MM_REDIS_URL names the same Redis for the commands."""
    monkeypatch.setenv("MM_REDIS_URL", redis_server.url)
    async with Redis.from_url(redis_server.url, protocol=2) as client:
        yield client


async def put(redis: Redis, stream: Stream[Message], fields: Fields, entry_id: str = "*") -> str:
    """Append an entry with any content; returns its id."""
    return cast("bytes", await redis.xadd(stream.key, cast("Any", fields), id=entry_id)).decode()


async def entries_of(redis: Redis, stream: Stream[Message]) -> list[tuple[str, Mapping[bytes, bytes]]]:
    """All entries of a stream, byte for byte."""
    rows = cast("list[tuple[bytes, Mapping[bytes, bytes]]]", await redis.xrange(stream.key))
    return [(entry_id.decode(), fields) for entry_id, fields in rows]


def raw_fields(fields: Fields) -> dict[bytes, bytes]:
    """Fields as Redis returns them."""
    return {name.encode(): value for name, value in fields.items()}


async def run(*arguments: str) -> str:
    """Output of a command, which runs in a thread because it has its own event loop."""
    result = await asyncio.to_thread(CliRunner().invoke, app, arguments)
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.stdout


async def listed(*arguments: str) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = json.loads(await run("list", "--json", *arguments))
    return rows


async def read_all(bus: Bus) -> None:
    """Consume the whole stream as a reader does; unreadable entries become dead letters."""
    batches = bus.consume(TRAJECTORIES, TRAINER_GROUP, "one")
    while await bus.length(TRAJECTORIES):
        await (await anext(batches)).ack()


async def test_unreadable_entries_are_listed_and_shown_completely(
    bus: Bus, redis: Redis, redis_server: RedisServer, tmp_path: Path
) -> None:
    message, arrays = encode_trajectory(random_trajectory(7, STEPS))
    unknown = {**encode(message, arrays), "version": b"99"}
    broken = {"\x1b[2Jgarbage": b"\xff\x00\x1b[31m" + bytes(200)}
    await put(redis, TRAJECTORIES, broken)
    entry_id = await put(redis, TRAJECTORIES, unknown)
    await read_all(bus)

    newest, oldest = await listed()
    assert (newest["stream"], newest["entry_id"]) == ("mm:trajectories", entry_id)
    assert "schema version '99', known: 1" in str(newest["reason"])
    assert newest["size_bytes"] == sum(len(name) + len(value) for name, value in unknown.items())
    assert newest["replayable"] is True
    assert "type is ''" in str(oldest["reason"])
    assert await listed("--limit", "1") == [newest]

    raw = tmp_path / "entry.resp"
    shown = json.loads(await run("show", str(newest["id"]), "--json", "--raw", str(raw)))
    assert {field["name"]: field["bytes"] for field in shown["fields"]} == {
        name: len(value) for name, value in unknown.items()
    }
    assert (shown["message"], "version '99'" in shown["fault"]) == (None, True)
    await asyncio.to_thread(_send, redis_server, raw)
    ((_, copy),) = await entries_of(redis, TRAJECTORIES)
    assert copy == raw_fields(unknown)

    printed = await run("list") + await run("show", str(oldest["id"]))
    assert printed.startswith(f"2 of 2 dead letters, newest first\n{newest['id']}  ")
    assert "\\x1b[2Jgarbage" in printed
    assert "\x1b" not in printed  # entries must not control the terminal
    assert max(map(len, (await run("list")).splitlines())) <= 80


def _send(server: RedisServer, path: Path) -> None:
    """Send the bytes of a file to Redis, as `redis-cli --pipe` does."""
    with socket.create_connection(("127.0.0.1", server.port)) as plain:
        plain.sendall(f"AUTH {server.password}\r\n".encode())
        assert plain.recv(64) == b"+OK\r\n"
        plain.sendall(path.read_bytes())
        assert plain.recv(64).startswith(b"$")  # the new entry's id


async def test_show_decodes_a_trajectory_and_reports_its_fault(bus: Bus, redis: Redis) -> None:
    trajectory = random_trajectory(3, STEPS)
    message, arrays = encode_trajectory(trajectory)
    for blob in (arrays, arrays[:-1]):
        await bus.append(TRAJECTORIES, message, blob)
    (batch,) = [b for b in [await anext(bus.consume(TRAJECTORIES, TRAINER_GROUP, "one"))] if b.entries]
    for entry in batch.entries:
        await bus.dead_letter(TRAJECTORIES, TRAINER_GROUP, entry, "not usable")
    damaged, intact = [json.loads(await run("show", str(row["id"]), "--json")) for row in await listed()]
    assert intact["message"]["trajectory_id"] == str(trajectory.trajectory_id)
    assert intact["message"]["arrays"][0]["shape"][0] == STEPS
    assert (intact["reason"], intact["fault"]) == ("not usable", "")
    assert f"{len(arrays) - 1} bytes of arrays" in damaged["fault"]
    printed = await run("show", damaged["id"])
    assert str(trajectory.trajectory_id) in printed
    assert f"static [{STEPS}, " in printed
    assert "fault when decoded now: trajectory" in printed


async def test_replay_restores_the_entry_and_a_lasting_cause_makes_a_new_letter(
    bus: Bus, redis: Redis
) -> None:
    trajectory = random_trajectory(1, STEPS)
    fields = encode(*encode_trajectory(trajectory))
    await put(redis, TRAJECTORIES, {**fields, "version": b"99"})
    await put(redis, TRAJECTORIES, fields)
    batch = await anext(bus.consume(TRAJECTORIES, TRAINER_GROUP, "one"))
    await bus.dead_letter(TRAJECTORIES, TRAINER_GROUP, batch.entries[0], "an error of the consumer")
    good, bad = await listed()
    printed = await run("replay", str(bad["id"]), str(good["id"]))
    assert printed.splitlines()[0].startswith(f"{bad['id']}: appended to mm:trajectories as ")
    assert await bus.length(DEAD) == 0
    first, second = await entries_of(redis, TRAJECTORIES)
    assert second[1] == raw_fields(fields)
    assert same(decode_trajectory(*decode(TRAJECTORIES, second[1])), trajectory)
    assert printed.splitlines()[1].endswith(second[0])

    await read_all(bus)
    (again,) = await listed()
    assert again["reason"] == bad["reason"]
    assert (again["entry_id"], again["id"] != bad["id"]) == (first[0], True)


async def test_replay_all_of_a_stream_replays_each_entry_once(bus: Bus, redis: Redis) -> None:
    good = encode(*encode_trajectory(random_trajectory(1, STEPS)))
    for _ in range(3):
        await put(redis, TRAJECTORIES, {**good, "version": b"99"})
    await read_all(bus)
    await put(redis, ALERTS, {"type": b"nonsense"})
    for _ in range(2):  # two followers see the same entry and leave it where it is
        await anext(bus.follow(ALERTS, block_ms=20))
    control = encode(ControlIssued(target="trader", state="running", by="test"))
    await put(redis, CONTROL, {**control, "version": b"99"})
    await anext(bus.follow(CONTROL, block_ms=20))
    assert len(await listed()) == 6

    with pytest.raises(LetterError, match=r"0 dead letters from mm:trades, .*: mm:alerts, mm:control, "):
        await run("replay", "--all", "--stream", "mm:trades")
    done = json.loads(await run("replay", "--all", "--stream", "mm:trajectories", "--json"))
    assert [row["stream"] for row in done] == ["mm:trajectories"] * 3
    assert await bus.length(TRAJECTORIES) == 3
    assert "; copies of the letter removed: 1" in await run("replay", "--all")
    assert await bus.length(ALERTS) == 1
    (left,) = await listed()
    assert (left["stream"], left["replayable"]) == ("mm:control", False)
    with pytest.raises(LetterError, match=r"nothing to replay: 1 dead letters, 0 can be replayed; .*show ID"):
        await run("replay", "--all")
    with pytest.raises(LetterError, match=r"newest entry of mm:control, .*: announce it again; nothing"):
        await run("replay", str(left["id"]))


async def test_drop_removes_letters_with_their_copies_and_no_others(bus: Bus, redis: Redis) -> None:
    for _ in range(3):
        await put(redis, TRAJECTORIES, {"garbage": b"x"})
    await read_all(bus)
    await put(redis, ALERTS, {"type": b"nonsense"})
    for _ in range(2):  # two followers see the same entry and leave it where it is
        await anext(bus.follow(ALERTS, block_ms=20))
    before = await listed()
    assert [row["stream"] for row in before] == ["mm:alerts"] * 2 + ["mm:trajectories"] * 3

    with pytest.raises(LetterError, match="there is no dead letter 7-0"):
        await run("drop", str(before[0]["id"]), "7-0")
    with pytest.raises(LetterError, match="3 letters would be lost permanently; confirm with --yes"):
        await run("drop", "--all", "--stream", "mm:trajectories")
    assert await listed() == before  # a refused command removes nothing

    assert await run("drop", str(before[0]["id"])) == "letters dropped: 2\n"
    assert await listed() == before[2:]
    assert await bus.length(ALERTS) == 1
    done = json.loads(await run("drop", str(before[3]["id"]), "--json"))
    assert done == [{"id": before[3]["id"], "stream": "mm:trajectories", "dropped": True}]
    assert await listed() == [before[2], before[4]]
    assert await run("drop", "--all", "--yes", "--stream", "mm:alerts") == "letters dropped: 0\n"
    assert await run("drop", "--all", "--yes") == "letters dropped: 2\n"
    assert await bus.length(DEAD) == await bus.length(TRAJECTORIES) == 0


async def test_letters_with_an_older_or_unknown_schema_are_listed(bus: Bus, redis: Redis) -> None:
    body = {
        "created_at": "2025-01-02T03:04:05Z",
        "stream": TRAJECTORIES.key,
        "entry_id": "5-0",
        "reason": "of old",
        "excerpt": "type=x",
    }
    old = {"type": b"DeadLettered", "version": b"1", "body": json.dumps(body).encode()}
    await put(redis, DEAD, old, "1700000000000-0")
    await put(redis, DEAD, {**old, "version": b"9"}, "1700000000000-1")
    newer, older = await listed()
    assert (older["reason"], older["created_at"]) == ("of old", "2025-01-02T03:04:05+00:00")
    assert older["obstacle"] == "the entry itself was not kept, only an excerpt of it"
    assert "schema version '9', known: 1, 2" in str(newer["reason"])
    assert newer["created_at"] == "2023-11-14T22:13:20+00:00"
    assert newer["obstacle"] == "the letter itself cannot be read"
    assert "type=x" in await run("show", "1700000000000-0")
    assert "cannot be read" in await run("show", "1700000000000-1")
    printed = await run("list")
    size = "    size unknown, not replayable\n"
    assert f"1700000000000-0  2025-01-02 03:04 UTC  mm:trajectories\n{size}    of old\n" in printed
    assert f"1700000000000-1  2023-11-14 22:13 UTC  stream unknown\n{size}" in printed
    for letter in (older, newer):
        with pytest.raises(LetterError, match="cannot be replayed: the"):
            await run("replay", str(letter["id"]))
    with pytest.raises(LetterError, match="has no original entry to write"):
        await run("show", "1700000000000-0", "--raw", "nowhere")


async def test_impossible_requests_are_refused(bus: Bus, redis: Redis, tmp_path: Path) -> None:
    with pytest.raises(LetterError, match="'7' is not an entry id; expected two numbers"):
        await run("show", "7")
    for command in ("show", "replay", "drop"):
        with pytest.raises(LetterError, match="there is no dead letter 7-0; `micro-muzero dead list`"):
            await run(command, "7-0")
    with pytest.raises(LetterError, match="nothing to replay: 0 dead letters"):
        await run("replay", "--all")
    for command in ("replay", "drop"):
        for both in ((), ("7-0", "--all")):
            with pytest.raises(LetterError, match=f"name the letters to {command}, or give --all"):
                await run(command, *both)
        with pytest.raises(LetterError, match="--stream needs --all"):
            await run(command, "7-0", "--stream", "mm:alerts")
    assert await listed() == []
    assert await run("list") == "no dead letters\n"

    await put(redis, ALERTS, {"type": b"nonsense"})
    await anext(bus.follow(ALERTS, block_ms=20))
    (letter,) = await listed()
    with pytest.raises(LetterError, match="there is no dead letter 7-0"):
        await run("replay", str(letter["id"]), "7-0")
    assert await listed() == [letter]  # a refused command replays nothing
    (tmp_path / "notes.txt").write_text("mine")
    for taken, reason in ((tmp_path, "is a folder"), (tmp_path / "notes.txt", "is no dead letter")):
        with pytest.raises(DataError, match=reason):
            await run("show", str(letter["id"]), "--raw", str(taken))
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_an_unavailable_redis_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def error() -> BaseException | None:
        return CliRunner().invoke(app, ["list"]).exception

    monkeypatch.delenv("MM_REDIS_URL", raising=False)
    monkeypatch.setenv("MM_HOME", str(tmp_path))
    monkeypatch.setattr(redis_query, "TIMEOUT_SECONDS", 0.2)
    not_up = error()
    assert isinstance(not_up, NotUpError)
    assert "or set MM_REDIS_URL" in str(not_up)
    monkeypatch.setenv("MM_REDIS_URL", f"redis://:secret@127.0.0.1:{free_port()}/0")
    refused = error()
    assert isinstance(refused, ServiceError)
    assert "secret" not in str(refused)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("MM_REDIS_URL", f"redis://127.0.0.1:{silent.getsockname()[1]}/0")
        timed_out = error()
    assert isinstance(timed_out, ServiceError)
    assert "no answer in time" in str(timed_out)
    monkeypatch.setenv("MM_REDIS_URL", "http://127.0.0.1/0")
    assert isinstance(error(), SettingsError)


async def test_the_redis_of_the_running_system_is_the_default(
    bus: Bus, redis_server: RedisServer, tmp_path: Path
) -> None:
    """In its own process: results go to stdout; a user's mistake is one line on stderr and status 2."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MM_")}

    def command(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "cli.main", "dead", *words],
            env={**environment, "MM_HOME": str(tmp_path)},
            capture_output=True,
            text=True,
        )

    with exclusive(tmp_path):
        Run(str(tmp_path), "", "", redis_server.url, os.getpid(), "", {}).save(tmp_path)
        found = await asyncio.to_thread(command, "list", "--json")
        assert (found.returncode, json.loads(found.stdout)) == (0, [])
        wrong = await asyncio.to_thread(command, "show", "7-0")
    assert wrong.returncode == 2
    assert wrong.stdout == ""
    assert wrong.stderr.startswith("error: there is no dead letter 7-0;")
    assert wrong.stderr.count("\n") == 1


async def test_the_trainer_learns_from_replayed_entries_exactly_once(
    bus: Bus, redis: Redis, redis_server: RedisServer, tmp_path: Path
) -> None:
    bars = [synthesize(Market.OU, 2_000, seed=seed) for seed in (1, 2)]
    paths = [tmp_path / f"{number}.duckdb" for number in range(2)]
    datasets = [write_dataset(path, b, "synthetic ou") for path, b in zip(paths, bars, strict=True)]
    trainer_of = [
        TrainerSettings(
            home=tmp_path / f"home-{number}",
            dataset=path,
            redis_url=SecretStr(redis_server.url),
            model=CONFIG.model,
            replay=CONFIG.replay,
            learner=CONFIG.learner,
            trainer=TrainerConfig(min_replay_steps=10_000),
        )
        for number, path in enumerate(paths)
    ]
    trajectory = random_trajectory(1, STEPS, start_bar=500, dataset=datasets[1].fingerprint)
    other = replace(random_trajectory(2, STEPS, start_bar=500), dataset=datasets[1].fingerprint)
    await bus.append(TRAJECTORIES, *encode_trajectory(trajectory))
    async with running(trainer_of[0]):  # this trainer rejects another data set
        await _until_empty(bus)
    (letter,) = await listed()
    assert "start the worker with the trainer's data set" in str(letter["reason"])

    async with running(trainer_of[1]) as trainer:  # this one accepts it
        await run("replay", str(letter["id"]))
        await until(lambda: detail(trainer, "episode") == 1)
        assert await listed() == []

    await bus.append(TRAJECTORIES, *encode_trajectory(trajectory))
    batch = await anext(bus.consume(TRAJECTORIES, TRAINER_GROUP, "trainer"))
    await bus.dead_letter(TRAJECTORIES, TRAINER_GROUP, batch.entries[0], "an error of the consumer")
    async with running(trainer_of[1]) as trainer:
        await run("replay", "--all")
        await _until_empty(bus)
        await bus.append(TRAJECTORIES, *encode_trajectory(other))
        await until(lambda: detail(trainer, "episode") == 2)
        assert detail(trainer, "journalled") == 2
    assert await listed() == []


async def _until_empty(bus: Bus) -> None:
    async with asyncio.timeout(60):
        while await bus.length(TRAJECTORIES):  # noqa: ASYNC110  another process's state
            await asyncio.sleep(0.01)
