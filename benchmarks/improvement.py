"""How much better than the prior is the policy target of a search? Measured on problems with known values.

Every problem has one step: a root with A actions, each of which leads to one of C outcomes.

    prior      softmax of logits ~ N(0, 1)
    truth      Q(a) ~ N(0, 1);  outcome probabilities σ(c | a) ~ Dirichlet(1, ..., 1);
               an outcome is worth X(a, c) = Q(a) + spread · (z - Σ_c σ z), z ~ N(0, 1), so Σ_c σ X = Q(a)
    model      knows σ. Its value of a node is the truth plus error · N(0, 1). The error is drawn once for
               the root, each afterstate and each outcome, so evaluating a node again gives nothing new
    gain       Σ_a π(a) Q(a) - Σ_a p(a) Q(a) of the policy target π of the search, with the true Q

An outcome is terminal: all nodes below it have its value. The rules `gumbel` and `puct` are those of
`shared.search`, without root noise. The third rule, `unvisited-first`, is a common simplification. It selects
actions without visits first and does not normalise values. The first visit to an action evaluates all its
outcomes and backs up their expectation; later visits draw an outcome. The policy target is the visit shares.
Source of the rules: docs/algorithm.md.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.measure import Measurement
from shared.errors import SettingsError
from shared.numeric import Bool, Float32, Float64, Int8, Int64
from shared.search.config import SearchConfig, Selection
from shared.search.model import ActionRules, Roots
from shared.search.search import search

NUM_ACTIONS, NUM_OUTCOMES = 4, 3

PROBLEMS = 4_096
SIMULATIONS = (2, 5, 10, 25, 50)
ERRORS = (0.0, 1.0)

UNVISITED_FIRST = "unvisited-first"
RULES = (Selection.GUMBEL.value, Selection.PUCT.value, UNVISITED_FIRST)

#: A root counts as worse if its gain is below minus this. Policy targets are rounded to float32.
TOLERANCE = 1e-6

#: Goals at this number of simulations. With an exact model: at least this gain, and no root worse. With a
#: wrong model: at least the gain of `puct`.
GOAL_SIMULATIONS = 5
GOAL_GAIN = 0.85


@dataclass(frozen=True)
class Problems:
    """B one-step problems, and the values of the model for them."""

    logits: Float64  # [B, A] logits of the prior
    outcome_probabilities: Float64  # [B, A, C]
    q_values: Float64  # [B, A] true values
    root_estimates: Float64  # [B] values of the model for the roots
    q_estimates: Float64  # [B, A] values of the model for the afterstates
    outcome_estimates: Float64  # [B, A, C] values of the model for the outcomes

    @property
    def prior(self) -> Float64:
        """Softmax of the logits, `[B, A]`."""
        weights = np.exp(self.logits - self.logits.max(axis=1, keepdims=True))
        shares: Float64 = weights / weights.sum(axis=1, keepdims=True)
        return shares

    def gains(self, policies: Float64) -> Float64:
        """True value of each root's policy minus that of the prior, `[B]`."""
        gains: Float64 = ((policies - self.prior) * self.q_values).sum(axis=1)
        return gains

    @property
    def best_gains(self) -> Float64:
        """Gains of the policies that always take the best action, `[B]`."""
        return self.gains(np.eye(NUM_ACTIONS)[self.q_values.argmax(axis=1)])


def draw_problems(count: int, *, error: float, spread: float = 0.0, seed: int = 0) -> Problems:
    """Draw random problems as the docstring of the module defines them.

    The problems do not depend on `error`, which only scales the same random errors.
    """
    rng = np.random.default_rng(seed)
    logits, q_values = rng.normal(size=(2, count, NUM_ACTIONS))
    probabilities = rng.dirichlet(np.ones(NUM_OUTCOMES), (count, NUM_ACTIONS))
    deviations = rng.normal(size=probabilities.shape)
    deviations -= (probabilities * deviations).sum(axis=2, keepdims=True)
    outcomes = q_values[..., None] + spread * deviations
    truth = Problems(logits, probabilities, q_values, np.zeros(count), q_values, outcomes)
    return Problems(
        logits,
        probabilities,
        q_values,
        (truth.prior * q_values).sum(axis=1) + error * rng.normal(size=count),
        q_values + error * rng.normal(size=q_values.shape),
        outcomes + error * rng.normal(size=outcomes.shape),
    )


