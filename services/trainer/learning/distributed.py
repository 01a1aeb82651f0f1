"""Several ranks make one update together: the same one, but for rounding, that one rank would make.

The leader (rank 0) draws the batch and sends each rank its part. A part is some of the batch's stretches
of bars with all the steps in them, so that no bar is encoded twice. Batch norm takes its statistics over
all parts, gradients are averaged with the parts' numbers of rows as weights, and what decides whether an
update is skipped is the same number on every rank. So ranks differ in their dropout alone, and weights and
optimizers stay equal bit for bit.

Two groups of processes: one for tensors on the learner's device, one (gloo) for the leader's orders.
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
from services.trainer.place import Place
from services.trainer.replay.steps import Steps
from shared.agent.trajectory import Trajectory
from shared.errors import MuZeroError
from shared.model.network import Network

#: A rank that says nothing for so long is taken for lost. The leader speaks four times a second.
SILENCE = timedelta(minutes=5)


class RankLostError(MuZeroError):
    """Another rank ended or cannot be reached, so that this one cannot go on either."""


@dataclass(frozen=True)
class Part:
    """What one rank computes of an update."""

    steps: Steps
    views: Views
    weight: float  # its share of the batch's rows
    dropout_seed: int
    learning_rate: float

    @classmethod
    def split(
        cls, steps: Steps, views: Views, seeds: Sequence[int], learning_rate: float, *, length: int
    ) -> "list[Part]":
        """A batch in parts of whole stretches, one for each rank.

        A rank for which there is no stretch gets the first step's once more, with weight 0: it must join
        in all that is summed. Batch norm alone then counts that stretch twice.

        Args:
            steps: `[N]`.
            views: their S stretches.
            seeds: of each rank's dropout.
            learning_rate: of the update.
            length: L, bars of a stretch that can be embedded.
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
class Become:
    """Take over these weights and optimizer's moments."""

    weights: Mapping[str, npt.NDArray[np.generic]]
    moments: dict[str, npt.NDArray[np.generic]]


@dataclass(frozen=True)
class Report:
    """Answer with an `Offer`."""

    take: bool  # trajectories are wanted


@dataclass(frozen=True)
class Taken:
    """What was offered last is in the journal, synced, but for what is too old."""

    stale: Mapping[UUID, str]  # why it is, by trajectory


@dataclass(frozen=True)
class Stop:
    """Nothing more will come."""


Order = Part | Become | Report | Taken | Stop


@dataclass(frozen=True)
class Offer:
    """A rank's answer to `Report`."""

    stopping: bool
    trajectories: Sequence[Trajectory] = field(default_factory=tuple)
    unusable: int = 0  # entries since the last answer that are none; the leader alone tells Prometheus


class Ranks:
    """This process among those that learn together; all of them make the same calls in the same order."""

    def __init__(self, place: Place, device: torch.device) -> None:
        """Meet the others, at the address that torchrun gave.

        Raises:
            RankLostError: they do not come.
        """
        self.place, self.device = place, device
        on_cuda = device.type == "cuda"
        if on_cuda:
            torch.cuda.set_device(device)
        with self.watched():
            dist.init_process_group("nccl" if on_cuda else "gloo", timeout=SILENCE)
            self._orders = dist.new_group(backend="gloo", timeout=SILENCE)

    def close(self) -> None:
        """Part in good order, when all have been told to stop."""
        dist.destroy_process_group()

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """What breaks because another rank is gone, told as that."""
        try:
            yield
        except RuntimeError as broken:
            text = str(broken)
            if not isinstance(broken, dist.DistError) and "gloo" not in text and "Connection" not in text:
                raise
            raise RankLostError(
                f"rank {self.place.rank} of {self.place.size} lost another rank and ends; look for the first "
                f"error among the ranks' logs, then start all of them again: {text.splitlines()[0]}"
            ) from broken

    def send(self, orders: Sequence[Order]) -> None:
        """Give every rank its order, the leader's own among them; the leader's side of `receive`."""
        with self.watched():
            dist.scatter_object_list([None], list(orders), src=0, group=self._orders)

    def send_all(self, order: Order) -> None:
        """Give every rank the same order."""
        self.send([order] * self.place.size)

    def receive(self) -> Order:
        """Wait for the leader's next order."""
        received: list[Order | None] = [None]
        with self.watched():
            dist.scatter_object_list(received, None, src=0, group=self._orders)
        return cast("Order", received[0])

    def offers(self) -> list[Offer]:
        """Every other rank's answer to a `Report`; the leader's side of `offer`."""
        answers: list[Offer] = [Offer(stopping=False)] * self.place.size
        with self.watched():
            dist.gather_object(answers[0], answers, dst=0, group=self._orders)
        return answers[1:]

    def offer(self, offer: Offer) -> None:
        """Answer a `Report`."""
        with self.watched():
            dist.gather_object(offer, None, dst=0, group=self._orders)

    def mean(self, figures: Mapping[str, float], weight: float) -> dict[str, float]:
        """Numbers averaged over the ranks, the same bits on each.

        Args:
            figures: this rank's.
            weight: of this rank; the ranks' add up to 1. What has no weight is not looked at.
        """
        weighted = [weight * figure if weight else 0.0 for figure in figures.values()]
        sums = torch.tensor(weighted, dtype=torch.float64, device=self.device)
        with self.watched():
            dist.all_reduce(sums)
        return dict(zip(figures, sums.tolist(), strict=True))

    def parallel(self, network: Network) -> Callable[[Batch], Predictions]:
        """The network unrolled on this rank's part, its gradients averaged over all ranks.

        The network's batch norms are replaced in place, weights kept; every rank has the leader's weights
        afterwards.
        """
        _synchronise_norms(network)
        with self.watched():
            return DistributedDataParallel(_Unrolled(network))


class _Unrolled(nn.Module):
    """`unroll` as the module that gradients are averaged for."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, batch: Batch) -> Predictions:
        return unroll(self.network, batch)


class SynchronisedNorm(nn.BatchNorm1d):
    """Batch norm over the batches of all ranks, on any device (torch's own does CUDA only)."""

    def forward(self, inputs: Tensor) -> Tensor:
        """`[N, C, T]` -> `[N, C, T]`; ranks may have different N, even in number of rows."""
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
            self._note(mean, variance * (count / (count - 1.0)))
            scale = self.weight * torch.rsqrt(variance + self.eps)
            return (centred * scale[:, None] + self.bias[:, None]).to(inputs.dtype)

    @torch.no_grad()
    def _note(self, mean: Tensor, variance: Tensor) -> None:
        """Move the running statistics towards a batch's."""
        running = (self.running_mean, mean), (self.running_var, variance)
        for average, value in running:
            cast("Tensor", average).lerp_(value, cast("float", self.momentum))
        cast("Tensor", self.num_batches_tracked).add_(1)


class _SumOverRanks(torch.autograd.Function):
    """The sum of all ranks' tensors; a rank's gradient is the sum of the gradients of all."""

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
    """Replace every batch norm below a module, keeping its weights and statistics."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm1d):
            norm = SynchronisedNorm(child.num_features, eps=child.eps, momentum=child.momentum)
            norm.weight, norm.bias = child.weight, child.bias
            for buffer, tensor in child.named_buffers():
                norm.register_buffer(buffer, tensor)
            setattr(module, name, norm.train(child.training))
        else:
            _synchronise_norms(child)
