"""The `checkpoints` commands on a store with real versions."""

import asyncio
import json
import os
import re
from pathlib import Path

import pytest
from structlog.testing import capture_logs
from typer.testing import CliRunner

from cli import redis_query
from cli.checkpoints import app
from cli.output import err, out
from cli.runs import Run, exclusive
from shared.adapters.streams.bus import Bus
from shared.adapters.versions import object_store
from shared.adapters.versions.manifest import WEIGHTS, Manifest, Pointed, Pointer
from shared.adapters.versions.store import CheckpointStore
from shared.errors import CheckpointError, PromotionError, ServiceError, SettingsError, StoreUnavailableError
from shared.messages.streams import PROMOTIONS
from shared.model.config import ModelConfig
from shared.model.network import initial_network
from shared.runtime.ports import free_port
from shared.runtime.redis_server import RedisServer
from tests.s3_server import CREDENTIALS
from tests.shared.adapters.judgements import keep_report, report_document
from tests.shared.adapters.versions.checkpoint_versions import (
    InBucket,
    fill,
    filled,
    folder,
    manifest,
    tensors,
)
from tests.shared.model.networks import num_weights


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CheckpointStore:
    monkeypatch.setenv("MM_HOME", str(tmp_path))
    monkeypatch.setattr(err, "width", 1_000)
    return filled(tmp_path / "checkpoints", 0, 1, 2, 3)


def _run(*arguments: str) -> str:
    result = CliRunner().invoke(app, arguments)
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.stdout


def _fails(*arguments: str) -> tuple[str, Exception]:
    """Run a command that fails; returns its stdout and its error."""
    result = CliRunner().invoke(app, arguments)
    assert isinstance(result.exception, Exception), result.output
    return result.stdout, result.exception


def _report(home: Path, version: int, *gates: str) -> None:
    document = report_document(version, *gates, dataset=manifest(version).dataset, weights=tensors(version))
    keep_report(home / "validations", document)


def test_list_shows_every_version_and_its_pointers(store: CheckpointStore) -> None:
    store.point(Pointer.LATEST, 3)
    store.point(Pointer.BEST, 1)
    folder(store, 1).joinpath("manifest.json").write_text("{")
    rows = json.loads(_run("list", "--json"))
    assert [row["version"] for row in rows] == [0, 1, 2, 3]
    assert [row["pointers"] for row in rows] == ["", "best", "", "latest"]
    assert [row["episode"] for row in rows] == [0, None, 100, 150]
    assert [bool(row["fault"]) for row in rows] == [False, True, False, False]


