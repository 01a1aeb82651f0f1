"""Composes a self-play worker and runs it."""

import sys
from collections.abc import Sequence

from services.selfplay.settings import SelfPlaySettings
from shared.runtime.entry import service_main
from shared.runtime.lifecycle import Lifecycle, Main


def compose(settings: SelfPlaySettings) -> Main:
    """Wire a worker's coroutine to its settings."""
    from services.selfplay.service import SelfPlayService

    async def run(lifecycle: Lifecycle) -> None:
        await SelfPlayService(settings, lifecycle).run()

    return run


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a self-play worker; see `--help`."""
    return service_main("selfplay", SelfPlaySettings, compose, arguments)


if __name__ == "__main__":
    sys.exit(main())
