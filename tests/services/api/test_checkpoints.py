"""The checkpoint routes: the list, one version, its weights, promotion and rollback."""

import contextlib
import hashlib
import shutil
from itertools import product

import duckdb
import pytest
from pydantic import SecretStr
from safetensors.numpy import load

from services.api.config import GatewayConfig
from shared.adapters.streams.bus import Bus
from shared.adapters.tables.validations import DATABASE
from shared.adapters.versions.manifest import Pointer
from shared.messages.streams import CONTROL, PROMOTIONS
from shared.runtime.redis_server import RedisServer
from tests.services.api.conftest import KEY, System, running_system, save_version
from tests.shared.adapters.versions.checkpoint_versions import folder

PROBLEM = "application/problem+json"


async def test_versions_are_listed_in_pages_newest_first(system: System) -> None:
    for version in range(5):
        await system.publish(version, loss=float(version))
    await system.until(lambda: len(system.gateway.history.checkpoints) == 5)
    first = (await system.client.get("/checkpoints", params={"limit": 2})).json()
    assert [item["version"] for item in first["items"]] == [4, 3]
    second = (await system.client.get("/checkpoints", params={"limit": 2, "before": first["next"]})).json()
    assert [item["version"] for item in second["items"]] == [2, 1]
    last = (await system.client.get("/checkpoints", params={"limit": 2, "before": second["next"]})).json()
    assert [item["version"] for item in last["items"]] == [0]
    assert last["next"] is None


async def test_a_version_whose_files_were_removed_is_still_listed_with_its_metrics(system: System) -> None:
    for version in range(3):
        await system.publish(version, loss=float(version))
    await system.until(lambda: len(system.gateway.history.checkpoints) == 3)
    system.store.collect_garbage(keep=1)
    items = (await system.client.get("/checkpoints")).json()["items"]
    assert [(item["version"], item["stored"]) for item in items] == [(2, True), (1, False), (0, False)]
    assert items[2]["metrics"] == {"loss": 0.0}
    detail = (await system.client.get("/checkpoints/0")).json()
    assert detail["manifest"] is None
    assert (await system.client.get("/checkpoints/0/weights")).status_code == 404


async def test_a_version_that_was_never_announced_is_listed_from_its_manifest(system: System) -> None:
    save_version(system.store, 6, {"loss": 0.5})
    item = (await system.client.get("/checkpoints")).json()["items"][0]
    assert (item["version"], item["episode"], item["metrics"]) == (6, 300, {"loss": 0.5})


async def test_a_version_with_a_damaged_manifest_is_listed_with_the_fault(system: System) -> None:
    save_version(system.store, 6)
    (folder(system.store, 6) / "manifest.json").write_text("{")
    item = (await system.client.get("/checkpoints")).json()["items"][0]
    assert item["episode"] is None
    assert "damaged manifest" in item["fault"]
    detail = await system.client.get("/checkpoints/6")
    assert detail.status_code == 200
    assert detail.json()["manifest"] is None


async def test_the_detail_of_a_version_has_its_manifest_and_verdict(system: System) -> None:
    await system.publish(2, loss=0.5)
    await system.report(2, "paper")
    await system.until(lambda: 2 in system.gateway.history.validations)
    detail = (await system.client.get("/checkpoints/2")).json()
    assert detail["manifest"]["journal_position"] == 100
    assert detail["summary"]["validation"]["passed_gates"] == ["paper"]


async def test_the_weights_route_returns_the_verified_file(system: System) -> None:
    manifest = await system.publish(2)
    answer = await system.client.get("/checkpoints/2/weights")
    assert answer.headers["content-type"] == "application/octet-stream"
    assert hashlib.sha256(answer.content).hexdigest() == manifest.files["weights.safetensors"].sha256
    assert answer.headers["etag"] == f'"{manifest.files["weights.safetensors"].sha256}"'
    assert load(answer.content)["layer.weight"].tolist() == [[2.0] * 3] * 2


async def test_damaged_weights_are_not_sent(system: System) -> None:
    await system.publish(2)
    path = folder(system.store, 2) / "weights.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    answer = await system.client.get("/checkpoints/2/weights")
    assert answer.status_code == 409
    assert "damaged" in answer.json()["detail"]


