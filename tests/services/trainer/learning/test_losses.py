"""Losses: predictions are compared with the right step, and gradients reach every layer, halved per step."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from services.trainer.config import LearnerConfig
from services.trainer.learning.losses import (
    Batch,
    Losses,
    Predictions,
    cross_entropy,
    losses,
    two_hot_cross_entropy,
    unroll,
)
from services.trainer.learning.views import Views
from services.trainer.replay.steps import Steps
from services.trainer.replay.targets import unrolled_steps
from shared.environment.outcome import ChanceOutcome
from shared.model.config import ModelConfig
from shared.model.network import Network, initial_network
from shared.model.support import Support
from tests.shared.messages.trajectories import random_trajectory

K = 3
ROWS = 6
TINY = ModelConfig(temporal_channels=12, static_channels=4, dropout=0.0, value_bins=31, value_bound_pips=60.0)


class Oracle(Network):
    """A network that predicts each row's targets; its hidden state is the number of decisions made.

    `shift` makes a head predict the target of the step before or after.
    """

    def __init__(self, batch: Batch, **shift: int) -> None:
        super().__init__(TINY)
        self._batch, self._shift = batch, shift

    def representation(self, windows: Tensor, static: Tensor, rows: Tensor | None = None) -> Tensor:
        return torch.zeros(len(static), 1)

    def afterstate(self, hidden: Tensor, actions: Tensor) -> Tensor:
        step = int(hidden[0])
        assert torch.equal(actions, self._batch.actions[:, step])
        return hidden

    def dynamics(self, afterstates: Tensor, actions: Tensor, outcomes: Tensor) -> tuple[Tensor, Tensor]:
        step = int(afterstates[0])
        assert torch.equal(actions, self._batch.actions[:, step])
        assert torch.equal(outcomes, self._batch.outcomes[:, step])
        rewards = self.support.encode(self._batch.rewards)
        return afterstates + 1.0, self._logits(rewards, afterstates, "reward")

    def prediction(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        returns = self.support.encode(self._batch.returns)
        return self._logits(self._batch.policies, hidden, "policy"), self._logits(returns, hidden, "value")

    def afterstate_heads(self, afterstates: Tensor) -> tuple[Tensor, Tensor]:
        outcomes = torch.nn.functional.one_hot(self._batch.outcomes, 3).float()
        returns = self.support.encode(self._batch.decision_returns)
        return (
            self._logits(outcomes, afterstates, "outcome"),
            self._logits(returns, afterstates, "afterstate_value"),
        )

    def _logits(self, truth: Tensor, steps: Tensor, head: str) -> Tensor:
        """Logits of the targets at each row's own step; `steps` lists the steps row by row."""
        rows = torch.arange(len(truth)).repeat_interleave(len(steps) // len(truth))
        at = steps[:, 0].long() + self._shift.get(head, 0)
        return torch.log(truth[rows, at.clamp(0, truth.shape[1] - 1)] + 1e-12)


def random_batch(num_steps: int = 40, trace_floor: float = 0.0) -> Batch:
    """A batch whose numbers differ at every step, with no row near its trajectory's end."""
    steps = unrolled_steps(
        random_trajectory(3, num_steps), 0, discount=0.99, n=5, unroll_steps=K, trace_floor=trace_floor
    )
    return batch_of(steps.take(np.arange(ROWS)))


def batch_of(steps: Steps) -> Batch:
    features = np.random.default_rng(9).normal(size=(steps.bars.max() + 1, 9)).astype(np.float32)
    views = Views.of(features, steps.bars, steps.decisions, length=1, lookback=ModelConfig().receptive_field)
    return Batch.of(steps, views, torch.device("cpu"))


def terms(batch: Batch, **shift: int) -> dict[str, float]:
    oracle = Oracle(batch, **shift)
    return {
        name: float(term) for name, term in vars(losses(unroll(oracle, batch), batch, oracle.support)).items()
    }


def entropy(target: Tensor) -> Tensor:
    return -(target * torch.log(target + 1e-12)).sum(dim=-1)


@pytest.mark.parametrize("trace_floor", [0.0, 0.2])
def test_a_perfect_models_loss_is_the_entropy_of_its_targets(trace_floor: float) -> None:
    batch = random_batch(trace_floor=trace_floor)
    # Without excursions an afterstate's target is the return of the state before its decision.
    assert torch.equal(batch.decision_returns, batch.returns[:, :K]) is (trace_floor == 0.0)
    encode = Oracle(batch).support.encode
    state_weights = torch.tensor([1.0] + [1.0 / K] * K)  # the root in full, unrolled states 1/K
    expected = {
        "policy": (entropy(batch.policies) * state_weights).sum(1).mean(),
        "value": (entropy(encode(batch.returns)) * state_weights).sum(1).mean(),
        "afterstate_value": entropy(encode(batch.decision_returns)).mean(),
        "reward": entropy(encode(batch.rewards)).mean(),
        "outcome": torch.tensor(0.0),
    }
    for name, value in terms(batch).items():
        assert value == pytest.approx(float(expected[name]), abs=1e-4), name


@pytest.mark.parametrize("shift", [-1, 1])
@pytest.mark.parametrize("head", ["policy", "value", "afterstate_value", "reward", "outcome"])
def test_a_head_that_predicts_another_steps_target_has_a_larger_loss(head: str, shift: int) -> None:
    batch = random_batch()
    right, wrong = terms(batch), terms(batch, **{head: shift})
    assert wrong[head] > right[head] + 0.1
    for other in right.keys() - {head}:
        assert wrong[other] == pytest.approx(right[other])


@pytest.mark.parametrize(
    ("outcome", "probability"),
    [(ChanceOutcome.UP, 0.7), (ChanceOutcome.NEUTRAL, 0.2), (ChanceOutcome.DOWN, 0.1)],
)
def test_the_outcome_loss_is_that_of_the_outcome_that_happened(
    outcome: ChanceOutcome, probability: float
) -> None:
    """All decisions predict the same probabilities, different for each outcome."""
    batch = random_batch()
    happened = replace(batch, outcomes=torch.full_like(batch.outcomes, outcome))
    logits = torch.log(torch.tensor([0.7, 0.2, 0.1])).expand(ROWS, K, 3)
    oracle = Oracle(batch)
    predictions = replace(unroll(oracle, batch), outcome_logits=logits)
    found = float(losses(predictions, happened, oracle.support).outcome)
    assert found == pytest.approx(-np.log(probability), rel=1e-6)


def test_predictions_past_the_end_of_a_trajectory_are_masked() -> None:
    """At the last step only one state and one decision exist; predictions of later ones are ignored."""
    steps = unrolled_steps(random_trajectory(3, 20), 0, discount=0.99, n=5, unroll_steps=K)
    batch = batch_of(steps.take(np.array([19])))
    oracle = Oracle(batch)
    predictions = unroll(oracle, batch)
    nonsense = Predictions(
        policy_logits=_replaced(predictions.policy_logits, 1),
        value_logits=_replaced(predictions.value_logits, 1),
        afterstate_value_logits=_replaced(predictions.afterstate_value_logits, 1),
        outcome_logits=_replaced(predictions.outcome_logits, 1),
        reward_logits=_replaced(predictions.reward_logits, 1),
    )
    for name, term in vars(losses(nonsense, batch, oracle.support)).items():
        assert float(term) == pytest.approx(float(getattr(losses(predictions, batch, oracle.support), name)))
    full = entropy(oracle.support.encode(batch.rewards[:, :1]))
    assert float(losses(predictions, batch, oracle.support).reward) == pytest.approx(
        float(full) / K, abs=1e-4
    )


def _replaced(logits: Tensor, start: int) -> Tensor:
    replaced = logits.clone()
    replaced[:, start:] = 1e3 * torch.arange(logits.shape[-1])
    return replaced


def test_the_total_weights_every_term_as_configured() -> None:
    one = torch.tensor(1.0)
    total = Losses(one, 10 * one, 100 * one, 1_000 * one, 10_000 * one).total(LearnerConfig())
    assert float(total) == pytest.approx(1.0 + 0.25 * 110 + 1_000 + 10_000)


def test_cross_entropy_equals_torchs() -> None:
    logits = torch.randn(7, 5, generator=torch.Generator().manual_seed(0))
    target = torch.softmax(torch.randn(7, 5, generator=torch.Generator().manual_seed(1)), dim=-1)
    expected = torch.nn.functional.cross_entropy(logits, target, reduction="none")
    torch.testing.assert_close(cross_entropy(logits, target), expected)


@pytest.mark.parametrize("bins", [2, 3, 31])
def test_two_hot_cross_entropy_and_its_gradient_equal_those_of_the_dense_target(bins: int) -> None:
    support = Support(bins, 60.0)
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(40, 3, bins, generator=generator, requires_grad=True)
    values = 50.0 * torch.randn(40, 3, generator=generator)  # some beyond the bounds
    values[0] = torch.tensor([-60.0, 0.0, 60.0])
    expected = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), support.encode(values).flatten(0, 1), reduction="none"
    ).view(40, 3)
    found = two_hot_cross_entropy(logits, values, support)
    torch.testing.assert_close(found, expected)
    (gradient,) = torch.autograd.grad(found.square().sum(), [logits])
    (expected_gradient,) = torch.autograd.grad(expected.square().sum(), [logits])
    torch.testing.assert_close(gradient, expected_gradient)


