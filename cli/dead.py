"""`dead`: list, inspect, replay and drop what could not be processed."""

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar
from urllib.parse import urlsplit

import typer
from redis.exceptions import RedisError

from cli.output import err, out, print_fields, print_json, print_table
from cli.runs import system_redis
from shared.adapters.outputs import check_output, written_aside
from shared.adapters.streams.bus import Bus
from shared.adapters.streams.dead_letters import Letter
from shared.errors import MessageError, ServiceError, SettingsError
from shared.messages.codec import decode, decode_trajectory
from shared.messages.entry_id import EntryId
from shared.messages.schemas import Message, TrajectoryFinished
from shared.messages.streams import DEAD, STREAMS

app = typer.Typer(help="Entries that could not be processed.", no_args_is_help=True)

#: Redis has this long for each answer.
PATIENCE_SECONDS = 10.0

_PAGE = 32
_BEGINNING_BYTES = 96

Json = Annotated[bool, typer.Option("--json", help="print one JSON document")]
R = TypeVar("R")


class LetterError(MessageError):
    """There is no such dead letter, or none that can be replayed."""

    user_fault = True


@app.command("list")
def list_letters(
    as_json: Json = False,
    limit: Annotated[int, typer.Option(min=1, help="how many of the newest")] = 50,
) -> None:
    """List the dead letters, newest first."""

    async def question(bus: Bus) -> tuple[list[Letter], int]:
        return [letter async for letter in _letters(bus, limit)], await soon(bus.length(DEAD))

    letters, total = _ask(question)
    if as_json:
        print_json([_summary(letter) for letter in letters])
        return
    out.print(f"{len(letters)} of {total} dead letters, newest first" if letters else "no dead letters")
    for letter in letters:
        size = "size unknown" if letter.size_bytes is None else f"{letter.size_bytes:,} bytes"
        fate = "not replayable" if letter.obstacle else "replayable"
        written = f"{letter.created_at:%Y-%m-%d %H:%M} UTC"
        _say(f"{letter.letter_id}  {written}  {letter.stream or 'stream unknown'}  {size}  {fate}")
        _say(f"    {letter.reason}")


@app.command()
def show(
    letter_id: Annotated[str, typer.Argument(metavar="ID", help="a letter's id, as `dead list` prints it")],
    as_json: Json = False,
    raw: Annotated[
        Path | None,
        typer.Option(help="write the entry, byte for byte, as the command that `redis-cli --pipe` appends"),
    ] = None,
) -> None:
    """Show one letter: why it is one, the fields of its entry, and the message as far as it can be read."""
    wanted = _entry_id(letter_id)
    letter = _ask(lambda bus: _letter(bus, wanted))
    if raw is not None:
        _write_command(raw, letter)
    message, fault = _decoded(letter)
    if as_json:
        document = {
            **_summary(letter),
            "excerpt": letter.excerpt,
            "fields": list(_fields(letter)),
            "message": message,
            "fault": fault,
        }
        print_json(document)
        return
    print_fields(f"dead letter {letter.letter_id}", _readable(_summary(letter)))
    if letter.original is None:
        print_fields("excerpt", {"excerpt": _printable(letter.excerpt)})
    else:
        rows = [tuple(entry.values()) for entry in _fields(letter)]
        print_table("fields of the entry", ("field", "bytes", "begins with"), rows)
    if message is not None:
        print_fields("message", _readable(message))
    if fault:
        _say(f"read today: {fault}")


@app.command()
def replay(
    letter_ids: Annotated[
        list[str] | None, typer.Argument(metavar="ID...", help="ids, as `dead list` prints them")
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="every letter that can be replayed")] = False,
    stream: Annotated[str | None, typer.Option(help="with --all: only entries of this stream")] = None,
    as_json: Json = False,
) -> None:
    """Append entries to their streams again, without their letters; a reason that still holds comes back."""
    wanted = _wanted(letter_ids, every, stream, "replay")

    async def question(bus: Bus) -> list[dict[str, object]]:
        everything = [_Known(letter) async for letter in _letters(bus)][::-1]
        chosen = _all_of(everything, stream) if every else _named(everything, wanted)
        return [await _replayed(bus, letter, everything, quiet=as_json) for letter in chosen]

    done = _ask(question)
    if as_json:
        print_json(done)


