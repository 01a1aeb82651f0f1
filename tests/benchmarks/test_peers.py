"""The peers of the search do the same work: the same visits with the same networks."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from benchmarks.peers import process
from benchmarks.peers.lightzero import lightzero_missing, lightzero_visits
from benchmarks.peers.nodes import NodeSearch, PlainModel
from benchmarks.peers.process import MctxProcess, mctx_missing, on_one_core
from benchmarks.peers.situations import Encoding, Situations
from benchmarks.peers.weights import exported
from shared.agent.decide import POSITION_RULES
from shared.environment.position import static_features
from shared.errors import ServiceError
from shared.numeric import Float32, Int8
from shared.search.config import SearchConfig, Selection
from shared.search.model import Roots
from shared.search.search import SearchResult, search
from tests.shared.model.networks import SMALL, randomized_network
from tests.shared.search.tables import free_rules, random_model

if TYPE_CHECKING:
    from benchmarks.peers.mctx_search import MctxSearch

needs_mctx = pytest.mark.skipif(mctx_missing() is not None, reason=mctx_missing() or "")


def puct(simulations: int) -> SearchConfig:
    return SearchConfig(Selection.PUCT, simulations=simulations)


def situations(batch: int) -> tuple[Float32, Float32, Float32, Int8]:
    """Windows, embeddings, static features and phases; a third each is flat, long and short."""
    rng = np.random.default_rng(8)
    windows = rng.normal(size=(batch, SMALL.window_bars, SMALL.temporal_features)).astype(np.float32)
    temporal = np.abs(rng.normal(size=(batch, SMALL.temporal_channels))).astype(np.float32)
    side = (np.arange(batch) % 3 - 1).astype(np.int8)
    held, pnl = np.full(batch, 5), rng.normal(0.0, 10.0, batch)
    static = static_features(side, pnl, held, np.abs(pnl), np.abs(pnl), np.abs(pnl))
    return windows, temporal, static, side + np.int8(1)


def one(roots: Roots, index: int) -> Roots:
    row = slice(index, index + 1)
    return Roots(roots.hidden[row], roots.policy_logits[row], roots.values[row], roots.phases[row])


@pytest.mark.parametrize("simulations", [1, 5, 40])
@pytest.mark.parametrize("seed", range(4))
def test_node_objects_give_the_visits_of_the_search_on_any_table(seed: int, simulations: int) -> None:
    model = random_model(np.random.default_rng(seed), num_states=6)
    roots, rules = model.roots(np.arange(6)), free_rules(model.num_actions)
    result = search(model, roots, rules, puct(simulations))
    for index in range(len(roots)):
        found = NodeSearch(model, one(roots, index), rules, puct(simulations))
        assert_same(found, result, index)


def test_node_objects_give_the_visits_of_the_search_with_networks() -> None:
    model = PlainModel(randomized_network(seed=5))
    _, temporal, static, phases = situations(12)
    roots = model.roots(temporal, static, phases)
    result = search(model, roots, POSITION_RULES, puct(20))
    for index in range(len(roots)):
        found = NodeSearch(model, one(roots, index), POSITION_RULES, puct(20))
        assert_same(found, result, index)
        assert sum(found.visits) == 20


def assert_same(found: NodeSearch, result: SearchResult, index: int) -> None:
    assert found.visits == result.visits[index].tolist()
    assert found.action == result.actions[index]
    assert found.root.value_sum / found.root.visits == pytest.approx(float(result.values[index]), rel=1e-3)


@needs_mctx
def test_the_networks_in_jax_equal_those_in_torch() -> None:
    import jax
    import jax.numpy as jnp

    from benchmarks.peers import jax_network

    network = randomized_network(seed=6)
    weights = {name: jnp.asarray(weight) for name, weight in exported(network).items()}
    windows, temporal, static, _ = situations(13)
    actions, outcomes = np.arange(13) % 4, np.arange(13) % 3
    with torch.inference_mode():
        embeddings = network.encoder(torch.from_numpy(windows))
        hidden = network.combine(torch.from_numpy(temporal), torch.from_numpy(static))
        policy_logits, value_logits = network.prediction(hidden)
        afterstates = network.afterstate(hidden, torch.from_numpy(actions))
        outcome_logits, q_logits = network.afterstate_heads(afterstates)
        following, reward_logits = network.dynamics(
            afterstates, torch.from_numpy(actions), torch.from_numpy(outcomes)
        )
        decode = network.support.decode
        pairs = [
            (jax_network.encode(weights, jnp.asarray(windows), SMALL), embeddings),
            (jax_network.encode_thinned(weights, jnp.asarray(windows), SMALL), embeddings),
            (jax_network.combine(weights, jnp.asarray(temporal), jnp.asarray(static)), hidden),
            *zip(
                jax_network.prediction(weights, jnp.asarray(hidden), SMALL),
                (policy_logits, decode(value_logits)),
                strict=True,
            ),
            *zip(
                jax_network.afterstate(weights, jnp.asarray(hidden), jnp.asarray(actions), SMALL),
                (afterstates, outcome_logits, decode(q_logits)),
                strict=True,
            ),
            *zip(
                jax_network.dynamics(
                    weights, jnp.asarray(afterstates), jnp.asarray(actions), jnp.asarray(outcomes), SMALL
                ),
                (following, decode(reward_logits)),
                strict=True,
            ),
        ]
    for ours, theirs in pairs:
        assert isinstance(ours, jax.Array)
        assert np.asarray(ours) == pytest.approx(theirs.numpy(), rel=1e-4, abs=1e-4)


@pytest.fixture(scope="module")
def mctx_search() -> "MctxSearch":
    from benchmarks.peers.mctx_search import MctxSearch

    return MctxSearch(exported(randomized_network(seed=6)), SMALL, puct(10))


@needs_mctx
def test_mctx_uses_the_same_networks_and_avoids_illegal_actions(mctx_search: "MctxSearch") -> None:
    """With one simulation both searches select the action with the largest prior."""
    _, temporal, static, phases = situations(12)
    legal = POSITION_RULES.legal[phases]
    model = PlainModel(randomized_network(seed=6))
    roots = model.roots(temporal, static, phases)
    one_visit = mctx_search.decide(temporal, static, ~legal, 1, Encoding.SHARED)
    greatest = np.where(legal, roots.policy_logits, -np.inf).argmax(axis=1)
    assert np.array_equal(one_visit.actions, greatest)
    ten = mctx_search.decide(temporal, static, ~legal, 10, Encoding.SHARED)
    assert ten.policies.sum(axis=1) == pytest.approx(np.ones(12))
    assert (ten.policies[~legal] == 0.0).all()
    assert len(np.unique(ten.actions)) > 1
    # Root values: that of the network, and those after two simulations.
    q_values = model.afterstates(roots.hidden, greatest.astype(np.int8))[2]
    assert one_visit.values == pytest.approx((roots.values + q_values) / 2.0, rel=1e-3, abs=1e-3)


@needs_mctx
def test_mctx_makes_the_same_decisions_with_every_encoding(mctx_search: "MctxSearch") -> None:
    windows, _, static, phases = situations(12)
    illegal = ~POSITION_RULES.legal[phases]
    embeddings = PlainModel(randomized_network(seed=6)).embed_windows(windows)
    shared = mctx_search.decide(embeddings, static, illegal, 10, Encoding.SHARED)
    for encoding in (Encoding.PLAIN, Encoding.THINNED):
        encoded = mctx_search.decide(windows, static, illegal, 10, encoding)
        assert np.array_equal(encoded.actions, shared.actions)
        assert encoded.values == pytest.approx(shared.values, rel=1e-3, abs=1e-3)


@needs_mctx
def test_mctx_measures_in_its_own_process_until_it_is_closed() -> None:
    windows, temporal, static, phases = situations(3)
    batch = Situations(windows, temporal, static, POSITION_RULES.legal[phases])
    weights = exported(randomized_network(seed=6))
    cores = os.sched_getaffinity(0)
    with on_one_core() as core, MctxProcess(weights, SMALL, puct(2), core) as mctx:
        assert os.sched_getaffinity(0) == {core}
        compiling = mctx.least_seconds(batch, 2, Encoding.SHARED, 0.0)
        assert 0.0 < mctx.least_seconds(batch, 2, Encoding.SHARED, 0.01) < compiling
        assert cores_of(mctx.pid) == {core}
    assert os.sched_getaffinity(0) == cores
    assert not Path(f"/proc/{mctx.pid}").exists()


@needs_mctx
def test_an_exited_process_is_an_error(capfd: pytest.CaptureFixture[str]) -> None:
    windows, temporal, static, phases = situations(2)
    batch = Situations(windows, temporal, static[:, :3], POSITION_RULES.legal[phases])
    with (
        on_one_core() as core,
        MctxProcess(exported(randomized_network(seed=6)), SMALL, puct(2), core) as mctx,
        pytest.raises(ServiceError, match="exited with status 1"),
    ):
        mctx.least_seconds(batch, 2, Encoding.SHARED, 0.0)
    assert "Error" in capfd.readouterr().err


def cores_of(pid: int) -> set[int]:
    """The core sets of all threads of a process."""
    return set().union(
        *(os.sched_getaffinity(int(thread.name)) for thread in Path(f"/proc/{pid}/task").iterdir())
    )


def test_the_error_names_a_missing_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "find_spec", lambda name: None if name == "mctx" else object())
    assert mctx_missing() == "mctx is not installed; the extra `dev` includes it"


@pytest.mark.skipif(lightzero_missing() is not None, reason=str(lightzero_missing()))
def test_lightzeros_tree_visits_only_legal_actions_once_per_simulation() -> None:
    network = randomized_network(SMALL, seed=3)
    phases = np.tile(np.arange(3, dtype=np.int8), 4)
    rng = np.random.default_rng(0)
    temporal = rng.normal(size=(12, SMALL.temporal_channels)).astype(np.float32)
    static = rng.normal(size=(12, SMALL.static_features)).astype(np.float32)
    model = PlainModel(network)
    roots = model.roots(temporal, static, phases)
    config = SearchConfig(Selection.PUCT, simulations=9)
    visits = lightzero_visits(model, roots, POSITION_RULES, config)
    assert [len(row) for row in visits] == [int(POSITION_RULES.legal[phase].sum()) for phase in phases]
    assert [sum(row) for row in visits] == [9] * 12
