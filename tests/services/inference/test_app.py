"""POST /inference answers with the promoted version's decision, or with a problem document."""

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.inference.promoted import PromotedVersion
from shared.agent.decide import decide
from shared.environment.action import Action
from shared.environment.position import static_features
from shared.features.window import WINDOW_BARS, temporal_features, window
from shared.market.bar import Instrument
from shared.market.synthetic import Market, synthesize
from shared.numeric import Float32
from shared.search.config import SearchConfig
from tests.services.inference.conftest import Service
from tests.services.inference.versions import agent_of, promote, save_version

BARS = synthesize(Market.OU, 400, seed=3)
FEATURES = temporal_features(BARS)
FLAT = [0.0] * 6
LONG: Float32 = static_features(
    np.array([1]), np.array([12.5]), np.array([7]), np.array([20.0]), np.array([9.0]), np.array([30.0])
)[0]


def body(bar: int = 300, static: list[float] | None = None, **other: object) -> dict[str, Any]:
    return {
        "instrument": "GBP_JPY",
        "features": window(FEATURES, bar).tolist(),
        "static": FLAT if static is None else static,
        **other,
    }


async def with_version(service: Service, version: int = 1) -> None:
    save_version(service.store, version)
    promote(service.store, version)
    assert await service.promoted.refresh() is None


async def test_a_request_before_the_first_promotion_gets_503(service: Service) -> None:
    answer = await service.client.post("/inference", json=body())
    assert answer.status_code == 503
    assert answer.headers["content-type"] == "application/problem+json"
    assert "no version is promoted" in answer.json()["detail"]
    assert (await service.client.get("/readyz")).status_code == 503
    assert (await service.client.get("/healthz")).status_code == 200


@pytest.mark.parametrize("static", [FLAT, LONG.tolist(), [-1.0, *LONG.tolist()[1:]]])
async def test_a_reply_holds_the_result_of_the_decision_function(
    service: Service, static: list[float]
) -> None:
    await with_version(service)
    agent = agent_of(1)
    for bar in range(200, 240):
        answer = (await service.client.post("/inference", json=body(bar, static, bar_time_s=60 * bar))).json()
        expected = decide(
            agent,
            agent.embed_windows(window(FEATURES, bar)[None]),
            np.array([static], np.float32),
            SearchConfig(),
        )
        assert answer["action"] == Action(expected.actions[0]).name
        assert answer["value"] == expected.values[0]
        assert answer["policy"] == pytest.approx(expected.policies[0].tolist(), abs=0)
        assert answer["outcome_probabilities"] == pytest.approx(
            expected.outcome_probabilities[0].tolist(), abs=0
        )
        assert answer["visit_policy"] == pytest.approx(
            (expected.visits[0] / expected.visits[0].sum()).tolist()
        )
        legal = [True, True, True, False] if static[0] == 0 else [True, False, False, True]
        assert [q is not None for q in answer["q_values"]] == legal
        assert answer["bar_time_s"] == 60 * bar
        assert (answer["version"], answer["stage"], answer["instrument"]) == (1, "paper", "GBP_JPY")
        assert answer["latency_ms"] > 0


async def test_raw_bars_and_position_numbers_give_the_decision_of_their_features(service: Service) -> None:
    await with_version(service)
    position = {
        "side": 1,
        "pnl_pips": 12.5,
        "bars_held": 7,
        "peak_pips": 20.0,
        "max_drawdown_pips": 9.0,
        "accumulated_drawdown_pips": 30.0,
    }
    raw = {
        "instrument": "GBP_JPY",
        "bars": {"time_s": BARS.time_s[100:301].tolist(), "close": BARS.close[100:301].tolist()},
        "position": position,
    }
    from_bars = (await service.client.post("/inference", json=raw)).json()
    from_features = (await service.client.post("/inference", json=body(300, LONG.tolist()))).json()
    assert from_bars["bar_time_s"] == BARS.time_s[300]
    for answer in (from_bars, from_features):
        del answer["bar_time_s"], answer["latency_ms"]
    assert from_bars == from_features


