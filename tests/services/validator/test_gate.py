from dataclasses import replace

import pytest

from services.validator.gate import Evidence, GateConfig, Incumbent, judge
from shared.errors import SettingsError

GOOD = Evidence(
    num_trades=400, sqn100=3.0, data_years=3.5, car25_percent=4.0, deflated_sharpe=0.97, max_drawdown=0.12
)
CONFIG = GateConfig()


def test_a_good_version_passes_both() -> None:
    verdict = judge(GOOD, Incumbent(3, 2.0), CONFIG)
    assert verdict.passed == ("paper", "live")
    assert verdict.reasons == ()


def test_the_first_version_has_nothing_to_beat() -> None:
    verdict = judge(replace(GOOD, num_trades=0, sqn100=None), None, CONFIG)
    assert verdict.passed == ("paper",)


@pytest.mark.parametrize(
    ("evidence", "incumbent", "reason"),
    [
        (replace(GOOD, sqn100=2.0), Incumbent(3, 2.0), "paper: SQN 2.00, version 3 has 2.00"),
        (replace(GOOD, sqn100=-1.0), Incumbent(3, 2.0), "paper: SQN -1.00, version 3 has 2.00"),
        (replace(GOOD, num_trades=29), Incumbent(3, None), "paper: 29 trades, needs 30"),
        (replace(GOOD, sqn100=None), Incumbent(3, None), "paper: SQN is not defined"),
    ],
)
def test_what_does_not_beat_the_best_stays_off_paper(
    evidence: Evidence, incumbent: Incumbent, reason: str
) -> None:
    verdict = judge(evidence, incumbent, CONFIG)
    assert "paper" not in verdict.passed
    assert reason in verdict.reasons


def test_any_sqn_beats_one_that_is_not_defined() -> None:
    assert "paper" in judge(replace(GOOD, sqn100=-2.0), Incumbent(3, None), CONFIG).passed


@pytest.mark.parametrize(
    ("evidence", "reason"),
    [
        (replace(GOOD, data_years=2.99), "live: 2.99 years of data, needs 3"),
        (replace(GOOD, sqn100=2.5), "live: SQN 2.50, needs more than 2.5"),
        (replace(GOOD, sqn100=None), "live: SQN not defined, needs more than 2.5"),
        (replace(GOOD, car25_percent=0.0), "live: CAR25 in percent 0.00, needs more than 0"),
        (replace(GOOD, car25_percent=None), "live: CAR25 in percent not defined, needs more than 0"),
        (replace(GOOD, deflated_sharpe=0.94), "live: deflated Sharpe 0.94, needs 0.95"),
        (replace(GOOD, deflated_sharpe=None), "live: deflated Sharpe not defined, needs 0.95"),
        (replace(GOOD, max_drawdown=0.21), "live: drawdown 21.0 %, limit 20 %"),
        (replace(GOOD, max_drawdown=float("nan")), "live: drawdown nan %, limit 20 %"),
    ],
)
def test_live_needs_every_condition(evidence: Evidence, reason: str) -> None:
    verdict = judge(evidence, None, CONFIG)
    assert verdict.passed == ("paper",)
    assert verdict.reasons == (reason,)


def test_thresholds_are_settings() -> None:
    loose = GateConfig(
        live_min_years=0.0, live_min_sqn=1.0, live_min_deflated_sharpe=0.5, live_max_drawdown=0.5
    )
    weak = replace(GOOD, data_years=0.1, sqn100=1.1, deflated_sharpe=0.5, max_drawdown=0.5)
    assert "live" in judge(weak, None, loose).passed


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("paper_min_trades", 1),
        ("live_min_years", -1.0),
        ("live_min_deflated_sharpe", 1.1),
        ("live_max_drawdown", 0.0),
    ],
)
def test_settings_that_cannot_be_are_refused(field: str, value: float) -> None:
    with pytest.raises(SettingsError, match=field):
        GateConfig(**{field: value})  # type: ignore[arg-type]
