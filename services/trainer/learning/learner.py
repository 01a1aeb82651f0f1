"""Updates of the network: unroll a batch, compute the loss, step the optimizer.

Random numbers have no saved state: dropout in attempt n is seeded by the run's seed and n. So a learner's
state is its weights, their average, its optimizer's moments and its counters, and a resumed learner
computes the same bits as one that never stopped.

If an average is configured, the agent acts with an exponential moving average of the weights (after Polyak
and Juditsky 1992). The last few batches move the average less than the weights, so the agent's play, and
the targets made from it, are steadier. The average may cover a fixed share of all updates so far, because
a single update adds less new information late in training.
"""

import contextlib
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from services.trainer.config import LearnerConfig
from services.trainer.learning.distributed import LoadWeights, Part, Ranks
from services.trainer.learning.losses import Batch, Losses, Predictions, losses, unroll
from services.trainer.learning.views import Views
from services.trainer.replay.steps import Steps
from shared.engine.precision import Precision
from shared.errors import CheckpointError
from shared.model.network import Network

#: Purposes of the random numbers of an attempt.
_DRAWING, _DROPOUT = range(2)

#: Suffix of the trained weights' names; they are stored with the moments if weights are averaged.
_LAST = "last"

_TensorList = tuple[Tensor, ...] | list[Tensor]

Arrays = dict[str, npt.NDArray[np.generic]]


@dataclass(frozen=True)
class UpdateStatistics:
    """Figures of one attempt at an update; losses are unweighted."""

    skipped: bool  # loss or gradient was not finite, so nothing changed
    loss: float
    policy_loss: float
    value_loss: float
    afterstate_value_loss: float
    reward_loss: float
    outcome_loss: float
    gradient_norm: float
    value_error_pips: float  # mean absolute difference of predicted value and return, at the drawn steps
    reward_error_pips: float
    policy_entropy: float  # nats, of the predicted policy at the drawn steps


@dataclass
class LearnerCounters:
    """Numbers of attempts and updates so far."""

    attempts: int = 0  # updates tried; seeds the random draws
    updates: int = 0  # updates done
    skipped: int = 0
    skipped_in_a_row: int = 0