def test_a_pointer_that_moves_during_list_is_shown_at_one_version(
    store: CheckpointStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.point(Pointer.LATEST, 0)
    read_manifest = CheckpointStore.manifest

    def move_and_read(listed: CheckpointStore, version: int) -> Manifest:
        if listed is not store:  # `store.point` reads the manifest too
            store.point(Pointer.LATEST, version)
        return read_manifest(listed, version)

    monkeypatch.setattr(CheckpointStore, "manifest", move_and_read)
    assert [row["pointers"] for row in json.loads(_run("list", "--json"))] == ["latest", "", "", ""]


def test_list_fits_80_columns(store: CheckpointStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(out, "width", 80)
    for pointer in (Pointer.LATEST, Pointer.BEST):
        store.point(pointer, 1)
    assert store.root is not None
    (store.root / "promoted.json").write_text("{")
    folder(store, 2).joinpath("manifest.json").write_text("{")
    *table, fault = _run("list").splitlines()
    assert max(map(len, table)) <= 80
    assert "version 2 is damaged: " in fault
    words = " ".join(table).replace("│", " ").split()
    assert {"version", "episode", "pointers", "latest,", "best,", "promoted", "(damaged)"} <= set(words)


def test_a_damaged_pointer_is_shown_and_prevents_removal(store: CheckpointStore) -> None:
    store.point(Pointer.LATEST, 3)
    assert store.root is not None
    (store.root / "best.json").write_text("{")
    rows = json.loads(_run("list", "--json"))
    assert [row["pointers"] for row in rows] == [*["best (damaged)"] * 3, "latest, best (damaged)"]
    assert json.loads(_run("show", "3", "--json"))["pointers"] == ["latest", "best (damaged)"]
    with capture_logs() as logs:  # `main` sends logs to stderr
        printed, failure = _fails("gc", "--keep", "1", "--json")
    assert [entry["event"] for entry in logs] == ["garbage_collection_stopped"]
    assert json.loads(printed)["removed"] == []
    assert isinstance(failure, CheckpointError)
    assert "best.json: damaged pointer" in str(failure)
    assert store.versions() == [0, 1, 2, 3]


def test_show_prints_the_manifest(store: CheckpointStore) -> None:
    document = json.loads(_run("show", "2", "--json"))
    assert document["update"] == 600
    assert document["files"][WEIGHTS]["sha256"] == store.manifest(2).files[WEIGHTS].sha256


def test_show_prints_hashes_completely(store: CheckpointStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(out, "width", 60)
    printed = re.sub(r"\W", "", _run("show", "2"))
    assert store.manifest(2).files[WEIGHTS].sha256 in printed
    assert store.manifest(2).dataset in printed


def test_show_counts_weights_and_multiply_adds(
    store: CheckpointStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MM_SEARCH__SIMULATIONS", "7")
    monkeypatch.setenv("MM_ENVIRONMENT__SESSION_BARS", "100")
    costs = json.loads(_run("show", "2", "--json"))["costs"]
    config = ModelConfig(temporal_channels=12)  # as `filled` records it
    networks = [name for name in costs["weights"] if name != "all"]
    assert networks == ["representation", "afterstate", "dynamics", "policy", "value"]
    assert costs["weights"]["all"] == num_weights(initial_network(config, 0))
    assert sum(costs["weights"][name] for name in networks) == costs["weights"]["all"]
    assert (costs["simulations"], costs["session_bars"]) == (7, 100)
    spent = costs["multiply_adds"]
    static = 6 * 16 + 16 * 16
    first, second, wide = 9 * 12 * 3, 9 * 12, 12 * 12 * 3
    assert spent["representation_plain"] == 32 * (first + second + 5 * wide) + static
    # Once per session, each layer also computes the steps before the first bar that later layers need.
    extra = 26 * first + 24 * second + (24 + 20 + 16 + 8 + 0) * wide
    assert spent["representation_in_session"] == round(first + second + 5 * wide + extra / 100) + static
    # The root needs policy, value and its three legal afterstates; then there are six more nodes.
    prediction = spent["policy"] + spent["value"]
    search = prediction + 3 * spent["afterstate"] + 6 * (spent["dynamics"] + spent["value"])
    assert spent["decision"] == spent["representation"] + search
    assert spent["decision_in_session"] == spent["representation_in_session"] + search


def test_show_prints_costs_as_a_table(store: CheckpointStore) -> None:
    printed = _run("show", "2")
    total = num_weights(initial_network(ModelConfig(temporal_channels=12), 0))
    assert f"{total:,}" in printed
    assert "decision with 5 simulations, at most" in printed
    assert "360-bar session" in printed


def test_the_error_names_an_unknown_version(store: CheckpointStore) -> None:
    with pytest.raises(CheckpointError, match=r"no version 9 .* newest there: 0, 1, 2, 3"):
        _run("show", "9")


def test_verify_detects_a_flipped_bit(store: CheckpointStore) -> None:
    assert json.loads(_run("verify", "--json")) == {"ok": True, "faults": {}}
    path = folder(store, 2) / WEIGHTS
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)
    result = CliRunner().invoke(app, ["verify", "--json"])
    assert result.exit_code == 1
    assert list(json.loads(result.stdout)["faults"]) == ["2"]


def test_an_unavailable_store_is_not_reported_as_damaged_versions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(object_store, "RETRIES", 0)
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setenv("MM_HOME", str(tmp_path))
    for command in (["verify", "2"], ["list"], ["show", "2"], ["gc"]):
        assert isinstance(_fails(*command, "--store", "s3://bucket/x")[1], StoreUnavailableError)


def test_a_promotion_needs_its_gate_and_a_rollback_undoes_it(store: CheckpointStore, tmp_path: Path) -> None:
    _report(tmp_path, 1, "paper")
    _report(tmp_path, 2, "paper")
    with pytest.raises(PromotionError, match="version 3 has no validation report"):
        _run("promote", "3")
    with pytest.raises(PromotionError, match="did not pass the live gate"):
        _run("promote", "2", "--stage", "live")
    assert store.pointer(Pointer.PROMOTED) is None
    for version in (1, 2):
        _run("promote", str(version))
    assert "version 1 is promoted again" in _run("rollback")
    pointed = store.pointer(Pointer.PROMOTED)
    assert pointed is not None
    assert pointed.version == 1


def test_reports_are_read_from_the_home_of_the_validator(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For a local run that is the run's folder; otherwise it is MM_HOME, wherever the versions are."""
    home = tmp_path / "home"
    monkeypatch.setenv("MM_HOME", str(home))
    monkeypatch.setenv("MM_CHECKPOINTS", str(tmp_path / "shared" / "checkpoints"))
    filled(tmp_path / "shared" / "checkpoints", 1)
    _report(tmp_path / "shared", 1)
    _report(home, 1, "paper")
    _run("promote", "1")
    filled(home / "runs" / "ou" / "checkpoints", 2)
    _report(home / "runs" / "ou", 2, "paper")
    _run("promote", "2", "--store", str(home / "runs" / "ou" / "checkpoints"))


def test_a_rollback_reports_the_versions_it_skipped(store: CheckpointStore, tmp_path: Path) -> None:
    for version in range(3):
        _report(tmp_path, version, "paper")
        _run("promote", str(version))
    folder(store, 1).joinpath("manifest.json").write_text("{")
    printed = json.loads(_run("rollback", "--json"))
    assert (printed["version"], printed["stage"], printed["rolled_back_from"]) == (0, "paper", 2)
    assert len(printed["passed_over"]) == 1
    assert "v000001/manifest.json: damaged manifest" in printed["passed_over"][0]


def test_a_missing_store_folder_is_an_error_and_is_not_created(
    store: CheckpointStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for command in (["list"], ["rollback"], ["gc"], ["promote", "1"]):
        failure = _fails(*command, "--store", str(tmp_path / "typo"))[1]
        assert isinstance(failure, SettingsError)
        assert failure.user_fault
        assert f"{tmp_path / 'typo'}: there is no such folder" in str(failure)
    assert not (tmp_path / "typo").exists()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MM_CHECKPOINTS", "s3:/bucket/x")
    assert "with two slashes" in str(_fails("rollback")[1])
    assert not (tmp_path / "s3:").exists()


def _announced(url: str) -> list[int]:
    async def read() -> list[int]:
        bus = Bus(url)
        try:
            return [entry.message.version for entry in await bus.recent(PROMOTIONS, count=10)]
        finally:
            await bus.close()

    return asyncio.run(read())


@pytest.mark.usefixtures("bus")
def test_a_promotion_is_announced_to_the_configured_redis(
    store: CheckpointStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, redis_server: RedisServer
) -> None:
    monkeypatch.setenv("MM_REDIS_URL", redis_server.url)
    for version in (1, 2):
        _report(tmp_path, version, "paper")
        assert json.loads(_run("promote", str(version), "--json"))["announced"] is True
    printed = json.loads(_run("rollback", "--json"))
    assert (printed["version"], printed["announced"], printed["not_announced"]) == (1, True, "")
    assert _announced(redis_server.url) == [1, 2, 1]


@pytest.mark.usefixtures("bus")
def test_a_promotion_is_announced_only_to_the_system_that_uses_the_store(
    store: CheckpointStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, redis_server: RedisServer
) -> None:
    """Without --store, a running system's store is preferred to one that single services left in the home."""
    monkeypatch.delenv("MM_REDIS_URL", raising=False)
    _report(tmp_path, 1, "paper")
    printed = json.loads(_run("promote", "1", "--json"))
    assert printed["announced"] is False
    assert "no system is running in" in printed["not_announced"]
    run_folder = tmp_path / "runs" / "ou"
    filled(run_folder / "checkpoints", 7)
    _report(run_folder, 7, "paper")
    with exclusive(tmp_path):
        Run(str(run_folder), "", "", redis_server.url, os.getpid(), "", {}).save(tmp_path)
        assert [row["version"] for row in json.loads(_run("list", "--json"))] == [7]
        assert json.loads(_run("promote", "7", "--json"))["announced"] is True
        other = CliRunner().invoke(app, ["promote", "1", "--store", str(tmp_path / "checkpoints")])
    assert other.exit_code == 0
    assert other.stdout == "version 1 is promoted to paper\n"
    assert f"not announced: the system known here keeps its versions in {run_folder}" in other.stderr
    assert _announced(redis_server.url) == [7]
    assert [row["version"] for row in json.loads(_run("list", "--json"))] == [0, 1, 2, 3]


def test_a_promotion_without_redis_fails_in_time_and_is_kept(
    store: CheckpointStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MM_REDIS_URL", f"redis://:secret@127.0.0.1:{free_port()}/0")
    monkeypatch.setattr(redis_query, "TIMEOUT_SECONDS", 0.2)
    _report(tmp_path, 1, "paper")
    printed, failure = _fails("promote", "1")
    assert printed == "version 1 is promoted to paper\n"
    assert isinstance(failure, ServiceError)
    assert "done but not announced" in str(failure)
    assert "secret" not in str(failure)
    assert store.pointer(Pointer.PROMOTED) == Pointed(1, "paper", ())


def test_gc_keeps_the_newest_version_and_those_with_a_pointer(store: CheckpointStore) -> None:
    store.point(Pointer.BEST, 0)
    assert json.loads(_run("gc", "--keep", "1", "--json")) == {"removed": [1, 2], "obstacle": ""}
    assert store.versions() == [0, 3]


def test_every_command_works_on_a_bucket(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MM_CHECKPOINTS names the bucket; validation reports are in the local home."""
    url = InBucket(bucket).url
    monkeypatch.setenv("MM_HOME", str(tmp_path))
    monkeypatch.setenv("MM_CHECKPOINTS", url)
    versions = fill(CheckpointStore(url), 0, 1, 2, 3)
    versions.point(Pointer.LATEST, 3)
    rows = json.loads(_run("list", "--json"))
    assert [(row["version"], row["pointers"], row["fault"]) for row in rows] == [
        (0, "", ""),
        (1, "", ""),
        (2, "", ""),
        (3, "latest", ""),
    ]
    monkeypatch.setenv("COLUMNS", "200")
    assert f"versions in {url}" in _run("list")
    assert json.loads(_run("show", "2", "--json"))["update"] == 600
    assert json.loads(_run("verify", "--json"))["ok"] is True
    for version in (1, 2):
        _report(tmp_path, version, "paper")
        _run("promote", str(version))
    assert "version 1 is promoted again" in _run("rollback")
    assert json.loads(_run("gc", "--keep", "1", "--json")) == {"removed": [0, 2], "obstacle": ""}
    monkeypatch.delenv("MM_CHECKPOINTS")
    assert [row["version"] for row in json.loads(_run("list", "--json", "--store", url))] == [1, 3]


def test_a_url_with_an_unknown_scheme_is_refused() -> None:
    with pytest.raises(
        SettingsError, match="expected a folder, or a URL such as s3://bucket/prefix"
    ) as refused:
        _run("list", "--store", "ftp://host/x")
    assert refused.value.user_fault
