from dataclasses import replace

import pytest

from services.validator.gate import Evidence, GateConfig, Incumbent, Rival, judge
from shared.errors import SettingsError

RIVALS = tuple(Rival(name, 12.0, 0.01) for name in ("flat", "random", "always long", "moving-average cross"))

GOOD = Evidence(
    num_trades=400,
    num_days=300,
    num_tried=12,
    data_years=3.5,
    expectancy_high_pips=3.0,
    adjusted_p_value=0.004,
    rivals=RIVALS,
    sqn100=3.0,
    car25_percent=4.0,
    deflated_sharpe=0.97,
    min_track_record_days=280,
    max_drawdown=0.12,
)
CONFIG = GateConfig()


def worse_than(name: str, p_value: float | None) -> tuple[Rival, ...]:
    return tuple(Rival(name, -4.0, p_value) if rival.name == name else rival for rival in RIVALS)


def test_a_good_version_passes_both() -> None:
    verdict = judge(GOOD, Incumbent(3, 2.0), CONFIG)
    assert verdict.passed == ("paper", "live")
    assert verdict.reasons == ()


def test_the_first_version_passes_nothing_unless_it_proves_an_edge() -> None:
    """It once passed the paper gate whatever it did, with no trade at all."""
    nothing = replace(
        GOOD,
        num_trades=0,
        num_tried=1,
        sqn100=None,
        adjusted_p_value=None,
        expectancy_high_pips=None,
        rivals=(),
    )
    verdict = judge(nothing, None, CONFIG)
    assert verdict.passed == ()
    assert "paper: 0 trades, needs 30" in verdict.reasons
    assert "paper: may be luck: p-value not defined after 1 version tried, limit 0.1" in verdict.reasons


@pytest.mark.parametrize(
    ("evidence", "reason"),
    [
        (replace(GOOD, num_trades=29), "29 trades, needs 30"),
        (replace(GOOD, num_days=5), "5 days, needs 20"),
        (
            replace(GOOD, adjusted_p_value=0.11),
            "may be luck: p-value 0.11 after 12 versions tried, limit 0.1",
        ),
        (
            replace(GOOD, adjusted_p_value=1.0, expectancy_high_pips=-1.2),
            "loses: the expectancy is at most -1.20 pips a trade",
        ),
        (
            replace(GOOD, rivals=worse_than("always long", 0.7)),
            "not shown to be better than always long: -4.0 pips a day, p-value 0.70, limit 0.1",
        ),
        (
            replace(GOOD, rivals=worse_than("flat", None)),
            "not shown to be better than flat: -4.0 pips a day, p-value not defined, limit 0.1",
        ),
    ],
)
def test_what_proves_no_edge_passes_no_gate(evidence: Evidence, reason: str) -> None:
    verdict = judge(evidence, None, CONFIG)
    assert verdict.passed == ()
    assert f"paper: {reason}" in verdict.reasons
    assert "live: an edge is not proven on paper's terms" in verdict.reasons


def test_a_losing_version_never_passes_whatever_it_is_compared_with() -> None:
    """One with 1,457 trades and an SQN of -9.8 once beat an incumbent whose SQN was not defined."""
    losing = replace(
        GOOD,
        num_trades=1457,
        sqn100=-9.8,
        adjusted_p_value=1.0,
        expectancy_high_pips=-3.0,
        rivals=worse_than("flat", 1.0),
    )
    for incumbent in (None, Incumbent(3, None), Incumbent(3, -20.0)):
        assert judge(losing, incumbent, CONFIG).passed == ()


def test_a_version_that_is_not_the_best_stays_off_paper() -> None:
    verdict = judge(replace(GOOD, sqn100=2.9), Incumbent(3, 2.9), CONFIG)
    assert verdict.passed == ("live",)
    assert verdict.reasons == ("paper: SQN 2.90, version 3 has 2.90",)
    idle = replace(GOOD, num_trades=0, sqn100=None)
    assert "paper: no trade, version 3 has SQN 2.90" in judge(idle, Incumbent(3, 2.9), CONFIG).reasons