class Learner:
    """The network in training and its optimizer."""

    def __init__(
        self,
        network: Network,
        config: LearnerConfig,
        seed: int,
        device: torch.device | None = None,
        ranks: Ranks | None = None,
    ) -> None:
        """Begin with a network's weights; with `ranks`, every rank begins with the leader's."""
        self.device = device or torch.device("cpu")
        self.network = network.to(self.device).train()
        self.config, self.seed = config, seed
        self.counters = LearnerCounters()
        self.precision = config.precision_on(self.device.type)
        self._ranks = ranks
        self._unroll: Callable[[Batch], Predictions] = (
            ranks.parallel(self.network) if ranks else partial(unroll, self.network)
        )
        self._optimizer = self._new_optimizer()
        self._average = self._new_average() if config.average_decay or config.average_share else None

    @property
    def acting(self) -> Network:
        """The network to play with: the trained one, or its average."""
        return cast("Network", self._average.module) if self._average else self.network

    @property
    def diverged(self) -> bool:
        """True when so many updates in a row were not finite that the weights must be rolled back."""
        return self.counters.skipped_in_a_row >= self.config.max_skipped_in_a_row

    def generator(self) -> np.random.Generator:
        """Generator that draws the next attempt's batch."""
        return np.random.default_rng((self.seed, self.counters.attempts, _DRAWING))

    def update(self, steps: Steps, views: Views) -> UpdateStatistics:
        """Make one update on all ranks, or skip it when its loss or gradient is not finite.

        Args:
            steps: B steps.
            views: temporal features of the steps.
        """
        rate = self.config.learning_rate_at(self.counters.updates)
        if self._ranks is None:
            return self.learn(Part(steps, views, 1.0, self._dropout_seed(0), rate))
        seeds = [self._dropout_seed(rank) for rank in range(self._ranks.own.world_size)]
        parts = Part.split(steps, views, seeds, rate, length=self.config.stretch_steps)
        self._ranks.send(parts)
        return self.learn(parts[0])

    def learn(self, part: Part) -> UpdateStatistics:
        """Compute this rank's part of an update; the statistics are those of all parts."""
        batch = Batch.of(part.steps, part.views, self.device)
        running = [buffer.clone() for buffer in self.network.buffers()]
        with self._watched():
            with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
                torch.manual_seed(part.dropout_seed)
                self.counters.attempts += 1
                with torch.autocast(
                    self.device.type, torch.bfloat16, enabled=self.precision is Precision.BFLOAT16
                ):
                    predictions = self._unroll(batch)
            terms = losses(predictions, batch, self.network.support)
            total = terms.total(self.config)
            self._optimizer.zero_grad(set_to_none=True)
            self._weighted(total, part.weight).backward()  # type: ignore[no-untyped-call]
        norm = torch.nn.utils.clip_grad_norm_(
            self.network.parameters(), self.config.max_gradient_norm, foreach=True
        )
        figures = self._figures(total, terms, predictions, batch)
        if self._ranks:
            figures = self._ranks.mean(figures, part.weight)
        finite = math.isfinite(figures["loss"]) and math.isfinite(norm.item())
        if finite:
            for group in self._optimizer.param_groups:
                group["lr"] = part.learning_rate
            self._optimizer.step()
            if self._average:
                self._average.update_parameters(self.network)
            self.counters.updates += 1
            self.counters.skipped_in_a_row = 0
        else:
            for buffer, before in zip(self.network.buffers(), running, strict=True):
                buffer.copy_(before)  # batch norm has already updated its running statistics
            self.counters.skipped += 1
            self.counters.skipped_in_a_row += 1
        return UpdateStatistics(skipped=not finite, gradient_norm=norm.item(), **figures)

    def weights(self) -> Arrays:
        """Copy all weights and running statistics of the acting network."""
        return {name: _array(tensor) for name, tensor in self.acting.state_dict().items()}

    def moments(self) -> Arrays:
        """Copy the optimizer state and, if an average is configured, the trained weights."""
        names = [name for name, _ in self.network.named_parameters()]
        state: Mapping[int, Mapping[str, Tensor]] = self._optimizer.state_dict()["state"]
        moments = {
            f"{names[index]}/{key}": _array(tensor)
            for index, entries in state.items()
            for key, tensor in entries.items()
        }
        if self._average:
            moments |= {
                f"{name}/{_LAST}": _array(tensor) for name, tensor in self.network.state_dict().items()
            }
        return moments

    def restore(self, weights: Mapping[str, npt.NDArray[np.generic]], moments: Arrays) -> None:
        """Load saved weights and moments on all ranks; the counters stay as they are.

        If the saved state has no average but one is configured, the average begins at the saved weights. If
        the saved state has one but none is configured, training continues from the trained weights.

        Raises:
            CheckpointError: names or shapes do not fit this network.
        """
        indices = {name: index for index, (name, _) in enumerate(self.network.named_parameters())}
        last: Arrays = {}
        state: dict[int, dict[str, Tensor]] = {}
        for name, array in moments.items():
            owner, _, key = name.rpartition("/")
            if key == _LAST:
                last[owner] = array
            elif owner in indices:
                state.setdefault(indices[owner], {})[key] = torch.from_numpy(array.copy())
            else:
                raise CheckpointError(f"optimizer state of {owner!r}, which the network does not have")
        _load(self.network, last or weights)
        if self._average:
            _load(self._average.module, weights)
        self._optimizer = self._new_optimizer()
        self._optimizer.load_state_dict({**self._optimizer.state_dict(), "state": state})
        if self._ranks and self._ranks.own.is_leader:
            self._ranks.send_all(LoadWeights(weights, moments))

    def _watched(self) -> contextlib.AbstractContextManager[None]:
        return self._ranks.watched() if self._ranks else contextlib.nullcontext()

    def _weighted(self, total: Tensor, weight: float) -> Tensor:
        """The loss scaled so that the mean of all ranks' gradients is the gradient of the batch's loss."""
        return total * (weight * self._ranks.own.world_size) if self._ranks else total

    def _dropout_seed(self, rank: int) -> int:
        purpose = (_DROPOUT, rank) if rank else (_DROPOUT,)
        sequence = np.random.SeedSequence((self.seed, self.counters.attempts, *purpose))
        return int(sequence.generate_state(1, np.uint64)[0])

    def _new_optimizer(self) -> torch.optim.Adam:
        return torch.optim.Adam(
            self.network.parameters(),
            lr=self.config.learning_rate,
            weight_decay=self.config.weight_decay,
            fused=True,
        )

    def _new_average(self) -> AveragedModel:
        """A new moving average of weights and running statistics, equal to the present ones."""
        average = AveragedModel(self.network, multi_avg_fn=self._average_by, use_buffers=True)
        average.n_averaged.fill_(1)
        return average

    def _average_by(self, held: _TensorList, new: _TensorList, count: Tensor | int) -> None:
        """Move the average towards the weights of the update just made."""
        decay = self.config.average_decay_at(self.counters.updates)
        get_ema_multi_avg_fn(decay)(held, new, count)  # type: ignore[no-untyped-call]

    @torch.no_grad()
    def _figures(
        self, total: Tensor, terms: Losses, predictions: Predictions, batch: Batch
    ) -> dict[str, float]:
        """Compute the statistics that are means over a batch's rows."""
        support = self.network.support
        log_policy = torch.log_softmax(predictions.policy_logits[:, 0].detach(), dim=-1)
        values = support.decode(predictions.value_logits[:, 0])
        rewards = support.decode(predictions.reward_logits[:, 0])
        return {
            "loss": total.item(),
            **{f"{name}_loss": term.item() for name, term in vars(terms).items()},
            "value_error_pips": (values - batch.returns[:, 0]).abs().mean().item(),
            "reward_error_pips": (rewards - batch.rewards[:, 0]).abs().mean().item(),
            "policy_entropy": -(log_policy.exp() * log_policy).sum(dim=-1).mean().item(),
        }


def as_metrics(statistics: UpdateStatistics) -> dict[str, float]:
    """The statistics by name, for a manifest; numbers that are not finite are left out."""
    return {
        name: float(value)
        for name, value in asdict(statistics).items()
        if name != "skipped" and math.isfinite(value)
    }


def _load(network: nn.Module, weights: Mapping[str, npt.NDArray[np.generic]]) -> None:
    try:
        network.load_state_dict({name: torch.from_numpy(array) for name, array in weights.items()})
    except RuntimeError as invalid:
        raise CheckpointError(
            f"weights do not fit the network: {str(invalid).splitlines()[-1].strip()}"
        ) from invalid


def _array(tensor: Tensor) -> npt.NDArray[np.generic]:
    copy: npt.NDArray[np.generic] = tensor.detach().cpu().clone().contiguous().numpy()
    return copy
