"""The report as one self-contained HTML file."""

import base64
import html
from collections.abc import Iterable, Sequence

from services.validator.report import ValidationReport
from shared.environment.action import Action
from shared.metrics.bootstrap import Interval
from shared.metrics.monte_carlo import DRAWDOWN_PERCENTILES, MonteCarlo
from shared.metrics.overfitting import Overfitting
from shared.metrics.trades import NO_TRADE
from shared.metrics.undefined import UNEXPLAINED, why


def page(report: ValidationReport, png: bytes) -> str:
    """The HTML page, with the picture embedded."""
    passed = "".join(f'<span class="gate passed">passed {gate}</span>' for gate in report.passed_gates)
    gates = passed or '<span class="gate failed">unproven</span>'
    reasons = "".join(f"<li>{html.escape(reason)}</li>" for reason in report.reasons)
    body = f"""<header><h1>Version {report.version} {gates}</h1>
<p>{html.escape(report.instrument)}, {html.escape(report.split)} split: {_sessions(report)} from
{_day(report.first_bar_at)} to {_day(report.last_bar_at)}; judged {_minute(report.created_at)}
in {report.seconds:.1f} s.{_superseded(report)}</p></header>
{f"<ul>{reasons}</ul>" if reasons else ""}
<section class="cards">{"".join(_cards(report))}</section>
<img alt="Equity fan, drawdown and monthly pips" src="data:image/png;base64,{base64.b64encode(png).decode()}">
<div class="columns">
{_table("Trades", ("", "value", "95 % interval"), _trade_rows(report))}
{_table("Risk", ("", "value"), _risk_rows(report))}
{_table("Could it be luck?", ("", "value"), _honesty_rows(report))}
{_table("Activity", ("", "value"), _activity_rows(report))}
</div>
{_table("Monte Carlo", _MONTE_CARLO_COLUMNS, _monte_carlo_rows(report))}
{_table("Against simple rules on the same sessions", _BASELINE_COLUMNS, _baseline_rows(report))}
{_table("Months", ("month", "days", "net pips", "trades", "win rate", "expectancy"), _month_rows(report))}
{_table("Provenance", ("", ""), _provenance_rows(report))}"""
    return f"""<!doctype html><html lang="en"><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Version {report.version}, {html.escape(report.split)}</title><style>{_STYLE}</style>
<main>{body}</main></html>"""


_STYLE = """
:root{color-scheme:light dark;--ink:#1f2933;--muted:#616e7c;--line:#e4e7eb;--card:#f8fafc;--back:#fff}
@media(prefers-color-scheme:dark){:root{--ink:#e4e7eb;--muted:#9aa5b1;--line:#323f4b;--card:#1f2933;--back:#12181f}}
body{margin:0;background:var(--back);color:var(--ink);font:15px/1.5 system-ui,sans-serif}
main{max-width:1100px;margin:auto;padding:24px}h1{font-size:26px;margin:0}h2{font-size:16px;margin:28px 0 8px}
header p,li{color:var(--muted)}img{width:100%;border-radius:8px;background:#fff}
.gate{font-size:13px;padding:3px 10px;border-radius:12px;vertical-align:middle;margin-left:6px;color:#fff}
.passed{background:#15803d}.failed{background:#52606d}
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(150px,1fr));gap:12px;margin:18px 0}
.card{background:var(--card);border:1px solid var(--line);border-radius:8px;padding:12px}
.card b{display:block;font-size:22px}.card span{color:var(--muted);font-size:13px}
.columns{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(420px,100%),1fr));gap:0 32px}
div.scroll{overflow-x:auto}table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
th,td{text-align:right;padding:5px 8px;border-bottom:1px solid var(--line);white-space:nowrap}
.why{color:var(--muted);min-width:5em;font-size:13px;font-weight:400;white-space:normal;line-height:1.3;display:inline-block}
th{color:var(--muted);font-weight:500}th:first-child,td:first-child{text-align:left;white-space:normal}
"""


def _sessions(report: ValidationReport) -> str:
    """Number of sessions walked; the split's total is added if some were not."""
    if report.num_sessions == report.num_sessions_in_split:
        return f"{report.num_sessions:,} sessions"
    return f"{report.num_sessions:,} of {report.num_sessions_in_split:,} sessions"


def _superseded(report: ValidationReport) -> str:
    if report.superseded_by is None:
        return ""
    return f" Version {report.superseded_by} was published before this one was judged."


def _provenance_rows(report: ValidationReport) -> list[tuple[str, ...]]:
    return [
        ("created", "by the validator service" if report.purpose == "service" else "on demand"),
        ("weights, SHA-256", report.weights_sha256[:16] + "…"),
        ("data set", html.escape(report.dataset[:16]) + "…"),
        ("code version", html.escape(report.code_version)),
    ]


