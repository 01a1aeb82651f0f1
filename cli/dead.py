"""`dead`: list, inspect, replay and drop dead letters, which are entries that could not be processed."""

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from rich.padding import Padding
from rich.text import Text

from cli.output import err, out, print_fields, print_json, print_table
from cli.redis_query import in_time, query_redis
from cli.runs import system_redis
from shared.adapters.outputs import atomic_output, check_output
from shared.adapters.streams.bus import Bus
from shared.adapters.streams.dead_letters import Letter
from shared.errors import MessageError
from shared.messages.codec import decode, decode_trajectory
from shared.messages.entry_id import EntryId
from shared.messages.schemas import Message, TrajectoryFinished
from shared.messages.streams import DEAD, STREAMS

app = typer.Typer(help="Inspect and replay messages that could not be processed.", no_args_is_help=True)

_PAGE_LETTERS = 32
_PREVIEW_BYTES = 96

Json = Annotated[bool, typer.Option("--json", help="print one JSON document")]
R = TypeVar("R")


class LetterError(MessageError):
    """A dead letter does not exist, or cannot be replayed."""

    user_fault = True


@app.command("list")
def list_letters(
    as_json: Json = False,
    limit: Annotated[int, typer.Option(min=1, help="maximum number of letters to list")] = 50,
) -> None:
    """List the dead letters, newest first."""

    async def query(bus: Bus) -> tuple[list[Letter], int]:
        return [letter async for letter in _letters(bus, limit)], await in_time(bus.length(DEAD))

    letters, total = _query(query)
    if as_json:
        print_json([_summary(letter) for letter in letters])
        return
    out.print(f"{len(letters)} of {total} dead letters, newest first" if letters else "no dead letters")
    for letter in letters:
        size = "size unknown" if letter.size_bytes is None else f"{letter.size_bytes:,} bytes"
        replayable = "not replayable" if letter.obstacle else "replayable"
        created = f"{letter.created_at:%Y-%m-%d %H:%M} UTC"
        _print_line(f"{letter.letter_id}  {created}  {letter.stream or 'stream unknown'}")
        _print_line(f"    {size}, {replayable}")
        _print_indented(letter.reason)


@app.command()
def show(
    letter_id: Annotated[
        str, typer.Argument(metavar="ID", help="id of the letter, as `dead list` prints it")
    ],
    as_json: Json = False,
    raw: Annotated[
        Path | None,
        typer.Option(help="write the original entry to this file, as input for `redis-cli --pipe`"),
    ] = None,
) -> None:
    """Show one dead letter: reason, entry fields and message."""
    wanted = _entry_id(letter_id)
    letter = _query(lambda bus: _letter(bus, wanted))
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
        print_fields("excerpt", {"excerpt": _escaped(letter.excerpt)})
    else:
        rows = [tuple(entry.values()) for entry in _fields(letter)]
        print_table("fields of the entry", ("field", "bytes", "begins with"), rows)
    if message is not None:
        print_fields("message", _readable(message))
    if fault:
        _print_line(f"fault when decoded now: {fault}")


@app.command()
def replay(
    letter_ids: Annotated[
        list[str] | None, typer.Argument(metavar="ID...", help="ids of letters, as `dead list` prints them")
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="replay every letter that can be replayed")] = False,
    stream: Annotated[str | None, typer.Option(help="with --all: only letters from this stream")] = None,
    as_json: Json = False,
) -> None:
    """Return entries to their streams and remove their letters.

    If the cause persists, the entry becomes a new dead letter.
    """
    wanted = _requested_ids(letter_ids, every, stream, "replay")

    async def query(bus: Bus) -> list[dict[str, object]]:
        letters = [_LetterKey(letter) async for letter in _letters(bus)][::-1]
        chosen = _all_replayable(letters, stream) if every else _replayable_by_id(letters, wanted)
        return [await _replay(bus, letter, letters, quiet=as_json) for letter in chosen]

    replayed = _query(query)
    if as_json:
        print_json(replayed)