async def test_weights_removed_before_or_after_they_are_read_cause_no_server_error(
    system: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights removed before the read give a 404; weights that were read completely are sent."""
    read = system.store.file_bytes

    def gone_before(version: int, name: str) -> bytes:
        shutil.rmtree(folder(system.store, version))
        return read(version, name)

    def gone_after(version: int, name: str) -> bytes:
        data = read(version, name)
        shutil.rmtree(folder(system.store, version))
        return data

    for version, (reading, status) in enumerate(((gone_before, 404), (gone_after, 200))):
        await system.publish(version)
        monkeypatch.setattr(system.store, "file_bytes", reading)
        answer = await system.client.get(f"/checkpoints/{version}/weights")
        assert answer.status_code == status, answer.text
        assert version not in system.store.versions()
    assert answer.headers["etag"] == f'"{hashlib.sha256(answer.content).hexdigest()}"'


@pytest.mark.parametrize("path", ["/checkpoints/99", "/checkpoints/99/weights"])
async def test_an_unknown_version_gives_404(system: System, path: str) -> None:
    answer = await system.client.get(path)
    assert answer.status_code == 404
    assert answer.headers["content-type"] == PROBLEM
    assert "no version 99" in answer.json()["detail"]


async def test_only_a_version_that_passed_its_gate_is_promoted(system: System, bus: Bus) -> None:
    await system.publish(1)
    unjudged = await system.client.post("/checkpoints/1/promote", headers=KEY)
    assert unjudged.status_code == 409
    assert "no validation report" in unjudged.json()["detail"]
    await system.report(1, "paper", reasons=("live: SQN 1.1, needs 2.5",))
    live = await system.client.post("/checkpoints/1/promote", headers=KEY, json={"stage": "live"})
    assert live.status_code == 409
    assert "SQN 1.1, needs 2.5" in live.json()["detail"]
    assert system.store.pointer(Pointer.PROMOTED) is None
    assert await bus.newest(PROMOTIONS) is None
    paper = await system.client.post("/checkpoints/1/promote", headers=KEY, json={"stage": "paper"})
    assert paper.status_code == 200
    assert paper.json()["promotion"]["version"] == 1
    announced = await bus.newest(PROMOTIONS)
    assert announced is not None
    assert (announced.version, announced.stage) == (1, "paper")
    status = (await system.client.get("/status")).json()
    assert status["pointers"]["promoted"] == {"version": 1, "stage": "paper"}


async def test_a_promotion_gives_503_while_the_database_of_the_validator_is_in_use(
    system: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shared.adapters.tables.validations.LOCK_SECONDS", 0.1)
    await system.publish(1)
    await system.report(1, "paper")
    with contextlib.closing(duckdb.connect(str(system.gateway.validation_root / DATABASE))):
        answer = await system.client.post("/checkpoints/1/promote", headers=KEY)
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
        assert "database is in use" in answer.json()["detail"]
    assert (await system.client.post("/checkpoints/1/promote", headers=KEY)).status_code == 200


async def test_a_damaged_version_is_not_promoted(system: System) -> None:
    await system.publish(1)
    await system.report(1, "paper")
    (folder(system.store, 1) / "weights.safetensors").write_bytes(b"")
    answer = await system.client.post("/checkpoints/1/promote", headers=KEY)
    assert answer.status_code == 409
    assert system.store.pointer(Pointer.PROMOTED) is None


async def test_rollback_promotes_the_previous_version_and_announces_it(system: System, bus: Bus) -> None:
    nothing = await system.client.post("/checkpoints/rollback", headers=KEY)
    assert nothing.status_code == 409
    for version in (1, 2):
        await system.publish(version)
        await system.report(version, "paper")
        assert (await system.client.post(f"/checkpoints/{version}/promote", headers=KEY)).status_code == 200
    back = await system.client.post("/checkpoints/rollback", headers=KEY)
    assert back.json()["promotion"]["version"] == 1
    assert back.json()["promotion"]["rolled_back_from"] == 2
    announced = await bus.newest(PROMOTIONS)
    assert announced is not None
    assert announced.version == 1


async def test_rollback_skips_damaged_versions(system: System) -> None:
    for version in (1, 2, 3):
        await system.publish(version)
        await system.report(version, "paper")
        assert (await system.client.post(f"/checkpoints/{version}/promote", headers=KEY)).status_code == 200
    (folder(system.store, 2) / "weights.safetensors").write_bytes(b"")
    back = await system.client.post("/checkpoints/rollback", headers=KEY)
    assert (back.status_code, back.json()["promotion"]["version"]) == (200, 1)


async def test_a_damaged_pointer_causes_no_server_error_and_a_promotion_repairs_it(system: System) -> None:
    await system.publish(1)
    await system.report(1, "paper")
    assert system.store.root is not None
    (system.store.root / "promoted.json").write_text("{")
    assert (await system.client.get("/checkpoints")).status_code == 200
    back = await system.client.post("/checkpoints/rollback", headers=KEY)
    assert back.status_code == 409
    assert "damaged pointer" in back.json()["detail"]
    assert (await system.client.post("/checkpoints/1/promote", headers=KEY)).status_code == 200
    status = (await system.client.get("/status")).json()
    assert status["pointers"]["promoted"] == {"version": 1, "stage": "paper"}


async def test_promoting_again_announces_again_and_keeps_the_history(system: System, bus: Bus) -> None:
    await system.publish(1)
    await system.report(1, "paper")
    for _ in range(3):
        assert (await system.client.post("/checkpoints/1/promote", headers=KEY)).status_code == 200
    pointed = system.store.pointer(Pointer.PROMOTED)
    assert pointed is not None
    assert pointed.history == ()
    assert await bus.length(PROMOTIONS) == 3


MUTATIONS = [
    "/checkpoints/1/promote",
    "/checkpoints/rollback",
    "/trader/kill",
    "/trader/resume",
    "/training/pause",
    "/training/resume",
]


async def test_a_change_needs_the_key(system: System, bus: Bus) -> None:
    for path, key in product(MUTATIONS, (None, b"", b"wrong", b"\xff" * 300)):
        headers = [] if key is None else [(b"X-API-Key", key)]
        answer = await system.client.post(path, headers=headers)
        assert answer.status_code == 401
        assert answer.headers["content-type"] == PROBLEM
        assert answer.headers["www-authenticate"] == "ApiKey"
    assert await bus.length(PROMOTIONS) == await bus.length(CONTROL) == 0


async def test_changes_are_refused_if_no_key_is_set(
    redis_server: RedisServer, bus: Bus, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("off")
    config = GatewayConfig(api_key=SecretStr(""))
    async with running_system(redis_server.url, bus, folder, config) as off:
        for path in MUTATIONS:
            answer = await off.client.post(path, headers={"X-API-Key": ""})
            assert answer.status_code == 403
            assert "MM_GATEWAY__API_KEY" in answer.json()["detail"]
