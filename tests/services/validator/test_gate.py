import math
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


def above(bound: float) -> float:
    return math.nextafter(bound, math.inf)


def below(bound: float) -> float:
    return math.nextafter(bound, -math.inf)


def rivals(name: str, excess_pips_per_day: float, p_value: float | None) -> tuple[Rival, ...]:
    """RIVALS with other numbers for one rule."""
    changed = Rival(name, excess_pips_per_day, p_value)
    return tuple(changed if rival.name == name else rival for rival in RIVALS)


def test_a_good_version_passes_both_gates() -> None:
    verdict = judge(GOOD, Incumbent(3, 2.0), CONFIG)
    assert verdict.passed == ("paper", "live")
    assert verdict.reasons == ()


@pytest.mark.parametrize(
    ("threshold", "passing", "failing"),
    [
        ("paper_min_trades", {"num_trades": 30}, {"num_trades": 29}),
        ("paper_min_days", {"num_days": 20}, {"num_days": 19}),
        ("paper_max_p_value", {"adjusted_p_value": 0.1}, {"adjusted_p_value": above(0.1)}),
        (
            "paper_max_rule_p_value",
            {"rivals": rivals("flat", 1.0, 0.1)},
            {"rivals": rivals("flat", 1.0, above(0.1))},
        ),
        ("the incumbent's SQN", {"sqn100": above(2.9)}, {"sqn100": 2.9}),
        ("live_min_trades", {"num_trades": 100}, {"num_trades": 99}),
        ("live_min_days", {"num_days": 250}, {"num_days": 249}),
        ("live_min_years", {"data_years": 3.0}, {"data_years": below(3.0)}),
        ("live_max_p_value", {"adjusted_p_value": 0.01}, {"adjusted_p_value": above(0.01)}),
        ("live_min_sqn", {"sqn100": above(2.5)}, {"sqn100": 2.5}),
        ("CAR25 above 0", {"car25_percent": above(0.0)}, {"car25_percent": 0.0}),
        (
            "live_min_deflated_sharpe",
            {"deflated_sharpe": 0.95},
            {"deflated_sharpe": below(0.95)},
        ),
        ("live_max_drawdown", {"max_drawdown": 0.2}, {"max_drawdown": above(0.2)}),
    ],
)
def test_each_threshold_passes_at_its_bound_and_fails_just_beyond(
    threshold: str, passing: dict[str, object], failing: dict[str, object]
) -> None:
    """The passing and the failing value differ by 1, or by the smallest step of a float."""
    gate = "live" if threshold.startswith(("live", "CAR25")) else "paper"
    incumbent = Incumbent(3, 2.9) if threshold == "the incumbent's SQN" else None
    assert gate in judge(replace(GOOD, **passing), incumbent, CONFIG).passed  # type: ignore[arg-type]
    verdict = judge(replace(GOOD, **failing), incumbent, CONFIG)  # type: ignore[arg-type]
    assert gate not in verdict.passed
    assert len([reason for reason in verdict.reasons if reason.startswith(f"{gate}: ")]) == 1


def test_the_thresholds_tried_above_are_those_of_the_default_gate() -> None:
    assert (
        GateConfig(
            paper_min_trades=30,
            paper_min_days=20,
            paper_max_p_value=0.1,
            paper_max_rule_p_value=0.1,
            live_min_trades=100,
            live_min_days=250,
            live_min_years=3.0,
            live_max_p_value=0.01,
            live_min_sqn=2.5,
            live_min_deflated_sharpe=0.95,
            live_max_drawdown=0.2,
        )
        == GateConfig()
    )


def test_the_first_version_passes_no_gate_unless_it_proves_an_edge() -> None:
    """The first version once passed the paper gate without a single trade."""
    idle = replace(
        GOOD,
        num_trades=0,
        num_tried=1,
        sqn100=None,
        adjusted_p_value=None,
        expectancy_high_pips=None,
        rivals=(),
    )
    verdict = judge(idle, None, CONFIG)
    assert verdict.passed == ()
    assert "paper: 0 trades, at least 30 required" in verdict.reasons
    assert (
        "paper: the profit may be luck: p-value not defined after 1 version tried, at most 0.1 allowed"
        in verdict.reasons
    )


