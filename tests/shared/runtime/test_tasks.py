"""The task group of a service: its tasks fail together, with an error of this project."""

import asyncio
from collections.abc import Coroutine

import pytest

from shared.errors import ServiceError
from shared.runtime.tasks import service_tasks


async def together(*work: Coroutine[None, None, None], block: Coroutine[None, None, None]) -> None:
    async with service_tasks() as tasks:
        for one in work:
            tasks.create_task(one)
        await block


async def fail(error: Exception) -> None:
    await asyncio.sleep(0)
    raise error


async def test_the_error_of_a_task_is_raised_unwrapped_and_cancels_the_others() -> None:
    cancelled = asyncio.Event()

    async def wait() -> None:
        try:
            await asyncio.sleep(3600)
        finally:
            cancelled.set()

    with pytest.raises(ServiceError, match="no such server"):
        await together(wait(), fail(ServiceError("no such server")), block=asyncio.sleep(3600))
    assert cancelled.is_set()


async def test_the_error_of_a_group_in_a_task_is_raised_unwrapped() -> None:
    async def inner() -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(fail(ServiceError("no such stream")))

    with pytest.raises(ServiceError, match="no such stream"):
        await together(inner(), block=asyncio.sleep(3600))


async def test_an_error_in_the_block_is_raised_unwrapped() -> None:
    with pytest.raises(ServiceError, match="no such port"):
        await together(asyncio.sleep(3600), block=fail(ServiceError("no such port")))


async def test_an_unexpected_error_stays_in_its_group() -> None:
    with pytest.raises(ExceptionGroup) as failures:
        await together(fail(RuntimeError("unforeseen")), block=asyncio.sleep(3600))
    assert failures.group_contains(RuntimeError, match="unforeseen")
