"""Wait for states that no event announces."""

import asyncio
from collections.abc import Callable

#: Longer than any wait on the slowest machine; a test that waits longer has hung.
PATIENCE_SECONDS = 600.0


async def until(condition: Callable[[], bool], *, seconds: float = PATIENCE_SECONDS) -> None:
    """Poll a condition until it holds.

    Raises:
        TimeoutError: the condition did not hold in time.
    """
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110  a state of other tasks
            await asyncio.sleep(0.002)


async def listening(port: int, *, seconds: float = PATIENCE_SECONDS) -> None:
    """Wait until a server accepts connections on a port of the loopback interface.

    Raises:
        TimeoutError: no server did so in time.
    """
    async with asyncio.timeout(seconds):
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                await asyncio.sleep(0.01)
                continue
            writer.close()
            await writer.wait_closed()
            return
