"""`checkpoints` on a store of real versions, as a user types it."""

import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cli.checkpoints import app
from cli.output import out
from shared.adapters.checkpoints import WEIGHTS, CheckpointStore, Pointer
from shared.adapters.promotions import report_path
from shared.errors import CheckpointError, PromotionError, SettingsError
from shared.model.config import ModelConfig
from shared.model.network import initial_network
from tests.shared.adapters.checkpoint_versions import InBucket, fill, filled, folder


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CheckpointStore:
    monkeypatch.setenv("MM_HOME", str(tmp_path))
    return filled(tmp_path / "checkpoints", 0, 1, 2, 3)


def _run(*arguments: str) -> str:
    result = CliRunner().invoke(app, arguments)
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.stdout


def _report(store: CheckpointStore, version: int, *gates: str) -> None:
    assert store.root is not None
    path = report_path(store.root.parent / "validations", version)
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"schema_version": 1, "version": version, "passed_gates": gates}))


def test_list_tells_every_version_and_its_pointers(store: CheckpointStore) -> None:
    store.point(Pointer.LATEST, 3)
    folder(store, 1).joinpath("manifest.json").write_text("{")
    rows = json.loads(_run("list", "--json"))
    assert [row["version"] for row in rows] == [0, 1, 2, 3]
    assert [row["pointers"] for row in rows] == ["", "", "", "latest"]
    assert [row["episode"] for row in rows] == [0, None, 100, 150]
    assert [bool(row["fault"]) for row in rows] == [False, True, False, False]


def test_show_prints_the_manifest(store: CheckpointStore) -> None:
    document = json.loads(_run("show", "2", "--json"))
    assert document["update"] == 600
    assert document["files"][WEIGHTS]["sha256"] == store.manifest(2).files[WEIGHTS].sha256


def test_show_cuts_no_hash_off(store: CheckpointStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(out, "width", 60)
    told = re.sub(r"\W", "", _run("show", "2"))
    assert store.manifest(2).files[WEIGHTS].sha256 in told
    assert store.manifest(2).dataset in told


def test_show_tells_what_the_networks_cost(store: CheckpointStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MM_SEARCH__SIMULATIONS", "7")
    monkeypatch.setenv("MM_ENVIRONMENT__SESSION_BARS", "100")
    costs = json.loads(_run("show", "2", "--json"))["costs"]
    config = ModelConfig(temporal_channels=12)  # as `filled` records it
    networks = [name for name in costs["weights"] if name != "all"]
    assert networks == ["representation", "afterstate", "dynamics", "policy", "value"]
    assert costs["weights"]["all"] == initial_network(config, 0).num_weights
    assert sum(costs["weights"][name] for name in networks) == costs["weights"]["all"]
    assert (costs["simulations"], costs["session_bars"]) == (7, 100)
    spent = costs["multiply_adds"]
    static = 6 * 16 + 16 * 16
    first, second, wide = 9 * 12 * 3, 9 * 12, 12 * 12 * 3
    assert spent["representation_plain"] == 32 * (first + second + 5 * wide) + static
    # Once a session, each layer makes the steps before the first bar that later layers reach back to.
    extra = 26 * first + 24 * second + (24 + 20 + 16 + 8 + 0) * wide
    assert spent["representation_in_session"] == round(first + second + 5 * wide + extra / 100) + static
    # Policy and value of the root, its three legal afterstates, six nodes.
    prediction = spent["policy"] + spent["value"]
    search = prediction + 3 * spent["afterstate"] + 6 * (spent["dynamics"] + spent["value"])
    assert spent["decision"] == spent["representation"] + search
    assert spent["decision_in_session"] == spent["representation_in_session"] + search


def test_show_prints_costs_as_a_table(store: CheckpointStore) -> None:
    told = _run("show", "2")
    total = initial_network(ModelConfig(temporal_channels=12), 0).num_weights
    assert f"{total:,}" in told
    assert "decision, 5 simulations, at most" in told
    assert "a bar of 360 in one pass" in told


def test_an_unknown_version_is_named(store: CheckpointStore) -> None:
    with pytest.raises(CheckpointError, match=r"no version 9 .* newest there: 0, 1, 2, 3"):
        _run("show", "9")


def test_verify_finds_a_flipped_bit(store: CheckpointStore) -> None:
    assert json.loads(_run("verify", "--json")) == {"ok": True, "faults": {}}
    path = folder(store, 2) / WEIGHTS
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)
    result = CliRunner().invoke(app, ["verify", "--json"])
    assert result.exit_code == 1
    assert list(json.loads(result.stdout)["faults"]) == ["2"]


def test_only_what_passed_its_gate_is_promoted_and_a_rollback_undoes_it(store: CheckpointStore) -> None:
    _report(store, 1, "paper")
    _report(store, 2, "paper")
    with pytest.raises(PromotionError, match="version 3 has no validation report"):
        _run("promote", "3")
    with pytest.raises(PromotionError, match="did not pass the live gate"):
        _run("promote", "2", "--stage", "live")
    assert store.pointer(Pointer.PROMOTED) is None
    for version in (1, 2):
        _run("promote", str(version))
    assert "version 1 decides again" in _run("rollback")
    pointed = store.pointer(Pointer.PROMOTED)
    assert pointed is not None
    assert pointed.version == 1


def test_gc_keeps_the_newest_and_what_a_pointer_names(store: CheckpointStore) -> None:
    store.point(Pointer.BEST, 0)
    assert json.loads(_run("gc", "--keep", "1", "--json")) == {"removed": [1, 2]}
    assert store.versions() == [0, 3]


def test_a_bucket_is_named_like_a_folder(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every command, on a store that the environment names, with the reports in the local state."""
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
        path = report_path(tmp_path / "validations", version)
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps({"schema_version": 1, "version": version, "passed_gates": ["paper"]}))
        _run("promote", str(version))
    assert "version 1 decides again" in _run("rollback")
    assert json.loads(_run("gc", "--keep", "1", "--json")) == {"removed": [0, 2]}
    monkeypatch.delenv("MM_CHECKPOINTS")
    assert [row["version"] for row in json.loads(_run("list", "--json", "--store", url))] == [1, 3]


def test_a_url_of_no_store_is_refused() -> None:
    with pytest.raises(SettingsError, match="expected a folder, or a URL such as s3://bucket/prefix") as told:
        _run("list", "--store", "ftp://host/x")
    assert told.value.user_fault
