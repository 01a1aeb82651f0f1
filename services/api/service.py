"""Runs the gateway: serves HTTP, follows the streams and raises alerts until asked to stop."""

from services.api.app import create_app
from services.api.history import follow_all
from services.api.outbox import Outbox
from services.api.state import Gateway
from services.api.watch import announce, deliver, relay, watch
from shared.runtime.lifecycle import Lifecycle
from shared.runtime.server import serve_app
from shared.runtime.tasks import service_tasks


async def run(gateway: Gateway, lifecycle: Lifecycle) -> None:
    """Serve until asked to stop. If one part fails, the others stop, too.

    Raises:
        MuZeroError: the port is not available.
    """
    config = gateway.config
    outbox = Outbox(gateway.alerts.repeat_seconds)
    lifecycle.report(port=config.port)
    async with service_tasks() as tasks:
        loops = [
            tasks.create_task(follow_all(gateway.bus, gateway.history, gateway.events)),
            tasks.create_task(watch(gateway)),
            tasks.create_task(announce(gateway, outbox)),
            tasks.create_task(relay(gateway, outbox)),
            tasks.create_task(deliver(gateway, outbox)),
        ]
        tasks.create_task(_close_events(lifecycle, gateway))
        await serve_app(
            create_app(gateway),
            lifecycle,
            host=config.host,
            port=config.port,
            allowed_hosts=config.allowed_hosts,
        )
        lifecycle.stop()  # stops `_close_events` if the server exits by itself
        for loop in loops:
            loop.cancel()


async def _close_events(lifecycle: Lifecycle, gateway: Gateway) -> None:
    """Close open event streams on a stop, since the server waits for them."""
    try:
        await lifecycle.stopping.wait()
    finally:
        gateway.events.close()
