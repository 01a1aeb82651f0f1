"""This process's rank among those that torchrun started, and the device that it computes on."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from shared.errors import SettingsError

if TYPE_CHECKING:
    import torch


class Device(StrEnum):
    """Device that the networks are trained on."""

    AUTO = "auto"  # CUDA if available
    CPU = "cpu"
    CUDA = "cuda"


@dataclass(frozen=True)
class Rank:
    """One of `world_size` processes that learn together; rank 0 leads."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0  # rank within this machine, and index of its GPU

    @classmethod
    def from_torchrun(cls, environment: Mapping[str, str] = os.environ) -> "Rank":
        """Read the rank from torchrun's environment variables; without torchrun it is the only rank."""
        if "TORCHELASTIC_RUN_ID" not in environment:
            return cls()
        return cls(*(int(environment[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")))

    @property
    def is_leader(self) -> bool:
        """True for the rank that keeps the journal, draws batches and publishes."""
        return self.rank == 0

    def device(self, wanted: Device) -> "torch.device":
        """Choose the device that a setting asks for.

        Raises:
            SettingsError: there is no CUDA device, or fewer of them than ranks on this machine.
        """
        import torch  # imported here because the import takes seconds, and `--help` does not need it

        available = torch.cuda.is_available()
        if wanted is Device.CPU or (wanted is Device.AUTO and not available):
            return torch.device("cpu")
        if not available:
            raise SettingsError(
                "trainer.device is 'cuda', but torch finds no CUDA device; "
                "install a torch built for CUDA and its driver, or set trainer.device to auto or cpu"
            )
        count = torch.cuda.device_count()
        if self.local_rank >= count:
            raise SettingsError(
                f"local rank {self.local_rank} needs a CUDA device of its own, but torch finds only {count}; "
                f"start torchrun with --nproc-per-node {count}, or set trainer.device to cpu"
            )
        return torch.device("cuda", self.local_rank)
