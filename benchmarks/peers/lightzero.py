"""A search with LightZero's compiled tree for stochastic MuZero and the same networks.

Only the tree is from the LightZero wheel, installed by `pip install --no-deps LightZero`. Its Python driver
decodes each leaf separately and needs more packages, so it is replaced by one network call per level for all
roots. The networks are plain torch modules. The rules differ from ours (docs/algorithm.md): chance outcomes
are drawn, every edge is discounted, and all actions are legal below the root.
"""

import importlib.machinery
import importlib.metadata
import importlib.util
from functools import cache
from pathlib import Path
from types import ModuleType

import numpy as np

from benchmarks.peers.nodes import PlainModel
from shared.numeric import Float32, Int8
from shared.search.config import SearchConfig
from shared.search.model import ActionRules, Roots

PACKAGE = "LightZero"
_TREE = "lzero/mcts/ctree/ctree_stochastic_muzero"
_NO_PLAYER = -1  # LightZero's value for single-player problems


def lightzero_missing() -> str | None:
    """The reason why LightZero's tree cannot be measured; None if it can."""
    try:
        found = _library()
    except importlib.metadata.PackageNotFoundError:
        return f"not installed: {PACKAGE}; pip install --no-deps {PACKAGE} installs its compiled tree"
    return None if found else f"{PACKAGE} has no tree compiled for this Python"


def _library() -> Path | None:
    folder = Path(str(importlib.metadata.distribution(PACKAGE).locate_file(_TREE)))
    suffixes = tuple(importlib.machinery.EXTENSION_SUFFIXES)
    return next((path for path in sorted(folder.glob("*.so")) if path.name.endswith(suffixes)), None)


@cache
def _tree() -> ModuleType:
    path = _library()
    spec = importlib.util.spec_from_file_location("stochastic_mz_tree", path) if path else None
    if spec is None or spec.loader is None:
        raise ImportError(lightzero_missing())
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def lightzero_visits(
    model: PlainModel, roots: Roots, rules: ActionRules, config: SearchConfig
) -> list[list[int]]:
    """Search every root without noise; returns the visits of the legal actions of each root."""
    tree, batch = _tree(), len(roots)
    legal = [rules.legal[phase].nonzero()[0].tolist() for phase in roots.phases]
    no_player = [_NO_PLAYER] * batch
    trees = tree.Roots(batch, legal, model.num_outcomes)
    trees.prepare_no_noise([0.0] * batch, roots.policy_logits.tolist(), no_player)
    bounds = tree.MinMaxStatsList(batch)
    bounds.set_delta(config.min_q_span)
    # Per simulation: the state of the new node, and the action that led to an afterstate.
    states, actions = [roots.hidden], [np.zeros(batch, np.int8)]
    for simulation in range(config.simulations):
        results = tree.ResultsWrapper(num=batch)
        is_chance, created, rows, branches, to_play = tree.batch_traverse(
            trees, config.pb_c_base, config.pb_c_init, config.discount, bounds, results, list(no_player)
        )
        state = np.stack([states[made][row] for made, row in zip(created, rows, strict=True)])
        taken = np.array([actions[made][row] for made, row in zip(created, rows, strict=True)], np.int8)
        branch = np.array(branches, np.int8)
        chance = np.array(is_chance, np.bool_)
        evaluated = {
            kind: _evaluated(
                model, state[chance == kind], taken[chance == kind], branch[chance == kind], kind
            )
            for kind in (True, False)
            if (chance == kind).any()
        }
        new_states = np.empty_like(state)
        for kind, (hidden, rewards, values, logits) in evaluated.items():
            leaves = (chance == kind).nonzero()[0]
            new_states[leaves] = hidden
            tree.batch_backpropagate(
                simulation + 1, config.discount, rewards.tolist(), values.tolist(), logits.tolist(),
                bounds, results, to_play, chance.tolist(), leaves.tolist(),
            )  # fmt: skip
        states.append(new_states)
        actions.append(branch)
    visits: list[list[int]] = trees.get_distributions()
    return visits


def _evaluated(
    model: PlainModel, state: Float32, taken: Int8, branch: Int8, is_chance: bool
) -> tuple[Float32, Float32, Float32, Float32]:
    """States, rewards, values, and logits of the children of new nodes."""
    if is_chance:
        afterstates, probabilities, values = model.afterstates(state, branch)
        return afterstates, np.zeros(len(values), np.float32), values, np.log(probabilities)
    hidden, rewards, values = model.successors(state, taken, branch)
    return hidden, rewards, values, model.policies(hidden)
