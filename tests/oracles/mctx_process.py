"""mctx in its own process, to keep JAX's threads, flags and float64 out of the tests' process."""

import importlib
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple, cast

from shared.numeric import Bool, Float64, Int32, Int64
from shared.search.config import SearchConfig
from shared.search.model import ActionRules
from tests.shared.search.tables import TableModel

#: Cache of compiled programs: only the first run on a machine compiles.
JAX_CACHE = Path.home() / ".cache" / "micro-muzero" / "jax"


class MctxTrees(NamedTuple):
    """The trees that mctx built for `B` roots; node t was made by simulation t, node 0 is the root."""

    visits: Int32  # [B, N]
    values: Float64  # [B, N] W/N
    parents: Int32  # [B, N] -1 at the root
    branches: Int32  # [B, N] the action that led to the node, or A + the outcome
    root_visits: Int32  # [B, A]
    root_q: Float64  # [B, A] completed
    policies: Float64  # [B, A] mctx's training target
    actions: Int32  # [B] gumbel: the action that mctx selects


class Mctx:
    """Calls the functions of `tests.oracles.mctx_search` in the other process."""

    def __init__(self, pool: ProcessPoolExecutor) -> None:
        self._pool = pool

    def puct(
        self, model: TableModel, states: Int64, phases: Int64, rules: ActionRules, config: SearchConfig
    ) -> MctxTrees:
        return cast("MctxTrees", self._call("puct", model, states, phases, rules, config))

    def gumbel(
        self,
        model: TableModel,
        states: Int64,
        phases: Int64,
        rules: ActionRules,
        config: SearchConfig,
        noise: Float64,
        considered: Bool,
    ) -> MctxTrees:
        return cast(
            "MctxTrees", self._call("gumbel", model, states, phases, rules, config, noise, considered)
        )

    def halving_table(self, most_considered: int, simulations: int) -> Int64:
        return cast("Int64", self._call("halving_table", most_considered, simulations))

    def _call(self, function: str, *arguments: object) -> object:
        return self._pool.submit(_call_function, function, arguments).result()


@contextmanager
def mctx_process() -> Iterator[Mctx]:
    """Run the process; stop it on exit."""
    with ProcessPoolExecutor(1, get_context("spawn"), _prepare) as pool:
        yield Mctx(pool)


def _prepare() -> None:
    """Configure JAX before it is imported: CPU, one thread, a cache."""
    os.environ |= {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false",
        "PJRT_NPROC": "1",
        "JAX_COMPILATION_CACHE_DIR": str(JAX_CACHE),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.5",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        "JAX_ENABLE_X64": "true",
    }


def _call_function(function: str, arguments: tuple[Any, ...]) -> object:
    return getattr(importlib.import_module("tests.oracles.mctx_search"), function)(*arguments)
