"""`learn`, `compare`, `discount` and `gate`: studies of whether the agent learns and what the gates pass."""

import math
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.bench_options import Json, Profile, Seed, one_thread
from cli.output import err, print_fields, print_json, print_table, progress_bar
from shared.environment.reward import RewardScheme
from shared.errors import SettingsError
from shared.market.synthetic import Market

if TYPE_CHECKING:  # these import torch, pandas and Redis, so each command imports only its own study
    from studies.compare import CompareRecord, Range, RunResult, VariantSummary
    from studies.learn import LearnConfig, LearnReport
    from studies.scores import Estimate


def learn(
    market: Annotated[Market, typer.Option(help="price process")] = Market.OU,
    reward: Annotated[RewardScheme, typer.Option(help="reward scheme")] = RewardScheme.PNL,
    minutes: Annotated[
        float, typer.Option(min=0.01, help="minutes of self-play and learning, without evaluation")
    ] = 5.0,
    imitation_minutes: Annotated[
        float,
        typer.Option(
            min=0.0, help="additional minutes of training the same network on the best policy; 0: none"
        ),
    ] = 3.0,
    seed: Seed = 0,
    profile: Profile = None,
    record: Annotated[
        Path | None,
        typer.Option(help="folder to record all updates, episodes and evaluations in (Parquet, TensorBoard)"),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="PNG of the learning curve; default: learn-MARKET-REWARD-SEED.png"),
    ] = None,
    as_json: Json = False,
) -> None:
    """Train on a synthetic market and compare with its best policy.

    The agent is also compared with the same network, trained to imitate that policy.
    """
    from shared.adapters.picture import require_drawable
    from shared.adapters.tables.run_record import require_no_record
    from studies.curve import draw_curve

    picture = out or Path(f"learn-{market}-{reward}-{seed}.png")
    require_drawable(picture)
    if record is not None:
        require_no_record(record)
    one_thread()
    config = replace(
        _learn_config(profile, reward),
        market=market,
        minutes=minutes,
        imitation_minutes=imitation_minutes,
        seed=seed,
    )
    report = _learn(config, record)
    draw_curve(report, picture)
    if as_json:
        print_json({**_learn_document(report), "picture": str(picture)})
    else:
        _print_learning(report)
        err.print(f"learning curve: {picture}", soft_wrap=True)


def compare(
    market: Annotated[Market, typer.Option(help="price process")] = Market.OU,
    reward: Annotated[RewardScheme, typer.Option(help="reward scheme")] = RewardScheme.PNL,
    minutes: Annotated[float, typer.Option(min=0.01, help="minutes of self-play and learning per run")] = 8.0,
    seeds: Annotated[int, typer.Option(min=1, help="number of runs per variant, each with its own seed")] = 3,
    first_seed: Annotated[
        int, typer.Option(min=0, help="seed of the first run; the following runs add 1 each")
    ] = 0,
    variant: Annotated[
        list[str] | None, typer.Option(help="variant to run, can be repeated; default: all")
    ] = None,
    profile: Profile = None,
    record: Annotated[
        Path | None,
        typer.Option(
            file_okay=False,
            help="folder to save each finished run in; runs in it are not repeated, and several processes "
            "with other variants or seeds may share it",
        ),
    ] = None,
    show: Annotated[
        bool, typer.Option("--show", help="print the recorded results, without new runs")
    ] = False,
    out: Annotated[Path, typer.Option("--out", help="PNG of the learning curves")] = Path("compare.png"),
    as_json: Json = False,
) -> None:
    """Compare variants of search and learning over several seeds."""
    from shared.adapters.picture import require_drawable
    from studies.compare import LEARNED_SHARE, VARIANTS, CompareRecord, plan, summaries
    from studies.compare_picture import draw_comparison

    require_drawable(out)
    one_thread()
    config = replace(_learn_config(profile, reward), market=market, minutes=minutes, imitation_minutes=0.0)
    planned = plan(variant or list(VARIANTS), range(first_seed, first_seed + seeds))
    kept = CompareRecord(record, config) if record else None
    recorded = {(run.variant, run.seed): run for run in kept.runs()} if kept else {}
    if show:
        planned = list(recorded)
        if not planned:
            raise SettingsError(
                f"--show: there is no run in {record}, expected a folder written with --record"
            )
    runs = [recorded[one] for one in planned if one in recorded]
    if runs:
        err.print(
            f"{len(runs)} of {len(planned)} runs are already in {record}", highlight=False, soft_wrap=True
        )
        draw_comparison(runs, out)
    left = [one for one in planned if one not in recorded]
    _learn_variants(config, left, kept, runs, out)
    order = list(dict.fromkeys(name for name, _ in planned))
    runs.sort(key=lambda run: (order.index(run.variant), run.seed))
    if as_json:
        results = {
            "variants": [asdict(row) for row in summaries(runs)],
            "runs": [asdict(run) for run in runs],
        }
        print_json({"study": "compare", **results, "picture": str(out)})
        return
    print_table(
        f"compare: {market}, {reward}, {minutes:g} minutes; goal: {LEARNED_SHARE} of the best policy's pips",
        (
            "variant",
            "goal reached",
            "minutes (median)",
            "episodes (median)",
            "final share (mean)",
        ),
        [_variant_row(row) for row in summaries(runs)],
    )
    err.print(f"learning curves: {out}", soft_wrap=True)