@pytest.mark.parametrize(
    ("evidence", "reason"),
    [
        (replace(GOOD, num_trades=29), "29 trades, at least 30 required"),
        (replace(GOOD, num_days=5), "5 trading days, at least 20 required: use a longer data set"),
        (
            replace(GOOD, adjusted_p_value=0.11),
            "the profit may be luck: p-value 0.11 after 12 versions tried, at most 0.1 allowed",
        ),
        (
            replace(GOOD, adjusted_p_value=1.0, expectancy_high_pips=-1.2),
            "it loses money: the expectancy is at most -1.20 pips a trade, a profit is required",
        ),
        (
            replace(GOOD, rivals=rivals("always long", -4.0, 0.7)),
            "no proof that it beats the rule always long: -4.0 pips a day, p-value 0.70, at most 0.1 allowed",
        ),
        (
            replace(GOOD, rivals=rivals("flat", -4.0, None)),
            "no proof that it beats the rule flat: -4.0 pips a day, p-value not defined, at most 0.1 allowed",
        ),
    ],
)
def test_a_version_without_a_proven_edge_passes_no_gate(evidence: Evidence, reason: str) -> None:
    verdict = judge(evidence, None, CONFIG)
    assert verdict.passed == ()
    assert f"paper: {reason}" in verdict.reasons
    assert "live: no proof of an edge: see the reasons of the paper gate" in verdict.reasons


def test_a_losing_version_never_passes_whatever_the_incumbent() -> None:
    """A version with 1,457 trades and an SQN of -9.8 once beat an incumbent whose SQN was not defined."""
    losing = replace(
        GOOD,
        num_trades=1457,
        sqn100=-9.8,
        adjusted_p_value=1.0,
        expectancy_high_pips=-3.0,
        rivals=rivals("flat", -4.0, 1.0),
    )
    for incumbent in (None, Incumbent(3, None), Incumbent(3, -20.0)):
        assert judge(losing, incumbent, CONFIG).passed == ()


def test_a_version_that_does_not_beat_the_best_fails_the_paper_gate_alone() -> None:
    verdict = judge(replace(GOOD, sqn100=2.9), Incumbent(3, 2.9), CONFIG)
    assert verdict.passed == ("live",)
    assert verdict.reasons == ("paper: SQN 2.90 does not exceed the 2.90 of version 3",)
    idle = judge(replace(GOOD, num_trades=0, sqn100=None), Incumbent(3, 2.9), CONFIG)
    assert "paper: no trade, so it does not beat version 3 with SQN 2.90" in idle.reasons


def test_an_undefined_sqn_is_not_compared_with_the_best() -> None:
    """The SQN of a version without a losing trade is undefined."""
    assert "paper" in judge(replace(GOOD, sqn100=None), Incumbent(3, 2.0), CONFIG).passed
    assert "paper" in judge(GOOD, Incumbent(3, None), CONFIG).passed


@pytest.mark.parametrize(
    ("evidence", "reason"),
    [
        (replace(GOOD, num_trades=99), "99 trades, at least 100 required"),
        (replace(GOOD, num_days=140), "140 trading days, at least 250 required: use a longer data set"),
        (
            replace(GOOD, adjusted_p_value=0.02),
            "the profit may be luck: p-value 0.02 after 12 versions tried, at most 0.01 allowed",
        ),
        (
            replace(GOOD, data_years=2.99),
            "the data set spans 2.99 years, at least 3 required: use a longer data set",
        ),
        (replace(GOOD, sqn100=2.5), "SQN 2.50, more than 2.5 required"),
        (replace(GOOD, sqn100=None), "SQN not defined, more than 2.5 required"),
        (replace(GOOD, car25_percent=0.0), "CAR25 in percent: 0, more than 0 required"),
        (replace(GOOD, car25_percent=None), "CAR25 in percent: not defined, more than 0 required"),
        (
            replace(GOOD, deflated_sharpe=0.62, min_track_record_days=712),
            "deflated Sharpe ratio 0.62, at least 0.95 required; "
            "at the present ratio 412 more days are enough",
        ),
        (
            replace(GOOD, deflated_sharpe=None, min_track_record_days=None),
            "deflated Sharpe ratio not defined, at least 0.95 required",
        ),
        (replace(GOOD, max_drawdown=0.21), "maximum drawdown 21.0 %, at most 20 % allowed"),
        (replace(GOOD, max_drawdown=float("nan")), "maximum drawdown nan %, at most 20 % allowed"),
    ],
)
def test_the_live_gate_requires_every_condition(evidence: Evidence, reason: str) -> None:
    verdict = judge(evidence, None, CONFIG)
    assert verdict.passed == ("paper",)
    assert verdict.reasons == (f"live: {reason}",)


def test_three_trades_never_pass() -> None:
    """Three trades once passed both gates, with a deflated Sharpe ratio of 0.96."""
    few = replace(GOOD, num_trades=3, num_days=900, sqn100=2.6, deflated_sharpe=0.96)
    assert judge(few, None, CONFIG).passed == ()


def test_every_threshold_is_a_setting() -> None:
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
    idle = replace(GOOD, num_trades=0, num_days=1, adjusted_p_value=None, rivals=rivals("flat", -4.0, None))
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
def test_a_setting_out_of_range_is_refused(field: str, value: float) -> None:
    with pytest.raises(SettingsError, match=field):
        GateConfig(**{field: value})  # type: ignore[arg-type]
