"""mctx (DeepMind, Apache 2.0) as the oracle of both searches, on problems given as tables.

Runs in the process that tests.oracles.mctx_process sets up, in float64.

From mctx come the descent of the tree, both selection rules at decision nodes, sequential halving, the
chance rule, the evaluations of a simulation, the backup with its rewards and discounts, the mixed value
and, for puct, the complete policy function. mctx has its Gumbel rules and its stochastic recurrent function
only separately; this module combines them.

Three definitions of our search differ from mctx's. They are implemented here:
- An unvisited action of the root has the value of its afterstate, which is known from the start.
- puct scales Q by the bounds of all values seen in the tree so far; mctx uses the bounds of node and
  siblings. An unvisited action inside the tree has the mixed value; in mctx it has the smallest value.
- Actions can be illegal inside the tree, where they are also excluded from the bounds; mctx masks only
  actions of the root.
In the Gumbel search, nodes below the root without illegal actions use mctx's own transformation.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import mctx
import numpy as np
from mctx._src import action_selection, base, policies, qtransforms, seq_halving

from shared.numeric import Bool, Float64, Int64
from shared.search.config import SearchConfig
from shared.search.model import ActionRules
from tests.oracles.mctx_process import MctxTrees
from tests.shared.search.tables import TableModel

MASKED = np.finfo(np.float64).min  # mctx's logit of an illegal action


class _Known(NamedTuple):
    """Values that our definitions need in addition to mctx's tree; its `extra_data`."""

    root_gumbel: Any  # [B, A], the name that mctx's Gumbel rule reads
    root_q: Any  # [B, A] values of the root's afterstates
    least: Any  # [B] bounds of all values seen
    greatest: Any  # [B]


def halving_table(most_considered: int, simulations: int) -> Int64:
    """mctx's table of sequential halving, `[most_considered + 1, simulations]`."""
    return np.array(seq_halving.get_table_of_considered_visits(most_considered, simulations))


def puct(
    model: TableModel, states: Int64, phases: Int64, rules: ActionRules, config: SearchConfig
) -> MctxTrees:
    """`mctx.stochastic_muzero_policy` without noise."""
    tables = _tables(model, rules, config)
    return MctxTrees(*map(np.asarray, _puct(tables, jnp.asarray(states), jnp.asarray(phases), config)))


def gumbel(
    model: TableModel,
    states: Int64,
    phases: Int64,
    rules: ActionRules,
    config: SearchConfig,
    noise: Float64,
    considered: Bool,
) -> MctxTrees:
    """`mctx.search` with mctx's Gumbel rules at decision nodes and its chance rule at chance nodes.

    Args:
        noise: `[B, A]`, the root's g.
        considered: `[B, A]` actions that enter sequential halving; the others are illegal to mctx.
    """
    tables = _tables(model, rules, config)
    roots = (jnp.asarray(states), jnp.asarray(phases), jnp.asarray(noise), jnp.asarray(considered))
    return MctxTrees(*map(np.asarray, _gumbel(tables, *roots, config)))


def _tables(model: TableModel, rules: ActionRules, config: SearchConfig) -> dict[str, Any]:
    """The problem with the numbers that our search gets: rounded to float32."""
    floats = ("probabilities", "rewards", "logits", "values", "q_values")
    tables = {name: getattr(model, name).astype(np.float32).astype(np.float64) for name in floats}
    with np.errstate(divide="ignore"):
        tables["chance_logits"] = np.log(tables.pop("probabilities"))
    integers = {
        "next_state": model.next_state,
        "legal": rules.legal,
        "successor": rules.successor.astype(np.int64),
    }
    return {name: jnp.asarray(table) for name, table in (tables | integers).items()} | {
        "discount": config.discount
    }


def _after_action(tables: Any, key: Any, action: Any, state: Any) -> Any:
    state_index, phase = state
    output = base.DecisionRecurrentFnOutput(
        chance_logits=tables["chance_logits"][state_index, action],
        afterstate_value=tables["q_values"][state_index, action],
    )
    afterstate = state_index * tables["logits"].shape[1] + action
    return output, (afterstate, tables["successor"][phase, action])