class ProblemModel:
    """The problems as a `Model`. A hidden state is the number of the problem and that of the node.

    Node 0 of a problem is the root; its afterstates and then their outcomes follow. An action after an
    outcome stays at the same node.
    """

    def __init__(self, problems: Problems) -> None:
        count = len(problems.logits)
        estimates = (
            problems.root_estimates[:, None],
            problems.q_estimates,
            problems.outcome_estimates.reshape(count, NUM_ACTIONS * NUM_OUTCOMES),
        )
        self._estimates = np.concatenate(estimates, axis=1).astype(np.float32)
        self._logits = problems.logits.astype(np.float32)
        self._probabilities = problems.outcome_probabilities.astype(np.float32)

    def roots(self) -> Roots:
        """The root of every problem."""
        numbers = np.arange(len(self._logits))
        phases = np.zeros(len(numbers), np.int8)
        return Roots(
            _hidden(numbers, np.zeros_like(numbers)), self._logits, self._estimates[:, 0].copy(), phases
        )

    def afterstates(self, hidden: Float32, actions: Int8) -> tuple[Float32, Float32, Float32]:
        """See `Model.afterstates`."""
        problem, node = _numbers(hidden)
        at_root = node == 0
        child = np.where(at_root, 1 + actions, node)
        probabilities = np.where(
            at_root[:, None], self._probabilities[problem, actions], np.float32(1.0 / NUM_OUTCOMES)
        )
        return _hidden(problem, child), probabilities, self._estimates[problem, child]

    def successors(
        self, afterstates: Float32, actions: Int8, outcomes: Int8
    ) -> tuple[Float32, Float32, Float32]:
        """See `Model.successors`."""
        problem, node = _numbers(afterstates)
        first_outcome = 1 + NUM_ACTIONS
        child = np.where(node < first_outcome, first_outcome + (node - 1) * NUM_OUTCOMES + outcomes, node)
        return _hidden(problem, child), np.zeros(len(node), np.float32), self._estimates[problem, child]

    def policies(self, hidden: Float32) -> Float32:
        """See `Model.policies`."""
        return np.zeros((len(hidden), NUM_ACTIONS), np.float32)


def _hidden(problem: Int64, node: Int64) -> Float32:
    return np.stack((problem, node), axis=1).astype(np.float32)


def _numbers(hidden: Float32) -> tuple[Int64, Int64]:
    problem, node = hidden.astype(np.int64).T
    return problem, node


def policy_targets(problems: Problems, rule: str, simulations: int, *, seed: int = 0) -> Float64:
    """The policy target of a rule at each root, `[B, A]`. The seed is for rules that draw outcomes.

    Raises:
        SettingsError: the rule does not exist.
    """
    if rule == UNVISITED_FIRST:
        return unvisited_first_visits(problems, simulations, np.random.default_rng(seed)) / simulations
    if rule not in RULES:
        raise SettingsError(f"rule is {rule!r}, expected one of {', '.join(RULES)}")
    model = ProblemModel(problems)
    all_legal: Bool = np.ones((1, NUM_ACTIONS), np.bool_)
    rules = ActionRules(all_legal, np.zeros((1, NUM_ACTIONS), np.int8))
    config = SearchConfig(Selection(rule), simulations=simulations, discount=1.0)
    return search(model, model.roots(), rules, config).policies.astype(np.float64)


def unvisited_first_visits(problems: Problems, simulations: int, rng: np.random.Generator) -> Float64:
    """Visits of every action with `unvisited-first`, `[B, A]`."""
    rows = np.arange(len(problems.logits))
    visits, value_sum = np.zeros((2, len(rows), NUM_ACTIONS))
    expectation = (problems.outcome_probabilities * problems.outcome_estimates).sum(axis=2)
    thresholds = problems.outcome_probabilities.cumsum(axis=2)
    c1, c2 = SearchConfig.pb_c_init, SearchConfig.pb_c_base
    for simulation in range(simulations):
        weight = np.sqrt(simulation) * (c1 + np.log((simulation + c2 + 1.0) / c2))
        scores = value_sum / np.maximum(visits, 1.0) + problems.prior * weight / (1.0 + visits)
        action = np.where(visits == 0.0, np.inf, scores).argmax(axis=1)
        # The last threshold is 1 up to rounding. A larger random number still selects the last outcome.
        beyond = thresholds[rows, action, :-1] <= rng.random((len(rows), 1))
        drawn = problems.outcome_estimates[rows, action, beyond.sum(axis=1)]
        first_time = visits[rows, action] == 0.0
        value_sum[rows, action] += np.where(first_time, expectation[rows, action], drawn)
        visits[rows, action] += 1.0
    return visits


