"""Training reduces the loss, resumes bit for bit, and survives updates that are not finite."""

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
import torch

from services.trainer.config import LearnerConfig, ReplayConfig, Shaping
from services.trainer.learning.learner import Learner
from services.trainer.learning.losses import Batch, losses, unroll
from services.trainer.replay.steps import COLUMNS
from services.trainer.replay.targets import unrolled_steps
from services.trainer.training import SavedState, Training, TrainingConfig
from shared.adapters.versions.agents import load_agent, trained_instrument
from shared.adapters.versions.manifest import Manifest
from shared.adapters.versions.store import CheckpointStore
from shared.agent.agent import Agent
from shared.engine.precision import Precision
from shared.environment.action import Action
from shared.errors import CheckpointError
from shared.market.bar import Instrument
from shared.model.network import initial_network
from tests.services.trainer.runs import CONFIG, advance, features, new_training, trajectories
from tests.shared.messages.trajectories import FINGERPRINT

JOURNAL = trajectories(40)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def saved(manifest: Manifest) -> Manifest:
    """The manifest as read back from disk."""
    return Manifest.model_validate_json(manifest.model_dump_json())


#: The options that `config/tuned.toml` sets, with values for a small network.
STRETCHES = replace(
    CONFIG,
    learner=replace(
        CONFIG.learner,
        batch_size=40,
        stretch_steps=8,
        unroll_steps=1,
        trace_floor=0.1,
        shaping=Shaping.UNREALISED,
        trade_margin=3.0,
        precision=Precision.BFLOAT16,
        average_decay=0.9,
        average_share=0.6,
        constant_updates=7,
    ),
    trainer=replace(CONFIG.trainer, hold_logit=3.0, samples_per_insert=2.0),
)


#: A small replay: it evicts complete trajectories, and of some it keeps only steps under the quota.
SMALL = ReplayConfig(capacity_steps=70, trade_quota=0.1, success_capacity=3)


@pytest.mark.parametrize(
    "config",
    [CONFIG, STRETCHES, replace(CONFIG, replay=SMALL), replace(STRETCHES, replay=SMALL)],
    ids=["reference", "stretches", "reference, small replay", "stretches, small replay"],
)
def test_training_resumed_from_a_checkpoint_equals_an_uninterrupted_run_bit_for_bit(
    tmp_path: Path, config: TrainingConfig
) -> None:
    never_stopped = new_training(config)
    losses = advance(never_stopped, JOURNAL, 20)

    stopped = new_training(config)
    assert advance(stopped, JOURNAL, 10) == losses[:10]
    store = CheckpointStore(tmp_path)
    store.save(*stopped.save(0))
    assert (stopped.replay_start > 0) is (config.replay is SMALL)

    resumed = new_training(config)
    resumed.resume(store.manifest(0), store.weights(0), store.training(0), JOURNAL.__getitem__)
    assert advance(resumed, JOURNAL, 10) == losses[10:]

    for name, weights in never_stopped.learner.weights().items():
        assert np.array_equal(weights, resumed.learner.weights()[name]), name
    for name, moments in never_stopped.learner.moments().items():
        assert np.array_equal(moments, resumed.learner.moments()[name]), name
    assert never_stopped.save(1)[0].state == resumed.save(1)[0].state


def test_a_resumed_replay_reads_no_trajectory_before_the_manifests_replay_start() -> None:
    training = new_training()
    advance(training, JOURNAL, 60)
    manifest, weights, moments = training.save(0)
    start = SavedState.of(manifest).replay_start
    assert 0 < start < training.position

    def read(position: int) -> object:
        assert position >= start
        return JOURNAL[position]

    resumed = new_training()
    resumed.resume(saved(manifest), weights, moments, read)  # type: ignore[arg-type]
    draws = [t.replay.sample(np.random.default_rng(1), 50).bars.tolist() for t in (training, resumed)]
    assert draws[0] == draws[1]
    assert resumed.position == training.position


AVERAGED = replace(CONFIG, learner=replace(CONFIG.learner, average_decay=0.75))


