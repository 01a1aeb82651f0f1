"""Inference over HTTP, validation and self-play decide alike on the same observation."""

from pathlib import Path

import numpy as np
import pytest

from services.validator.evaluate import walk
from shared.adapters.inference import InferenceClient
from shared.agent.rollout import play
from shared.agent.trajectory import Trajectory
from shared.environment.action import Action
from shared.environment.environment import EnvironmentConfig
from shared.features.window import window
from shared.search.config import SearchConfig, Selection
from tests.services.inference.conftest import Service
from tests.services.inference.versions import agent_of, promote, save_version
from tests.shared.agent.markets import small_market

ENVIRONMENT = EnvironmentConfig(session_bars=120)
STARTS = np.array([200, 400, 640], np.int64)


def greedy_session(start: int) -> Trajectory:
    *_, (trajectory,) = play(
        agent_of(1),
        small_market(),
        np.array([start], np.int64),
        ENVIRONMENT,
        SearchConfig(selection=Selection.GUMBEL),
        seeds=np.zeros(1, np.int64),
    )
    return trajectory


async def test_inference_repeats_every_decision_of_a_greedy_self_play_session(
    service: Service, tmp_path: Path
) -> None:
    save_version(service.store, 1)
    promote(service.store, 1)
    await service.promoted.refresh()
    seen = set()
    async with InferenceClient(service.url, deadline_seconds=20) as client:
        for start in STARTS.tolist():
            session = greedy_session(start)
            for step, (static, action) in enumerate(zip(session.static, session.actions, strict=True)):
                features = window(small_market().features, start + step)
                decision = await client.decide("GBP_JPY", 60 * step, features, static)
                assert decision.action is Action(action), f"bar {start + step}"
                assert decision.value == pytest.approx(float(session.values[step]), abs=1e-3)
                seen.add(decision.action)
    assert seen == set(Action), "not every action was compared"


def test_the_validator_makes_the_trades_of_greedy_self_play_sessions() -> None:
    walked = walk(agent_of(1), small_market(), STARTS, ENVIRONMENT, SearchConfig(), lanes=3)
    sessions = [greedy_session(start) for start in STARTS.tolist()]
    played = [trade for session in sessions for trade in session.trades]
    assert [trade for _, trade in walked.trades] == sorted(played, key=lambda trade: trade.exit_bar)
    counts = np.bincount(np.concatenate([session.actions for session in sessions]), minlength=len(Action))
    assert walked.action_counts.tolist() == counts.tolist()
