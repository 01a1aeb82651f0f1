"""The gates: what a version must prove before it may trade on paper, and before it may trade live."""

from dataclasses import dataclass

from shared.setting import Natural, NonNegative, Probability, Share, check_group, setting

_MORE_DATA = ": use a longer data set"


@dataclass(frozen=True)
class GateConfig:
    """The `[gate]` group. A p-value limits the chance to pass without an edge; 1 sets no limit.

    Raises:
        SettingsError: a value is out of range.
    """

    paper_min_trades: Natural = setting(30, "minimum number of trades for paper")
    paper_min_days: Natural = setting(20, "minimum trading days judged for paper, with or without a trade")
    paper_max_p_value: Probability = setting(
        0.10, "maximum p-value for paper, corrected for all versions tried"
    )
    paper_max_rule_p_value: Probability = setting(
        0.10, "maximum p-value for paper of the comparison with each simple rule, paired by day"
    )
    live_min_trades: Natural = setting(100, "minimum number of trades for live")
    live_min_days: Natural = setting(250, "minimum trading days judged for live: about a year")
    live_min_years: NonNegative = setting(3.0, "minimum span of the whole data set for live, in years")
    live_max_p_value: Probability = setting(
        0.01, "maximum p-value for live, corrected for all versions tried"
    )
    live_min_sqn: NonNegative = setting(2.5, "SQN to exceed for live, capped at 100 trades")
    live_min_deflated_sharpe: Share = setting(0.95, "minimum deflated Sharpe ratio for live")
    live_max_drawdown: Probability = setting(
        0.20, "maximum drawdown for live as a fraction of the account's peak, marked to market"
    )

    def __post_init__(self) -> None:
        """Check every range."""
        check_group("gate", self)


@dataclass(frozen=True)
class Rival:
    """How much better a version is than a simple rule on the same days, and the p-value of the difference."""

    name: str
    excess_pips_per_day: float  # pips of the version minus pips of the rule
    p_value: float | None  # sign-flip test of the daily excess; None if the two never differ


@dataclass(frozen=True)
class Evidence:
    """The numbers of a report that the gates check; None where undefined."""

    num_trades: int
    num_days: int
    num_tried: int  # versions tried, this one included
    data_years: float  # span of the whole data set
    expectancy_high_pips: float | None  # upper end of the expectancy's 95 % interval
    adjusted_p_value: float | None  # sign-flip test by day, corrected for the versions tried
    rivals: tuple[Rival, ...]
    sqn100: float | None
    car25_percent: float | None
    deflated_sharpe: float | None
    min_track_record_days: int | None  # days needed to pass the deflated Sharpe test at this ratio
    max_drawdown: float


@dataclass(frozen=True)
class Incumbent:
    """The version to beat: the best one so far that passed the paper gate on the same sessions."""

    version: int
    sqn100: float | None  # None: undefined, so every version beats it


@dataclass(frozen=True)
class Verdict:
    """The gates that a version passed, and why it did not pass the others."""

    passed: tuple[str, ...]
    reasons: tuple[str, ...]