def test_inserted_steps_are_computed_with_the_learners_settings() -> None:
    training, trajectory = new_training(STRETCHES), JOURNAL[0]
    assert (trajectory.actions == Action.CLOSE).any()
    training.insert(trajectory)
    expected = unrolled_steps(
        trajectory,
        0,
        discount=STRETCHES.discount,
        n=STRETCHES.learner.n_step,
        unroll_steps=1,
        trace_floor=0.1,
        shaping=Shaping.UNREALISED,
        trade_margin=3.0,
    )
    held, _ = training.replay.contents()
    held = held.take(np.argsort(held.decisions))
    for name in COLUMNS:
        np.testing.assert_array_equal(getattr(held, name), getattr(expected, name), err_msg=name)


def test_the_acting_network_is_the_running_average_of_the_weights() -> None:
    training, plain = new_training(AVERAGED), new_training()
    average = {name: weights.astype(float) for name, weights in plain.learner.network.arrays().items()}
    for trajectory in JOURNAL[:15]:
        for run in (training, plain):
            run.insert(trajectory)
        while plain.may_update:
            assert training.update() == plain.update()  # training does not use the average
            for name, weights in plain.learner.network.arrays().items():
                average[name] += 0.25 * (weights - average[name])
    assert plain.learner.counters.updates > 10
    for name, weights in training.learner.acting.arrays().items():
        if not name.endswith("num_batches_tracked"):
            np.testing.assert_allclose(weights, average[name], rtol=1e-4, atol=1e-6, err_msg=name)
    hidden = np.random.default_rng(0).normal(size=(5, CONFIG.model.hidden_size)).astype(np.float32)
    acting, trained = (Agent(network, 0) for network in (training.learner.acting, training.learner.network))
    holds = np.zeros(5, np.int8)
    assert not np.array_equal(acting.afterstates(hidden, holds)[0], trained.afterstates(hidden, holds)[0])


def test_an_average_over_a_share_of_all_updates_covers_more_and_more_of_them() -> None:
    """With a share of 1/2, update n moves the average by the smaller of 2/n and 1 - `average_decay`."""
    config = LearnerConfig(average_decay=0.75, average_share=0.5)
    decays = [config.average_decay_at(updates) for updates in range(12)]
    assert decays[:8] == [0.75] * 8
    assert decays[8:] == pytest.approx([1 - 2 / 9, 1 - 2 / 10, 1 - 2 / 11, 1 - 2 / 12])
    training, plain = (
        new_training(replace(CONFIG, learner=replace(AVERAGED.learner, average_share=0.5))),
        new_training(),
    )
    average = plain.learner.network.arrays()["policy_head.last.weight"].astype(float)
    for trajectory in JOURNAL[:10]:
        for run in (training, plain):
            run.insert(trajectory)
        while plain.may_update:
            made = plain.learner.counters.updates + 1
            training.update()
            plain.update()
            new = plain.learner.network.arrays()["policy_head.last.weight"]
            average += min(0.25, 2 / made) * (new - average)
    assert plain.learner.counters.updates > 16
    acting = training.learner.acting.arrays()["policy_head.last.weight"]
    np.testing.assert_allclose(acting, average, rtol=1e-4, atol=1e-7)


def test_averaging_can_be_switched_on_or_off_between_versions() -> None:
    plain, averaged = new_training(), new_training(AVERAGED)
    for training in (plain, averaged):
        advance(training, JOURNAL, 10)
    begun, ended = new_training(AVERAGED), new_training()
    for resumed, before in ((begun, plain), (ended, averaged)):
        resumed.resume(saved(before.save(0)[0]), *before.save(0)[1:], JOURNAL.__getitem__)
    for name, weights in plain.learner.weights().items():
        assert np.array_equal(begun.learner.weights()[name], weights), name
        assert np.array_equal(ended.learner.weights()[name], weights), name  # the trained weights


def test_the_learning_rate_falls_with_the_square_root_of_the_updates() -> None:
    falling = LearnerConfig(learning_rate=0.01, constant_updates=4)
    rates = [falling.learning_rate_at(updates) for updates in (0, 3, 4, 16, 400)]
    assert rates == pytest.approx([0.01, 0.01, 0.01, 0.005, 0.001])
    assert LearnerConfig(learning_rate=0.01).learning_rate_at(10**9) == 0.01

    plain = new_training()
    slowing = new_training(replace(CONFIG, learner=replace(CONFIG.learner, constant_updates=1)))
    for training in (plain, slowing):
        training.insert(JOURNAL[0])
        training.insert(JOURNAL[1])
    for _ in range(2):
        assert plain.update() == slowing.update()
    before = plain.learner.network.arrays()
    plain.update()
    slowing.update()
    for name, _ in plain.learner.network.named_parameters():
        full, slowed = (run.learner.network.arrays()[name] - before[name] for run in (plain, slowing))
        np.testing.assert_allclose(slowed, full / np.sqrt(2.0), rtol=1e-3, atol=1e-7, err_msg=name)