def _after_outcome(tables: Any, key: Any, outcome: Any, afterstate: Any) -> Any:
    state_index, action = jnp.divmod(afterstate[0], tables["logits"].shape[1])
    phase = afterstate[1]
    following = tables["next_state"][state_index, action, outcome]
    reward = tables["rewards"][state_index, action, outcome]
    output = base.ChanceRecurrentFnOutput(
        action_logits=jnp.where(tables["legal"][phase], tables["logits"][following], MASKED),
        value=tables["values"][following],
        reward=reward,
        discount=jnp.full_like(reward, tables["discount"]),
    )
    return output, (following, phase)


def _root(tables: Any, states: Any, phases: Any) -> Any:
    return mctx.RootFnOutput(
        prior_logits=tables["logits"][states], value=tables["values"][states], embedding=(states, phases)
    )


def _known(tables: Any, states: Any, phases: Any, noise: Any) -> _Known:
    root_q, legal, value = tables["q_values"][states], tables["legal"][phases], tables["values"][states]
    least = jnp.minimum(value, jnp.where(legal, root_q, jnp.inf).min(axis=1))
    greatest = jnp.maximum(value, jnp.where(legal, root_q, -jnp.inf).max(axis=1))
    return _Known(noise, root_q, least, greatest)


def _legal(tree: Any, node: Any) -> Any:
    return tree.children_prior_logits[node] > MASKED / 2


def _completed(tree: Any, node: Any) -> Any:
    """Q of every action of one tree's node; `[A]`."""
    visits, q = tree.children_visits[node], tree.qvalues(node)
    prior = jax.nn.softmax(tree.children_prior_logits[node])
    mixed = qtransforms._compute_mixed_value(tree.raw_values[node], q, visits, prior)
    return jnp.where(visits > 0, q, jnp.where(node == 0, tree.extra_data.root_q, mixed))


def _scaled_by_tree(tree: Any, node: Any, *, min_q_span: float) -> Any:
    """Our Q̄ of puct, -inf where illegal."""
    least, greatest = tree.extra_data.least, tree.extra_data.greatest
    scaled = (_completed(tree, node) - least) / jnp.maximum(greatest - least, min_q_span)
    return jnp.where(_legal(tree, node), scaled, -jnp.inf)


def _scaled_by_node(tree: Any, node: Any, *, config: SearchConfig) -> Any:
    """Our σ(completed Q) of gumbel, 0 where illegal."""
    q, legal = _completed(tree, node), _legal(tree, node)
    least = jnp.where(legal, q, jnp.inf).min()
    span = jnp.maximum(jnp.where(legal, q, -jnp.inf).max() - least, config.min_q_span)
    scale = (config.c_visit + tree.children_visits[node].max()) * config.c_scale
    return jnp.where(legal, scale * (q - least) / span, 0.0)


def _with_bounds(known: _Known, lower: int, upper: int, body: Any, state: Any) -> Any:
    """A loop over simulations that also tracks the bounds of all values seen, which mctx's tree lacks."""

    def simulate(simulation: Any, state: Any) -> Any:
        key, tree = body(simulation, state)
        made = tree.node_visits > 0
        averaged = made & ~tree.embeddings.is_decision_node
        seen = (jnp.where(made, tree.raw_values, jnp.nan), jnp.where(averaged, tree.node_values, jnp.nan))
        values = jnp.concatenate(seen, axis=1)
        before = tree.extra_data
        least = jnp.minimum(before.least, jnp.nanmin(values, axis=1))
        greatest = jnp.maximum(before.greatest, jnp.nanmax(values, axis=1))
        return key, tree.replace(extra_data=before._replace(least=least, greatest=greatest))

    key, tree = state
    return jax.lax.fori_loop(lower, upper, simulate, (key, tree.replace(extra_data=known)))


