"""The gates: what a version must show before it may trade on paper, and before it may trade live."""

from dataclasses import dataclass

from shared.errors import SettingsError


@dataclass(frozen=True)
class GateConfig:
    """The `[gate]` group."""

    paper_min_trades: int = 30  # fewer trades say nothing
    live_min_years: float = 3.0  # that the data set spans
    live_min_sqn: float = 2.5  # capped at 100 trades, as the published bands are
    live_min_deflated_sharpe: float = 0.95
    live_max_drawdown: float = 0.20  # fraction of the account's peak, marked to market

    def __post_init__(self) -> None:
        """Refuse numbers that cannot be.

        Raises:
            SettingsError: names the field, its value and what is right.
        """
        for name, right, wanted in (
            ("paper_min_trades", self.paper_min_trades >= 2, "2 or more"),
            ("live_min_years", self.live_min_years >= 0, "0 or more"),
            ("live_min_sqn", self.live_min_sqn >= 0, "0 or more"),
            ("live_min_deflated_sharpe", 0 <= self.live_min_deflated_sharpe <= 1, "0 to 1"),
            ("live_max_drawdown", 0 < self.live_max_drawdown <= 1, "above 0, up to 1"),
        ):
            if not right:
                raise SettingsError(f"gate.{name} is {getattr(self, name)}, expected {wanted}")


@dataclass(frozen=True)
class Evidence:
    """What of a version's report the gates look at; None where undefined."""

    num_trades: int
    sqn100: float | None
    data_years: float
    car25_percent: float | None
    deflated_sharpe: float | None
    max_drawdown: float


@dataclass(frozen=True)
class Incumbent:
    """The best version so far, judged on the same sessions."""

    version: int
    sqn100: float | None


@dataclass(frozen=True)
class Verdict:
    """Gates passed, and why the others were not."""

    passed: tuple[str, ...]
    reasons: tuple[str, ...]


def judge(evidence: Evidence, incumbent: Incumbent | None, config: GateConfig) -> Verdict:
    """Which gates a version passes.

    Paper: the first version validated on its sessions passes, since there is nothing to beat and paper
    risks no money. Every later one needs enough trades and a higher SQN than the best so far; one
    whose SQN is not defined is beaten by any that is. A version that hardly trades thus never
    replaces one that was seen to trade. SQN is the one capped at 100 trades, so that it measures
    quality, not how often a version trades.
    Live: every condition holds; an undefined number fails its condition.
    """
    failures = {
        "paper": _paper_failures(evidence, incumbent, config),
        "live": _live_failures(evidence, config),
    }
    return Verdict(
        passed=tuple(gate for gate, reasons in failures.items() if not reasons),
        reasons=tuple(f"{gate}: {reason}" for gate, reasons in failures.items() for reason in reasons),
    )


def _paper_failures(evidence: Evidence, incumbent: Incumbent | None, config: GateConfig) -> list[str]:
    if incumbent is None:
        return []
    if evidence.num_trades < config.paper_min_trades:
        return [f"{evidence.num_trades} trades, needs {config.paper_min_trades}"]
    if evidence.sqn100 is None:
        return ["SQN is not defined"]
    if incumbent.sqn100 is not None and evidence.sqn100 <= incumbent.sqn100:
        return [f"SQN {evidence.sqn100:.2f}, version {incumbent.version} has {incumbent.sqn100:.2f}"]
    return []


def _live_failures(evidence: Evidence, config: GateConfig) -> list[str]:
    failures = []
    if evidence.data_years < config.live_min_years:
        failures.append(f"{evidence.data_years:.2f} years of data, needs {config.live_min_years:g}")
    if evidence.sqn100 is None or evidence.sqn100 <= config.live_min_sqn:
        failures.append(f"SQN {_shown(evidence.sqn100)}, needs more than {config.live_min_sqn:g}")
    if evidence.car25_percent is None or evidence.car25_percent <= 0.0:
        failures.append(f"CAR25 in percent {_shown(evidence.car25_percent)}, needs more than 0")
    if evidence.deflated_sharpe is None or evidence.deflated_sharpe < config.live_min_deflated_sharpe:
        failures.append(
            f"deflated Sharpe {_shown(evidence.deflated_sharpe)}, needs {config.live_min_deflated_sharpe:g}"
        )
    if not evidence.max_drawdown <= config.live_max_drawdown:
        failures.append(
            f"drawdown {100 * evidence.max_drawdown:.1f} %, limit {100 * config.live_max_drawdown:g} %"
        )
    return failures


def _shown(value: float | None) -> str:
    return "not defined" if value is None else f"{value:.2f}"