def test_other_seeds_make_other_networks() -> None:
    one = new_training()
    other = new_training(replace(CONFIG, trainer=replace(CONFIG.trainer, seed=1)))
    assert advance(one, JOURNAL, 3) != advance(other, JOURNAL, 3)


def test_steps_are_drawn_as_often_as_samples_per_insert_requires() -> None:
    for target in (0.5, 2.0):
        training = new_training(replace(CONFIG, trainer=replace(CONFIG.trainer, samples_per_insert=target)))
        advance(training, JOURNAL, 25)
        while training.may_update:
            training.update()
        batch = CONFIG.learner.batch_size
        assert abs(training.pacing.drawn - target * training.pacing.inserted) < batch


def test_no_update_is_made_with_too_few_steps() -> None:
    training = new_training()
    training.insert(JOURNAL[0])
    assert not training.may_update  # 40 steps, 60 are required
    training.insert(JOURNAL[1])
    assert training.may_update


def test_the_loss_falls_when_the_same_steps_are_learned_repeatedly() -> None:
    training = new_training()
    for trajectory in JOURNAL[:3]:
        training.insert(trajectory)
    training.pacing.owed = 1e9
    losses = [training.update().loss for _ in range(150)]
    assert np.mean(losses[-10:]) < losses[0] - 1.5  # nats; the entropy of the targets remains
    statistics = training.last
    assert statistics is not None
    assert 0 < statistics.policy_entropy < np.log(4)
    assert statistics.gradient_norm > 0


def test_an_update_that_is_not_finite_changes_nothing_and_is_counted() -> None:
    training = new_training()
    advance(training, JOURNAL, 3)
    before = training.learner.weights()
    moments = training.learner.moments()
    steps = training.replay.sample(np.random.default_rng(0), 16)
    views = training.views(steps)
    statistics = training.learner.update(steps, replace(views, spans=np.full_like(views.spans, np.nan)))
    assert statistics.skipped
    for name, weights in training.learner.weights().items():
        assert np.array_equal(weights, before[name]), name
    for name, moment in training.learner.moments().items():
        assert np.array_equal(moment, moments[name]), name
    counters = training.learner.counters
    assert (counters.updates, counters.skipped, counters.skipped_in_a_row) == (3, 1, 1)
    training.update()
    assert training.learner.counters.skipped_in_a_row == 0


def test_too_many_skipped_updates_in_a_row_are_divergence_and_a_roll_back_ends_it() -> None:
    config = replace(CONFIG, learner=LearnerConfig(batch_size=16, unroll_steps=3, max_skipped_in_a_row=4))
    training = new_training(config)
    advance(training, JOURNAL, 5)
    manifest, weights, moments = training.save(7)
    with torch.no_grad():
        training.learner.network.value_head.last.weight.fill_(float("inf"))
    for expected in (False, False, False, True):
        steps = training.replay.sample(training.learner.generator(), 16)
        training.learner.update(steps, training.views(steps))
        assert training.learner.diverged is expected
    training.roll_back(weights, moments)
    assert not training.learner.diverged
    assert training.save(8)[0].state["roll_backs"] == 1
    for name, array in training.learner.weights().items():
        assert np.array_equal(array, weights[name]), name
    assert np.isfinite(advance(training, JOURNAL, 1)[0])
    assert manifest.update == 5


