"""One decision over HTTP, compared with the same decision in the client process.

The service runs in its own process, as in production. The yardstick is the decision function with the same
observations and weights. Requests and yardstick alternate.
"""

import asyncio
import os
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict
from pathlib import Path
from time import perf_counter

import httpx
import numpy as np
import torch

from benchmarks.measure import Measurement
from shared.adapters.inference import InferenceClient
from shared.adapters.versions.manifest import Manifest, Pointer
from shared.adapters.versions.store import CheckpointStore
from shared.agent.agent import Agent
from shared.agent.decide import decide
from shared.environment.action import Action
from shared.environment.position import NUM_STATIC
from shared.errors import ServiceError
from shared.features.window import FIRST_WINDOW_BAR, temporal_features, window
from shared.market.synthetic import Market, synthesize
from shared.model.config import ModelConfig
from shared.model.network import initial_network
from shared.numeric import Float32, Float64
from shared.runtime.ports import free_port
from shared.runtime.redis_server import RedisServer
from shared.search.config import SearchConfig

INSTRUMENT = "GBP_JPY"
START_SECONDS = 120.0
WARM_UP_DECISIONS = 10

#: Goal for the 99th percentile.
GOAL_P99_MS = 20.0


def bench_inference(*, decisions: int = 500, model: ModelConfig | None = None) -> list[Measurement]:
    """Measure the median and the 99th percentile of single decisions.

    Args:
        decisions: number of decisions over HTTP, and of those in the client process.
        model: sizes of the networks; None uses the reference sizes.
    Raises:
        ServiceError: the service did not start, or chose another action than the client process.
    """
    return asyncio.run(_bench(decisions, model or ModelConfig()))


async def _bench(decisions: int, model: ModelConfig) -> list[Measurement]:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        agent = _promoted_agent(CheckpointStore(folder / "checkpoints"), model)
        async with _running_service(folder) as url, InferenceClient(url, deadline_seconds=5.0) as client:
            return await _measure(agent, client, _windows(decisions))


async def _measure(agent: Agent, client: InferenceClient, windows: Float32) -> list[Measurement]:
    static = np.zeros(NUM_STATIC, np.float32)
    for _ in range(WARM_UP_DECISIONS):
        await client.decide(INSTRUMENT, 0, windows[0], static)
        _decide(agent, windows[0], static)
    over_http, in_process = np.empty(len(windows)), np.empty(len(windows))
    for index, observed in enumerate(windows):
        started = perf_counter()
        answered = await client.decide(INSTRUMENT, index, observed, static)
        between = perf_counter()
        decided = _decide(agent, observed, static)
        over_http[index], in_process[index] = between - started, perf_counter() - between
        if answered.action != decided:
            raise ServiceError(f"window {index}: {answered.action.name} over HTTP, {decided.name} in process")
    return [_row(percent, over_http, in_process) for percent in (50, 99)]


def _row(percent: int, over_http: Float64, in_process: Float64) -> Measurement:
    return Measurement(
        name=f"one decision over HTTP, p{percent} of {len(over_http)}",
        value=float(np.percentile(over_http, percent)) * 1e3,
        unit="ms",
        yardstick="the same decision in the process that asks",
        yardstick_value=float(np.percentile(in_process, percent)) * 1e3,
        goal_value=GOAL_P99_MS if percent == 99 else None,
    )


def _decide(agent: Agent, observed: Float32, static: Float32) -> Action:
    decisions = decide(agent, agent.embed_windows(observed[None]), static[None], SearchConfig())
    return Action(int(decisions.actions[0]))


def _windows(count: int) -> Float32:
    features = temporal_features(synthesize(Market.GBM, FIRST_WINDOW_BAR + count, seed=0))
    return np.stack([window(features, FIRST_WINDOW_BAR + index) for index in range(count)])


def _promoted_agent(store: CheckpointStore, model: ModelConfig) -> Agent:
    network = initial_network(model, seed=0)
    manifest = Manifest(
        version=1,
        episode=0,
        update=0,
        journal_position=0,
        dataset="0" * 64,
        model=asdict(model),
        settings={},
        metrics={},
        state={},
    )
    store.save(manifest, {name: tensor.numpy() for name, tensor in network.state_dict().items()}, {})
    store.point(Pointer.PROMOTED, 1, stage="paper")
    return Agent(network, 1)


@asynccontextmanager
async def _running_service(folder: Path) -> AsyncIterator[str]:
    """Run the inference service as a process with its own Redis; yields its URL."""
    redis = RedisServer(folder / "redis", free_port())
    await asyncio.to_thread(redis.start)
    port = free_port()
    environment = {
        **os.environ,
        "MM_HOME": str(folder),
        "MM_REDIS_URL": redis.url,
        "MM_INFERENCE__PORT": str(port),
        "MM_LOG_LEVEL": "ERROR",
        "OMP_NUM_THREADS": "1",
    }
    process = subprocess.Popen([sys.executable, "-m", "services.inference"], env=environment)  # noqa: ASYNC220
    url = f"http://127.0.0.1:{port}"
    try:
        await _ready(url, process)
        yield url
    finally:
        process.terminate()
        await asyncio.to_thread(process.wait, 20)
        await asyncio.to_thread(redis.stop)


async def _ready(url: str, process: subprocess.Popen[bytes]) -> None:
    async with httpx.AsyncClient(base_url=url, trust_env=False, timeout=5.0) as client:
        deadline = perf_counter() + START_SECONDS
        while perf_counter() < deadline and process.poll() is None:
            try:
                if (await client.get("/readyz")).status_code == httpx.codes.OK:
                    return
            except httpx.TransportError:
                pass
            await asyncio.sleep(0.1)
    raise ServiceError(f"the inference service did not start within {START_SECONDS:.0f} s")
