"""Ranks under a real torchrun learn what one rank learns, stay equal, and exit together."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from services.trainer.config import LearnerConfig, TrainerConfig
from services.trainer.learning.distributed import Part
from services.trainer.learning.losses import Batch, losses, unroll
from services.trainer.place import Device, Rank
from services.trainer.settings import TrainerSettings
from services.trainer.training import Training
from shared.engine.precision import Precision
from shared.errors import SettingsError
from shared.runtime.settings import load
from tests.conftest import ROOT
from tests.services.trainer.ranks import CASES, RESUMED_AFTER, UPDATES
from tests.services.trainer.runs import advance, new_training, trajectories
from tests.waiting import PATIENCE_SECONDS

NUM_RANKS = 2

TORCHRUN = (
    *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
    *("--nproc-per-node", str(NUM_RANKS), "-m"),
)

ENVIRONMENT = {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device here")


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """Two ranks run all cases; then the second is killed."""
    folder = tmp_path_factory.mktemp("ranks")
    for case in CASES:
        (folder / case).mkdir()
    finished = subprocess.run(
        [*TORCHRUN, "tests.services.trainer.ranks", str(folder)],
        env={**os.environ, **ENVIRONMENT},
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
        timeout=PATIENCE_SECONDS,
    )
    return folder, finished


def _alone(case: str) -> tuple[list[float], Training]:
    """Make the same updates with one rank."""
    training = new_training(CASES[case])
    return advance(training, trajectories(40), UPDATES), training


def _saved(folder: Path, case: str, name: str) -> dict[str, np.ndarray]:
    with np.load(folder / case / f"{name}.npz") as file:
        return dict(file)


@pytest.mark.parametrize("case", ["steps", "stretches", "averaged"])
def test_two_ranks_learn_what_one_learns(
    together: tuple[Path, subprocess.CompletedProcess[str]], case: str
) -> None:
    expected, training = _alone(case)
    # Two ranks add in another order. Adam divides a gradient by its size, so those near 0 differ more.
    assert _saved(together[0], case, "losses")["losses"] == pytest.approx(expected, rel=1e-4)
    for name, weights in _saved(together[0], case, "weights-0").items():
        assert weights == pytest.approx(training.learner.weights()[name], rel=1e-2, abs=2e-3), name


@pytest.mark.parametrize("case", CASES)
def test_ranks_stay_equal_bit_for_bit(
    together: tuple[Path, subprocess.CompletedProcess[str]], case: str
) -> None:
    for what in ("weights", "moments"):
        ranks = [_saved(together[0], case, f"{what}-{rank}") for rank in range(NUM_RANKS)]
        assert ranks[0].keys() == ranks[1].keys()
        for name, array in ranks[0].items():
            assert np.array_equal(array, ranks[1][name]), name


@pytest.mark.parametrize("case", CASES)
def test_ranks_resume_bit_for_bit_from_a_saved_state(
    together: tuple[Path, subprocess.CompletedProcess[str]], case: str
) -> None:
    seen = _saved(together[0], case, "losses")
    assert len(seen["again"]) == UPDATES - RESUMED_AFTER
    assert np.array_equal(seen["again"], seen["losses"][RESUMED_AFTER:])


def test_a_killed_rank_makes_the_others_exit_with_an_error(
    together: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    _, finished = together
    assert finished.returncode != 0
    assert "error: rank 0 of 2 lost another rank and exits" in finished.stderr


def test_the_parts_together_are_the_batch_with_each_stretch_in_one_part() -> None:
    config = CASES["stretches"]
    training = new_training(config)
    for trajectory in trajectories(4):
        training.insert(trajectory)
    steps = training.replay.sample(np.random.default_rng(3), 40, 8)
    views = training.views(steps)
    parts = Part.split(steps, views, [7, 8, 9], 0.1, length=8)
    assert [part.dropout_seed for part in parts] == [7, 8, 9]
    assert sum(part.weight for part in parts) == pytest.approx(1.0)
    assert np.array_equal(np.concatenate([part.views.spans for part in parts]), views.spans)

    def seen(part: Part, lookback: int) -> list[tuple[object, ...]]:
        """Each step with the bars that it sees."""
        return sorted(
            (
                int(position),
                int(decision),
                part.views.spans[row // 8, row % 8 : row % 8 + lookback].tobytes(),
            )
            for position, decision, row in zip(
                part.steps.positions, part.steps.decisions, part.views.rows, strict=True
            )
        )

    lookback = config.model.receptive_field
    complete = seen(Part(steps, views, 1.0, 0, 0.1), lookback)
    assert sorted(step for part in parts for step in seen(part, lookback)) == complete


def test_a_rank_without_a_stretch_takes_part_with_weight_0() -> None:
    training = new_training()
    training.insert(trajectories(1)[0])
    steps = training.replay.sample(np.random.default_rng(0), 1).take(np.zeros(3, np.int64))
    parts = Part.split(steps, training.views(steps), [0, 1], 0.1, length=1)
    assert sorted((part.weight, len(part.steps)) for part in parts) == [(0.0, 1), (1.0, 3)]


def test_the_rank_is_read_only_from_torchruns_environment() -> None:
    assert Rank.from_torchrun({"RANK": "1", "WORLD_SIZE": "2"}) == Rank(0, 1, 0)
    environment = {"TORCHELASTIC_RUN_ID": "x", "RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1"}
    assert Rank.from_torchrun(environment) == Rank(3, 4, 1)


def test_each_rank_has_its_own_name_and_only_the_leader_a_metrics_port(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given = {"instance": "trainer-1", "metrics_port": 9100}
    assert load(TrainerSettings, **given).instance == "trainer-1"
    for name, value in (
        ("TORCHELASTIC_RUN_ID", "x"),
        ("RANK", "1"),
        ("WORLD_SIZE", "2"),
        ("LOCAL_RANK", "1"),
    ):
        monkeypatch.setenv(name, value)
    settings = load(TrainerSettings, **given)
    assert (settings.instance, settings.metrics_port) == ("trainer-1-rank-1", 0)


def test_auto_chooses_cuda_where_available(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert Rank(1, 2, 1).device(Device.AUTO) == torch.device("cuda", 1)
    assert Rank().device(Device.CPU) == torch.device("cpu")
    with pytest.raises(SettingsError, match="--nproc-per-node 2"):
        Rank(2, 3, 2).device(Device.AUTO)


def test_cuda_requested_but_unavailable_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert Rank().device(Device.AUTO) == torch.device("cpu")
    with pytest.raises(SettingsError, match="torch finds no CUDA device"):
        Rank().device(Device.CUDA)
    with pytest.raises(SettingsError, match=r"trainer\.device is 'tpu', expected one of auto, cpu, cuda"):
        TrainerConfig(device="tpu")  # type: ignore[arg-type]


def test_passes_on_cuda_are_bfloat16_by_default() -> None:
    config = LearnerConfig()
    assert config.precision_on("cpu") is Precision.FLOAT32
    assert config.precision_on("cuda") is Precision.BFLOAT16
    config = LearnerConfig(precision=Precision.BFLOAT16, cuda_precision=Precision.FLOAT32)
    assert config.precision_on("cpu") is Precision.BFLOAT16
    assert config.precision_on("cuda") is Precision.FLOAT32


def test_all_tensors_of_an_update_are_on_the_learners_device() -> None:
    """Torch's meta device computes only shapes and, like CUDA, refuses to mix with other devices' tensors."""
    training = new_training()
    for trajectory in trajectories(3):
        training.insert(trajectory)
    steps = training.replay.sample(np.random.default_rng(0), 16)
    network = training.learner.network.to("meta")
    batch = Batch.of(steps, training.views(steps), torch.device("meta"))
    terms = losses(unroll(network, batch), batch, network.support)
    terms.total(training.config.learner).backward()  # type: ignore[no-untyped-call]
    assert {p.grad.device.type for p in network.parameters() if p.grad is not None} == {"meta"}
    assert network.support.decode(torch.zeros(2, network.support.bins, device="meta")).device.type == "meta"


@needs_cuda
def test_cuda_learns_what_the_cpu_learns() -> None:
    config = CASES["steps"]
    expected, _ = _alone("steps")
    on_cuda = replace(
        config,
        trainer=replace(config.trainer, device=Device.CUDA),
        learner=replace(config.learner, cuda_precision=Precision.FLOAT32),
    )
    training = new_training(on_cuda)
    assert training.learner.device.type == "cuda"
    assert advance(training, trajectories(40), UPDATES) == pytest.approx(expected, rel=1e-2)


@needs_cuda
def test_cuda_saves_and_restores_the_same_bits() -> None:
    config = replace(CASES["dropout"], trainer=replace(CASES["dropout"].trainer, device=Device.AUTO))
    training = new_training(config)
    advance(training, trajectories(40), UPDATES)
    assert training.learner.precision is Precision.BFLOAT16
    restored = new_training(config)
    restored.learner.restore(training.learner.weights(), training.learner.moments())
    assert all(parameter.is_cuda for parameter in restored.learner.network.parameters())
    for kind in ("weights", "moments"):
        before, after = getattr(training.learner, kind)(), getattr(restored.learner, kind)()
        for name, array in before.items():
            assert np.array_equal(array, after[name]), name
