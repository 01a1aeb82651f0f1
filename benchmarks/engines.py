"""Inference engines for the most frequent step of the search.

The step is `Agent.successors`: dynamics, reward and value of afterstates, decoded to pips; NumPy arrays in,
NumPy arrays out.

    torch eager      the modules without compilation
    oneDNN           weights packed once, ReLU and sums fused into the products (benchmarks/onednn.py)
    torch.compile    frozen weights: packed once for MKL or oneDNN, operations between products fused.
                     Without autotuning, which takes half a minute per size and found no faster product
    ONNX Runtime     its own products, which exist only in float32 for these processors
    agent            the kernels of this project, as the services run them
"""

import copy
import logging
import os
import shutil
import sysconfig
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.onednn import PackedSuccessors
from shared.agent.agent import Agent
from shared.engine.precision import Precision
from shared.engine.processor import HAS_BFLOAT16
from shared.model.config import ModelConfig
from shared.model.network import Network
from shared.model.support import Support
from shared.numeric import Float32, Int8

Answers = tuple[Float32, Float32, Float32]  # hidden states, rewards, values
Step = Callable[[Float32, Int8, Int8], Answers]

_DTYPES = {Precision.FLOAT32: torch.float32, Precision.BFLOAT16: torch.bfloat16}


@dataclass(frozen=True)
class Engine:
    """An engine for the step."""

    name: str
    precision: Precision
    prepare: Callable[[Network, int], Step]  # network in evaluation mode, rows per call -> the step
    missing: str | None = None  # why it is unavailable, and how to install it; None if available

    @property
    def label(self) -> str:
        """Name and precision."""
        return f"{self.name}, {self.precision}"


def engines() -> tuple[Engine, ...]:
    """All engines. The first is the yardstick and is always available."""
    single, half = Precision.FLOAT32, Precision.BFLOAT16
    no_half = None if HAS_BFLOAT16 else "this processor has no bfloat16 products"
    compiler, onnx = _no_compiler(), _no_onnx()
    return (
        Engine("torch eager", single, partial(_eager, single)),
        Engine("torch eager", half, partial(_eager, half), no_half),
        Engine("oneDNN, packed", single, partial(_packed, single), _no_onednn()),
        Engine("oneDNN, packed", half, partial(_packed, half), no_half or _no_onednn()),
        Engine("torch.compile, frozen", single, partial(_compiled, single), compiler),
        Engine("torch.compile, frozen", half, partial(_compiled, half), no_half or compiler),
        Engine("ONNX Runtime", single, _onnx_runtime, onnx),
        Engine("agent", single, partial(_agent, single)),
        Engine("agent", half, partial(_agent, half), no_half),
    )


class _Successors(nn.Module):
    """The step as one module, for `torch.compile` and the ONNX exporter."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, afterstates: Tensor, actions: Tensor, outcomes: Tensor) -> tuple[Tensor, ...]:
        """`[N, H]`, int64 `[N]`, int64 `[N]` -> hidden states, rewards, values."""
        hidden, reward_logits = self.network.dynamics(afterstates, actions, outcomes)
        decode = self.network.support.decode
        return hidden, decode(reward_logits), decode(self.network.value_head(hidden))


def given_rows(config: ModelConfig, rows: int, seed: int) -> tuple[Float32, Int8, Int8]:
    """Random afterstates, actions and outcomes."""
    rng = np.random.default_rng(seed)
    afterstates = rng.normal(size=(rows, config.hidden_size)).astype(np.float32)
    actions = rng.integers(config.num_actions, size=rows).astype(np.int8)
    return afterstates, actions, rng.integers(config.num_outcomes, size=rows).astype(np.int8)


def _in_precision(network: Network, precision: Precision) -> Network:
    """A copy with weights in a precision. Bins are always decoded in float32."""
    copied = copy.deepcopy(network).to(_DTYPES[precision])
    copied.support = Support(network.config.value_bins, network.config.value_bound_pips)
    return copied


def _of_torch(
    function: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, ...]],
    precision: Precision,
    without_gradients: Callable[[], AbstractContextManager[object]] = torch.inference_mode,
) -> Step:
    """Wrap a torch function as a step on NumPy arrays."""
    dtype = _DTYPES[precision]

    def step(afterstates: Float32, actions: Int8, outcomes: Int8) -> Answers:
        with without_gradients():
            hidden, rewards, values = function(
                torch.from_numpy(afterstates).to(dtype),
                torch.from_numpy(actions).long(),
                torch.from_numpy(outcomes).long(),
            )
            return hidden.float().numpy(), rewards.numpy(), values.numpy()

    return step


def _eager(precision: Precision, network: Network, rows: int) -> Step:
    return _of_torch(_Successors(_in_precision(network, precision)), precision)


def _agent(precision: Precision, network: Network, rows: int) -> Step:
    return Agent(network, 0, precision).successors


def _packed(precision: Precision, network: Network, rows: int) -> Step:
    return _of_torch(PackedSuccessors(_in_precision(network, precision), rows), precision)


def _compiled(precision: Precision, network: Network, rows: int) -> Step:
    ready = _in_precision(network, precision)
    with _quiet():
        import torch._inductor.config

        module = torch.compile(_Successors(ready).eval(), dynamic=False)
        # no_grad was measured to be faster than inference_mode.
        step = _of_torch(module, precision, torch.no_grad)
        with torch._inductor.config.patch(freezing=True):
            step(*given_rows(network.config, rows, seed=0))
    return step


def _onnx_runtime(network: Network, rows: int) -> Step:
    import onnxruntime

    names = ("afterstates", "actions", "outcomes")
    afterstates, actions, outcomes = map(torch.from_numpy, given_rows(network.config, rows, seed=0))
    given = (afterstates, actions.long(), outcomes.long())
    with _quiet():
        exported = torch.onnx.export(
            _Successors(network).eval(), given, input_names=names, dynamo=True, verbose=False
        )
    assert exported is not None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session: Any = onnxruntime.InferenceSession(
        exported.model_proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )

    def step(afterstates: Float32, actions: Int8, outcomes: Int8) -> Answers:
        given = (afterstates, actions.astype(np.int64), outcomes.astype(np.int64))
        hidden, rewards, values = session.run(None, dict(zip(names, given, strict=True)))
        return hidden, rewards, values

    return step


def forget_compiled() -> None:
    """Drop the code that torch has compiled so far, because each call searches through it."""
    with _quiet():
        torch.compiler.reset()


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress warnings of torch's compiler and exporter about their own code and unneeded packages."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logger.setLevel(level)


def _no_onednn() -> str | None:
    available: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return None if available else "this build of torch has no oneDNN"


def _no_compiler() -> str | None:
    compilers = (os.environ.get("CXX"), "g++", "clang++")
    if not any(name and shutil.which(name) for name in compilers):
        return "there is no C++ compiler; install g++, or name one in CXX"
    if not (Path(sysconfig.get_path("include")) / "Python.h").is_file():
        return "Python's headers are not installed; the system's package python3-dev has them"
    return None


def _no_onnx() -> str | None:
    absent = [name for name in ("onnxruntime", "onnx", "onnxscript") if find_spec(name) is None]
    if absent:
        return (
            f"not installed: {', '.join(absent)}; .venv/bin/python -m pip install -e '.[onnx]' installs them"
        )
    return None
