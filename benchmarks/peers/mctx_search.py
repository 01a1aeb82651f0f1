"""Decisions by mctx's stochastic policy, compiled, with the networks of `jax_network`.

There is no root noise, as in `decide` without exploration. mctx has no phases: it masks actions only at the
root, which is less work.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import mctx
import numpy as np
from jax import Array

from benchmarks.peers import jax_network as network
from benchmarks.peers.situations import Encoding
from shared.model.config import ModelConfig
from shared.numeric import Bool, Float32, Int32
from shared.search.config import SearchConfig


@dataclass(frozen=True)
class MctxDecisions:
    """The results of mctx at B roots."""

    actions: Int32  # [B]
    policies: Float32  # [B, A] visit shares
    values: Float32  # [B] pips


class MctxSearch:
    """Decisions with one network. Every batch size and number of simulations compiles at its first use."""

    def __init__(self, weights: Mapping[str, Float32], model: ModelConfig, config: SearchConfig) -> None:
        """Store the weights from `exported`. Only the puct parameters of `config` are used."""
        self._weights = {name: jnp.asarray(weight) for name, weight in weights.items()}
        self._encode = {
            Encoding.PLAIN: jax.jit(partial(network.encode, config=model)),
            Encoding.THINNED: jax.jit(partial(network.encode_thinned, config=model)),
        }
        decide = partial(_decide, model=model, config=config)
        self._decide = jax.jit(decide, static_argnames="simulations")

    def decide(
        self, observed: Float32, static: Float32, illegal: Bool, simulations: int, encoding: Encoding
    ) -> MctxDecisions:
        """Decide in B situations.

        Args:
            observed: embeddings `[B, E]` if the encoding is shared, else windows `[B, window, F]`.
            static: static features `[B, S]`.
            illegal: illegal actions of the roots `[B, A]`.
            simulations: number of simulations per root.
            encoding: encoding of the windows.
        """
        shared = encoding is Encoding.SHARED
        temporal = observed if shared else self._encode[encoding](self._weights, observed)
        actions, policies, values = self._decide(
            self._weights, temporal, static, illegal, simulations=simulations
        )
        return MctxDecisions(np.asarray(actions), np.asarray(policies), np.asarray(values))


def _decide(
    weights: network.Weights,
    temporal: Array,
    static: Array,
    illegal: Array,
    *,
    model: ModelConfig,
    config: SearchConfig,
    simulations: int,
) -> tuple[Array, Array, Array]:
    hidden = network.combine(weights, temporal, static)
    policy_logits, values = network.prediction(weights, hidden, model)
    output = mctx.stochastic_muzero_policy(
        weights,
        jax.random.PRNGKey(0),
        mctx.RootFnOutput(prior_logits=policy_logits, value=values, embedding=hidden),
        partial(_after_action, model=model),
        partial(_after_outcome, model=model, discount=config.discount),
        num_simulations=simulations,
        invalid_actions=illegal,
        dirichlet_fraction=0.0,
        pb_c_init=config.pb_c_init,
        pb_c_base=config.pb_c_base,
        temperature=0.0,
    )
    return output.action, output.action_weights, output.search_tree.summary().value


def _after_action(
    weights: network.Weights, _: Array, actions: Array, hidden: Array, *, model: ModelConfig
) -> tuple[mctx.DecisionRecurrentFnOutput, tuple[Array, Array]]:
    afterstates, outcome_logits, q_values = network.afterstate(weights, hidden, actions, model)
    output = mctx.DecisionRecurrentFnOutput(chance_logits=outcome_logits, afterstate_value=q_values)
    return output, (afterstates, actions)


def _after_outcome(
    weights: network.Weights,
    _: Array,
    outcomes: Array,
    reached: tuple[Array, Array],
    *,
    model: ModelConfig,
    discount: float,
) -> tuple[mctx.ChanceRecurrentFnOutput, Array]:
    afterstates, actions = reached
    hidden, rewards = network.dynamics(weights, afterstates, actions, outcomes, model)
    policy_logits, values = network.prediction(weights, hidden, model)
    output = mctx.ChanceRecurrentFnOutput(
        action_logits=policy_logits,
        value=values,
        reward=rewards,
        discount=jnp.full_like(rewards, discount),
    )
    return output, hidden