def _cards(report: ValidationReport) -> Iterable[str]:
    trades = report.summary.trades
    for name, value in (
        ("trades", f"{trades.num_trades:,}"),
        ("net pips", f"{report.net_pips:+,.1f}"),
        ("expectancy, pips", _summary_number(report, "trades.expectancy_pips")),
        ("SQN (100 trades)", _summary_number(report, "trades.sqn100")),
        ("daily Sharpe", _summary_number(report, "daily.sharpe")),
        ("drawdown, pips", f"{report.summary.max_drawdown_pips:,.1f}"),
    ):
        yield f'<div class="card"><b>{value}</b><span>{name}</span></div>'


def _trade_rows(report: ValidationReport) -> list[tuple[str, ...]]:
    trades, intervals = report.summary.trades, report.summary.intervals
    return [
        (
            "expectancy, pips",
            _summary_number(report, "trades.expectancy_pips"),
            _interval(intervals.expectancy_pips, why(report.undefined, "summary.intervals.expectancy_pips")),
        ),
        ("expectancy, R (mean loss)", _summary_number(report, "trades.expectancy_r"), ""),
        (
            "win rate",
            _percent(trades.win_rate, why(report.undefined, "summary.trades.win_rate")),
            _interval(intervals.win_rate, why(report.undefined, "summary.intervals.win_rate"), 100.0, " %"),
        ),
        (
            "profit factor",
            _summary_number(report, "trades.profit_factor"),
            _interval(intervals.profit_factor, why(report.undefined, "summary.intervals.profit_factor")),
        ),
        ("average win, pips", _summary_number(report, "trades.average_win_pips"), ""),
        ("average loss, pips", _summary_number(report, "trades.average_loss_pips"), ""),
        ("SQN, all trades", _summary_number(report, "trades.sqn"), ""),
        (
            "SQN, 100 trades",
            _summary_number(report, "trades.sqn100"),
            _interval(intervals.sqn100, why(report.undefined, "summary.intervals.sqn100")),
        ),
    ]


def _risk_rows(report: ValidationReport) -> list[tuple[str, ...]]:
    summary = report.summary
    safe_f = summary.sizing.safe_f
    return [
        ("maximum drawdown, pips", f"{summary.max_drawdown_pips:,.1f}"),
        ("maximum drawdown", _percent(summary.max_drawdown)),
        ("daily Sharpe", _summary_number(report, "daily.sharpe")),
        ("daily Sortino", _summary_number(report, "daily.sortino")),
        ("safe-f", _summary_number(report, "sizing.safe_f.fraction")),
        ("DD95 at safe-f", _percent(safe_f.dd95 if safe_f else None, summary.sizing.reason)),
        (
            "CAR25, the smaller of iid and block resampling",
            _percent(
                summary.sizing.car25_percent,
                why(report.undefined, "summary.sizing.safe_f.car25_percent"),
                1.0,
            ),
        ),
        ("Kelly, continuous", _summary_number(report, "sizing.kelly")),
        ("recommended fraction", _number(summary.sizing.fraction)),
        ("reason", _because(summary.sizing.reason)),
    ]


def _honesty_rows(report: ValidationReport) -> list[tuple[str, ...]]:
    honesty, overfitting = report.summary.honesty, report.overfitting
    trials = honesty.trials
    return [
        ("versions tried on these days", f"{trials.num_tried:,}"),
        ("of these, could have been chosen", f"{trials.num_counted:,}"),
        ("effective number of independent trials (N)", f"{trials.effective:,.1f}"),
        ("p-value, sign flips by day", _summary_number(report, "honesty.p_value")),
        ("p-value after all versions tried", _summary_number(report, "honesty.adjusted_p_value")),
        (
            "probability that the daily Sharpe ratio is above 0",
            _summary_number(report, "honesty.probabilistic_sharpe"),
        ),
        (
            "best daily Sharpe ratio expected by luck alone (SR*)",
            _summary_number(report, "honesty.expected_best_sharpe"),
        ),
        ("variance of the ratio without an edge (V)", _summary_number(report, "honesty.null_variance")),
        ("deflated Sharpe ratio", _summary_number(report, "honesty.deflated_sharpe")),
        ("total days needed for 0.95 at this ratio", _days_in_all(report)),
        *_overfitting_rows(overfitting),
        ("years of data", f"{report.data_years:.2f}"),
        ("version to beat", "none" if report.incumbent is None else str(report.incumbent)),
    ]


def _overfitting_rows(overfitting: Overfitting) -> list[tuple[str, ...]]:
    if overfitting.reason:
        return [("probability of backtest overfitting", _because(overfitting.reason))]
    basis = f"{overfitting.num_trials} versions, {overfitting.num_days} days, {overfitting.num_blocks} blocks"
    return [
        ("probability of backtest overfitting", _number(overfitting.probability)),
        (
            "best version of one half of the days loses in the other half",
            _percent(overfitting.probability_of_loss),
        ),
        ("slope of its Sharpe ratio, other half over own half", _number(overfitting.degradation_slope)),
        ("calculated from", basis),
    ]


def _activity_rows(report: ValidationReport) -> list[tuple[str, ...]]:
    spent = report.activity
    shares = spent.action_shares or ()
    idle = why(report.undefined, "activity.exposure")
    return [
        ("decisions", f"{spent.num_decisions:,}"),
        ("trade ratio", _percent(spent.trade_ratio, idle)),
        ("in a position", _percent(spent.exposure, idle)),
        (
            "units traded a day",
            _number(spent.turnover_per_day, why(report.undefined, "activity.turnover_per_day")),
        ),
        *((action.name, _percent(share)) for action, share in zip(Action, shares, strict=False)),
    ]