@dataclass(frozen=True)
class Improvement:
    """The gain of one rule."""

    rule: str
    simulations: int
    error: float
    gain: float  # mean over the problems
    standard_error: float  # standard error of the mean
    worse: float  # share of roots with a negative gain

    @classmethod
    def of(cls, rule: str, simulations: int, error: float, gains: Float64) -> "Improvement":
        """Summarise the gains of all roots, `[B]`."""
        deviation = gains.std(ddof=1) / np.sqrt(len(gains))
        worse = (gains < -TOLERANCE).mean()
        return cls(rule, simulations, error, float(gains.mean()), float(deviation), float(worse))


@dataclass(frozen=True)
class ImprovementReport:
    """The gains of all rules, numbers of simulations and errors on the same problems."""

    problems: int
    spread: float
    seed: int
    best_gain: float  # gain of always taking the best action
    rows: tuple[Improvement, ...]

    def find(self, rule: str, simulations: int, error: float) -> Improvement:
        """Find a row.

        Raises:
            KeyError: the combination was not measured.
        """
        for row in self.rows:
            if (row.rule, row.simulations, row.error) == (rule, simulations, error):
                return row
        raise KeyError(rule, simulations, error)

    @property
    def goals(self) -> list[Measurement]:
        """The goals for gumbel with few simulations."""
        gumbel, puct = Selection.GUMBEL.value, Selection.PUCT.value
        exact = self.find(gumbel, GOAL_SIMULATIONS, 0.0)
        wrong = self.find(gumbel, GOAL_SIMULATIONS, 1.0)
        of = f"{gumbel}, {GOAL_SIMULATIONS} simulations"
        return [
            Measurement(
                name=f"gain, {of}, error 0",
                value=exact.gain,
                unit="of Q",
                yardstick="always the best action",
                yardstick_value=self.best_gain,
                smaller_is_better=False,
                goal_value=GOAL_GAIN,
            ),
            Measurement(
                name=f"roots made no worse, {of}, error 0",
                value=100.0 * (1.0 - exact.worse),
                unit="%",
                yardstick=UNVISITED_FIRST,
                yardstick_value=100.0 * (1.0 - self.find(UNVISITED_FIRST, GOAL_SIMULATIONS, 0.0).worse),
                smaller_is_better=False,
                goal_value=100.0,
            ),
            Measurement(
                name=f"gain, {of}, error 1",
                value=wrong.gain,
                unit="of Q",
                yardstick=puct,
                yardstick_value=self.find(puct, GOAL_SIMULATIONS, 1.0).gain,
                smaller_is_better=False,
                goal_ratio=1.0,
            ),
        ]


def bench_improvement(
    *,
    problems: int = PROBLEMS,
    spread: float = 0.0,
    seed: int = 0,
    simulations: Sequence[int] = SIMULATIONS,
) -> ImprovementReport:
    """Measure every rule and number of simulations with an exact and with a wrong model.

    Args:
        problems: number of problems, at least 2.
        spread: scale of the values of an action's outcomes around its Q.
        seed: seed of problems, errors and drawn outcomes.
        simulations: numbers of simulations; the goals need 5.
    """
    rows = []
    best_gain = 0.0
    for error in ERRORS:
        drawn = draw_problems(problems, error=error, spread=spread, seed=seed)
        best_gain = float(drawn.best_gains.mean())
        for rule in RULES:
            for count in simulations:
                gains = drawn.gains(policy_targets(drawn, rule, count, seed=seed + 1))
                rows.append(Improvement.of(rule, count, error, gains))
    return ImprovementReport(problems, spread, seed, best_gain, tuple(rows))