GOOD = body()
BAD: dict[str, object] = {
    "features missing": {name: GOOD[name] for name in ("instrument", "static")},
    "position missing": {name: GOOD[name] for name in ("instrument", "features")},
    "features and bars": {**GOOD, "bars": {"time_s": list(range(151)), "close": [1.0] * 151}},
    "static and position": {**GOOD, "position": {"side": 0}},
    "31 bars": {**GOOD, "features": GOOD["features"][1:]},
    "8 features": {**GOOD, "features": [row[1:] for row in GOOD["features"]]},
    "a feature of 2": {**GOOD, "features": [[2.0] * 9] * WINDOW_BARS},
    "half a side": {**GOOD, "static": [0.5] + [0.0] * 5},
    "flat with profit": {**GOOD, "static": [0.0, 0.3, 0.0, 0.0, 0.0, 0.0]},
    "seven static": {**GOOD, "static": [0.0] * 7},
    "another field": {**GOOD, "leverage": 100},
    "another instrument": {**GOOD, "instrument": "EUR_USD"},
    "another schema": {**GOOD, "schema_version": 2},
    "negative peak": {
        **{k: GOOD[k] for k in ("instrument", "features")},
        "position": {"side": 1, "peak_pips": -1},
    },
    "few bars": {"instrument": "GBP_JPY", "static": FLAT, "bars": {"time_s": [0], "close": [1.0]}},
    "times backwards": {
        "instrument": "GBP_JPY",
        "static": FLAT,
        "bars": {"time_s": list(range(151, 0, -1)), "close": [1.0] * 151},
    },
    "unequal columns": {
        "instrument": "GBP_JPY",
        "static": FLAT,
        "bars": {"time_s": list(range(160)), "close": [1.0] * 151},
    },
    "zero price": {
        "instrument": "GBP_JPY",
        "static": FLAT,
        "bars": {"time_s": list(range(151)), "close": [0.0] * 151},
    },
    "a list": [],
    "null": None,
}


@pytest.mark.parametrize("name", BAD)
async def test_malformed_input_is_refused_with_422(service: Service, name: str) -> None:
    await with_version(service)
    answer = await service.client.post("/inference", json=BAD[name])
    assert answer.status_code == 422, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["detail"]


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e400", '"nan"', "null", "[]", "true"])
async def test_a_value_that_is_not_a_finite_number_is_refused(service: Service, number: str) -> None:
    await with_version(service)
    for text in (
        json.dumps(body())
        .replace("[[", f"[[{number}, ", 1)
        .replace(", " + str(GOOD["features"][0][0]), "", 1),
        json.dumps({**GOOD, "static": ["here", *FLAT[1:]]}).replace('"here"', number),
    ):
        answer = await service.client.post(
            "/inference", content=text, headers={"content-type": "application/json"}
        )
        assert answer.status_code == 422, (text[:100], answer.text)
        assert answer.headers["content-type"] == "application/problem+json"


async def test_a_large_body_is_refused_before_it_is_read(service: Service) -> None:
    await with_version(service)
    answer = await service.client.post("/inference", content=b" " * 200_000)
    assert answer.status_code == 413
    assert answer.headers["content-type"] == "application/problem+json"


async def test_a_request_with_an_unknown_host_name_is_refused(service: Service) -> None:
    for name, status in (("evil.test", 421), ("inference", 200)):
        assert (await service.client.get("/healthz", headers={"Host": name})).status_code == status


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    content=st.one_of(
        st.binary(max_size=200),
        st.recursive(
            st.one_of(st.none(), st.booleans(), st.floats(), st.integers(), st.text(max_size=5)),
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(list(GOOD)), inner),
            max_leaves=10,
        ).map(lambda value: json.dumps(value).encode()),
    )
)
async def test_arbitrary_bodies_never_cause_a_server_error(service: Service, content: bytes) -> None:
    answer = await service.client.post(
        "/inference", content=content, headers={"content-type": "application/json"}
    )
    assert answer.status_code in (400, 422, 503), answer.text
    assert answer.headers["content-type"] == "application/problem+json"


async def test_metrics_show_the_version_and_count_requests_by_result(service: Service) -> None:
    await with_version(service, 3)
    await service.client.post("/inference", json=body())
    await service.client.post("/inference", json={**GOOD, "instrument": "EUR_USD"})
    page = (await service.client.get("/metrics")).text
    assert "mm_inference_version 3.0" in page
    assert 'mm_inference_requests_total{result="decided"} 1.0' in page
    assert 'mm_inference_requests_total{result="refused"} 1.0' in page


async def test_a_version_decides_only_for_the_instrument_it_was_trained_on(service: Service) -> None:
    euro = Instrument.named("EUR_USD")
    save_version(service.store, 1, instrument=euro)
    promote(service.store, 1)
    assert await service.promoted.refresh() is None
    bars = synthesize(Market.OU, 400, seed=3, instrument=euro)
    request = {"instrument": "EUR_USD", "static": FLAT}
    columns = {"bars": {"time_s": bars.time_s.tolist(), "close": bars.close.tolist()}}
    features = {"features": window(temporal_features(bars), len(bars) - 1).tolist()}
    answers = [
        (await service.client.post("/inference", json={**request, **given})).json()
        for given in (columns, features)
    ]
    assert answers[0]["instrument"] == "EUR_USD"
    assert answers[0]["value"] == answers[1]["value"]  # windows use the pip of EUR_USD
    refused = await service.client.post("/inference", json=body())
    assert refused.status_code == 422
    assert "version 1 was trained on EUR_USD and decides for no other" in refused.json()["detail"]
    strict = PromotedVersion(service.store, SearchConfig(), instrument="gbpjpy")
    assert await strict.refresh() is not None
    assert (strict.served, strict.refused) == (None, 1)
    strict.close()
