"""Several ranks compute one update together. It equals the update of a single rank, except for rounding.

The leader (rank 0) draws the batch and sends each rank its part. A part is some of the batch's stretches
of bars with all steps in them, so that no bar is encoded twice. Batch norm takes its statistics over all
parts, gradients are averaged with weights proportional to the parts' rows, and every rank decides by the
same numbers whether to skip an update. So ranks differ only in their dropout, and their weights and
optimizers stay equal bit for bit.

There are two process groups: one for tensors on the learner's device, one (gloo) for the leader's orders.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import cast
from uuid import UUID

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from services.trainer.learning.losses import Batch, Predictions, unroll
from services.trainer.learning.views import Views
from services.trainer.place import Rank
from services.trainer.replay.steps import Steps
from shared.agent.trajectory import Trajectory
from shared.errors import MuZeroError
from shared.model.network import Network

#: A rank that is silent for this long is considered lost. The leader sends an order four times a second.
RANK_TIMEOUT = timedelta(minutes=5)


class RankLostError(MuZeroError):
    """Another rank exited or cannot be reached, so this one cannot continue either."""


@dataclass(frozen=True)
class Part:
    """Order: compute this part of an update."""

    steps: Steps
    views: Views
    weight: float  # its share of the batch's rows
    dropout_seed: int
    learning_rate: float

    @classmethod
    def split(
        cls, steps: Steps, views: Views, seeds: Sequence[int], learning_rate: float, *, length: int
    ) -> "list[Part]":
        """Split a batch between stretches into one part for each rank.

        If no stretch is left for a rank, it gets the first step's stretch with weight 0, because every rank
        must take part in the sums. Only batch norm then counts that stretch twice.

        Args:
            steps: steps of the batch, `[N]`.
            views: views of the steps, in S stretches.
            seeds: dropout seed of each rank.
            learning_rate: learning rate of the update.
            length: L, embedded bars per stretch.
        """
        stretches, size = views.rows // length, len(seeds)
        bounds = len(views.spans) * np.arange(size + 1) // size
        parts = []
        for rank, seed in enumerate(seeds):
            first, end = bounds[rank], bounds[rank + 1]
            chosen = np.flatnonzero((stretches >= first) & (stretches < end))
            weight = len(chosen) / len(steps)
            if first == end:
                first, end, chosen = stretches[0], stretches[0] + 1, np.zeros(1, np.int64)
            own = Views(views.spans[first:end], views.rows[chosen] - first * length)
            parts.append(cls(steps.take(chosen), own, weight, seed, learning_rate))
        return parts


@dataclass(frozen=True)
class LoadWeights:
    """Order: load these weights and optimizer moments."""

    weights: Mapping[str, npt.NDArray[np.generic]]
    moments: dict[str, npt.NDArray[np.generic]]


@dataclass(frozen=True)
class SendOffer:
    """Order: answer with an `Offer`."""

    with_trajectories: bool  # False while the leader accepts none


@dataclass(frozen=True)
class Journalled:
    """Order: acknowledge the trajectories offered last; they are synced in the journal unless too old."""

    stale: Mapping[UUID, str]  # why trajectories are too old, by id


@dataclass(frozen=True)
class Stop:
    """Order: stop; no other order follows."""


Order = Part | LoadWeights | SendOffer | Journalled | Stop


@dataclass(frozen=True)
class Offer:
    """A rank's answer to `SendOffer`."""

    stopping: bool
    trajectories: Sequence[Trajectory] = field(default_factory=tuple)
    unusable: int = 0  # entries since the last answer; the leader counts them in its metrics


