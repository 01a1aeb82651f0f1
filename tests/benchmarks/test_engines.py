"""Every engine gives the results of the network; an engine that does not is not measured."""

import copy
import shutil
from functools import partial

import numpy as np
import pytest
import torch

import benchmarks.engines
from benchmarks.engines import Engine, Step, engines, given_rows
from benchmarks.networks import TOLERANCE, EngineSpeed, bench_engines, require_agreement
from shared.engine.precision import Precision
from shared.errors import DataError
from shared.model.cost import network_costs
from shared.model.network import Network
from shared.numeric import Float32, Int8
from tests.shared.model.networks import SMALL, randomized_network

ENGINES = engines()
YARDSTICK = ENGINES[0]
QUICK = tuple(engine for engine in ENGINES if "compile" not in engine.name)


def _expected(network: Network, given: tuple[Float32, Int8, Int8]) -> tuple[torch.Tensor, ...]:
    """The results of one step, computed in float64; values are means over the bins by their definition."""
    afterstates, actions, outcomes = (torch.from_numpy(array) for array in given)
    wide, bound = copy.deepcopy(network).double(), SMALL.value_bound_pips
    bins = torch.linspace(-bound, bound, SMALL.value_bins, dtype=torch.float64)

    def decode(logits: torch.Tensor) -> torch.Tensor:
        weights = logits.exp()
        return (weights * bins).sum(dim=1) / weights.sum(dim=1)

    with torch.no_grad():
        hidden, reward_logits = wide.dynamics(afterstates.double(), actions.long(), outcomes.long())
        _, value_logits = wide.prediction(hidden)
        return hidden, decode(reward_logits), decode(value_logits)


def _assert_results_of_network(engine: Engine, rows: int) -> None:
    """The relative error over 12 random batches is within the tolerance of the engine's precision."""
    network = randomized_network(seed=2, scale=0.2)
    step = engine.prepare(network, rows)
    squared_errors, squares = np.zeros(3), np.zeros(3)
    for seed in range(12):
        given = given_rows(SMALL, rows, seed)
        for index, (answer, wanted) in enumerate(zip(step(*given), _expected(network, given), strict=True)):
            assert answer.dtype == np.float32
            assert answer.shape == tuple(wanted.shape)
            squared_errors[index] += ((answer - wanted.numpy()) ** 2).sum()
            squares[index] += (wanted.numpy() ** 2).sum()
    assert (np.sqrt(squared_errors / squares) <= TOLERANCE[engine.precision]).all()


@pytest.mark.parametrize("rows", [1, 5])
@pytest.mark.parametrize("engine", QUICK, ids=lambda engine: engine.label)
def test_an_engine_gives_the_results_of_the_network(engine: Engine, rows: int) -> None:
    if engine.missing:
        pytest.skip(engine.missing)
    _assert_results_of_network(engine, rows)


def test_compiled_code_gives_the_results_of_the_network() -> None:
    engine = next(engine for engine in ENGINES if "compile" in engine.name)
    if engine.missing:
        pytest.skip(engine.missing)
    _assert_results_of_network(engine, 5)


def test_every_available_engine_is_measured_at_every_batch_size() -> None:
    missing = Engine("absent", Precision.FLOAT32, YARDSTICK.prepare, missing="not installed")
    among = (YARDSTICK, missing, *(engine for engine in QUICK[1:] if engine.name == "agent"))
    present = [engine.label for engine in among if engine.missing is None]
    speeds = bench_engines(SMALL, batches=(2, 7), among=among, seconds=0.0)
    assert [(s.rows, f"{s.engine}, {s.precision}") for s in speeds] == [
        (rows, label) for rows in (2, 7) for label in present
    ]
    for speed in speeds:
        operations = 2 * speed.rows * network_costs(SMALL).successor
        assert speed.gigaflops == pytest.approx(operations / speed.microseconds / 1e3)
        assert speed.measurement.ratio == speed.yardstick_microseconds / speed.microseconds
    assert {s.measurement.ratio for s in speeds if s.engine == YARDSTICK.name} == {1.0}


def test_a_json_row_has_engine_speed_and_ratio() -> None:
    document = EngineSpeed("agent", Precision.BFLOAT16, 64, 500.0, 2_000.0, 330.0).document()
    assert document["engine"] == "agent"
    assert (document["rows"], document["gigaflops"], document["ratio"]) == (64, 330.0, 4.0)
    assert document["yardstick"] == "torch eager, float32"


@pytest.mark.parametrize("answer", range(3))
def test_an_engine_with_wrong_results_is_not_measured(answer: int) -> None:
    def prepare(network: Network, rows: int) -> Step:
        right = YARDSTICK.prepare(network, rows)

        def wrong(*given: np.ndarray) -> tuple[Float32, ...]:
            answers = list(right(*given))
            answers[answer] = answers[answer] * np.float32(1.001)
            return tuple(answers)

        return wrong  # type: ignore[return-value]

    name = ("hidden states", "rewards", "values")[answer]
    inexact = Engine("inexact", Precision.FLOAT32, prepare)
    with pytest.raises(
        DataError,
        match=rf"inexact, float32, 3 rows: {name} have a relative error of 0\.001, .* 0\.0001",
    ):
        bench_engines(SMALL, batches=(3,), among=(YARDSTICK, inexact), seconds=0.0)


def test_results_with_a_large_error_nan_or_another_shape_are_rejected() -> None:
    zeros, ones = np.zeros((2, 3), np.float32), np.ones((2, 3), np.float32)
    agree = partial(require_agreement, "it", ("rows",), precision=Precision.BFLOAT16)
    agree((ones * 1.02,), (ones,))
    for answer in (ones * 1.05, ones * np.nan, zeros):
        with pytest.raises(DataError, match="it: rows have a relative error of"):
            agree((answer,), (ones,))
    with pytest.raises(DataError, match=r"it: rows are \(1, 3\), expected \(2, 3\)"):
        agree((ones[:1],), (ones,))


def test_a_missing_engine_is_reported_with_an_install_hint(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setattr(benchmarks.engines, "find_spec", lambda name: None if name == "onnx" else object())
    reasons = {engine.name: engine.missing for engine in engines() if engine.precision is Precision.FLOAT32}
    assert "install g++" in (reasons.pop("torch.compile, frozen") or "")
    onnx = reasons.pop("ONNX Runtime") or ""
    assert onnx.startswith("not installed: onnx;")
    assert "[onnx]" in onnx
    assert set(reasons.values()) == {None}
