"""Runs the gateway: serves HTTP, follows the streams and raises alerts until asked to stop."""

import asyncio

from services.api.app import create_app
from services.api.history import follow_all
from services.api.outbox import Outbox
from services.api.state import Gateway
from services.api.watch import announce, deliver, relay, watch
from shared.runtime.lifecycle import Lifecycle
from shared.runtime.server import serve_app


async def run(gateway: Gateway, lifecycle: Lifecycle) -> None:
    """Serve until asked to stop. If one part fails, the others stop, too.

    Raises:
        MuZeroError: the port is not available.
    """
    config = gateway.config
    background = asyncio.create_task(_run_background(gateway))
    background.add_done_callback(lambda _: lifecycle.stop())
    closing = asyncio.create_task(_close_events(lifecycle, gateway))
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
        closing.cancel()
        if not background.done():
            background.cancel()
            await asyncio.gather(background, return_exceptions=True)
    if not background.cancelled():
        background.result()  # raises the failure that stopped the service


async def _run_background(gateway: Gateway) -> None:
    outbox = Outbox(gateway.alerts.repeat_seconds)
    async with asyncio.TaskGroup() as group:
        group.create_task(follow_all(gateway.bus, gateway.history, gateway.events))
        group.create_task(watch(gateway))
        group.create_task(announce(gateway, outbox))
        group.create_task(relay(gateway, outbox))
        group.create_task(deliver(gateway, outbox))


async def _close_events(lifecycle: Lifecycle, gateway: Gateway) -> None:
    """Close open event streams on a stop, since the server waits for them."""
    await lifecycle.stopping.wait()
    gateway.events.close()
