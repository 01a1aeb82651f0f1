"""The loss of a batch: K steps are unrolled from each row's observation.

    total = Σ_{k=0..K} w_k [ λ_p l_p(π_k, p_k) + λ_v l_v(z_k, v_k) ]
          + Σ_{k=0..K-1} 1/K [ λ_r l_r(u_k, r_k) + λ_v l_v(y_k, Q_k) + λ_c l_c(c_k, σ_k) ]

with w_0 = 1 and w_k = 1/K for k > 0. π_k is the search's policy at state k, z_k the return from state k,
u_k the reward of decision k, c_k the outcome that followed it. p_k and v_k are predicted from hidden state
k; Q_k and σ_k are predicted from the afterstate of decision k, and r_k by the dynamics of decision k. Q_k
is compared with y_k, the return of decision k. y_k equals z_k, the return from the state *before* the
decision, unless the decision was an excursion. Every l is a cross-entropy; returns and rewards are two-hot.
Steps past a trajectory's end are masked.

The gradient is halved where hidden state k enters the step to state k + 1, so that the gradient that
reaches the dynamics does not grow with the length of the unroll.

Sources: Antonoglou et al. 2022, section 4; Schrittwieser et al. 2020, appendix G.
"""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor
from torch.nn import functional

from services.trainer.config import LearnerConfig
from services.trainer.learning.views import Views
from services.trainer.replay.steps import Steps
from shared.model.network import Network
from shared.model.support import Support
from shared.numeric import Float32

#: Share of the gradient that passes from one unrolled step to the step before it.
UNROLL_GRADIENT = 0.5


@dataclass(frozen=True)
class Batch:
    """Steps and their temporal features as tensors on the learner's device."""

    spans: Tensor  # [S, W - 1 + L, 9]
    rows: Tensor  # int64 [B], index of each step's bar among the embedded bars
    static: Tensor  # [B, 6]
    actions: Tensor  # int64 [B, K]
    outcomes: Tensor  # int64 [B, K]
    rewards: Tensor  # [B, K]
    policies: Tensor  # [B, K + 1, 4]
    returns: Tensor  # [B, K + 1]
    decision_returns: Tensor  # [B, K]
    lengths: Tensor  # int64 [B], number of states before the trajectory's end

    @classmethod
    def of(cls, steps: Steps, views: Views, device: torch.device) -> Self:
        """Copy some steps and their views to a device."""

        def number(array: Float32) -> Tensor:
            return torch.from_numpy(array).to(device)

        return cls(
            spans=number(views.spans),
            rows=torch.from_numpy(views.rows).to(device),
            static=number(steps.static),
            actions=torch.from_numpy(steps.actions).to(device, torch.int64),
            outcomes=torch.from_numpy(steps.outcomes).to(device, torch.int64),
            rewards=number(steps.rewards),
            policies=number(steps.policies),
            returns=number(steps.returns),
            decision_returns=number(steps.decision_returns),
            lengths=torch.from_numpy(steps.lengths).to(device, torch.int64),
        )


@dataclass(frozen=True)
class Predictions:
    """The networks' outputs for a batch, unrolled along its actions and outcomes."""

    policy_logits: Tensor  # [B, K + 1, 4]
    value_logits: Tensor  # [B, K + 1, bins]
    afterstate_value_logits: Tensor  # [B, K, bins]
    outcome_logits: Tensor  # [B, K, 3]
    reward_logits: Tensor  # [B, K, bins]


@dataclass(frozen=True)
class Losses:
    """The loss terms, unweighted: each is summed over the unroll and averaged over the batch; scalars."""

    policy: Tensor
    value: Tensor
    afterstate_value: Tensor
    reward: Tensor
    outcome: Tensor

    def total(self, config: LearnerConfig) -> Tensor:
        """The weighted sum of the terms, which is minimised."""
        return (
            config.policy_weight * self.policy
            + config.value_weight * (self.value + self.afterstate_value)
            + config.reward_weight * self.reward
            + config.outcome_weight * self.outcome
        )


