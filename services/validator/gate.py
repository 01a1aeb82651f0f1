"""The gates: what a version must show before it may trade on paper, and before it may trade live."""

import math
from dataclasses import dataclass

from shared.errors import SettingsError


@dataclass(frozen=True)
class GateConfig:
    """The `[gate]` group; a p-value bounds the chance to pass without an edge, and 1 asks for nothing."""

    paper_min_trades: int = 30
    paper_min_days: int = 20  # judged, with a trade or without
    paper_max_p_value: float = 0.10  # of all versions that a run tries together
    paper_max_rule_p_value: float = 0.10  # against each simple rule, paired by day
    live_min_trades: int = 100
    live_min_days: int = 250  # judged: a year
    live_min_years: float = 3.0  # that the data set spans
    live_max_p_value: float = 0.01  # of all versions that a run tries together
    live_min_sqn: float = 2.5  # capped at 100 trades, as the published bands are
    live_min_deflated_sharpe: float = 0.95
    live_max_drawdown: float = 0.20  # fraction of the account's peak, marked to market

    def __post_init__(self) -> None:
        """Check every field.

        Raises:
            SettingsError: names the field, its value and what is right.
        """
        for name, right, wanted in (
            ("paper_min_trades", self.paper_min_trades >= 0, "0 or more"),
            ("paper_min_days", self.paper_min_days >= 0, "0 or more"),
            ("paper_max_p_value", 0 < self.paper_max_p_value <= 1, "above 0, up to 1"),
            ("paper_max_rule_p_value", 0 < self.paper_max_rule_p_value <= 1, "above 0, up to 1"),
            ("live_min_trades", self.live_min_trades >= 0, "0 or more"),
            ("live_min_days", self.live_min_days >= 0, "0 or more"),
            ("live_min_years", 0 <= self.live_min_years < math.inf, "a number, 0 or more"),
            ("live_max_p_value", 0 < self.live_max_p_value <= 1, "above 0, up to 1"),
            ("live_min_sqn", 0 <= self.live_min_sqn < math.inf, "a number, 0 or more"),
            ("live_min_deflated_sharpe", 0 <= self.live_min_deflated_sharpe <= 1, "0 to 1"),
            ("live_max_drawdown", 0 < self.live_max_drawdown <= 1, "above 0, up to 1"),
        ):
            if not right:
                raise SettingsError(f"gate.{name} is {getattr(self, name)}, expected {wanted}")


@dataclass(frozen=True)
class Rival:
    """How much better a version is than a simple rule on the same days, and the p-value of that."""

    name: str
    excess_pips_per_day: float  # of the version over the rule
    p_value: float | None  # sign flips of the daily excess; None where they never differ


@dataclass(frozen=True)
class Evidence:
    """The numbers of a report that the gates look at; None where undefined."""

    num_trades: int
    num_days: int
    num_tried: int  # versions, this one included
    data_years: float
    expectancy_high_pips: float | None  # upper end of the expectancy's interval
    adjusted_p_value: float | None  # sign flips by day, corrected for the versions tried
    rivals: tuple[Rival, ...]
    sqn100: float | None
    car25_percent: float | None
    deflated_sharpe: float | None
    min_track_record_days: int | None  # until the deflated Sharpe ratio suffices, at the present ratio
    max_drawdown: float


@dataclass(frozen=True)
class Incumbent:
    """The best version so far that passed the paper gate on the same sessions."""

    version: int
    sqn100: float | None  # None: there is nothing to beat


@dataclass(frozen=True)
class Verdict:
    """Gates passed, and why the others were not."""

    passed: tuple[str, ...]
    reasons: tuple[str, ...]


def judge(evidence: Evidence, incumbent: Incumbent | None, config: GateConfig) -> Verdict:
    """Which gates a version passes; one that passes none is unproven, the first judged like any other.

    Paper: enough trades and days, a profit that luck does not explain after all versions tried, better
    than every simple rule on the same days, and a higher SQN than the best version that passed before.
    SQN is the one capped at 100 trades, so that it measures quality, not how often a version trades.
    It is undefined where no trade lost or all trades are equal, and then it is not compared.
    Live: all that paper asks for but the best version, and every condition of its own.
    An undefined number fails its condition; an undefined p-value counts as 1.
    """
    proof = _proof_failures(evidence, config)
    failures = {
        "paper": proof + _incumbent_failures(evidence, incumbent),
        "live": (
            ["an edge is not proven on paper's terms"]
            if proof
            else _p_value_failures(evidence, config.live_max_p_value)
        )
        + _live_failures(evidence, config),
    }
    return Verdict(
        passed=tuple(gate for gate, reasons in failures.items() if not reasons),
        reasons=tuple(f"{gate}: {reason}" for gate, reasons in failures.items() for reason in reasons),
    )


