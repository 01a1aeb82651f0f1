"""The task group of a service, whose tasks run and fail together."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from shared.errors import MuZeroError


@asynccontextmanager
async def service_tasks() -> AsyncIterator[asyncio.TaskGroup]:
    """An `asyncio.TaskGroup` that raises the first MuZeroError of its tasks itself, not in a group.

    Raises:
        MuZeroError: the error of the task that failed first; the other tasks were cancelled.
    """
    try:
        async with asyncio.TaskGroup() as tasks:
            yield tasks
    except* MuZeroError as failures:
        first: Exception = failures
        while isinstance(first, ExceptionGroup):  # a task may have a group of its own
            first = first.exceptions[0]
        raise first from failures
