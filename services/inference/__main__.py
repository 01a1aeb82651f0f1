"""Composes and runs the inference service."""

import asyncio
import sys
from collections.abc import Sequence

from prometheus_client import REGISTRY

from services.inference.app import build_app
from services.inference.promoted import PromotedVersion
from services.inference.settings import InferenceSettings
from shared.adapters.versions.store import CheckpointStore
from shared.runtime.entry import service_main
from shared.runtime.lifecycle import Lifecycle, Main
from shared.runtime.server import serve_app


def compose(settings: InferenceSettings) -> Main:
    """Wire the service."""
    config = settings.inference

    async def main(lifecycle: Lifecycle) -> None:
        promoted = PromotedVersion(
            CheckpointStore(settings.checkpoint_root),
            settings.search,
            settings.precision,
            instrument=config.instrument,
        )
        app = build_app(promoted, config, REGISTRY)
        following = asyncio.create_task(promoted.follow(lifecycle, poll_seconds=config.poll_seconds))
        following.add_done_callback(lambda _: lifecycle.stop())  # neither goes on without the other
        try:
            await serve_app(
                app, lifecycle, host=config.host, port=config.port, allowed_hosts=config.allowed_hosts
            )
        finally:
            lifecycle.stop()
            await following
            promoted.close()

    return main


def main(arguments: Sequence[str] | None = None) -> int:
    """Run until asked to stop; the exit status."""
    return service_main("inference", InferenceSettings, compose, arguments)


if __name__ == "__main__":
    sys.exit(main())
