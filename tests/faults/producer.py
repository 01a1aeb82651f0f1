"""A process that sends numbered trajectories and prints each number that was acknowledged."""

import asyncio
import itertools
import sys

from shared.adapters.streams.bus import Bus
from tests.faults.reading import send


async def produce(url: str, first: int) -> None:
    """Send until killed."""
    bus = Bus(url)
    for seed in itertools.count(first):
        await send(bus, seed)
        print(seed, flush=True)


if __name__ == "__main__":
    asyncio.run(produce(sys.argv[1], int(sys.argv[2])))