class Ranks:
    """The ranks that learn together, seen from this one. All ranks must make the same calls in order."""

    def __init__(self, own: Rank, device: torch.device) -> None:
        """Connect to the other ranks at the address from torchrun.

        Raises:
            RankLostError: another rank does not connect.
        """
        self.own, self.device = own, device
        on_cuda = device.type == "cuda"
        if on_cuda:
            torch.cuda.set_device(device)
        with self.watched():
            dist.init_process_group("nccl" if on_cuda else "gloo", timeout=RANK_TIMEOUT)
            self._orders = dist.new_group(backend="gloo", timeout=RANK_TIMEOUT)

    def close(self) -> None:
        """Leave the process groups, after all ranks were ordered to stop."""
        dist.destroy_process_group()

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Raise `RankLostError` for errors that are caused by a lost rank."""
        try:
            yield
        except RuntimeError as broken:
            text = str(broken)
            if not isinstance(broken, dist.DistError) and "gloo" not in text and "Connection" not in text:
                raise
            raise RankLostError(
                f"rank {self.own.rank} of {self.own.world_size} lost another rank and exits; look for the "
                f"first error in the logs of all ranks, then restart all of them: {text.splitlines()[0]}"
            ) from broken

    def send(self, orders: Sequence[Order]) -> None:
        """Send every rank its order, including the leader's own; the leader's side of `receive`."""
        with self.watched():
            dist.scatter_object_list([None], list(orders), src=0, group=self._orders)

    def send_all(self, order: Order) -> None:
        """Send every rank the same order."""
        self.send([order] * self.own.world_size)

    def receive(self) -> Order:
        """Wait for the leader's next order."""
        received: list[Order | None] = [None]
        with self.watched():
            dist.scatter_object_list(received, None, src=0, group=self._orders)
        return cast("Order", received[0])

    def offers(self) -> list[Offer]:
        """Collect the other ranks' answers to a `SendOffer`; the leader's side of `offer`."""
        answers: list[Offer] = [Offer(stopping=False)] * self.own.world_size
        with self.watched():
            dist.gather_object(answers[0], answers, dst=0, group=self._orders)
        return answers[1:]

    def offer(self, offer: Offer) -> None:
        """Answer a `SendOffer`."""
        with self.watched():
            dist.gather_object(offer, None, dst=0, group=self._orders)

    def mean(self, figures: Mapping[str, float], weight: float) -> dict[str, float]:
        """Average numbers over the ranks; every rank gets the same bits.

        Args:
            figures: figures of this rank.
            weight: weight of this rank; all weights add up to 1. Numbers with weight 0 are ignored.
        """
        weighted = [weight * figure if weight else 0.0 for figure in figures.values()]
        sums = torch.tensor(weighted, dtype=torch.float64, device=self.device)
        with self.watched():
            dist.all_reduce(sums)
        return dict(zip(figures, sums.tolist(), strict=True))

    def parallel(self, network: Network) -> Callable[[Batch], Predictions]:
        """Make a function that unrolls the network on this rank's part and averages gradients over all ranks.

        The network's batch norms are replaced in place and keep their weights. Afterwards every rank has the
        leader's weights.
        """
        _synchronise_norms(network)
        with self.watched():
            return DistributedDataParallel(_Unrolled(network))


class _Unrolled(nn.Module):
    """`unroll` as a module, as `DistributedDataParallel` needs it."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, batch: Batch) -> Predictions:
        return unroll(self.network, batch)


class SynchronisedNorm(nn.BatchNorm1d):
    """Batch norm over the batches of all ranks, on any device (torch's own works on CUDA only)."""

    def forward(self, inputs: Tensor) -> Tensor:
        """`[N, C, T]` -> `[N, C, T]`; N may differ between ranks."""
        if not self.training:
            return super().forward(inputs)
        with torch.autocast(inputs.device.type, enabled=False):
            values = inputs.float()
            rows = values.new_full((1,), values.shape[0] * values.shape[2])
            sums = _summed(torch.cat((values.sum(dim=(0, 2)), rows)))
            count = sums[-1].detach()
            mean = sums[:-1] / count
            centred = values - mean[:, None]
            variance = _summed(centred.square().sum(dim=(0, 2))) / count
            self._update_running(mean, variance * (count / (count - 1.0)))
            scale = self.weight * torch.rsqrt(variance + self.eps)
            return (centred * scale[:, None] + self.bias[:, None]).to(inputs.dtype)

    @torch.no_grad()
    def _update_running(self, mean: Tensor, variance: Tensor) -> None:
        """Move the running statistics towards those of a batch."""
        running = (self.running_mean, mean), (self.running_var, variance)
        for average, value in running:
            cast("Tensor", average).lerp_(value, cast("float", self.momentum))
        cast("Tensor", self.num_batches_tracked).add_(1)


class _SumOverRanks(torch.autograd.Function):
    """Sum of all ranks' tensors; its gradient is summed over all ranks too."""

    @staticmethod
    def forward(_context: object, tensor: Tensor) -> Tensor:
        total = tensor.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(_context: object, gradient: Tensor) -> Tensor:
        total = gradient.contiguous().clone()
        dist.all_reduce(total)
        return total


def _summed(tensor: Tensor) -> Tensor:
    return cast("Tensor", _SumOverRanks.apply(tensor))  # type: ignore[no-untyped-call]


def _synchronise_norms(module: nn.Module) -> None:
    """Replace every batch norm inside a module, keeping its weights and statistics."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm1d):
            norm = SynchronisedNorm(child.num_features, eps=child.eps, momentum=child.momentum)
            norm.weight, norm.bias = child.weight, child.bias
            for buffer, tensor in child.named_buffers():
                norm.register_buffer(buffer, tensor)
            setattr(module, name, norm.train(child.training))
        else:
            _synchronise_norms(child)
