"""The trainer's way from the stream into the journal, without the learning; and what is there at the end."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from services.trainer.intake.journal import Journal
from shared.adapters.streams.bus import Bus
from shared.messages.codec import decode_trajectory, encode_trajectory
from shared.messages.streams import TRAINER_GROUP, TRAJECTORIES
from tests.shared.messages.trajectories import random_trajectory
from tests.waiting import PATIENCE_SECONDS

#: A test that waits longer than this for one thing has failed; nothing depends on how much shorter it takes.


@dataclass
class Tally:
    """What came in; `sent` has when the sending of each trajectory was acknowledged, by its number."""

    sent: dict[int, float] = field(default_factory=dict)
    delivered: int = 0
    doubled: int = 0


async def send(bus: Bus, seed: int, tally: Tally | None = None) -> None:
    """Send the trajectory of a number."""
    await bus.append(TRAJECTORIES, *encode_trajectory(random_trajectory(seed)))
    if tally:
        tally.sent[seed] = time.monotonic()


async def journal_all(bus: Bus, journal: Journal, tally: Tally) -> None:
    """Journal what comes, then acknowledge it, until cancelled."""
    async for batch in bus.consume(TRAJECTORIES, TRAINER_GROUP, "trainer"):
        trajectories = [decode_trajectory(entry.message, entry.arrays) for entry in batch.entries]
        new = journal.append(trajectories)
        tally.delivered += len(trajectories)
        tally.doubled += len(trajectories) - len(new)
        await batch.ack()


@contextlib.asynccontextmanager
async def in_background(*coroutines: object) -> AsyncIterator[None]:
    """Tasks that are cancelled at the end; an error of one is the test's."""
    tasks = [asyncio.ensure_future(coroutine) for coroutine in coroutines]  # type: ignore[call-overload]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException) and not isinstance(result, asyncio.CancelledError):
            raise result


async def until_drained(bus: Bus) -> None:
    """Wait until everything in the stream is acknowledged."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while await bus.length(TRAJECTORIES):  # noqa: ASYNC110  a state, not an event
            await asyncio.sleep(0.01)


def journalled(journal: Journal) -> list[int]:
    """The numbers of the trajectories in the journal, in its order."""
    return [journal.read(n).seed for n in range(journal.first, journal.position)]
