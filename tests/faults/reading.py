"""Sends trajectories and journals them as the trainer does, but without learning."""

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


@dataclass
class Tally:
    """Counts of trajectories; `sent` has the time of each acknowledged send, by trajectory number."""

    sent: dict[int, float] = field(default_factory=dict)
    delivered: int = 0
    doubled: int = 0


async def send(bus: Bus, seed: int, tally: Tally | None = None) -> None:
    """Send the trajectory with a number."""
    await bus.append(TRAJECTORIES, *encode_trajectory(random_trajectory(seed)))
    if tally:
        tally.sent[seed] = time.monotonic()


async def journal_all(bus: Bus, journal: Journal, tally: Tally) -> None:
    """Journal and acknowledge trajectories until cancelled."""
    async for batch in bus.consume(TRAJECTORIES, TRAINER_GROUP, "trainer"):
        trajectories = [decode_trajectory(entry.message, entry.arrays) for entry in batch.entries]
        new = journal.append(trajectories)
        tally.delivered += len(trajectories)
        tally.doubled += len(trajectories) - len(new)
        await batch.ack()


@contextlib.asynccontextmanager
async def in_background(*coroutines: object) -> AsyncIterator[None]:
    """Run tasks that are cancelled at the end; an error of a task fails the test."""
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
    """Wait until all trajectories in the stream are acknowledged."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while await bus.length(TRAJECTORIES):  # noqa: ASYNC110  a state, not an event
            await asyncio.sleep(0.01)


def journalled(journal: Journal) -> list[int]:
    """Numbers of the trajectories in the journal, in its order."""
    return [journal.read(n).seed for n in range(journal.first, journal.position)]