def random_network() -> Network:
    """A network whose heads are not zero, so that gradients pass through them."""
    network = initial_network(TINY, seed=1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return network.train()


@pytest.mark.parametrize("term", ["policy", "value", "afterstate_value", "reward", "outcome", "total"])
def test_every_layer_that_a_term_depends_on_gets_a_gradient_from_it(term: str) -> None:
    network = random_network()
    batch = random_batch()
    found = losses(unroll(network, batch), batch, network.support)
    loss = found.total(LearnerConfig()) if term == "total" else getattr(found, term)
    loss.backward()
    heads = {
        "policy": {"policy_head"},
        "value": {"value_head"},
        "afterstate_value": {"q_head"},
        "reward": {"reward_head"},
        "outcome": {"outcome_head"},
        "total": {"policy_head", "value_head", "q_head", "reward_head", "outcome_head"},
    }
    trunk = {"encoder", "static", "hidden_norm", "to_afterstate", "to_hidden"}
    learning = {
        name.split(".")[0]
        for name, parameter in network.named_parameters()
        if parameter.grad is not None and float(parameter.grad.abs().sum()) > 0
    }
    assert learning == trunk | heads[term]


def test_the_gradient_is_halved_once_for_each_unrolled_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """The gradient of the last state's policy at the root's hidden state is (1/2)^K of the unscaled one."""

    def root_gradient() -> Tensor:
        network = random_network()
        batch = random_batch()
        predictions = unroll(network, batch)
        loss = cross_entropy(predictions.policy_logits[:, K], batch.policies[:, K]).mean()
        # Only the root's hidden state depends on this layer.
        (gradient,) = torch.autograd.grad(loss, [network.get_parameter("static.0.bias")])
        return gradient

    scaled = root_gradient()
    monkeypatch.setattr("services.trainer.learning.losses.UNROLL_GRADIENT", 1.0)
    plain = root_gradient()
    torch.testing.assert_close(scaled, plain * 0.5**K)
    assert float(plain.abs().sum()) > 0


@pytest.mark.parametrize("steps", [1, 2, K])
@pytest.mark.parametrize("term", ["policy", "value", "afterstate_value", "reward", "outcome"])
def test_a_later_steps_loss_has_weight_one_kth_and_its_gradient_is_halved_per_step(
    term: str, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compares one step's term with its plain cross-entropy without halving, by one parameter's gradient."""
    at = steps if term in {"policy", "value"} else steps - 1  # decision 0 is the root's

    def gradient(*, scaled: bool) -> Tensor:
        monkeypatch.setattr("services.trainer.learning.losses.UNROLL_GRADIENT", 0.5 if scaled else 1.0)
        network, batch = random_network(), random_batch()
        predictions, support = unroll(network, batch), network.support
        logits = getattr(predictions, f"{term}_logits")
        target = {
            "policy": batch.policies,
            "value": support.encode(batch.returns),
            "afterstate_value": support.encode(batch.decision_returns),
            "reward": support.encode(batch.rewards),
            "outcome": torch.nn.functional.one_hot(batch.outcomes, 3).float(),
        }[term]
        alone = logits.detach().clone()
        alone[:, at] = logits[:, at]
        found = losses(replace(predictions, **{f"{term}_logits": alone}), batch, support)
        loss = getattr(found, term) if scaled else cross_entropy(logits[:, at], target[:, at]).mean()
        return torch.autograd.grad(loss, [network.get_parameter("static.0.bias")])[0]

    plain = gradient(scaled=False)
    torch.testing.assert_close(gradient(scaled=True), plain * 0.5**steps / K)
    assert float(plain.abs().sum()) > 0
