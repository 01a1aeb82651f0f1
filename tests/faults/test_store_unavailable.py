"""An outage of the object store: every service continues, and no version is lost."""

import asyncio
import contextlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from pydantic import SecretStr

from services.api.config import GatewayConfig
from services.inference.promoted import PromotedVersion
from services.selfplay.config import SelfPlayConfig
from services.selfplay.settings import SelfPlaySettings
from services.trainer.publishing.metrics import DISK_FAILURES
from services.trainer.settings import TrainerSettings
from services.validator import storage as validator_storage
from services.validator.storage import Storage
from shared.adapters.streams.bus import Bus
from shared.adapters.tables.dataset import Dataset
from shared.adapters.versions import object_store
from shared.adapters.versions.manifest import Pointer
from shared.adapters.versions.store import CheckpointStore
from shared.environment.environment import EnvironmentConfig
from shared.messages.streams import ALERTS, TRAJECTORIES
from shared.runtime.redis_server import RedisServer
from shared.search.config import SearchConfig
from tests.broken_connections import BREAKS_CONNECTIONS
from tests.s3_server import S3Server
from tests.services.api.conftest import running_system
from tests.services.inference.versions import promote, save_version
from tests.services.selfplay import test_service as selfplay
from tests.services.trainer import test_service as trainer
from tests.services.trainer.runs import CONFIG
from tests.services.validator import cases
from tests.services.validator import test_service as validator
from tests.shared.adapters.versions.checkpoint_versions import InBucket
from tests.waiting import until

pytestmark = BREAKS_CONNECTIONS