def discount(
    bars: Annotated[int, typer.Option(min=20_000, help="number of bars of the market")] = 1_000_000,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Compare the best policies of a market for several discounts.

    The market is `ou`. All policies are judged by undiscounted sums.
    """
    from studies.discounting import judge_discounts

    judged = judge_discounts((0.99, 0.995, 0.997, 0.999, 0.9995), num_bars=bars, seed=seed)
    if as_json:
        print_json({"study": "discount", "discounts": [asdict(row) for row in judged]})
        return
    print_table(
        "discount: the best policy for each discount, judged by undiscounted sums",
        ("discount per bar", "entry threshold, pips", "net pips", "trades"),
        [(f"{row.discount:g}", row.entry_pips, row.pips, row.trades) for row in judged],
    )


def gate(
    runs: Annotated[
        int, typer.Option(min=1, help="number of simulated runs of each kind, with 200 versions each")
    ] = 100,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Simulate how often the gates pass versions without an edge.

    It also reports how often they pass versions with an edge.
    """
    from studies.gate import simulate_gates

    report = simulate_gates(runs=runs, seed=seed)
    if as_json:
        print_json({"study": "gate", **asdict(report)})
        return
    print_table(
        f"{runs} runs of versions without an edge (goal: at most 10 % beyond unproven, 1 % live)",
        ("versions", "per run", "runs beyond unproven", "runs live", "versions beyond unproven"),
        (
            (
                row.population,
                row.num_versions,
                row.runs_beyond_unproven,
                row.runs_live,
                row.versions_beyond_unproven,
            )
            for row in report.luck
        ),
    )
    print_table(
        "Versions with an edge: share of runs in which they passed",
        ("edge (annual Sharpe)", "deflated Sharpe", "paper", "live"),
        (
            (row.edge, f"{row.deflated_sharpe:.2f}", f"{row.paper:.2f}", f"{row.live:.2f}")
            for row in report.power
        ),
    )


def _learn_config(profile: Path | None, reward: RewardScheme) -> "LearnConfig":
    """The configuration of a run: settings of trainer and self-play, with the given reward."""
    from services.selfplay.settings import SelfPlaySettings
    from services.trainer.settings import TrainerSettings
    from shared.runtime.settings import load
    from studies.learn import LearnConfig

    given = {"profile": profile} if profile else {}
    playing, training = load(SelfPlaySettings, **given), load(TrainerSettings, **given)
    return LearnConfig(
        environment=replace(playing.environment, reward=reward),
        model=training.model,
        search=playing.search,
        selfplay=playing.selfplay,
        replay=training.replay,
        learner=training.learner,
        trainer=training.trainer,
    )


def _learn(config: "LearnConfig", record: Path | None) -> "LearnReport":
    from studies.imitation import ImitationSpent
    from studies.learn import Spent, learn

    with progress_bar() as bar:
        task = bar.add_task("seconds of learning", total=round(60.0 * config.minutes))
        imitation = bar.add_task("seconds of imitation", total=round(60.0 * config.imitation_minutes))

        def show(spent: Spent) -> None:
            bar.update(task, completed=round(spent.seconds), description=f"{spent.episodes:,} episodes")

        def show_imitation(spent: ImitationSpent) -> None:
            described = f"imitation, {spent.updates:,} updates"
            bar.update(imitation, completed=round(spent.seconds), description=described)

        return learn(config, record=record, progress=show, imitation_progress=show_imitation)


def _learn_variants(
    config: "LearnConfig",
    left: Sequence[tuple[str, int]],
    record: "CompareRecord | None",
    runs: "list[RunResult]",
    picture: Path,
) -> None:
    """Do the remaining runs; print each result and redraw the picture of all runs."""
    from studies.compare import compare as compare_variants
    from studies.compare_picture import draw_comparison

    try:
        with progress_bar() as bar:
            for run in bar.track(compare_variants(config, left, record), total=len(left), description="runs"):
                runs.append(run)
                err.print(str(run), markup=False, highlight=False, soft_wrap=True)
                draw_comparison(runs, picture)
    except KeyboardInterrupt:
        note = "saved, the same command continues after them" if record else "lost without --record"
        err.print(f"interrupted; finished runs: {len(runs)}, {note}", highlight=False, soft_wrap=True)
        raise


def _variant_row(row: "VariantSummary") -> tuple[object, ...]:
    diverged = f", {row.num_failed} diverged" if row.num_failed else ""
    return (
        row.variant,
        f"{row.num_reached} of {row.num_runs}{diverged}",
        _range(row.median_minutes, ".2f"),
        _range(row.median_episodes, ",.0f"),
        _range(row.mean_share, ".2f") if row.mean_share else None,
    )


def _range(figure: "Range", spec: str) -> str:
    """A figure over several seeds, with minimum and maximum; infinity is printed as never."""
    value, low, high = (
        format(x, spec) if math.isfinite(x) else "never" for x in (figure.value, figure.low, figure.high)
    )
    return value if low == high else f"{value} ({low} to {high})"


def _learn_document(report: "LearnReport") -> dict[str, object]:
    return {
        "study": "learn",
        "config": asdict(report.config),
        "spent": asdict(report.spent),
        "learned": asdict(report.learned) if report.learned else None,
        "promoted": asdict(report.promoted),
        "imitation_spent": asdict(report.imitation.spent) if report.imitation else None,
        "test_sessions": len(report.starts),
        "best_policy_computed_reward": report.optimum_value,
        "players": [asdict(summary) for summary in report.summaries()],
        "goals": [asdict(goal) for goal in report.goals()],
        "curve": [
            {
                **asdict(point.spent),
                "pips": float(point.agent.pips.mean()),
                "reward": float(point.agent.reward.mean()),
                "trades": float(point.agent.trades.mean()),
                "best_pips": float(point.best.pips.mean()),
                "best_reward": float(point.best.reward.mean()),
            }
            for point in report.curve
        ],
    }


def _print_learning(report: "LearnReport") -> None:
    config, spent = report.config, report.spent
    print_fields(
        "learn",
        {
            "market": config.market,
            "reward": config.environment.reward,
            "seed": config.seed,
            "minutes": spent.seconds / 60.0,
            "learned from": f"{spent.episodes:,} episodes in {spent.updates:,} updates",
            "imitation of the best policy": _imitation_learned(report),
            "80 % of the imitation reached": _learned(report),
            "promoted": _promoted(report),
            "judged on": f"{len(report.starts):,} test sessions",
            "computed reward of the best policy": report.optimum_value,
        },
    )
    players = report.summaries()
    print_table(
        "Means per session, with 95 % intervals",
        ("player", "net pips", "reward", "trades"),
        ((one.name, _estimate(one.pips, 1), _estimate(one.reward, 1), one.trades) for one in players),
    )
    print_table(
        "Share of the net pips",
        ("player", "of the best policy", "of the imitation"),
        (
            (one.name, _estimate(one.share_of_pips, 2), _estimate(one.imitation_share_of_pips, 2))
            for one in players
        ),
    )
    print_table(
        "Share of the reward",
        ("player", "of the best policy", "of the imitation"),
        (
            (one.name, _estimate(one.share_of_reward, 2), _estimate(one.imitation_share_of_reward, 2))
            for one in players
        ),
    )
    if goals := report.goals():
        print_table("Goals", ("goal", "reached", "met"), [(one.goal, one.reached, one.met) for one in goals])


def _learned(report: "LearnReport") -> str | None:
    if report.imitation is None:
        return None
    if report.learned is None:
        return "no"
    spent = report.learned
    return f"after {spent.seconds / 60.0:.1f} minutes, {spent.episodes:,} episodes (validation sessions)"


def _promoted(report: "LearnReport") -> str:
    spent = report.promoted
    return f"version after {spent.seconds / 60.0:.1f} minutes, the best on validation sessions"


def _imitation_learned(report: "LearnReport") -> str | None:
    if report.imitation is None:
        return None
    spent = report.imitation.spent
    return f"{spent.updates:,} updates in {spent.seconds / 60.0:.2f} minutes"


def _estimate(estimate: "Estimate | None", decimals: int) -> str | None:
    if estimate is None:
        return None
    value, low, high = estimate.value, estimate.interval.low, estimate.interval.high
    return f"{value:,.{decimals}f} ({low:,.{decimals}f} to {high:,.{decimals}f})"
