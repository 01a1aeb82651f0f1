"""Composes the trainer and runs it."""

import sys
from collections.abc import Sequence

from services.trainer.settings import TrainerSettings
from shared.runtime.entry import service_main
from shared.runtime.lifecycle import Lifecycle, Main


def compose(settings: TrainerSettings) -> Main:
    """The trainer's coroutine, wired to its settings."""

    async def run(lifecycle: Lifecycle) -> None:
        import torch

        from services.trainer.service import TrainerService

        torch.set_num_threads(settings.trainer.threads)
        await TrainerService(settings, lifecycle).run()

    return run


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the trainer; see `--help`."""
    return service_main("trainer", TrainerSettings, compose, arguments)


if __name__ == "__main__":
    sys.exit(main())
