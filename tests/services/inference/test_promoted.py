"""The promoted version decides, and is kept while its successor is damaged."""

import asyncio
import threading
from pathlib import Path

import numpy as np
import torch
from pydantic import SecretStr

from services.inference.promoted import PromotedVersion
from services.inference.settings import InferenceSettings
from shared.adapters.streams.bus import Bus
from shared.adapters.versions.manifest import WEIGHTS, Manifest, Pointed, Pointer
from shared.adapters.versions.store import CheckpointStore
from shared.errors import StoreUnavailableError
from shared.messages.schemas import VersionPromoted
from shared.messages.streams import ALERTS, PROMOTIONS
from shared.runtime.lifecycle import Lifecycle
from shared.runtime.redis_server import RedisServer
from shared.search.config import SearchConfig
from tests.services.inference.versions import network_of, promote, save_version
from tests.shared.adapters.versions.checkpoint_versions import folder
from tests.waiting import PATIENCE_SECONDS


def damage(store: CheckpointStore, version: int) -> None:
    path = folder(store, version) / WEIGHTS
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


async def test_a_damaged_successor_leaves_the_old_version_serving(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    promoted = PromotedVersion(store, SearchConfig())
    for version in (1, 2, 3):
        save_version(store, version)
    promote(store, 1)
    assert await promoted.refresh() is None
    assert promoted.served is not None
    assert promoted.served.version == 1
    damage(store, 2)
    promote(store, 2)
    alert = await promoted.refresh()
    assert alert is not None
    assert "SHA-256" in alert.detail
    assert "version 1 is still served" in alert.detail
    assert (promoted.served.version, promoted.refused) == (1, 2)
    assert await promoted.refresh() is None, "a second alert for the same damaged version"
    promote(store, 3)
    assert await promoted.refresh() is None
    assert (promoted.served.version, promoted.refused) == (3, None)
    promoted.close()


class SlowStore(CheckpointStore):
    """A store that returns manifests to the loading thread only after `go_on` is set."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.reading, self.go_on = threading.Event(), threading.Event()

    def manifest(self, version: int) -> Manifest:
        if not threading.current_thread().name.startswith("load"):
            return super().manifest(version)
        self.reading.set()
        assert self.go_on.wait(20)
        return super().manifest(version)


async def test_absence_names_a_version_that_is_loading_or_was_refused(tmp_path: Path) -> None:
    store = SlowStore(tmp_path)
    promoted = PromotedVersion(store, SearchConfig())
    assert promoted.absence == "no version is promoted yet"
    save_version(store, 7)
    promote(store, 7)
    loading = asyncio.create_task(promoted.refresh())
    assert await asyncio.to_thread(store.reading.wait, 20)
    assert promoted.absence == "version 7 is loading"
    store.go_on.set()
    assert await loading is None
    damage(store, 7)
    second = PromotedVersion(store, SearchConfig())
    assert await second.refresh() is not None
    assert second.absence == "version 7 was refused"
    promoted.close()
    second.close()


async def test_a_version_whose_values_are_not_finite_is_refused(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    promoted = PromotedVersion(store, SearchConfig())
    network = network_of(1)
    with torch.no_grad():
        network.value_head.last.bias.fill_(float("nan"))
    save_version(store, 1, network)
    promote(store, 1)
    alert = await promoted.refresh()
    assert alert is not None
    assert "not finite" in alert.detail
    assert promoted.served is None
    promoted.close()


async def test_a_damaged_pointer_leaves_the_old_version_serving(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    promoted = PromotedVersion(store, SearchConfig())
    save_version(store, 1)
    promote(store, 1)
    await promoted.refresh()
    (tmp_path / f"{Pointer.PROMOTED}.json").write_text("{")
    alert = await promoted.refresh()
    assert alert is not None
    assert "damaged pointer" in alert.detail
    assert promoted.served is not None
    promoted.close()


class LostStore(CheckpointStore):
    """A store that can become unavailable."""

    is_lost = False

    def pointer(self, name: Pointer) -> Pointed | None:
        if self.is_lost:
            raise StoreUnavailableError("no answer")
        return super().pointer(name)


async def test_each_outage_of_the_store_raises_an_alert_even_after_another_alert(tmp_path: Path) -> None:
    store = LostStore(tmp_path)
    promoted = PromotedVersion(store, SearchConfig())
    save_version(store, 1)
    promote(store, 1)
    damage(store, 1)

    async def alerts(*, is_lost: bool) -> list[str]:
        store.is_lost = is_lost
        raised = [await promoted.refresh() for _ in range(2)]
        return [alert.name for alert in raised if alert is not None]

    assert await alerts(is_lost=True) == ["store_unavailable"]
    assert await alerts(is_lost=False) == ["version_refused"]
    assert await alerts(is_lost=True) == ["store_unavailable"]
    promoted.close()


async def test_a_damaged_pointer_raises_one_alert_until_it_changes_or_is_repaired(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    promoted = PromotedVersion(store, SearchConfig())
    save_version(store, 1)
    promote(store, 1)
    pointer = tmp_path / f"{Pointer.PROMOTED}.json"
    undamaged = pointer.read_text()

    async def alerts() -> list[bool]:
        return [await promoted.refresh() is not None for _ in range(3)]

    pointer.write_text("{")
    assert await alerts() == [True, False, False], "no version was served before"
    pointer.write_text(undamaged.replace('"version":1', '"version":2'))
    assert await alerts() == [True, False, False], "another damage"
    pointer.write_text(undamaged)
    assert await alerts() == [False, False, False]
    assert promoted.served is not None
    pointer.write_text("{")
    assert await alerts() == [True, False, False]
    assert promoted.served.version == 1
    promoted.close()


async def test_a_served_version_has_the_stage_of_its_last_promotion(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    promoted = PromotedVersion(store, SearchConfig())
    save_version(store, 1)
    for stage in ("unproven", "paper", "live"):
        promote(store, 1, stage)
        await promoted.refresh()
        assert promoted.served is not None
        assert promoted.served.stage == stage
    promoted.close()


async def test_a_request_keeps_its_version_while_another_is_promoted(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    promoted = PromotedVersion(store, SearchConfig())
    for version in (1, 2):
        save_version(store, version)
    promote(store, 1)
    await promoted.refresh()
    first = promoted.served
    assert first is not None
    windows, static = np.zeros((1, 32, 9), np.float32), np.zeros((1, 6), np.float32)
    before = await promoted.decide(first, windows, static)
    promote(store, 2)
    await promoted.refresh()
    after = await promoted.decide(first, windows, static)
    assert np.array_equal(before.values, after.values)
    assert promoted.served is not None
    assert not np.array_equal(before.values, (await promoted.decide(promoted.served, windows, static)).values)
    promoted.close()


async def test_a_promotion_that_the_bus_announces_is_served_at_once(
    bus: Bus, redis_server: RedisServer, tmp_path: Path
) -> None:
    store = CheckpointStore(tmp_path)
    save_version(store, 1)
    save_version(store, 2)
    settings = InferenceSettings(redis_url=SecretStr(redis_server.url), home=tmp_path)
    lifecycle = Lifecycle("inference", settings)
    promoted = PromotedVersion(store, SearchConfig())
    following = asyncio.create_task(promoted.follow(lifecycle, poll_seconds=3_600))

    async def until(version: int) -> None:
        async with asyncio.timeout(PATIENCE_SECONDS):
            while promoted.served is None or promoted.served.version != version:
                promote(store, version)
                await bus.announce(PROMOTIONS, VersionPromoted(version=version, stage="paper", by="test"))
                await asyncio.sleep(0.1)

    await until(1)
    await until(2)
    assert lifecycle.heartbeat.detail["version"] == 2
    damage(store, 1)
    promote(store, 1)
    await bus.announce(PROMOTIONS, VersionPromoted(version=1, stage="paper", by="test"))
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not (alerts := await bus.recent(ALERTS, count=10)):  # noqa: ASYNC110  Redis has no event for it
            await asyncio.sleep(0.05)
    assert alerts[0].message.name == "version_refused"
    assert promoted.served is not None
    assert promoted.served.version == 2
    lifecycle.stop()
    await following
    promoted.close()
    await lifecycle.bus.close()
