"""Dead letters on a real Redis: complete, capped, and replayed once wherever a connection breaks."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from typing import Any, cast

import pytest
from redis.asyncio import Redis

from shared.adapters.streams import dead_letters
from shared.adapters.streams.bus import Bus
from shared.adapters.streams.dead_letters import MAX_KEPT_BYTES, MAX_KEPT_FIELDS, Letter
from shared.errors import MessageError
from shared.messages.codec import encode, encode_trajectory
from shared.messages.schemas import AlertRaised
from shared.messages.streams import ALERTS, DEAD, TRAINER_GROUP, TRAJECTORIES
from shared.runtime.redis_server import RedisServer
from tests.broken_connections import BREAKS_CONNECTIONS
from tests.shared.messages.trajectories import random_trajectory
from tests.waiting import PATIENCE_SECONDS

pytestmark = BREAKS_CONNECTIONS


class Cut:
    """A proxy for Redis that breaks permanently after a number of bytes from the client; None: never.

    When it breaks, Redis has processed all bytes that it received, and the client gets no reply.
    """

    def __init__(self, server: RedisServer, after_bytes: int | None) -> None:
        self._server, self._left = server, after_bytes
        self.sent, self.broken = 0, asyncio.Event()

    @contextlib.asynccontextmanager
    async def url(self) -> AsyncIterator[str]:
        async with await asyncio.start_server(self._serve, "127.0.0.1", 0) as listener:
            port = listener.sockets[0].getsockname()[1]
            yield self._server.url.replace(f":{self._server.port}/", f":{port}/")

    def repair(self) -> None:
        """Let the next connections through."""
        self._left = None
        self.broken.clear()

    async def _serve(self, client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        if not self.broken.is_set():
            redis, to_redis = await asyncio.open_connection("127.0.0.1", self._server.port)
            answering = asyncio.create_task(self._answer(redis, to_client))
            while data := await client.read(65_536):
                passed = data if self._left is None else data[: self._left]
                self._left = None if self._left is None else self._left - len(passed)
                self.sent += len(passed)
                if self._left == 0:
                    await _cancelled(answering)  # before Redis could answer
                    to_redis.write(passed)
                    to_redis.write_eof()
                    await redis.read()  # until Redis has processed it and closes
                    self.broken.set()
                    break
                to_redis.write(passed)
            await _cancelled(answering)
            await _closed(to_redis)
        await _closed(to_client)

    @staticmethod
    async def _answer(redis: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        while data := await redis.read(65_536):
            to_client.write(data)


async def _cancelled(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def _closed(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()


async def put(redis: Redis, key: str, fields: Mapping[Any, bytes]) -> str:
    return cast("bytes", await redis.xadd(key, cast("Any", fields))).decode()


async def dead_lettered(bus: Bus, redis: Redis, fields: Mapping[bytes, bytes]) -> Letter:
    """The dead letter of an entry that a consumer received and could not decode."""
    await put(redis, TRAJECTORIES.key, fields)
    await anext(bus.consume(TRAJECTORIES, TRAINER_GROUP, "one"))
    (letter,) = await bus.dead.letters(count=1)
    return letter


async def contents(redis: Redis, key: str) -> list[Mapping[bytes, bytes]]:
    rows = cast("list[tuple[bytes, Mapping[bytes, bytes]]]", await redis.xrange(key))
    return [fields for _, fields in rows]


async def test_a_letter_keeps_every_byte_of_the_entry(bus: Bus, redis: Redis) -> None:
    fields = {k.encode(): v for k, v in encode(*encode_trajectory(random_trajectory(1))).items()}
    fields |= {b"unknown \xff": b"\x00\r\n"}
    await put(redis, TRAJECTORIES.key, fields)
    batch = await anext(bus.consume(TRAJECTORIES, TRAINER_GROUP, "one"))
    await bus.dead_letter(TRAJECTORIES, TRAINER_GROUP, batch.entries[0], "of another data set")
    (letter,) = await bus.dead.letters(count=10)
    assert letter.original == fields
    assert letter.size_bytes == sum(len(name) + len(value) for name, value in fields.items())
    assert (letter.stream, letter.entry_id) == (TRAJECTORIES.key, batch.entries[0].entry_id)
    assert await bus.length(TRAJECTORIES) == 0


@pytest.mark.parametrize("excess", [0, 1])
async def test_only_an_excerpt_of_an_entry_over_the_size_limit_is_kept(
    bus: Bus, redis: Redis, excess: int
) -> None:
    fields = {b"type": b"x", b"big": bytes(MAX_KEPT_BYTES - len(b"typexbig") + excess)}
    letter = await dead_lettered(bus, redis, fields)
    assert letter.size_bytes == MAX_KEPT_BYTES + excess
    assert letter.excerpt.startswith("type=x big=")
    if not excess:
        assert letter.original == fields
        return
    assert letter.original is None
    with pytest.raises(MessageError, match="the entry itself was not kept, only an excerpt of it"):
        await bus.dead.replay(letter)
    assert len(await bus.dead.letters(count=10)) == 1


async def test_letters_are_capped_by_bytes_and_the_oldest_are_removed(
    bus: Bus, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Letters of a consumer and a follower, large and small; the newest stays even if it is too large."""
    assert cast("int", DEAD.max_bytes) <= (2 << 30) // 32  # of the default maxmemory
    most = 400_000
    monkeypatch.setattr(dead_letters, "DEAD", replace(DEAD, max_bytes=most))

    async def kept() -> list[int | None]:
        assert cast("int", await redis.memory_usage(DEAD.key, samples=0)) <= most
        return [letter.size_bytes for letter in await bus.dead.letters(count=100)][::-1]

    follower = bus.follow(ALERTS, block_ms=20)
    sizes = [25_000, 1_000, 90_000, 25_000, 300, 120_000]
    sent: list[int] = []
    for _ in range(3):
        for size in sizes:
            await dead_lettered(bus, redis, {b"bytes": bytes(size - 5)})
            await put(redis, ALERTS.key, {b"bytes": bytes(size // 2 - 5)})
            await anext(follower)
            sent += [size, size // 2]
            held = await kept()
            assert held == sent[-len(held) :]
    assert len(held) >= 5
    await dead_lettered(bus, redis, {b"bytes": bytes(most)})
    (newest,) = await bus.dead.letters(count=100)
    assert newest.size_bytes == most + 5


@pytest.mark.parametrize("excess", [0, 1])
async def test_an_entry_of_too_many_fields_is_not_kept(bus: Bus, redis: Redis, excess: int) -> None:
    fields = {b"%d" % number: b"x" for number in range(MAX_KEPT_FIELDS + excess)}
    letter = await dead_lettered(bus, redis, fields)
    assert bool(letter.obstacle) == bool(excess)
    if not excess:
        await bus.dead.replay(letter)
        assert await contents(redis, TRAJECTORIES.key) == [fields]


async def test_letters_are_listed_newest_first_in_pages(bus: Bus, redis: Redis) -> None:
    made = [(await dead_lettered(bus, redis, {b"number": b"%d" % number})).letter_id for number in range(5)]
    newest = await bus.dead.letters(count=2)
    older = await bus.dead.letters(count=9, before=newest[-1].letter_id)
    assert [letter.letter_id for letter in (*newest, *older)] == made[::-1]
    assert await bus.dead.letter(made[2]) == older[0]
    assert await bus.dead.letter("5-5") is None


async def test_concurrent_replays_of_a_letter_replay_it_once(bus: Bus, redis: Redis) -> None:
    letter = await dead_lettered(bus, redis, {b"garbage": b"\xff"})
    replies = await asyncio.gather(*(bus.dead.replay(letter) for _ in range(8)))
    assert sum(reply is not None for reply in replies) == 1
    assert await contents(redis, TRAJECTORIES.key) == [{b"garbage": b"\xff"}]
    assert await bus.length(DEAD) == 0


async def test_replaying_an_entry_that_is_still_in_its_stream_moves_it(bus: Bus, redis: Redis) -> None:
    before = await put(redis, ALERTS.key, {b"type": b"nonsense"})
    await bus.append(ALERTS, AlertRaised(source="test", name="good"))
    for _ in range(2):
        await anext(bus.follow(ALERTS, block_ms=20))
    first, second = await bus.dead.letters(count=9)
    assert first.entry_id == second.entry_id == before
    after = await bus.dead.replay(first, copies=[second.letter_id])
    assert await bus.last_id(ALERTS) == after
    assert await bus.length(ALERTS) == 2
    assert await bus.length(DEAD) == 0


async def test_a_replay_succeeds_while_other_letters_arrive(bus: Bus, redis: Redis) -> None:
    letter = await dead_lettered(bus, redis, {b"garbage": b"\xff"})
    stop = asyncio.Event()

    async def disturb() -> None:
        while not stop.is_set():
            await put(redis, DEAD.key, {b"other": b"letter"})

    disturbing = asyncio.create_task(disturb())
    async with asyncio.timeout(PATIENCE_SECONDS):
        assert await bus.dead.replay(letter) is not None
    stop.set()
    await disturbing
    assert await contents(redis, TRAJECTORIES.key) == [{b"garbage": b"\xff"}]
    assert await bus.dead.letter(letter.letter_id) is None


async def test_a_replay_is_atomic_wherever_the_connection_breaks(
    bus: Bus, redis: Redis, redis_server: RedisServer
) -> None:
    """The connection breaks once after each byte; either the letter or the entry exists."""

    async def replay_through(cut: Cut, letter: Letter) -> None:
        async with cut.url() as url:
            cut_off = Bus(url)
            replaying = asyncio.create_task(cut_off.dead.replay(letter))
            breaking = asyncio.create_task(cut.broken.wait())
            async with asyncio.timeout(PATIENCE_SECONDS):
                await asyncio.wait({replaying, breaking}, return_when=asyncio.FIRST_COMPLETED)
            for task in (replaying, breaking):
                task.cancel()
            await asyncio.gather(replaying, breaking, return_exceptions=True)
            await cut_off.close()

    fields = {b"garbage": b"\xff"}
    undisturbed = Cut(redis_server, None)
    await replay_through(undisturbed, await dead_lettered(bus, redis, fields))
    assert await contents(redis, TRAJECTORIES.key) == [fields]
    await redis.delete(TRAJECTORIES.key)

    outcomes = []
    for last_byte in range(1, undisturbed.sent + 1):
        letter = await dead_lettered(bus, redis, fields)
        await replay_through(Cut(redis_server, last_byte), letter)
        appended = await contents(redis, TRAJECTORIES.key) == [fields]
        kept = await bus.dead.letter(letter.letter_id) is not None
        assert appended != kept, last_byte
        outcomes.append(appended)
        await redis.delete(TRAJECTORIES.key, DEAD.key)
    assert outcomes == [False] * (undisturbed.sent - 1) + [True]  # only the complete command has an effect


async def test_a_replay_whose_reply_was_lost_is_not_repeated(
    bus: Bus, redis: Redis, redis_server: RedisServer
) -> None:
    fields = {b"garbage": b"\xff"}
    unbroken = Cut(redis_server, None)
    async with unbroken.url() as url:
        through = Bus(url)
        await through.dead.replay(await dead_lettered(bus, redis, fields))
        await through.close()
    await redis.delete(TRAJECTORIES.key)
    letter = await dead_lettered(bus, redis, fields)
    cut = Cut(redis_server, unbroken.sent)
    async with cut.url() as url:
        through = Bus(url)
        replaying = asyncio.create_task(through.dead.replay(letter))
        async with asyncio.timeout(PATIENCE_SECONDS):
            await cut.broken.wait()
            assert not replaying.done()
            cut.repair()
            assert await replaying is None  # the letter no longer exists
        await through.close()
    assert await contents(redis, TRAJECTORIES.key) == [fields]