@pytest.fixture
def url(bucket: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """URL of a store whose outage is detected after half a second."""
    monkeypatch.setattr(object_store, "RETRIES", 0)
    monkeypatch.setattr(object_store, "REQUEST_SECONDS", 0.5)
    return InBucket(bucket).url


@contextlib.contextmanager
def unavailable(server: S3Server) -> Iterator[None]:
    """The server answers no requests inside the block."""
    server.pause()
    try:
        yield
    finally:
        server.resume()


async def test_the_trainer_continues_and_publishes_after_the_outage(
    bars: tuple[Path, Dataset],
    url: str,
    s3_server: S3Server,
    redis_server: RedisServer,
    bus: Bus,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = TrainerSettings(
        home=tmp_path,
        checkpoints=url,
        dataset=bars[0],
        redis_url=SecretStr(redis_server.url),
        model=CONFIG.model,
        replay=CONFIG.replay,
        learner=CONFIG.learner,
        trainer=replace(CONFIG.trainer, publish_every_episodes=5, keep_checkpoints=2),
    )

    def failures() -> float:
        return float(DISK_FAILURES.labels("checkpoint")._value.get())

    async with trainer.running(settings) as running:
        await trainer.send(bus, bars[1], range(5))
        await until(lambda: trainer.detail(running, "version") == 1)
        before = failures()
        with unavailable(s3_server):
            await trainer.send(bus, bars[1], range(5, 12))
            await until(lambda: trainer.detail(running, "episode") == 12)
            assert failures() == before + 1
            assert trainer.detail(running, "version") == 1
        await trainer.send(bus, bars[1], range(12, 15))
        await until(lambda: trainer.detail(running, "version") == 2)
    store = CheckpointStore(url)
    manifest, refused = store.newest_valid()
    assert manifest is not None
    assert (manifest.episode, refused) == (15, [])
    pointed = store.pointer(Pointer.LATEST)
    assert pointed is not None
    assert pointed.version == manifest.version

    monkeypatch.setattr("services.trainer.retry.RETRY_SECONDS", 0.1)
    async with contextlib.AsyncExitStack() as stack:
        with unavailable(s3_server):
            running = await stack.enter_async_context(trainer.running(settings))
            await asyncio.sleep(1.5)  # long enough for retries
            assert trainer.detail(running, "version") is None
        await until(lambda: trainer.detail(running, "version") == manifest.version)
        assert trainer.detail(running, "episode") == 15


async def test_a_worker_continues_and_fetches_the_version_later(
    bars: tuple[Path, Dataset],
    url: str,
    s3_server: S3Server,
    redis_server: RedisServer,
    bus: Bus,
    tmp_path: Path,
) -> None:
    settings = SelfPlaySettings(
        home=tmp_path,
        checkpoints=url,
        dataset=bars[0],
        redis_url=SecretStr(redis_server.url),
        selfplay=SelfPlayConfig(lanes=selfplay.LANES, high_water=10_000),
        environment=EnvironmentConfig(session_bars=selfplay.STEPS),
    )
    await selfplay.publish(bus, settings, 0)
    save_version(CheckpointStore(url), 1)
    async with selfplay.running(settings) as worker:
        await selfplay.sent(bus, count=selfplay.LANES)
        with unavailable(s3_server):
            await selfplay.announce(bus, 1)
            length = await bus.length(TRAJECTORIES)
            await selfplay.sent(bus, count=length + 3 * selfplay.LANES)
            assert worker.heartbeat.detail["version"] == 0
        await until(lambda: worker.heartbeat.detail.get("version") == 1)


async def test_the_validator_waits_and_skips_no_version(
    url: str,
    s3_server: S3Server,
    redis_server: RedisServer,
    bus: Bus,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(validator_storage, "STORE_RETRY_SECONDS", 0.05)
    storage = Storage(CheckpointStore(url), tmp_path / "validations")
    cases.save_version(storage.store, 1)
    async with validator.running(redis_server, storage) as lifecycle:
        await validator.until_heartbeat(lifecycle, waiting=0)
        with unavailable(s3_server):
            await validator.publish(bus, 1)
            await validator.until_heartbeat(lifecycle, validating=1)
            await asyncio.sleep(1.0)
        await validator.until_heartbeat(lifecycle, done=1, skipped=0)
    for name in (Pointer.BEST, Pointer.PROMOTED):
        pointed = storage.store.pointer(name)
        assert pointed is not None
        assert pointed.version == 1
    assert await bus.recent(ALERTS, count=10) == []


async def test_inference_keeps_serving_and_reports_the_outage_once(url: str, s3_server: S3Server) -> None:
    store = CheckpointStore(url)
    promoted = PromotedVersion(store, SearchConfig())
    for version in (1, 2):
        save_version(store, version)
    promote(store, 1)
    assert await promoted.refresh() is None
    with unavailable(s3_server):
        alert = await promoted.refresh()
        assert alert is not None
        assert alert.name == "store_unavailable"
        assert url in alert.detail
        assert "version 1 is still served" in alert.detail
        assert await promoted.refresh() is None
    assert promoted.served is not None
    assert (promoted.served.version, promoted.refused) == (1, None)
    promote(store, 2)
    assert await promoted.refresh() is None
    assert promoted.served.version == 2
    promoted.close()


async def test_the_gateway_answers_and_reports_the_outage(
    url: str,
    s3_server: S3Server,
    redis_server: RedisServer,
    bus: Bus,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MM_CHECKPOINTS", url)
    async with running_system(redis_server.url, bus, tmp_path, GatewayConfig()) as system:
        made = await system.publish(1, loss=0.5)
        await system.until(lambda: 1 in system.gateway.history.checkpoints)
        with unavailable(s3_server):
            status = await system.client.get("/status")
            assert status.status_code == 200
            assert status.json()["state"] == "degraded"
            assert status.json()["pointers"] == {"newest": 1, "best": None, "promoted": None}
            for path in ("/checkpoints", "/checkpoints/1", "/checkpoints/1/weights"):
                answer = await system.client.get(path)
                assert answer.status_code == 503
                assert answer.headers["content-type"] == "application/problem+json"
                assert answer.json()["detail"] == "the checkpoint store does not answer; try again soon"
        (listed,) = (await system.client.get("/checkpoints")).json()["items"]
        assert (listed["version"], listed["stored"]) == (1, True)
        assert (await system.client.get("/checkpoints/1")).json()["manifest"]["update"] == made.update
        weights = await system.client.get("/checkpoints/1/weights")
        assert weights.headers["etag"] == f'"{made.files["weights.safetensors"].sha256}"'
