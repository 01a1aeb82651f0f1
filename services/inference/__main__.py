"""Composes and runs the inference service."""

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
from shared.runtime.tasks import service_tasks


def compose(settings: InferenceSettings) -> Main:
    """Wire the service's coroutine to its settings."""
    config = settings.inference

    async def main(lifecycle: Lifecycle) -> None:
        promoted = PromotedVersion(
            CheckpointStore(settings.checkpoint_root),
            settings.search,
            settings.precision,
            instrument=config.instrument,
        )
        app = build_app(promoted, config, REGISTRY)
        try:
            async with service_tasks() as tasks:
                tasks.create_task(promoted.follow(lifecycle, poll_seconds=config.poll_seconds))
                await serve_app(
                    app, lifecycle, host=config.host, port=config.port, allowed_hosts=config.allowed_hosts
                )
                lifecycle.stop()  # stops `follow` if the server exits by itself
        finally:
            promoted.close()

    return main


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the inference service; see `--help`."""
    return service_main("inference", InferenceSettings, compose, arguments)


if __name__ == "__main__":
    sys.exit(main())