def _puct_compiled(tables: Any, states: Any, phases: Any, config: SearchConfig) -> Any:
    known = _known(tables, states, phases, jnp.zeros_like(tables["logits"][states]))
    output = mctx.stochastic_muzero_policy(
        tables,
        jax.random.PRNGKey(0),
        _root(tables, states, phases),
        _after_action,
        _after_outcome,
        config.simulations,
        invalid_actions=1 - tables["legal"][phases].astype(jnp.int32),
        loop_fn=partial(_with_bounds, known),
        qtransform=partial(_scaled_by_tree, min_q_span=config.min_q_span),
        dirichlet_fraction=0.0,
        pb_c_init=config.pb_c_init,
        pb_c_base=config.pb_c_base,
    )
    return _result(output.search_tree, output.action_weights, output.action)


def _gumbel_compiled(
    tables: Any, states: Any, phases: Any, noise: Any, considered: Any, config: SearchConfig
) -> Any:
    num_actions, num_outcomes = tables["rewards"].shape[1:]
    root, legal = _root(tables, states, phases), tables["legal"][phases]
    logits = jnp.where(legal, root.prior_logits, MASKED)
    _, afterstates = _after_action(tables, None, jnp.zeros_like(states), root.embedding)
    ours = partial(_scaled_by_node, config=config)
    mctx_own = partial(
        mctx.qtransform_completed_by_mix_value,
        value_scale=config.c_scale,
        maxvisit_init=config.c_visit,
        epsilon=config.min_q_span,
    )

    def scaled_inside(tree: Any, node: Any) -> Any:
        return jnp.where(_legal(tree, node).all(), mctx_own(tree, node), ours(tree, node))

    def select_at_root(key: Any, tree: Any, node: Any) -> Any:
        return mctx.gumbel_muzero_root_action_selection(
            key,
            policies._mask_tree(tree, num_actions, "decision"),
            node,
            num_simulations=config.simulations,
            max_num_considered_actions=config.max_considered_actions,
            qtransform=ours,
        )

    tree = mctx.search(
        tables,
        jax.random.PRNGKey(0),
        root=mctx.RootFnOutput(
            prior_logits=jnp.concatenate([logits, jnp.full((len(states), num_outcomes), -jnp.inf)], axis=1),
            value=root.value,
            embedding=base.StochasticRecurrentState(
                state_embedding=root.embedding,
                afterstate_embedding=afterstates,
                is_decision_node=jnp.ones(len(states), bool),
            ),
        ),
        recurrent_fn=policies._make_stochastic_recurrent_fn(
            _after_action, _after_outcome, num_actions, num_outcomes
        ),
        root_action_selection_fn=select_at_root,
        interior_action_selection_fn=policies._make_stochastic_action_selection_fn(
            partial(mctx.gumbel_muzero_interior_action_selection, qtransform=scaled_inside),
            num_actions,
        ),
        num_simulations=config.simulations,
        invalid_actions=1 - considered.astype(jnp.int32),
        extra_data=_known(tables, states, phases, noise),
    )
    decisions = policies._mask_tree(tree, num_actions, "decision")
    visits = decisions.children_visits[:, 0]
    sigma = jax.vmap(ours, in_axes=(0, None))(decisions, 0)
    most = visits.max(axis=1, keepdims=True)
    scores = seq_halving.score_considered(most, noise, logits, sigma, visits)
    actions = action_selection.masked_argmax(scores, ~considered)
    return _result(decisions, jax.nn.softmax(logits + sigma), actions)


def _result(tree: Any, weights: Any, actions: Any) -> Any:
    """The fields of `MctxTrees`; the children in `tree` are the actions."""
    root_q = jax.vmap(_completed, in_axes=(0, None))(tree, 0)
    path = (tree.parents, tree.action_from_parent)
    return tree.node_visits, tree.node_values, *path, tree.children_visits[:, 0], root_q, weights, actions


_puct = jax.jit(_puct_compiled, static_argnums=3)
_gumbel = jax.jit(_gumbel_compiled, static_argnums=5)