def unroll(network: Network, batch: Batch) -> Predictions:
    """Run the networks along a batch's actions and outcomes; each head gets all steps in one call."""
    num_rows, num_steps = batch.actions.shape
    hidden = network.representation(batch.spans, batch.static, batch.rows)
    states, afterstates, rewards = [hidden], [], []
    for step in range(num_steps):
        afterstate = network.afterstate(_scale_gradient(hidden), batch.actions[:, step])
        hidden, reward_logits = network.dynamics(afterstate, batch.actions[:, step], batch.outcomes[:, step])
        afterstates.append(afterstate)
        states.append(hidden)
        rewards.append(reward_logits)
    policy, value = network.prediction(_rows(states))
    outcome, afterstate_value = network.afterstate_heads(_rows(afterstates))
    return Predictions(
        policy_logits=policy.view(num_rows, num_steps + 1, -1),
        value_logits=value.view(num_rows, num_steps + 1, -1),
        afterstate_value_logits=afterstate_value.view(num_rows, num_steps, -1),
        outcome_logits=outcome.view(num_rows, num_steps, -1),
        reward_logits=torch.stack(rewards, dim=1),
    )


def losses(predictions: Predictions, batch: Batch, support: Support) -> Losses:
    """Compare the networks' predictions with the batch's targets."""
    num_steps = batch.actions.shape[1]
    exists = torch.arange(num_steps + 1, device=batch.lengths.device) < batch.lengths[:, None]
    states = exists.to(batch.returns.dtype) / num_steps
    decisions = states[:, :num_steps]
    states = torch.cat((states[:, :1] * num_steps, states[:, 1:]), dim=1)  # the root counts in full
    outcomes = functional.one_hot(batch.outcomes, predictions.outcome_logits.shape[-1])
    return Losses(
        policy=_mean(cross_entropy(predictions.policy_logits, batch.policies), states),
        value=_mean(two_hot_cross_entropy(predictions.value_logits, batch.returns, support), states),
        afterstate_value=_mean(
            two_hot_cross_entropy(predictions.afterstate_value_logits, batch.decision_returns, support),
            decisions,
        ),
        reward=_mean(two_hot_cross_entropy(predictions.reward_logits, batch.rewards, support), decisions),
        outcome=_mean(cross_entropy(predictions.outcome_logits, outcomes), decisions),
    )


def cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """`-Σ target log softmax(logits)` over the last axis: `[..., N]`, `[..., N]` -> `[...]`."""
    return -(target * torch.log_softmax(logits.float(), dim=-1)).sum(dim=-1)


def two_hot_cross_entropy(logits: Tensor, values: Tensor, support: Support) -> Tensor:
    """`cross_entropy` with the two-hot targets of scalars, computed from their non-zero entries only.

    Args:
        logits: `[..., bins]`.
        values: `[...]` pips.
        support: bins of the values.
    Returns:
        `[...]` nats.
    """
    bins, shares = support.two_hot(values)
    log_probabilities = torch.log_softmax(logits.float(), dim=-1)
    return -(shares * log_probabilities.gather(-1, bins)).sum(dim=-1)


def _mean(terms: Tensor, weights: Tensor) -> Tensor:
    """Weighted sum over the steps, mean over the rows; terms with weight 0 are ignored."""
    return torch.where(weights > 0, terms, 0.0).mul(weights).sum(dim=1).mean()


def _rows(steps: list[Tensor]) -> Tensor:
    """K tensors `[B, H]` -> `[B * K, H]`, the steps of a row next to each other."""
    return torch.stack(steps, dim=1).flatten(0, 1)


def _scale_gradient(hidden: Tensor) -> Tensor:
    """Return the same numbers; scale their gradient by `UNROLL_GRADIENT`."""
    return UNROLL_GRADIENT * hidden + (1.0 - UNROLL_GRADIENT) * hidden.detach()
