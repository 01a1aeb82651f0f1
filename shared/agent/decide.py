"""The decision function that self-play, validation and inference share."""

from dataclasses import dataclass

import numpy as np

from shared.agent.agent import Agent
from shared.agent.exploration import RootExploration
from shared.environment.action import LEGAL, SUCCESSOR
from shared.errors import DataError
from shared.numeric import Float32, Int8, Int32, require_shape
from shared.search.config import SearchConfig
from shared.search.model import ActionRules
from shared.search.search import search

#: The actions that a position allows. The phase is the side plus one.
POSITION_RULES = ActionRules(LEGAL, SUCCESSOR)

#: Column of the side of the position in the static features.
SIDE_COLUMN = 0


@dataclass(frozen=True)
class Decisions:
    """The actions for B situations and the search results behind them."""

    actions: Int8  # [B] `Action`
    policies: Float32  # [B, 4] policy of the search, the training target; 0 where illegal
    values: Float32  # [B] pips, value of the root
    q_values: Float32  # [B, 4] pips; NaN where illegal
    outcome_probabilities: Float32  # [B, 3] by `ChanceOutcome`, predicted for the chosen action
    visits: Int32  # [B, 4]


def decide(
    agent: Agent,
    temporal: Float32,
    static: Float32,
    config: SearchConfig,
    exploration: RootExploration | None = None,
) -> Decisions:
    """Search from each situation and choose an action that its position allows.

    Args:
        agent: the networks.
        temporal: `[B, E]` embeddings of the latest windows, from `Agent.embed_windows` or `embed_span`.
        static: `[B, 6]` static features. The first is the side of the position and determines the legal
            actions.
        config: the settings of the search.
        exploration: settings and random numbers for self-play. None chooses the greedy action.
    Raises:
        ShapeError: the arrays do not fit together.
        DataError: a side is not -1, 0 or 1, or a number is not finite.
    """
    phases = _phases(static)
    roots = agent.roots(temporal, static, phases)
    result = search(agent, roots, POSITION_RULES, config, exploration.noise if exploration else None)
    actions = (
        exploration.choose(result, POSITION_RULES.legal[phases], config) if exploration else result.actions
    )
    return Decisions(
        actions,
        result.policies,
        result.values,
        result.q_values,
        result.outcome_probabilities[np.arange(len(actions)), actions],
        result.visits,
    )


def _phases(static: Float32) -> Int8:
    require_shape("static", static, None, None)
    side = static[:, SIDE_COLUMN]
    known = (side == -1.0) | (side == 0.0) | (side == 1.0)
    if not known.all():
        row = int(known.argmin())
        raise DataError(f"static features, row {row}: position_side is {side[row]}, expected -1, 0 or 1")
    return side.astype(np.int8) + np.int8(1)
