"""HTTP routes of the inference service: decisions, health and metrics."""

import time
from http import HTTPStatus
from typing import Annotated, cast

import numpy as np
from fastapi import Body, FastAPI, HTTPException, Response
from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
)
from pydantic import BaseModel

from services.inference.config import InferenceConfig
from services.inference.promoted import PromotedVersion, Served
from shared.agent.decide import Decisions
from shared.environment.action import LEGAL, Action
from shared.environment.position import static_features
from shared.errors import DataError
from shared.features.window import FeatureStream
from shared.market.bar import Instrument
from shared.messages.inference import ActionName, BarColumns, DecisionReply, DecisionRequest, PositionNumbers
from shared.numeric import Bool, Float32
from shared.runtime.problems import PROBLEM_RESPONSES, install_problem_handlers

#: Larger than any valid request: 288 features, or 1,000 bars.
MAX_BODY_BYTES = 128_000


class Ready(BaseModel):
    """The version that decides."""

    version: int
    stage: str | None


class _Metrics:
    def __init__(self, registry: CollectorRegistry) -> None:
        self.requests = Counter(
            "mm_inference_requests", "Requests for a decision", ["result"], registry=registry
        )
        self.seconds = Histogram(
            "mm_inference_seconds",
            "From the parsed request to the answer",
            buckets=(0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0),
            registry=registry,
        )
        self.version = Gauge(
            "mm_inference_version", "Version that decides; -1 before the first", registry=registry
        )
        self.refused = Gauge(
            "mm_inference_version_refused", "1 while the promoted version cannot be loaded", registry=registry
        )


def build_app(promoted: PromotedVersion, config: InferenceConfig, registry: CollectorRegistry) -> FastAPI:
    """Build the application; the caller refreshes `promoted`."""
    app = FastAPI(title="Micro Stochastic MuZero inference", version="1", responses=PROBLEM_RESPONSES)
    install_problem_handlers(app, max_body_bytes=MAX_BODY_BYTES)
    metrics = _Metrics(registry)
    waiting = 0

    @app.post("/inference")
    async def inference(request: Annotated[DecisionRequest, Body()]) -> DecisionReply:
        """Decide on the action at the open of the next bar, greedily and without noise."""
        nonlocal waiting
        started = time.perf_counter()
        served = promoted.served
        if served is None:
            metrics.requests.labels("unready").inc()
            raise HTTPException(HTTPStatus.SERVICE_UNAVAILABLE, promoted.absence, {"Retry-After": "5"})
        if waiting >= config.max_waiting:
            metrics.requests.labels("busy").inc()
            raise HTTPException(
                HTTPStatus.SERVICE_UNAVAILABLE,
                f"{waiting} requests are already in progress or waiting",
                {"Retry-After": "1"},
            )
        waiting += 1
        try:
            windows, static = _observation(request, served)
            decided = await promoted.decide(served, windows, static)
            reply = _reply(
                request, served, decided, LEGAL[int(static[0, 0]) + 1], time.perf_counter() - started
            )
        except HTTPException:
            metrics.requests.labels("refused").inc()
            raise
        finally:
            waiting -= 1
        metrics.requests.labels("decided").inc()
        metrics.seconds.observe(reply.latency_ms / 1e3)
        return reply

    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        """Report that the process answers."""
        return {"status": "ok"}

    @app.get("/readyz")
    async def readyz() -> Ready:
        """Report the version that decides; 503 before the first is loaded."""
        if promoted.served is None:
            raise HTTPException(HTTPStatus.SERVICE_UNAVAILABLE, promoted.absence)
        return Ready(version=promoted.served.version, stage=promoted.served.stage)

    @app.get("/metrics")
    async def metrics_page() -> Response:
        """Prometheus metrics."""
        metrics.version.set(promoted.served.version if promoted.served else -1)
        metrics.refused.set(promoted.refused is not None)
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

    return app


def _observation(request: DecisionRequest, served: Served) -> tuple[Float32, Float32]:
    """The window `[1, 32, 9]` and the static features `[1, 6]` of a request.

    Raises:
        HTTPException: 422 for another instrument, or for bars that break a rule.
    """
    instrument = served.instrument
    if request.instrument != instrument.name:
        raise HTTPException(
            HTTPStatus.UNPROCESSABLE_ENTITY,
            f"instrument {request.instrument!r}: version {served.version} was trained on {instrument.name} "
            "and decides for no other",
        )
    if request.features is not None:
        window = np.array(request.features, np.float32)
    else:
        assert request.bars is not None
        window = _window(request.bars, instrument)
    if request.static is not None:
        static = np.array([request.static], np.float32)
    else:
        assert request.position is not None
        static = _static(request.position)
    return window[None], static


def _window(bars: BarColumns, instrument: Instrument) -> Float32:
    stream = FeatureStream(instrument)
    try:
        for time_s, close in zip(bars.time_s, bars.close, strict=True):
            stream.push(time_s, close)
    except DataError as broken:
        raise HTTPException(HTTPStatus.UNPROCESSABLE_ENTITY, f"bars: {broken}") from broken
    window = stream.window()
    assert window is not None, "the request's schema requires enough bars for a window"
    return window


def _static(position: PositionNumbers) -> Float32:
    return static_features(
        np.array([position.side], np.int64),
        np.array([position.pnl_pips]),
        np.array([position.bars_held], np.int64),
        np.array([position.peak_pips]),
        np.array([position.max_drawdown_pips]),
        np.array([position.accumulated_drawdown_pips]),
    )


def _reply(
    request: DecisionRequest, served: Served, decided: Decisions, legal: Bool, seconds: float
) -> DecisionReply:
    visits = decided.visits[0].astype(np.float64)
    return DecisionReply(
        instrument=request.instrument,
        bar_time_s=request.bar_time_s if request.bars is None else request.bars.time_s[-1],
        action=cast("ActionName", Action(int(decided.actions[0])).name),
        visit_policy=(visits / visits.sum()).tolist(),
        policy=_probabilities(decided.policies[0]),
        value=float(decided.values[0]),
        q_values=[
            float(q) if allowed else None for q, allowed in zip(decided.q_values[0], legal, strict=True)
        ],
        outcome_probabilities=_probabilities(decided.outcome_probabilities[0]),
        version=served.version,
        stage=served.stage,
        latency_ms=seconds * 1e3,
    )


def _probabilities(row: Float32) -> list[float]:
    """Probabilities in [0, 1]; rounding may put those of a float32 distribution slightly above 1."""
    clipped: list[float] = np.clip(row.astype(np.float64), 0.0, 1.0).tolist()
    return clipped
