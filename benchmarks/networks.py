"""Compares the inference engines for the most frequent step of the search.

Every engine must agree with plain float32 torch before it is measured. The engines alternate on one thread.
Each makes several calls in a row, because in a search the weights are also in the caches from the last call.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from benchmarks.engines import Engine, Step, engines, forget_compiled, given_rows
from benchmarks.measure import Measurement, quickest
from shared.engine.precision import Precision
from shared.errors import DataError
from shared.model.config import ModelConfig
from shared.model.cost import network_costs
from shared.model.network import Network, initial_network
from shared.numeric import Float32, Int8

BATCHES = (1, 16, 64, 256, 1_024)

#: Largest accepted relative error: root mean square of the differences divided by that of the yardstick.
#: Rounding to bfloat16 after every layer gives about 0.01.
TOLERANCE = {Precision.FLOAT32: 1e-4, Precision.BFLOAT16: 0.03}

#: Minimum number of rows that are compared.
ROWS_TO_AGREE = 64

#: Minimum number of calls and rows per turn.
CALLS, ROWS_OF_A_TURN = 3, 256

ANSWERS = ("hidden states", "rewards", "values")


@dataclass(frozen=True)
class EngineSpeed:
    """One row of the table, from the fastest turn."""

    engine: str
    precision: Precision
    rows: int
    microseconds: float  # per call
    yardstick_microseconds: float  # per call of the yardstick
    gigaflops: float  # two operations per multiply-add, products only

    @property
    def measurement(self) -> Measurement:
        """The comparison with the yardstick."""
        return Measurement(
            name=f"successors, {self.rows} rows, {self.engine}, {self.precision}",
            value=self.microseconds,
            unit="µs",
            yardstick="torch eager, float32",
            yardstick_value=self.yardstick_microseconds,
        )

    def document(self) -> dict[str, object]:
        """All fields for JSON."""
        own = {"engine": self.engine, "precision": self.precision, "rows": self.rows}
        return {**own, "gigaflops": self.gigaflops, **self.measurement.document()}


def bench_engines(
    config: ModelConfig | None = None,
    *,
    batches: Sequence[int] = BATCHES,
    among: Sequence[Engine] | None = None,
    seconds: float = 1.0,
    seed: int = 0,
) -> list[EngineSpeed]:
    """Measure every available engine at every batch size.

    Args:
        config: sizes of the networks; None uses the reference sizes.
        batches: numbers of rows per call.
        among: the yardstick, then the other engines; None measures all engines.
        seconds: minimum duration per batch size, for all engines together.
        seed: seed of weights and rows.
    Raises:
        DataError: the results of an engine differ from those of the yardstick.
    """
    config = config or ModelConfig()
    network = _network(config, seed)
    available = [engine for engine in among or engines() if engine.missing is None]
    speeds = []
    for rows in batches:
        speeds += _measure(network, available, rows, seconds, seed)
    return speeds


def _measure(
    network: Network, available: Sequence[Engine], rows: int, seconds: float, seed: int
) -> list[EngineSpeed]:
    given = given_rows(network.config, rows, seed)
    forget_compiled()
    steps = [engine.prepare(network, rows) for engine in available]
    expected = _answers(steps[0], network.config, rows)
    for engine, step in zip(available, steps, strict=True):
        answers = _answers(step, network.config, rows)
        require_agreement(f"{engine.label}, {rows} rows", ANSWERS, answers, expected, engine.precision)
    calls = max(CALLS, ROWS_OF_A_TURN // rows)
    turns = quickest([partial(_repeat, step, given, calls) for step in steps], repeats=5, seconds=seconds)
    least = [turn / calls for turn in turns]
    operations = 2 * rows * network_costs(network.config).successor
    return [
        EngineSpeed(engine.name, engine.precision, rows, 1e6 * took, 1e6 * least[0], 1e-9 * operations / took)
        for engine, took in zip(available, least, strict=True)
    ]


def require_agreement(
    what: str,
    names: Sequence[str],
    answers: Sequence[Float32],
    expected: Sequence[Float32],
    precision: Precision,
) -> None:
    """Check that each array equals the expected one within `TOLERANCE`.

    Raises:
        DataError: a shape differs, or the numbers differ by more than the tolerance.
    """
    for name, answer, target in zip(names, answers, expected, strict=True):
        if answer.shape != target.shape:
            raise DataError(f"{what}: {name} are {answer.shape}, expected {target.shape}")
        error = float(np.linalg.norm(answer - target) / np.linalg.norm(target))
        if not error <= TOLERANCE[precision]:
            raise DataError(
                f"{what}: {name} have a relative error of {error:.2g}, expected up to {TOLERANCE[precision]}"
            )


def _answers(step: Step, config: ModelConfig, rows: int) -> tuple[Float32, ...]:
    """Results for enough rows that single values near zero do not dominate the relative error."""
    calls = [step(*given_rows(config, rows, seed)) for seed in range(-(-ROWS_TO_AGREE // rows))]
    return tuple(map(np.concatenate, zip(*calls, strict=True)))


def _repeat(step: Step, given: tuple[Float32, Int8, Int8], calls: int) -> None:
    for _ in range(calls):
        step(*given)


def _network(config: ModelConfig, seed: int) -> Network:
    """A new network with random heads, since all engines would agree on its zero heads."""
    network = initial_network(config, seed).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for head in (network.reward_head, network.value_head):
        head.last.weight.normal_(0.0, config.hidden_size**-0.5, generator=generator)
    return network