@app.command()
def drop(
    letter_ids: Annotated[
        list[str] | None, typer.Argument(metavar="ID...", help="ids, as `dead list` prints them")
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="every letter; needs --yes")] = False,
    stream: Annotated[str | None, typer.Option(help="with --all: only entries of this stream")] = None,
    yes: Annotated[bool, typer.Option("--yes", help="with --all: they are gone for good")] = False,
    as_json: Json = False,
) -> None:
    """Remove letters for good, with all copies; an entry that a reader left in its stream stays there."""
    wanted = _wanted(letter_ids, every, stream, "drop")

    async def question(bus: Bus) -> list[dict[str, object]]:
        everything = [_Known(letter) async for letter in _letters(bus)][::-1]
        if every:
            chosen = [letter for letter in everything if stream in (None, letter.stream)]
            if not yes:
                raise LetterError(
                    f"{len(chosen)} letters would be gone for good; give --yes if that is meant"
                )
        else:
            origins = {letter.origin for letter in _found(everything, wanted)}
            chosen = [letter for letter in everything if letter.origin in origins]
        return [
            {
                "id": known.letter_id,
                "stream": known.stream,
                "dropped": await soon(bus.dead.drop(known.letter_id)),
            }
            for known in chosen
        ]

    done = _ask(question)
    if as_json:
        print_json(done)
    else:
        out.print(f"letters dropped: {sum(bool(row['dropped']) for row in done)}")


def _wanted(letter_ids: Sequence[str] | None, every: bool, stream: str | None, what: str) -> list[str]:
    """The ids that were named; none with `--all`."""
    if bool(letter_ids) == every:
        raise LetterError(f"name the letters to {what}, or give --all; `micro-muzero dead list` lists them")
    if stream is not None and not every:
        raise LetterError("--stream narrows --all and means nothing beside the ids of letters")
    return [_entry_id(text) for text in letter_ids or ()]


class _Known:
    """What a replay must know of each letter without holding all their entries."""

    def __init__(self, letter: Letter) -> None:
        self.letter_id, self.stream, self.obstacle = letter.letter_id, letter.stream, letter.obstacle
        self.origin = (letter.stream, letter.entry_id or letter.letter_id)


def _named(everything: Sequence[_Known], wanted: Sequence[str]) -> list[_Known]:
    """The letters of these ids, one of each entry; all can be replayed, or none is."""
    letters = _found(everything, wanted)
    for letter in letters:
        if letter.obstacle:
            raise LetterError(
                f"dead letter {letter.letter_id} cannot be replayed: {letter.obstacle}; nothing was done"
            )
    return _one_of_each(letters)


def _found(everything: Sequence[_Known], wanted: Sequence[str]) -> list[_Known]:
    """The letters of these ids."""
    by_id = {letter.letter_id: letter for letter in everything}
    for letter_id in wanted:
        if letter_id not in by_id:
            raise _no_such(letter_id)
    return [by_id[letter_id] for letter_id in wanted]


def _all_of(everything: Sequence[_Known], stream: str | None) -> list[_Known]:
    """The letters that can be replayed, oldest first, one of each entry."""
    asked = [letter for letter in everything if stream in (None, letter.stream)]
    chosen = [letter for letter in asked if not letter.obstacle]
    if not chosen:
        where = f" of {stream}" if stream else ""
        streams = ", ".join(sorted({letter.stream for letter in everything if letter.stream})) or "none"
        why = "`micro-muzero dead show ID` says why not" if asked else f"streams with letters: {streams}"
        raise LetterError(f"nothing to replay: {len(asked)} dead letters{where}, 0 can be replayed; {why}")
    if len(chosen) < len(asked):
        err.print(f"{len(asked) - len(chosen)} letters cannot be replayed and stay", highlight=False)
    return _one_of_each(chosen)


def _one_of_each(letters: Sequence[_Known]) -> list[_Known]:
    return list({letter.origin: letter for letter in reversed(letters)}.values())[::-1]


async def _replayed(
    bus: Bus, known: _Known, everything: Sequence[_Known], *, quiet: bool
) -> dict[str, object]:
    """Replay one letter with all copies of it, and say so."""
    same = [other.letter_id for other in everything if other.origin == known.origin]
    copies = [letter_id for letter_id in same if letter_id != known.letter_id]
    letter = await soon(bus.dead.letter(known.letter_id))
    entry_id = await soon(bus.dead.replay(letter, copies)) if letter else None
    if not quiet:
        told = (
            f"appended to {known.stream} as {entry_id}" if entry_id else "is there no longer: replayed before"
        )
        also = f"; copies of the letter removed: {len(copies)}" if copies and entry_id else ""
        _say(f"{known.letter_id}: {told}{also}")
    return {"id": known.letter_id, "stream": known.stream, "entry_id": entry_id, "copies": copies}


def _ask(question: Callable[[Bus], Awaitable[R]]) -> R:
    """The answer of the Redis that is set, else of the system that is up here.

    Raises:
        NotUpError: neither is there.
        ServiceError: Redis does not answer.
    """
    again = "each letter is either replayed or still listed, so the command can be repeated"
    return asyncio.run(answered(system_redis(), question, again))


