"""A gateway over real HTTP, with a real Redis and versions in real files."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import httpx
import numpy as np
import numpy.typing as npt
import pytest
import pytest_asyncio
from pydantic import SecretStr

from services.api.config import AlertConfig, GatewayConfig
from services.api.service import run
from services.api.settings import GatewaySettings
from services.api.state import Gateway
from shared.adapters.streams.bus import Bus
from shared.adapters.versions.manifest import TRAINED_UNTIL, Manifest
from shared.adapters.versions.store import CheckpointStore
from shared.messages.schemas import CheckpointPublished, ValidationReported
from shared.messages.streams import CHECKPOINTS, VALIDATIONS
from shared.runtime.lifecycle import Lifecycle
from shared.runtime.ports import free_port
from shared.runtime.redis_server import RedisServer
from tests.shared.adapters.judgements import keep_report, report_document
from tests.waiting import listening, until

API_KEY = "canary-key-5f0c2d"
KEY = {"X-API-Key": API_KEY}
FINGERPRINT = "ab" * 32


@dataclass
class System:
    """A running gateway and everything that it reads."""

    client: httpx.AsyncClient
    gateway: Gateway
    bus: Bus
    store: CheckpointStore
    validation_root: Path
    port: int

    async def publish(self, version: int, **metrics: float) -> Manifest:
        """Save a version and announce it, as the trainer does."""
        manifest = save_version(self.store, version, metrics)
        await self.bus.announce(
            CHECKPOINTS,
            CheckpointPublished(
                version=version,
                episode=manifest.episode,
                update=manifest.update,
                weights_sha256=manifest.files["weights.safetensors"].sha256,
                metrics=metrics,
            ),
        )
        return manifest

    async def report(self, version: int, *passed: str, reasons: tuple[str, ...] = ()) -> ValidationReported:
        """Write a report and announce it, as the validator does."""
        write_report(self.validation_root, version, *passed, reasons=reasons)
        message = ValidationReported(
            version=version,
            split="validation",
            num_sessions=10,
            num_trades=40,
            expectancy_pips=1.5,
            sqn=1.1,
            net_pips=60.0,
            max_drawdown_pips=25.0,
            passed_gates=passed,
            reasons=reasons,
            seconds=0.5,
        )
        await self.bus.announce(VALIDATIONS, message)
        return message

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until a condition holds, usually that the gateway has received a message."""
        await until(condition)


def save_version(store: CheckpointStore, version: int, metrics: dict[str, float] | None = None) -> Manifest:
    return store.save(
        Manifest(
            version=version,
            episode=version * 50,
            update=version * 400,
            journal_position=version * 50,
            dataset=FINGERPRINT,
            model={"hidden": 256},
            settings={TRAINED_UNTIL: "2025-03-02T00:00:00Z"},  # just before the first bar of `report_of`
            metrics=metrics or {},
            state={},
        ),
        _weights(version),
        {"step": np.array([version], np.int64)},
    )


def _weights(version: int) -> dict[str, npt.NDArray[np.generic]]:
    return {"layer.weight": np.full((2, 3), version, np.float32)}


def report_of(version: int, *passed: str, reasons: tuple[str, ...] = ()) -> dict[str, object]:
    """The report of a version that `save_version` saves."""
    return report_document(version, *passed, dataset=FINGERPRINT, weights=_weights(version), reasons=reasons)


def write_report(root: Path, version: int, *passed: str, reasons: tuple[str, ...] = ()) -> None:
    """Write a judgement of a version that `save_version` saves, as the validator does."""
    keep_report(root, report_of(version, *passed, reasons=reasons))


@asynccontextmanager
async def running_system(
    redis_url: str, bus: Bus, folder: Path, config: GatewayConfig, alerts: AlertConfig | None = None
) -> AsyncIterator[System]:
    port = free_port()
    config = replace(config, port=port)
    settings = GatewaySettings(redis_url=SecretStr(redis_url), home=folder, gateway=config)
    lifecycle = Lifecycle("api", settings)
    gateway = Gateway(
        lifecycle.bus,
        CheckpointStore(settings.checkpoint_root),
        settings.home,
        settings.validation_root,
        config,
        alerts or AlertConfig(),
    )
    serving = asyncio.create_task(run(gateway, lifecycle))
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=20, trust_env=False) as client:
        await listening(port)
        yield System(client, gateway, bus, gateway.store, settings.validation_root, port)
        lifecycle.stop()
        await serving
    await lifecycle.bus.close()


@pytest_asyncio.fixture
async def system(redis_server: RedisServer, bus: Bus, tmp_path: Path) -> AsyncIterator[System]:
    """A gateway with an API key and an empty store."""
    config = GatewayConfig(api_key=SecretStr(API_KEY), redis_timeout_seconds=5.0)
    async with running_system(redis_server.url, bus, tmp_path, config) as running:
        yield running


@pytest.fixture
def store(tmp_path: Path) -> CheckpointStore:
    """An empty checkpoint store."""
    return CheckpointStore(tmp_path / "checkpoints")
