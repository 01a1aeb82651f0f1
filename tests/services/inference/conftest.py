"""An inference service over real HTTP, with checkpoint files."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest_asyncio
from prometheus_client import CollectorRegistry

from services.inference.app import build_app
from services.inference.config import InferenceConfig
from services.inference.promoted import PromotedVersion
from services.inference.settings import InferenceSettings
from shared.adapters.versions.store import CheckpointStore
from shared.runtime.lifecycle import Lifecycle
from shared.runtime.ports import free_port
from shared.runtime.server import serve_app
from shared.search.config import SearchConfig
from tests.waiting import listening


@dataclass
class Service:
    """A running service and its parts."""

    client: httpx.AsyncClient
    promoted: PromotedVersion
    store: CheckpointStore
    url: str


@asynccontextmanager
async def running_service(folder: Path, config: InferenceConfig | None = None) -> AsyncIterator[Service]:
    store = CheckpointStore(folder / "checkpoints")
    promoted = PromotedVersion(store, SearchConfig())
    port = free_port()
    lifecycle = Lifecycle("inference", InferenceSettings(home=folder))
    app = build_app(promoted, config or InferenceConfig(), CollectorRegistry())
    serving = asyncio.create_task(serve_app(app, lifecycle, host="127.0.0.1", port=port))
    url = f"http://127.0.0.1:{port}"
    async with httpx.AsyncClient(base_url=url, timeout=20, trust_env=False) as client:
        await listening(port)
        yield Service(client, promoted, store, url)
        lifecycle.stop()
        await serving
    promoted.close()
    await lifecycle.bus.close()


@pytest_asyncio.fixture
async def service(tmp_path: Path) -> AsyncIterator[Service]:
    """A service with an empty store."""
    async with running_service(tmp_path) as running:
        yield running
