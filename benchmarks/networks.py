"""Which engine should inference use? The step that search makes most, by every engine that can be had here.

Every engine has to agree with plain float32 torch before it is measured. All take turns on one thread, each
several calls in a row: search, too, finds the weights in the caches where its last call left them.
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

#: How far an engine's answers may lie from the yardstick's: root mean square of the differences, over that
#: of the answers. Rounding to bfloat16 after every layer was seen to make a hundredth.
TOLERANCE = {Precision.FLOAT32: 1e-4, Precision.BFLOAT16: 0.03}

#: Over how many rows they have to agree, at least.
ROWS_TO_AGREE = 64

#: What a turn makes, at least.
CALLS, ROWS_OF_A_TURN = 3, 256

ANSWERS = ("hidden states", "rewards", "values")


@dataclass(frozen=True)
class EngineSpeed:
    """One row of the table; of the quickest turn, the one that was disturbed least."""

    engine: str
    precision: Precision
    rows: int
    microseconds: float  # a call
    yardstick_microseconds: float  # of the yardstick's call
    gigaflops: float  # two operations a multiply-add, of products alone

    @property
    def measurement(self) -> Measurement:
        """As a row."""
        return Measurement(
            name=f"successors, {self.rows} rows, {self.engine}, {self.precision}",
            value=self.microseconds,
            unit="µs",
            yardstick="torch eager, float32",
            yardstick_value=self.yardstick_microseconds,
        )

    def document(self) -> dict[str, object]:
        """Everything by name, for JSON."""
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
    """Measure every engine that can be had, at every number of rows.

    Args:
        config: sizes; None for the reference's.
        batches: numbers of rows of a call.
        among: the yardstick, then what is measured against it; None for all engines.
        seconds: to spend on each number of rows, at least, in all engines together.
        seed: of weights and rows.
    Raises:
        DataError: an engine's answers are not the yardstick's.
    """
    config = config or ModelConfig()
    network = _network(config, seed)
    present = [engine for engine in among or engines() if engine.missing is None]
    speeds = []
    for rows in batches:
        speeds += _measure(network, present, rows, seconds, seed)
    return speeds


def _measure(
    network: Network, present: Sequence[Engine], rows: int, seconds: float, seed: int
) -> list[EngineSpeed]:
    given = given_rows(network.config, rows, seed)
    forget_compiled()
    steps = [engine.prepare(network, rows) for engine in present]
    expected = _answers(steps[0], network.config, rows)
    for engine, step in zip(present, steps, strict=True):
        answers = _answers(step, network.config, rows)
        require_agreement(f"{engine.label}, {rows} rows", ANSWERS, answers, expected, engine.precision)
    calls = max(CALLS, ROWS_OF_A_TURN // rows)
    turns = quickest([partial(_repeat, step, given, calls) for step in steps], repeats=5, seconds=seconds)
    least = [turn / calls for turn in turns]
    operations = 2 * rows * network_costs(network.config).successor
    return [
        EngineSpeed(engine.name, engine.precision, rows, 1e6 * took, 1e6 * least[0], 1e-9 * operations / took)
        for engine, took in zip(present, least, strict=True)
    ]


def require_agreement(
    what: str,
    names: Sequence[str],
    answers: Sequence[Float32],
    expected: Sequence[Float32],
    precision: Precision,
) -> None:
    """Check each array against the one expected, within `TOLERANCE`.

    Raises:
        DataError: one has another shape, or differs by more.
    """
    for name, answer, wanted in zip(names, answers, expected, strict=True):
        if answer.shape != wanted.shape:
            raise DataError(f"{what}: {name} are {answer.shape}, expected {wanted.shape}")
        off = float(np.linalg.norm(answer - wanted) / np.linalg.norm(wanted))
        if not off <= TOLERANCE[precision]:
            raise DataError(
                f"{what}: {name} are off by {off:.2g} of their size, expected {TOLERANCE[precision]} or less"
            )


def _answers(step: Step, config: ModelConfig, rows: int) -> tuple[Float32, ...]:
    """To rows enough that a value which happens to be about zero does not count alone."""
    calls = [step(*given_rows(config, rows, seed)) for seed in range(-(-ROWS_TO_AGREE // rows))]
    return tuple(map(np.concatenate, zip(*calls, strict=True)))


def _repeat(step: Step, given: tuple[Float32, Int8, Int8], calls: int) -> None:
    for _ in range(calls):
        step(*given)


def _network(config: ModelConfig, seed: int) -> Network:
    """New networks in evaluation mode, but with opinions: answers that are all zero would agree with any."""
    network = initial_network(config, seed).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for head in (network.reward_head, network.value_head):
        head.last.weight.normal_(0.0, config.hidden_size**-0.5, generator=generator)
    return network