@app.command()
def drop(
    letter_ids: Annotated[
        list[str] | None, typer.Argument(metavar="ID...", help="ids of letters, as `dead list` prints them")
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="remove every letter; needs --yes")] = False,
    stream: Annotated[str | None, typer.Option(help="with --all: only letters from this stream")] = None,
    yes: Annotated[bool, typer.Option("--yes", help="with --all: confirm that the letters are lost")] = False,
    as_json: Json = False,
) -> None:
    """Remove letters and all their copies permanently.

    If the original entry is still in its stream, it stays there.
    """
    wanted = _requested_ids(letter_ids, every, stream, "drop")

    async def query(bus: Bus) -> list[dict[str, object]]:
        letters = [_LetterKey(letter) async for letter in _letters(bus)][::-1]
        if every:
            chosen = [letter for letter in letters if stream in (None, letter.stream)]
            if not yes:
                raise LetterError(f"{len(chosen)} letters would be lost permanently; confirm with --yes")
        else:
            origins = {letter.origin for letter in _by_id(letters, wanted)}
            chosen = [letter for letter in letters if letter.origin in origins]
        return [
            {
                "id": letter.letter_id,
                "stream": letter.stream,
                "dropped": await in_time(bus.dead.drop(letter.letter_id)),
            }
            for letter in chosen
        ]

    dropped = _query(query)
    if as_json:
        print_json(dropped)
    else:
        out.print(f"letters dropped: {sum(bool(row['dropped']) for row in dropped)}")


def _requested_ids(letter_ids: Sequence[str] | None, every: bool, stream: str | None, verb: str) -> list[str]:
    """The ids given as arguments; empty with `--all`."""
    if bool(letter_ids) == every:
        raise LetterError(f"name the letters to {verb}, or give --all; `micro-muzero dead list` lists them")
    if stream is not None and not every:
        raise LetterError("--stream needs --all and cannot be combined with ids of letters")
    return [_entry_id(text) for text in letter_ids or ()]


class _LetterKey:
    """Identifies a letter and its original entry, without keeping the entry in memory."""

    def __init__(self, letter: Letter) -> None:
        self.letter_id, self.stream, self.obstacle = letter.letter_id, letter.stream, letter.obstacle
        self.origin = (letter.stream, letter.entry_id or letter.letter_id)


def _replayable_by_id(letters: Sequence[_LetterKey], wanted: Sequence[str]) -> list[_LetterKey]:
    """The letters with these ids, one per original entry.

    Raises:
        LetterError: one of them cannot be replayed.
    """
    chosen = _by_id(letters, wanted)
    for letter in chosen:
        if letter.obstacle:
            raise LetterError(
                f"dead letter {letter.letter_id} cannot be replayed: {letter.obstacle}; nothing was done"
            )
    return _one_per_entry(chosen)


def _by_id(letters: Sequence[_LetterKey], wanted: Sequence[str]) -> list[_LetterKey]:
    by_id = {letter.letter_id: letter for letter in letters}
    for letter_id in wanted:
        if letter_id not in by_id:
            raise _not_found(letter_id)
    return [by_id[letter_id] for letter_id in wanted]


def _all_replayable(letters: Sequence[_LetterKey], stream: str | None) -> list[_LetterKey]:
    """The letters that can be replayed, oldest first, one per original entry."""
    candidates = [letter for letter in letters if stream in (None, letter.stream)]
    chosen = [letter for letter in candidates if not letter.obstacle]
    if not chosen:
        source = f" from {stream}" if stream else ""
        streams = ", ".join(sorted({letter.stream for letter in letters if letter.stream})) or "none"
        hint = "`micro-muzero dead show ID` shows why" if candidates else f"streams with letters: {streams}"
        raise LetterError(
            f"nothing to replay: {len(candidates)} dead letters{source}, 0 can be replayed; {hint}"
        )
    if len(chosen) < len(candidates):
        err.print(f"{len(candidates) - len(chosen)} letters cannot be replayed and are kept", highlight=False)
    return _one_per_entry(chosen)


def _one_per_entry(letters: Sequence[_LetterKey]) -> list[_LetterKey]:
    return list({letter.origin: letter for letter in reversed(letters)}.values())[::-1]


