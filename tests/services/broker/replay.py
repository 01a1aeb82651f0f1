"""Runs the replay of a venue for the duration of a block."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from services.broker.venue import Venue


@asynccontextmanager
async def running(venue: Venue) -> AsyncIterator[asyncio.Task[None]]:
    """Run the replay of a venue inside the block."""
    replay = asyncio.create_task(venue.run())
    try:
        yield replay
    finally:
        venue.stopping.set()
        replay.cancel()
        await asyncio.gather(replay, return_exceptions=True)
