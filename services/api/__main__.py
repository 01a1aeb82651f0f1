"""Composes and runs the gateway."""

import asyncio
import sys
from collections.abc import Sequence

from services.api.app import create_app
from services.api.settings import GatewaySettings
from services.api.state import Gateway
from shared.adapters.checkpoints import CheckpointStore
from shared.runtime.entry import service_main
from shared.runtime.lifecycle import Lifecycle, Main, serve_app


def compose(settings: GatewaySettings) -> Main:
    """Wire the service."""
    config = settings.gateway

    async def main(lifecycle: Lifecycle) -> None:
        gateway = Gateway(
            lifecycle.bus,
            CheckpointStore(settings.checkpoint_root),
            settings.validation_root,
            config,
            settings.alerts,
        )
        lifecycle.report(port=config.port)
        ending = asyncio.create_task(_end_events(lifecycle, gateway))
        try:
            await serve_app(create_app(gateway), lifecycle, host=config.host, port=config.port)
        finally:
            ending.cancel()

    return main


async def _end_events(lifecycle: Lifecycle, gateway: Gateway) -> None:
    """Let open event streams end, so that the server can."""
    await lifecycle.stopping.wait()
    gateway.events.close()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run until asked to stop; the exit status."""
    return service_main("api", GatewaySettings, compose, arguments)


if __name__ == "__main__":
    sys.exit(main())
