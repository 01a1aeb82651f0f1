"""The gateway's life: serve, follow the streams, watch for what goes wrong, until asked to stop."""

import asyncio

from services.api.app import create_app
from services.api.history import follow_all
from services.api.outbox import Outbox
from services.api.state import Gateway
from services.api.watch import announce, deliver, relay, watch
from shared.runtime.lifecycle import Lifecycle
from shared.runtime.server import serve_app


async def run(gateway: Gateway, lifecycle: Lifecycle) -> None:
    """Serve until asked to stop; none of the parts goes on without the others.

    Raises:
        MuZeroError: the port cannot be had.
    """
    config = gateway.config
    beside = asyncio.create_task(_beside(gateway))
    beside.add_done_callback(lambda _: lifecycle.stop())
    ending = asyncio.create_task(_end_events(lifecycle, gateway))
    lifecycle.report(port=config.port)
    try:
        await serve_app(
            create_app(gateway),
            lifecycle,
            host=config.host,
            port=config.port,
            allowed_hosts=config.allowed_hosts,
        )
    finally:
        ending.cancel()
        if not beside.done():
            beside.cancel()
            await asyncio.gather(beside, return_exceptions=True)
    if not beside.cancelled():
        beside.result()  # what ended it is what ends the service


async def _beside(gateway: Gateway) -> None:
    post = Outbox(gateway.alerts.repeat_seconds)
    async with asyncio.TaskGroup() as group:
        group.create_task(follow_all(gateway.bus, gateway.history, gateway.events))
        group.create_task(watch(gateway))
        group.create_task(announce(gateway, post))
        group.create_task(relay(gateway, post))
        group.create_task(deliver(gateway, post))


async def _end_events(lifecycle: Lifecycle, gateway: Gateway) -> None:
    """End open event streams, so that the server can end."""
    await lifecycle.stopping.wait()
    gateway.events.close()
