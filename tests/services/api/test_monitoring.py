"""Prometheus rules and the Grafana dashboard ask for metrics that the gateway really serves."""

import json
import re
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

from shared.adapters.bus import Bus
from shared.messages.streams import DECISIONS
from tests.services.api.conftest import System
from tests.services.api.test_status import beat, decision

DEPLOY = Path(__file__).resolve().parents[3] / "deploy"
METRIC = re.compile(r"\bmm_[a-z_]+\b")


def rules() -> list[dict[str, Any]]:
    groups = yaml.safe_load((DEPLOY / "prometheus" / "alerts.yml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def panels() -> list[dict[str, Any]]:
    dashboard = json.loads((DEPLOY / "grafana" / "dashboards" / "micro-muzero.json").read_text())
    return list(dashboard["panels"])


async def test_every_metric_that_is_asked_for_is_served(system: System, bus: Bus) -> None:
    await bus.beat(beat("trainer", "t1", "degraded", updates=3))
    await system.publish(
        1, loss=1.0, win_rate=0.1, trade_ratio=0.2, expectancy_pips=1.0, samples_per_insert=4.0
    )
    await system.report(1, "paper")
    await bus.append(DECISIONS, decision())
    await system.until(lambda: system.gateway.history.last_decision is not None)
    await system.until(lambda: system.gateway.history.last_validation is not None)
    await system.client.get("/status")
    served = set(METRIC.findall((await system.client.get("/metrics")).text))
    asked = {name for rule in rules() for name in METRIC.findall(rule["expr"])}
    asked |= {name for panel in panels() for t in panel["targets"] for name in METRIC.findall(t["expr"])}
    assert len(asked) > 10
    assert asked <= served, asked - served


def test_every_rule_says_what_is_wrong_and_how_bad() -> None:
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


def test_the_configuration_loads_what_lies_beside_it() -> None:
    prometheus = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())
    assert all((DEPLOY / "prometheus" / name).is_file() for name in prometheus["rule_files"])
    folder = DEPLOY / "grafana" / "provisioning"
    source = yaml.safe_load((folder / "datasources" / "prometheus.yml").read_text())["datasources"][0]
    assert {panel["datasource"]["uid"] for panel in panels()} == {source["uid"]}
