"""Composes the trainer and runs it, alone or as one of several ranks under torchrun."""

import asyncio
import sys
from collections.abc import Sequence

from services.trainer.place import Rank
from services.trainer.settings import TrainerSettings
from shared.runtime.allocator import keep_freed_memory
from shared.runtime.entry import service_main
from shared.runtime.lifecycle import Lifecycle, Main


def compose(settings: TrainerSettings) -> Main:
    """Build the trainer's coroutine from its settings."""
    import torch

    from services.trainer.follower import FollowerService
    from services.trainer.learning.distributed import Ranks
    from services.trainer.service import TrainerService

    async def run(lifecycle: Lifecycle) -> None:
        keep_freed_memory()
        torch.set_num_threads(settings.trainer.threads)
        rank = Rank.from_torchrun()
        if rank.world_size == 1:
            await TrainerService(settings, lifecycle).run()
            return
        device = rank.device(settings.trainer.device)
        ranks = await asyncio.to_thread(Ranks, rank, device)
        service = TrainerService if rank.is_leader else FollowerService
        await service(settings, lifecycle, ranks).run()
        ranks.close()

    return run


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the trainer; see `--help`."""
    service = "trainer" if Rank.from_torchrun().is_leader else "trainer-rank"
    return service_main(service, TrainerSettings, compose, arguments)


if __name__ == "__main__":
    sys.exit(main())