_MONTE_CARLO_COLUMNS = (
    "resampling",
    "runs",
    "mean block",
    "final 5 %",
    "median",
    "95 %",
    *(f"DD {percentile} %" for percentile in DRAWDOWN_PERCENTILES[2:]),
    "loss",
    "ruin",
)


def _monte_carlo_rows(report: ValidationReport) -> list[tuple[str, ...]]:
    return [*map(_monte_carlo_row, report.summary.monte_carlo)] or [(_because(NO_TRADE),)]


def _monte_carlo_row(paths: MonteCarlo) -> tuple[str, ...]:
    final = paths.fan_pips[:, -1]
    return (
        paths.resampling,
        f"{paths.num_runs:,}",
        f"{paths.mean_block_trades:.1f}",
        *(f"{value:+,.0f}" for value in final[[0, 2, 4]]),
        *(f"{value:,.0f}" for value in paths.max_drawdown_pips[2:]),
        _percent(paths.probability_of_loss),
        _percent(paths.probability_of_ruin),
    )


_BASELINE_COLUMNS = (
    "",
    "trades",
    "net pips",
    "expectancy",
    "SQN (100)",
    "daily Sharpe",
    "drawdown, pips",
    "version better by, pips a day",
    "p-value",
)


def _baseline_rows(report: ValidationReport) -> list[tuple[str, ...]]:
    summary = report.summary
    own = (
        f"version {report.version}",
        f"{summary.trades.num_trades:,}",
        f"{report.net_pips:+,.1f}",
        _summary_number(report, "trades.expectancy_pips"),
        _summary_number(report, "trades.sqn100"),
        _summary_number(report, "daily.sharpe"),
        f"{summary.max_drawdown_pips:,.1f}",
        "",
        "",
    )
    return [
        own,
        *(
            (
                rule.name,
                f"{rule.num_trades:,}",
                f"{rule.net_pips:+,.1f}",
                _number(rule.expectancy_pips, why(report.undefined, f"baselines.{index}.expectancy_pips")),
                _number(rule.sqn100, why(report.undefined, f"baselines.{index}.sqn100")),
                _number(rule.sharpe, why(report.undefined, f"baselines.{index}.sharpe")),
                f"{rule.max_drawdown_pips:,.1f}",
                f"{rule.rival.excess_pips_per_day:+,.1f}",
                _number(rule.rival.p_value, why(report.undefined, f"baselines.{index}.rival.p_value")),
            )
            for index, rule in enumerate(report.baselines)
        ),
    ]


def _month_rows(report: ValidationReport) -> list[tuple[str, ...]]:
    return [
        (
            month.month,
            f"{month.num_days}",
            f"{month.pips:+,.1f}",
            f"{month.num_trades:,}",
            _percent(month.win_rate, why(report.undefined, f"months.{index}.win_rate")),
            _number(month.expectancy_pips, why(report.undefined, f"months.{index}.expectancy_pips")),
        )
        for index, month in enumerate(report.months)
    ]


def _table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    head = "".join(f"<th>{column}</th>" for column in columns)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return (
        f'<section><h2>{title}</h2><div class="scroll"><table><tr>{head}</tr>{body}</table></div></section>'
    )


def _summary_number(report: ValidationReport, path: str) -> str:
    """The number at a dotted path of the summary, or the reason why it is undefined."""
    value: object = report.summary
    for name in path.split("."):
        value = getattr(value, name, None)
    assert value is None or isinstance(value, int | float)
    return _number(value, why(report.undefined, f"summary.{path}"))


def _number(value: float | None, reason: str = UNEXPLAINED) -> str:
    if value is None:
        return _because(reason)
    if 0.0 < abs(value) < 0.001:
        return f"{value:.1e}"
    return f"{value:,.3f}" if 0.0 < abs(value) < 1.0 else f"{value:,.2f}"


def _days_in_all(report: ValidationReport) -> str:
    days = report.summary.honesty.min_track_record_days
    if days is None:
        return _because(why(report.undefined, "summary.honesty.min_track_record_days"))
    return f"{days:,}"


def _percent(share: float | None, reason: str = UNEXPLAINED, scale: float = 100.0) -> str:
    return _because(reason) if share is None else f"{scale * share:.1f} %"


def _interval(interval: Interval | None, reason: str, scale: float = 1.0, unit: str = "") -> str:
    if interval is None:
        return _because(reason)
    return f"{scale * interval.low:,.2f} to {scale * interval.high:,.2f}{unit}"


def _because(reason: str) -> str:
    """The reason in place of an undefined number."""
    return f'<span class="why">{html.escape(reason)}</span>'


def _day(moment: str) -> str:
    return html.escape(moment[:10])


def _minute(moment: str) -> str:
    """Date and minute of an ISO 8601 time in UTC."""
    return html.escape(f"{moment[:10]} {moment[11:16]} UTC")