async def _replay(
    bus: Bus, key: _LetterKey, letters: Sequence[_LetterKey], *, quiet: bool
) -> dict[str, object]:
    """Replay one letter, remove its copies, and print the outcome unless `quiet`."""
    same = [other.letter_id for other in letters if other.origin == key.origin]
    copies = [letter_id for letter_id in same if letter_id != key.letter_id]
    letter = await in_time(bus.dead.letter(key.letter_id))
    entry_id = await in_time(bus.dead.replay(letter, copies)) if letter else None
    if not quiet:
        outcome = f"appended to {key.stream} as {entry_id}" if entry_id else "was already replayed or dropped"
        removed = f"; copies of the letter removed: {len(copies)}" if copies and entry_id else ""
        _print_line(f"{key.letter_id}: {outcome}{removed}")
    return {"id": key.letter_id, "stream": key.stream, "entry_id": entry_id, "copies": copies}


def _query(query: Callable[[Bus], Awaitable[R]]) -> R:
    """Query the configured Redis, or else that of the locally running system.

    Raises:
        NotUpError: no Redis is configured and no system is running here.
        ServiceError: Redis does not answer.
    """
    advice = "each letter is either replayed or still listed, so the command can be repeated"
    return asyncio.run(query_redis(system_redis(), query, advice))


async def _letters(bus: Bus, limit: int | None = None) -> AsyncIterator[Letter]:
    """Letters, newest first, fetched in small pages because each may hold a large entry."""
    before, left = "+", limit
    while left is None or left > 0:
        count = _PAGE_LETTERS if left is None else min(_PAGE_LETTERS, left)
        page = await in_time(bus.dead.letters(count=count, before=before))
        for letter in page:
            yield letter
        if not page:
            return
        before = page[-1].letter_id
        left = None if left is None else left - len(page)


async def _letter(bus: Bus, letter_id: str) -> Letter:
    letter = await in_time(bus.dead.letter(letter_id))
    if letter is None:
        raise _not_found(letter_id)
    return letter


def _not_found(letter_id: str) -> LetterError:
    return LetterError(f"there is no dead letter {letter_id}; `micro-muzero dead list` lists the letters")


def _entry_id(text: str) -> str:
    try:
        return str(EntryId.parse(text))
    except ValueError as invalid:
        raise LetterError(str(invalid)) from invalid


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
        yield {"name": _text(name), "bytes": len(value), "begins": _text(value[:_PREVIEW_BYTES])}


def _decoded(letter: Letter) -> tuple[dict[str, Any] | None, str]:
    """The message in a letter's entry and its fault; None if this release cannot decode it."""
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
    """Shorten values for a table: arrays to their shapes, other lists to their length."""
    return {name: _cell(value) for name, value in document.items() if value != ""}


def _cell(value: object) -> object:
    if isinstance(value, list):
        shapes = [
            f"{item['name']} {item['shape']}" for item in value if isinstance(item, dict) and "shape" in item
        ]
        return ", ".join(shapes) or f"{len(value)} items"
    return _escaped(value) if isinstance(value, str) else value


def _print_line(line: str) -> None:
    """Print one line without wrapping, so that ids can be copied."""
    out.print(_escaped(line), highlight=False, soft_wrap=True, markup=False)


def _print_indented(text: str) -> None:
    """Print a text that wraps between words."""
    out.print(Padding(Text(_escaped(text), overflow="fold"), (0, 0, 0, 4), expand=False))


def _escaped(text: str) -> str:
    """Escape control characters, which a terminal would interpret."""
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text)


def _text(data: bytes) -> str:
    """Bytes as ASCII text; other bytes are escaped."""
    return repr(data)[2:-1]


def _write_command(path: Path, letter: Letter) -> None:
    """Write the original entry as one XADD command in the Redis protocol."""
    if letter.original is None or letter.stream is None:
        raise LetterError(f"dead letter {letter.letter_id} has no original entry to write; {letter.obstacle}")
    words = [b"XADD", letter.stream.encode(), b"*", *(w for pair in letter.original.items() for w in pair)]
    command = b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%b\r\n" % (len(word), word) for word in words)
    with atomic_output(check_output(path, "dead letter written before", _is_command)) as temporary:
        temporary.write_bytes(command)


def _is_command(path: Path) -> bool:
    """Whether `_write_command` wrote this file."""
    with path.open("rb") as file:
        return re.match(rb"\*[0-9]+\r\n\$4\r\nXADD\r\n", file.read(64)) is not None