async def answered(url: str, question: Callable[[Bus], Awaitable[R]], otherwise: str) -> R:
    """Ask a Redis, then close the connections to it.

    Args:
        url: of the Redis.
        question: what to ask, each part of it `soon`.
        otherwise: what an operator should know when there is no answer.
    Raises:
        SettingsError: the URL is invalid.
        ServiceError: Redis does not answer.
    """
    try:
        bus = Bus(url)
    except ValueError as wrong:
        raise SettingsError(f"setting MM_REDIS_URL: {wrong}") from wrong
    try:
        await soon(bus.ping())
        return await question(bus)
    except (RedisError, OSError) as away:
        parts = urlsplit(url)
        raise ServiceError(
            f"Redis at {parts.hostname}:{parts.port or 6379}: {str(away) or 'no answer in time'}; {otherwise}"
        ) from away
    finally:
        await bus.close()


async def soon(operation: Awaitable[R]) -> R:
    """What Redis answers within `PATIENCE_SECONDS`."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        return await operation


async def _letters(bus: Bus, limit: int | None = None) -> AsyncIterator[Letter]:
    """Letters, newest first, a page at a time: each may hold a large entry."""
    before, left = "+", limit
    while left is None or left > 0:
        page = await soon(bus.dead.letters(count=_PAGE if left is None else min(_PAGE, left), before=before))
        for letter in page:
            yield letter
        if not page:
            return
        before = page[-1].letter_id
        left = None if left is None else left - len(page)


async def _letter(bus: Bus, letter_id: str) -> Letter:
    letter = await soon(bus.dead.letter(letter_id))
    if letter is None:
        raise _no_such(letter_id)
    return letter


def _no_such(letter_id: str) -> LetterError:
    return LetterError(f"there is no dead letter {letter_id}; `micro-muzero dead list` lists those there are")


def _entry_id(text: str) -> str:
    try:
        return str(EntryId.parse(text))
    except ValueError as wrong:
        raise LetterError(str(wrong)) from wrong


def _summary(letter: Letter) -> dict[str, object]:
    return {
        "id": letter.letter_id,
        "stream": letter.stream,
        "entry_id": letter.entry_id,
        "reason": letter.reason,
        "created_at": letter.created_at.isoformat(timespec="seconds"),
        "size_bytes": letter.size_bytes,
        "replayable": not letter.obstacle,
        "obstacle": letter.obstacle,
    }


def _fields(letter: Letter) -> Iterator[dict[str, object]]:
    for name, value in (letter.original or {}).items():
        yield {"name": _text(name), "bytes": len(value), "begins": _text(value[:_BEGINNING_BYTES])}


def _decoded(letter: Letter) -> tuple[dict[str, Any] | None, str]:
    """The message of a letter's entry as far as this version can read it, and what is wrong with it."""
    known = {stream.key: stream for stream in STREAMS}
    if letter.original is None or letter.stream not in known:
        return None, ""
    stream = known[letter.stream]
    try:
        message, arrays = decode(stream, letter.original)
    except MessageError as unreadable:
        return None, str(unreadable)
    return message.model_dump(mode="json"), _fault(message, arrays)


def _fault(message: Message, arrays: bytes) -> str:
    if isinstance(message, TrajectoryFinished):
        try:
            decode_trajectory(message, arrays)
        except MessageError as damaged:
            return str(damaged)
    return ""


def _readable(document: Mapping[str, object]) -> dict[str, object]:
    """Short enough for a table: arrays by their shapes, other lists by their length."""
    return {name: _cell(value) for name, value in document.items() if value != ""}


def _cell(value: object) -> object:
    if isinstance(value, list):
        shapes = [
            f"{item['name']} {item['shape']}" for item in value if isinstance(item, dict) and "shape" in item
        ]
        return ", ".join(shapes) or f"{len(value)} of them"
    return _printable(value) if isinstance(value, str) else value


def _say(line: str) -> None:
    """One line, however long: ids are not broken."""
    out.print(_printable(line), highlight=False, soft_wrap=True, markup=False)


def _printable(text: str) -> str:
    """Without what a terminal would obey."""
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text)


def _text(data: bytes) -> str:
    """Bytes as ASCII; the others are escaped."""
    return repr(data)[2:-1]


def _write_command(path: Path, letter: Letter) -> None:
    """The original entry as one XADD in Redis's protocol."""
    if letter.original is None or letter.stream is None:
        raise LetterError(f"dead letter {letter.letter_id} keeps no entry to write; {letter.obstacle}")
    words = [b"XADD", letter.stream.encode(), b"*", *(w for pair in letter.original.items() for w in pair)]
    command = b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%b\r\n" % (len(word), word) for word in words)
    with written_aside(check_output(path, "dead letter written before", _is_command)) as aside:
        aside.write_bytes(command)


def _is_command(path: Path) -> bool:
    """Whether a file is what `_write_command` writes."""
    with path.open("rb") as file:
        return re.match(rb"\*[0-9]+\r\n\$4\r\nXADD\r\n", file.read(64)) is not None
