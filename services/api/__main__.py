"""Composes and runs the gateway."""

import sys
from collections.abc import Sequence

from services.api.service import run
from services.api.settings import GatewaySettings
from services.api.state import Gateway
from shared.adapters.versions.store import CheckpointStore
from shared.runtime.entry import service_main
from shared.runtime.lifecycle import Lifecycle, Main


def compose(settings: GatewaySettings) -> Main:
    """Wire the service."""

    async def main(lifecycle: Lifecycle) -> None:
        store = CheckpointStore(settings.checkpoint_root)
        gateway = Gateway(
            lifecycle.bus,
            store,
            settings.home.absolute(),
            settings.validation_root,
            settings.gateway,
            settings.alerts,
        )
        await run(gateway, lifecycle)

    return main


def main(arguments: Sequence[str] | None = None) -> int:
    """Run until asked to stop; return the exit status."""
    return service_main("api", GatewaySettings, compose, arguments)


if __name__ == "__main__":
    sys.exit(main())