@pytest.mark.parametrize("config", [CONFIG, AVERAGED], ids=["last", "averaged"])
def test_an_agent_loaded_from_a_checkpoint_equals_the_saved_one(
    tmp_path: Path, config: TrainingConfig
) -> None:
    training = new_training(config)
    advance(training, JOURNAL, 5)
    store = CheckpointStore(tmp_path)
    store.save(*training.save(4))
    agent, trained = load_agent(store, 4), Agent(training.learner.acting, 4)
    assert agent.version == 4
    assert agent.config == CONFIG.model
    rng = np.random.default_rng(0)
    hidden = rng.normal(size=(20, CONFIG.model.hidden_size)).astype(np.float32)
    actions, outcomes = rng.integers(4, size=20).astype(np.int8), rng.integers(3, size=20).astype(np.int8)
    for loaded, expected in zip(
        (*agent.afterstates(hidden, actions), *agent.successors(hidden, actions, outcomes)),
        (*trained.afterstates(hidden, actions), *trained.successors(hidden, actions, outcomes)),
        strict=True,
    ):
        np.testing.assert_array_equal(loaded, expected)
    with pytest.raises(CheckpointError, match="no version 5"):
        load_agent(store, 5)


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    training = new_training()
    manifest, weights, moments = training.save(0)
    store = CheckpointStore(tmp_path)
    store.save(manifest.model_copy(update={"model": {**manifest.model, "value_bins": 33}}), weights, moments)
    with pytest.raises(CheckpointError, match="weights do not fit"):
        load_agent(store, 0)
    store.save(
        manifest.model_copy(update={"version": 1, "model": {**manifest.model, "encoder": "wavelet"}}),
        weights,
        moments,
    )
    with pytest.raises(CheckpointError, match="encoder"):
        load_agent(store, 1)
    other = Learner(
        initial_network(replace(CONFIG.model, temporal_channels=11), seed=0), CONFIG.learner, seed=0
    )
    with pytest.raises(CheckpointError, match="do not fit"):
        other.restore(dict(weights), {})
    with pytest.raises(CheckpointError, match="which the network does not have"):
        training.learner.restore(dict(weights), {"nowhere/step": np.zeros(1, np.float32)})


def test_a_manifest_without_the_training_state_is_refused() -> None:
    manifest = new_training().save(0)[0]
    with pytest.raises(CheckpointError, match="training state"):
        SavedState.of(manifest.model_copy(update={"state": {"seed": 0}}))


def test_hold_logit_makes_version_0_prefer_to_hold_in_every_state() -> None:
    network = new_training(STRETCHES).learner.network.eval()
    with torch.inference_mode():
        policy, _ = network.prediction(network.representation(torch.randn(5, 32, 9), torch.randn(5, 6)))
    odds = np.exp(3.0)
    np.testing.assert_allclose(policy.softmax(-1), np.tile([odds, 1, 1, 1], (5, 1)) / (odds + 3), atol=1e-6)


def test_an_update_runs_on_the_configured_number_of_threads() -> None:
    """Another library's parallel loop changes torch's number of threads, because both use the same OpenMP."""
    training = new_training()
    torch.set_num_threads(2)
    advance(training, JOURNAL, 1)
    assert torch.get_num_threads() == 1


def test_stretches_learn_what_single_steps_learn() -> None:
    """The same rows give the same gradient, whether encoded as single windows or as stretches."""
    gradients = []
    for length in (1, 8):
        config = replace(CONFIG, learner=replace(CONFIG.learner, stretch_steps=length))
        training = new_training(replace(config, model=replace(config.model, dropout=0.0)))
        for trajectory in JOURNAL[:4]:
            training.insert(trajectory)
        steps = training.replay.contents()[0]
        network = training.learner.network.eval()  # batch statistics depend on how often a bar is encoded
        batch = Batch.of(steps, training.views(steps), torch.device("cpu"))
        losses(unroll(network, batch), batch, network.support).total(config.learner).backward()  # type: ignore[no-untyped-call]
        gradients.append({name: weight.grad for name, weight in network.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, atol=1e-5, rtol=1e-4)


def test_a_version_stores_the_last_bar_of_all_training_splits_that_it_has_seen() -> None:
    early, late = datetime(2025, 1, 1, tzinfo=UTC), datetime(2025, 6, 1, tzinfo=UTC)
    for before, after in ((early, late), (late, early)):
        saved_before, weights, moments = Training(CONFIG, features(), FINGERPRINT, trained_until=before).save(
            0
        )
        assert saved(saved_before).trained_until == before
        resumed = Training(CONFIG, features(), FINGERPRINT, trained_until=after)
        resumed.resume(saved(saved_before), weights, moments, JOURNAL.__getitem__)
        assert resumed.save(1)[0].trained_until == late


def test_a_version_stores_the_instrument_that_it_was_trained_on() -> None:
    gold = Instrument("XAU_USD", -2)
    manifest, _, _ = Training(CONFIG, features(), FINGERPRINT, instrument=gold).save(0)
    assert trained_instrument(saved(manifest)) == gold
    assert trained_instrument(new_training().save(0)[0]) is None