def test_a_version_without_a_losing_trade_is_not_stopped_by_its_undefined_sqn() -> None:
    assert "paper" in judge(replace(GOOD, sqn100=None), Incumbent(3, 2.0), CONFIG).passed
    assert "paper" in judge(GOOD, Incumbent(3, None), CONFIG).passed


@pytest.mark.parametrize(
    ("evidence", "reason"),
    [
        (replace(GOOD, num_trades=99), "99 trades, needs 100"),
        (replace(GOOD, num_days=140), "140 days, needs 250"),
        (
            replace(GOOD, adjusted_p_value=0.02),
            "may be luck: p-value 0.02 after 12 versions tried, limit 0.01",
        ),
        (replace(GOOD, data_years=2.99), "2.99 years of data, needs 3"),
        (replace(GOOD, sqn100=2.5), "SQN 2.50, needs more than 2.5"),
        (replace(GOOD, sqn100=None), "SQN not defined, needs more than 2.5"),
        (replace(GOOD, car25_percent=0.0), "CAR25 in percent 0, needs more than 0"),
        (replace(GOOD, car25_percent=None), "CAR25 in percent not defined, needs more than 0"),
        (
            replace(GOOD, deflated_sharpe=0.62, min_track_record_days=712),
            "deflated Sharpe 0.62, needs 0.95; at this ratio 412 more days",
        ),
        (
            replace(GOOD, deflated_sharpe=None, min_track_record_days=None),
            "deflated Sharpe not defined, needs 0.95",
        ),
        (replace(GOOD, max_drawdown=0.21), "drawdown 21.0 %, limit 20 %"),
        (replace(GOOD, max_drawdown=float("nan")), "drawdown nan %, limit 20 %"),
    ],
)
def test_live_needs_every_condition(evidence: Evidence, reason: str) -> None:
    verdict = judge(evidence, None, CONFIG)
    assert verdict.passed == ("paper",)
    assert verdict.reasons == (f"live: {reason}",)


def test_three_trades_never_pass() -> None:
    """They once passed both gates, with a deflated Sharpe ratio of 0.96."""
    few = replace(GOOD, num_trades=3, num_days=900, sqn100=2.6, deflated_sharpe=0.96)
    assert judge(few, None, CONFIG).passed == ()


def test_thresholds_are_settings() -> None:
    loose = GateConfig(
        live_min_trades=10,
        live_min_days=20,
        live_max_p_value=0.5,
        paper_max_p_value=0.5,
        live_min_years=0.0,
        live_min_sqn=1.0,
        live_min_deflated_sharpe=0.5,
        live_max_drawdown=0.5,
    )
    weak = replace(
        GOOD,
        num_trades=30,
        num_days=20,
        adjusted_p_value=0.4,
        data_years=0.1,
        sqn100=1.1,
        deflated_sharpe=0.5,
        max_drawdown=0.5,
    )
    assert judge(weak, None, loose).passed == ("paper", "live")
    nothing = GateConfig(
        paper_min_trades=0, paper_min_days=0, paper_max_p_value=1.0, paper_max_rule_p_value=1.0
    )
    idle = replace(GOOD, num_trades=0, num_days=1, adjusted_p_value=None, rivals=worse_than("flat", None))
    assert judge(idle, None, nothing).passed == ("paper",)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("paper_min_trades", -1),
        ("paper_min_days", -1),
        ("paper_max_p_value", 0.0),
        ("paper_max_rule_p_value", 1.1),
        ("live_min_trades", -1),
        ("live_min_days", -1),
        ("live_max_p_value", 0.0),
        ("live_min_years", -1.0),
        ("live_min_years", float("inf")),
        ("live_min_sqn", float("inf")),
        ("live_min_deflated_sharpe", 1.1),
        ("live_max_drawdown", 0.0),
    ],
)
def test_settings_that_cannot_be_are_refused(field: str, value: float) -> None:
    with pytest.raises(SettingsError, match=field):
        GateConfig(**{field: value})  # type: ignore[arg-type]
