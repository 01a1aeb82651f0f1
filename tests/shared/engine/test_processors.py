"""The networks give the same numbers on processors with other vector registers.

The kernels for each of these processors are compiled and run in a subprocess.
"""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from shared.agent.agent import Agent
from shared.engine import processor
from shared.engine.precision import Precision
from tests.shared.model.networks import SMALL, randomized_network

_PROGRAM = """
import sys
import numpy as np
from shared.agent.agent import Agent
from shared.engine import processor
from shared.engine.precision import Precision
from tests.shared.model.networks import SMALL, randomized_network
assert processor.LANES == int(sys.argv[2]), processor.LANES
assert not processor.HAS_BFLOAT16
assert Precision.AUTO.resolved() is Precision.FLOAT32
inputs = np.load(sys.argv[1])
for kind in ("float32", "bfloat16"):
    agent = Agent(randomized_network(SMALL, seed=8), 0, Precision(kind))
    answers = (
        agent.embed_span(inputs["rows"]),
        *agent.afterstates(inputs["hidden"], inputs["actions"]),
        *agent.successors(inputs["hidden"], inputs["actions"], inputs["outcomes"]),
    )
    np.savez(sys.argv[1] + kind, *answers)
"""

_X86 = pytest.mark.skipif(
    processor.LANES == 4, reason="this processor has no wider vectors than the compiled ones"
)


@_X86
@pytest.mark.parametrize(
    ("features", "lanes"),
    [
        pytest.param("+avx,+avx2,+fma,+sse4.2", 8, marks=pytest.mark.soak),
        ("+sse2,+sse4.2", 4),
    ],
)
def test_other_vector_registers_give_the_same_numbers(tmp_path: Path, features: str, lanes: int) -> None:
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(50, 9)).astype(np.float32)
    hidden = rng.normal(size=(19, SMALL.hidden_size)).astype(np.float32)
    actions, outcomes = rng.integers(4, size=19).astype(np.int8), rng.integers(3, size=19).astype(np.int8)
    path = tmp_path / "inputs.npz"
    np.savez(path, rows=rows, hidden=hidden, actions=actions, outcomes=outcomes)
    environment = {
        **os.environ,
        "NUMBA_CPU_NAME": "generic",
        "NUMBA_CPU_FEATURES": features,
        "NUMBA_CACHE_DIR": str(tmp_path / "kernels"),
    }
    subprocess.run(
        [sys.executable, "-c", _PROGRAM, str(path), str(lanes)], check=True, env=environment, timeout=300
    )
    for kind in (Precision.FLOAT32, Precision.BFLOAT16):
        agent = Agent(randomized_network(SMALL, seed=8), 0, kind)
        here = (
            agent.embed_span(rows),
            *agent.afterstates(hidden, actions),
            *agent.successors(hidden, actions, outcomes),
        )
        there = np.load(f"{path}{kind}.npz")
        for name, expected in zip(there.files, here, strict=True):
            if kind is Precision.FLOAT32:
                np.testing.assert_allclose(there[name], expected, rtol=1e-4, atol=1e-3)
            else:  # a sum may round to the other bfloat16 neighbour: a few results differ more
                close = np.isclose(there[name], expected, rtol=1e-4, atol=1e-2)
                assert close.mean() > 0.9, name
                np.testing.assert_allclose(there[name], expected, rtol=1e-2, atol=1.0)