def _proof_failures(evidence: Evidence, config: GateConfig) -> list[str]:
    failures = _too_few("trades", evidence.num_trades, config.paper_min_trades)
    failures += _too_few("days", evidence.num_days, config.paper_min_days)
    failures += _p_value_failures(evidence, config.paper_max_p_value)
    for rival in evidence.rivals:
        if _p_value(rival.p_value) > config.paper_max_rule_p_value:
            failures.append(
                f"not shown to be better than {rival.name}: {rival.excess_pips_per_day:+.1f} pips a day, "
                f"p-value {_shown(rival.p_value)}, limit {config.paper_max_rule_p_value:g}"
            )
    return failures


def _incumbent_failures(evidence: Evidence, incumbent: Incumbent | None) -> list[str]:
    if incumbent is None or incumbent.sqn100 is None:
        return []
    if evidence.num_trades == 0:
        return [f"no trade, version {incumbent.version} has SQN {incumbent.sqn100:.2f}"]
    if evidence.sqn100 is None:
        return []
    if evidence.sqn100 <= incumbent.sqn100:
        return [f"SQN {evidence.sqn100:.2f}, version {incumbent.version} has {incumbent.sqn100:.2f}"]
    return []


def _live_failures(evidence: Evidence, config: GateConfig) -> list[str]:
    failures = _too_few("trades", evidence.num_trades, config.live_min_trades)
    failures += _too_few("days", evidence.num_days, config.live_min_days)
    if evidence.data_years < config.live_min_years:
        failures.append(f"{evidence.data_years:.2f} years of data, needs {config.live_min_years:g}")
    if evidence.sqn100 is None or evidence.sqn100 <= config.live_min_sqn:
        failures.append(f"SQN {_shown(evidence.sqn100)}, needs more than {config.live_min_sqn:g}")
    if evidence.car25_percent is None or evidence.car25_percent <= 0.0:
        failures.append(f"CAR25 in percent {_shown(evidence.car25_percent)}, needs more than 0")
    if evidence.deflated_sharpe is None or evidence.deflated_sharpe < config.live_min_deflated_sharpe:
        failures.append(
            f"deflated Sharpe {_shown(evidence.deflated_sharpe)}, needs {config.live_min_deflated_sharpe:g}"
            + _days_to_come(evidence)
        )
    if not evidence.max_drawdown <= config.live_max_drawdown:
        failures.append(
            f"drawdown {100 * evidence.max_drawdown:.1f} %, limit {100 * config.live_max_drawdown:g} %"
        )
    return failures


def _too_few(what: str, there: int, needed: int) -> list[str]:
    return [f"{there:,} {what}, needs {needed:,}"] if there < needed else []


def _p_value_failures(evidence: Evidence, limit: float) -> list[str]:
    if _p_value(evidence.adjusted_p_value) <= limit:
        return []
    highest = evidence.expectancy_high_pips
    if highest is not None and highest < 0.0:
        return [f"loses: the expectancy is at most {highest:.2f} pips a trade"]
    tried = f"{evidence.num_tried:,} version{'s' if evidence.num_tried != 1 else ''} tried"
    return [f"may be luck: p-value {_shown(evidence.adjusted_p_value)} after {tried}, limit {limit:g}"]


def _p_value(p_value: float | None) -> float:
    """A p-value to compare with a limit; an undefined one is no evidence, so it counts as 1."""
    return 1.0 if p_value is None else p_value


def _days_to_come(evidence: Evidence) -> str:
    """The days that are missing for the deflated Sharpe ratio, if the present ratio holds."""
    if evidence.min_track_record_days is None or evidence.min_track_record_days <= evidence.num_days:
        return ""
    return f"; at this ratio {evidence.min_track_record_days - evidence.num_days:,} more days"


def _shown(value: float | None) -> str:
    return "not defined" if value is None else f"{value:.3g}" if abs(value) < 0.1 else f"{value:.2f}"