def judge(evidence: Evidence, incumbent: Incumbent | None, config: GateConfig) -> Verdict:
    """Decide which gates a version passes. A version that passes none is unproven, even the first one.

    Paper requires enough trades and days, a profit that is significant given the number of versions tried,
    better results than every simple rule on the same days, and a higher SQN than the best version so far.
    SQN is capped at 100 trades, so that it measures quality and not how often a version trades.
    If no trade lost or all trades are equal, SQN is undefined and is not compared.
    Live requires all this except the higher SQN, and has its own conditions.
    An undefined number fails its condition; an undefined p-value counts as 1.
    """
    proof = _proof_failures(evidence, config)
    failures = {
        "paper": proof + _incumbent_failures(evidence, incumbent),
        "live": (
            ["no proof of an edge: see the reasons of the paper gate"]
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
    failures += _too_few("trading days", evidence.num_days, config.paper_min_days, _MORE_DATA)
    failures += _p_value_failures(evidence, config.paper_max_p_value)
    for rival in evidence.rivals:
        if _p_value(rival.p_value) > config.paper_max_rule_p_value:
            failures.append(
                f"no proof that it beats the rule {rival.name}: {rival.excess_pips_per_day:+.1f} pips a day, "
                f"p-value {_text(rival.p_value)}, at most {config.paper_max_rule_p_value:g} allowed"
            )
    return failures


def _incumbent_failures(evidence: Evidence, incumbent: Incumbent | None) -> list[str]:
    if incumbent is None or incumbent.sqn100 is None:
        return []
    if evidence.num_trades == 0:
        return [f"no trade, so it does not beat version {incumbent.version} with SQN {incumbent.sqn100:.2f}"]
    if evidence.sqn100 is None:
        return []
    if evidence.sqn100 <= incumbent.sqn100:
        return [
            f"SQN {evidence.sqn100:.2f} does not exceed the {incumbent.sqn100:.2f} of version "
            f"{incumbent.version}"
        ]
    return []


def _live_failures(evidence: Evidence, config: GateConfig) -> list[str]:
    failures = _too_few("trades", evidence.num_trades, config.live_min_trades)
    failures += _too_few("trading days", evidence.num_days, config.live_min_days, _MORE_DATA)
    if evidence.data_years < config.live_min_years:
        failures.append(
            f"the data set spans {evidence.data_years:.2f} years, at least {config.live_min_years:g} required"
            + _MORE_DATA
        )
    if evidence.sqn100 is None or evidence.sqn100 <= config.live_min_sqn:
        failures.append(f"SQN {_text(evidence.sqn100)}, more than {config.live_min_sqn:g} required")
    if evidence.car25_percent is None or evidence.car25_percent <= 0.0:
        failures.append(f"CAR25 in percent: {_text(evidence.car25_percent)}, more than 0 required")
    if evidence.deflated_sharpe is None or evidence.deflated_sharpe < config.live_min_deflated_sharpe:
        failures.append(
            f"deflated Sharpe ratio {_text(evidence.deflated_sharpe)}, at least "
            f"{config.live_min_deflated_sharpe:g} required" + _missing_days(evidence)
        )
    if not evidence.max_drawdown <= config.live_max_drawdown:
        failures.append(
            f"maximum drawdown {100 * evidence.max_drawdown:.1f} %, at most "
            f"{100 * config.live_max_drawdown:g} % allowed"
        )
    return failures


def _too_few(unit: str, found: int, required: int, remedy: str = "") -> list[str]:
    return [f"{found:,} {unit}, at least {required:,} required{remedy}"] if found < required else []


def _p_value_failures(evidence: Evidence, limit: float) -> list[str]:
    if _p_value(evidence.adjusted_p_value) <= limit:
        return []
    highest = evidence.expectancy_high_pips
    if highest is not None and highest < 0.0:
        return [f"it loses money: the expectancy is at most {highest:.2f} pips a trade, a profit is required"]
    tried = f"{evidence.num_tried:,} version{'s' if evidence.num_tried != 1 else ''} tried"
    return [
        f"the profit may be luck: p-value {_text(evidence.adjusted_p_value)} after {tried}, "
        f"at most {limit:g} allowed"
    ]


def _p_value(p_value: float | None) -> float:
    """The p-value to compare with a limit; an undefined one counts as 1, since it is no evidence."""
    return 1.0 if p_value is None else p_value


def _missing_days(evidence: Evidence) -> str:
    """Say how many more days the deflated Sharpe ratio requires if the present ratio holds."""
    if evidence.min_track_record_days is None or evidence.min_track_record_days <= evidence.num_days:
        return ""
    return (
        f"; at the present ratio {evidence.min_track_record_days - evidence.num_days:,} more days are enough"
    )


def _text(value: float | None) -> str:
    return "not defined" if value is None else f"{value:.3g}" if abs(value) < 0.1 else f"{value:.2f}"
