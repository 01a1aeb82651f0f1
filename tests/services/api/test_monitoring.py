"""The gateway serves the metrics that the Prometheus rules and the Grafana dashboard use."""

import json
import re
import shutil
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import yaml  # type: ignore[import-untyped]

from services.api.config import AlertConfig, GatewayConfig
from shared.adapters.streams.bus import Bus
from shared.messages.schemas import DeadLettered
from shared.messages.streams import DEAD, DECISIONS
from shared.runtime.redis_server import RedisServer
from tests.services.api.conftest import System, running_system
from tests.services.api.test_alerts import CASES, CONFIG
from tests.services.api.test_status import beat, decision

DEPLOY = Path(__file__).resolve().parents[3] / "deploy"
METRIC = re.compile(r"\bmm_[a-z_]+\b")
DOCUMENT = DEPLOY.parent / "docs" / "alerts.md"
RULES = DEPLOY / "prometheus" / "alerts.yml"

#: A metric with its label selector, and one `label="value"` of the selector.
SELECTOR = re.compile(r"\b(mm_[a-z_]+)(?:\{([^}]*)\})?")
EQUAL = re.compile(r'(\w+)="([^"]*)"')


def rules() -> list[dict[str, Any]]:
    groups = yaml.safe_load(RULES.read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def panels() -> list[dict[str, Any]]:
    dashboard = json.loads((DEPLOY / "grafana" / "dashboards" / "micro-muzero.json").read_text())
    return list(dashboard["panels"])


@pytest_asyncio.fixture
async def system(redis_server: RedisServer, bus: Bus, tmp_path: Path) -> AsyncIterator[System]:
    """A gateway that immediately reports a service as missing if it was never seen."""
    alerts = AlertConfig(start_seconds=0.0, missing_seconds=0.0)
    config = GatewayConfig(redis_timeout_seconds=5.0)
    async with running_system(redis_server.url, bus, tmp_path, config, alerts) as running:
        yield running


async def test_every_metric_of_rules_and_panels_is_served(system: System, bus: Bus) -> None:
    await bus.beat(
        beat("trainer", "t1", "degraded", updates=3, samples_per_insert=1.0, samples_per_insert_target=1.0)
    )
    await system.publish(
        1, loss=1.0, win_rate=0.1, trade_ratio=0.2, expectancy_pips=1.0, samples_per_insert=4.0
    )
    await system.report(1, "paper")
    await bus.append(DECISIONS, decision())
    await bus.append(DEAD, DeadLettered(stream="s", entry_id="1-0", reason="an alert is active"))
    await system.until(lambda: system.gateway.history.last_decision is not None)
    await system.until(lambda: system.gateway.history.last_validation is not None)
    await system.client.get("/status")
    text = (await system.client.get("/metrics")).text
    served = set(METRIC.findall(text))
    used = {name for rule in rules() for name in METRIC.findall(rule["expr"])}
    used |= {name for panel in panels() for t in panel["targets"] for name in METRIC.findall(t["expr"])}
    assert len(used) > 10
    assert used <= served, used - served
    lines = text.splitlines()
    for rule in rules():
        for metric, labels in SELECTOR.findall(rule["expr"]):
            wanted = [f'{label}="{value}"' for label, value in EQUAL.findall(labels)]
            assert any(line.startswith(metric) and all(w in line for w in wanted) for line in lines), rule


def test_every_condition_of_the_gateway_has_exactly_one_rule() -> None:
    """Either a rule of its own name, or the rule for all other conditions."""
    by_name = {rule["alert"]: rule for rule in rules()}
    (excepted,) = re.findall(r'name!~"([^"]*)"', by_name["ConditionActive"]["expr"])
    own = {name for _, alerts in CASES for name in alerts if name.title().replace("_", "") in by_name}
    assert set(excepted.split("|")) == own
    assert {"redis_memory", "redis_disk", "backlog", "pending", "entries_removed", "dead_letters"} <= own


def test_every_condition_is_documented() -> None:
    documented = re.findall(
        r"`(\w+)`", "".join(re.findall(r"^\|([^|]*)\|", DOCUMENT.read_text(), re.MULTILINE))
    )
    assert set(documented) == {name for _, alerts in CASES for name in alerts}


def test_the_rules_have_the_thresholds_of_the_settings() -> None:
    limits = {
        "RedisMemory": CONFIG.redis_memory_share,
        "DiskLow": 1e6 * CONFIG.low_free_mb,
        "Backlog": CONFIG.backlog_trajectories,
        "Pending": CONFIG.pending_seconds,
        "TrainingDiverging": CONFIG.expectancy_floor_pips,
        "PolicyCollapsed": CONFIG.win_rate_floor,
        "NoCheckpoint": 60.0 * CONFIG.checkpoint_silence_minutes,
    }
    of_rules = {rule["alert"]: float(rule["expr"].split()[-1]) for rule in rules() if rule["alert"] in limits}
    assert of_rules == limits


def test_the_rules_fire_exactly_in_the_cases_given() -> None:
    """Prometheus' own tool evaluates them on the cases in tests/services/api/alerts.yml."""
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool, of Prometheus, is not on PATH")
    cases = Path(__file__).parent / "alerts.yml"
    for command in (["check", "rules", str(RULES)], ["test", "rules", str(cases)]):
        done = subprocess.run([promtool, *command], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


def test_every_rule_has_a_summary_and_a_severity() -> None:
    for rule in rules():
        assert rule["labels"]["severity"] in ("warning", "critical"), rule["alert"]
        assert rule["annotations"]["summary"], rule["alert"]


def test_panels_do_not_overlap_and_stay_on_the_grid() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in panels():
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert max(x for x, _ in cells) < 24, panel["title"]
        assert not cells & taken, panel["title"]
        taken |= cells


def test_the_configuration_refers_to_existing_files() -> None:
    prometheus = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())
    assert all((DEPLOY / "prometheus" / name).is_file() for name in prometheus["rule_files"])
    folder = DEPLOY / "grafana" / "provisioning"
    source = yaml.safe_load((folder / "datasources" / "prometheus.yml").read_text())["datasources"][0]
    assert {panel["datasource"]["uid"] for panel in panels()} == {source["uid"]}
