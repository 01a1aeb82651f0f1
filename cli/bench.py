"""`bench`: how fast, and how well it learns, as ratios to yardsticks measured in the same run."""

import math
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.output import err, figure, print_fields, print_json, print_table, progress_bar
from shared.environment.reward import RewardScheme
from shared.errors import SettingsError
from shared.market.synthetic import Market

if TYPE_CHECKING:  # these bring torch, pandas and Redis along: each command imports what it measures
    from benchmarks.compare import CompareRecord, Learned, Range, WaySummary
    from benchmarks.learn import LearnConfig, LearnReport
    from benchmarks.measure import Measurement
    from benchmarks.scores import Estimate

app = typer.Typer(
    help="Measure speed and learning, as ratios to named yardsticks.",
    no_args_is_help=True,
    add_completion=False,
)

Json = Annotated[bool, typer.Option("--json", help="print one JSON document")]
Bars = Annotated[int, typer.Option(min=1_000, help="bars of the synthetic market")]
Seconds = Annotated[float, typer.Option(min=0.0, help="to measure for, at least")]
Profile = Annotated[Path | None, typer.Option(help="TOML file of settings, such as config/tuned.toml")]
Seed = Annotated[int, typer.Option(min=0, help="of everything that is drawn")]

#: 3.59 years of GBP/JPY minutes, for which docs/benchmarks.md has goals.
MARKET_BARS = 1_330_000


@app.command()
def features(bars: Bars = MARKET_BARS, as_json: Json = False) -> None:
    """Temporal features of a long history, against pandas expressions of the same formulas."""
    from benchmarks.features import bench_features

    _print("features", [bench_features(bars)], as_json=as_json)


@app.command()
def sessions(bars: Bars = MARKET_BARS, as_json: Json = False) -> None:
    """The session index of a long history, against NumPy over sliding windows."""
    from benchmarks.sessions import bench_sessions

    _print("sessions", [bench_sessions(bars)], as_json=as_json)


@app.command()
def search(
    batch: Annotated[list[int] | None, typer.Option(min=1, help="roots; may be repeated")] = None,
    simulations: Annotated[list[int] | None, typer.Option(min=1, help="may be repeated")] = None,
    peers: Annotated[bool, typer.Option(help="against mctx and node objects too")] = True,
    seconds: Seconds = 1.0,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Decisions of the search, against its network calls alone and against peers; so long for each size."""
    from benchmarks.peers.lightzero import lightzero_missing
    from benchmarks.peers.process import why_not
    from benchmarks.search import BATCHES, SIMULATIONS, compare_search

    _one_thread()
    for peer, reason in (("mctx", why_not()), ("LightZero's tree", lightzero_missing())):
        if peers and reason:
            err.print(f"{peer} is left out: {reason}", soft_wrap=True)
    speeds = compare_search(
        batches=batch or BATCHES,
        simulations=simulations or SIMULATIONS,
        seconds=seconds,
        seed=seed,
        peers=peers,
    )
    rows = [measurement for speed in speeds for measurement in speed.measurements]
    _print("search", rows, as_json=as_json)


@app.command()
def improvement(
    problems: Annotated[int, typer.Option(min=2, help="random one-step problems")] = 4_096,
    spread: Annotated[
        float, typer.Option(min=0.0, help="of what one action's outcomes are worth, around its Q")
    ] = 0.0,
    seed: Seed = 0,
    out: Annotated[Path, typer.Option("--out", help="the picture's PNG")] = Path("improvement.png"),
    as_json: Json = False,
) -> None:
    """What each selection rule's policy target is worth, against always taking the best action."""
    from benchmarks.improvement import bench_improvement
    from benchmarks.improvement_picture import draw_improvement
    from shared.adapters.picture import require_drawable

    require_drawable(out)
    report = bench_improvement(problems=problems, spread=spread, seed=seed)
    draw_improvement(report, out)
    if as_json:
        document = {**asdict(report), "goals": [goal.document() for goal in report.goals]}
        print_json({"benchmark": "improvement", **document, "picture": str(out)})
        return
    print_table(
        f"Gain of the policy target over the prior, in true Q; at best {report.best_gain:+.3f}",
        ("error", "simulations", "rule", "gain", "standard error", "roots made worse"),
        (
            (
                row.error,
                row.simulations,
                row.rule,
                f"{row.gain:+.3f}",
                f"{row.standard_error:.3f}",
                f"{100.0 * row.worse:.1f} %",
            )
            for row in report.rows
        ),
    )
    _print("improvement", report.goals, as_json=False)
    err.print(f"picture: {out}", soft_wrap=True)


@app.command()
def selfplay(
    lanes: Annotated[int | None, typer.Option(min=1, help="sessions in lockstep; the setting's")] = None,
    simulations: Annotated[int | None, typer.Option(min=1, help="of every decision; the setting's")] = None,
    replicas: Annotated[
        int, typer.Option(min=1, help="processes at once, each on a core of its own, beside one alone")
    ] = 1,
    bars: Bars = 100_000,
    seconds: Seconds = 15.0,
    minutes: Annotated[
        float | None, typer.Option(min=0.1, help="play so long instead, and tell how memory grew")
    ] = None,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Whole self-play workers, against their network evaluations alone."""
    from benchmarks.selfplay import bench_selfplay, bfloat16_measurement
    from services.selfplay.config import SelfPlayConfig
    from shared.search.config import SearchConfig

    speeds = bench_selfplay(
        selfplay=replace(SelfPlayConfig(), lanes=lanes or SelfPlayConfig.lanes),
        search=replace(SearchConfig(), simulations=simulations or SearchConfig.simulations),
        num_bars=bars,
        replicas=replicas,
        seconds=60.0 * minutes if minutes else seconds,
        seed=seed,
    )
    rows = [row for speed in speeds for row in speed.measurements(soak=minutes is not None)]
    if gained := bfloat16_measurement(speeds):
        rows.append(gained)
    shares = {speed.precision.value: speed.shares for speed in speeds}
    _print("selfplay", rows, as_json=as_json, shares_of_time=shares)
    if not as_json:
        print_table(
            "What a worker does with its time, in %",
            ("precision", *speeds[0].shares),
            [
                (precision, *(f"{100.0 * share:.1f}" for share in parts.values()))
                for precision, parts in shares.items()
            ],
        )


@app.command()
def learner(seconds: Seconds = 10.0, seed: Seed = 0, as_json: Json = False) -> None:
    """Updates of the learner, against their forward and backward passes alone."""
    from benchmarks.learner import bench_learner

    _one_thread()
    _print("learner", bench_learner(seconds=seconds, seed=seed).measurements, as_json=as_json)


@app.command()
def stream(
    count: Annotated[int, typer.Option(min=1, help="trajectories to send")] = 1_024,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Trajectories through a Redis that syncs every write, against redis-benchmark with the same payload."""
    from benchmarks.stream import bench_stream

    speed = bench_stream(count, seed=seed)
    if speed.tool is None:
        err.print("redis-benchmark is left out: it is not on PATH, nor is valkey-benchmark", soft_wrap=True)
    steps = {name: round(cost, 1) for name, cost in speed.steps.rows}
    _print("stream", speed.measurements, as_json=as_json, microseconds=steps)
    if not as_json:
        whole = sum(cost for _, cost in speed.steps.rows)
        print_table(
            f"Of one trajectory on its way into the replay: {whole:,.0f} µs",
            ("step", "µs", "share in %"),
            ((name, f"{cost:,.1f}", f"{100.0 * cost / whole:.1f}") for name, cost in speed.steps.rows),
        )


@app.command()
def replay(
    steps: Annotated[int, typer.Option(min=10_000, help="that the large replay holds")] = 10_000_000,
    seconds: Seconds = 2.0,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Adding to and drawing from a large replay, against one of 10,000 steps; and its memory."""
    from benchmarks.replay import bench_replay

    _print("replay", bench_replay(steps, seconds=seconds, seed=seed), as_json=as_json)


@app.command()
def montecarlo(
    runs: Annotated[int, typer.Option(min=1)] = 1_000,
    trades: Annotated[int, typer.Option(min=10, help="of the list, and of every run")] = 5_000,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Monte Carlo over a trade list, against a loop over runs in NumPy."""
    from benchmarks.montecarlo import bench_montecarlo

    _print("montecarlo", bench_montecarlo(runs=runs, trades=trades, seed=seed), as_json=as_json)


@app.command()
def networks(
    batch: Annotated[
        list[int] | None,
        typer.Option("--batch", min=1, help="rows of a call, can be repeated; 1, 16, 64, 256 and 1024"),
    ] = None,
    seconds: Seconds = 2.0,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """The networks by every engine there is, and the encoder's passes, against plain torch."""
    from benchmarks.encodings import bench_encodings
    from benchmarks.engines import engines
    from benchmarks.networks import BATCHES, bench_engines

    _one_thread()
    candidates = engines()
    encodings = bench_encodings(seconds=seconds, seed=seed)
    speeds = []
    with progress_bar() as bar:
        for rows in bar.track(batch or BATCHES, description="numbers of rows"):
            speeds += bench_engines(batches=[rows], among=candidates, seconds=seconds, seed=seed)
    left_out = {engine.label: engine.missing for engine in candidates if engine.missing}
    if as_json:
        documents = [*(s.document() for s in encodings), *(s.document() for s in speeds)]
        print_json({"benchmark": "networks", "measurements": documents, "left_out": left_out})
        return
    print_table(
        "bench networks: an embedding; ratios say how many times as much the plain pass takes",
        ("windows", "encoded by", "µs", "ratio", "multiply-adds", "ratio"),
        (
            (s.windows, s.encoding, s.microseconds, s.measurement.ratio, round(s.multiply_adds), s.saving)
            for s in encodings
        ),
    )
    print_table(
        "bench networks: dynamics, reward and value; a ratio above 1 is quicker than torch eager in float32",
        ("rows", "engine", "precision", "µs", "GFLOP/s", "ratio"),
        ((s.rows, s.engine, s.precision, s.microseconds, s.gigaflops, s.measurement.ratio) for s in speeds),
    )
    for label, reason in left_out.items():
        err.print(f"left out: {label}: {reason}", highlight=False, soft_wrap=True)


@app.command()
def inference(
    decisions: Annotated[int, typer.Option(min=1, help="to measure, one after the other")] = 500,
    as_json: Json = False,
) -> None:
    """One decision over HTTP, against the same decision in the process that asks."""
    from benchmarks.inference import bench_inference

    _print("inference", bench_inference(decisions=decisions), as_json=as_json)


@app.command()
def learn(
    market: Annotated[Market, typer.Option(help="the law that prices follow")] = Market.OU,
    reward: Annotated[RewardScheme, typer.Option(help="what a step is paid")] = RewardScheme.PNL,
    minutes: Annotated[
        float, typer.Option(min=0.01, help="of self-play and learning; evaluation comes on top")
    ] = 5.0,
    imitation_minutes: Annotated[
        float,
        typer.Option(min=0.0, help="of training the same network on the best policy, on top; 0 for none"),
    ] = 3.0,
    seed: Seed = 0,
    profile: Profile = None,
    record: Annotated[
        Path | None,
        typer.Option(help="folder for every update, episode and evaluation, in Parquet and for TensorBoard"),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="the learning curve's PNG; learn-MARKET-REWARD-SEED.png")
    ] = None,
    as_json: Json = False,
) -> None:
    """Train on a synthetic market, against its best policy and its own network trained on that policy."""
    from benchmarks.curve import draw_curve
    from shared.adapters.picture import require_drawable

    picture = out or Path(f"learn-{market}-{reward}-{seed}.png")
    require_drawable(picture)
    _one_thread()
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


@app.command()
def compare(
    market: Annotated[Market, typer.Option(help="the law that prices follow")] = Market.OU,
    reward: Annotated[RewardScheme, typer.Option(help="what a step is paid")] = RewardScheme.PNL,
    minutes: Annotated[float, typer.Option(min=0.01, help="of self-play and learning of each run")] = 8.0,
    seeds: Annotated[int, typer.Option(min=1, help="runs of each way")] = 3,
    first_seed: Annotated[int, typer.Option(min=0, help="the others count on from it")] = 0,
    way: Annotated[list[str] | None, typer.Option(help="may be repeated; all when not given")] = None,
    profile: Profile = None,
    record: Annotated[
        Path | None,
        typer.Option(
            file_okay=False,
            help="folder that keeps each run as soon as it is done; what it holds is not repeated, and "
            "processes with other ways or seeds may share it",
        ),
    ] = None,
    show: Annotated[bool, typer.Option("--show", help="run nothing, tell all that the record holds")] = False,
    out: Annotated[Path, typer.Option("--out", help="the learning curves' PNG")] = Path("compare.png"),
    as_json: Json = False,
) -> None:
    """Selection rules, simulations and returns, each learned with by several seeds."""
    from benchmarks.compare import LEARNED_SHARE, WAYS, CompareRecord, plan, summaries
    from benchmarks.compare_picture import draw_comparison
    from shared.adapters.picture import require_drawable

    require_drawable(out)
    _one_thread()
    config = replace(_learn_config(profile, reward), market=market, minutes=minutes, imitation_minutes=0.0)
    planned = plan(way or list(WAYS), range(first_seed, first_seed + seeds))
    kept = CompareRecord(record, config) if record else None
    recorded = {(run.way, run.seed): run for run in kept.runs()} if kept else {}
    if show:
        planned = list(recorded)
        if not planned:
            raise SettingsError(f"--show: no run is kept in {record}, expected a folder that --record filled")
    runs = [recorded[one] for one in planned if one in recorded]
    if runs:
        err.print(f"{len(runs)} of {len(planned)} runs are in {record}", highlight=False, soft_wrap=True)
        draw_comparison(runs, out)
    left = [one for one in planned if one not in recorded]
    _learn_ways(config, left, kept, runs, out)
    order = list(dict.fromkeys(name for name, _ in planned))
    runs.sort(key=lambda run: (order.index(run.way), run.seed))
    if as_json:
        told = {"ways": [asdict(row) for row in summaries(runs)], "runs": [asdict(run) for run in runs]}
        print_json({"benchmark": "compare", **told, "picture": str(out)})
        return
    print_table(
        f"bench compare: {market}, {reward}, {minutes:g} minutes; goal: {LEARNED_SHARE} of the best policy's",
        (
            "way",
            "goal reached",
            "minutes (median)",
            "episodes (median)",
            "share at the end (mean)",
        ),
        [_way_row(row) for row in summaries(runs)],
    )
    err.print(f"learning curves: {out}", soft_wrap=True)


def _one_thread() -> None:
    """Every goal is for one thread a worker."""
    import torch

    torch.set_num_threads(1)


def _print(benchmark: str, measurements: Sequence["Measurement"], *, as_json: bool, **more: object) -> None:
    """Print a table, or one document with `more` in it."""
    if as_json:
        rows = [measurement.document() for measurement in measurements]
        print_json({"benchmark": benchmark, "measurements": rows, **more})
        return
    print_table(
        f"bench {benchmark}: a ratio above 1 is better than the yardstick",
        ("measured", "value", "yardstick", "ratio", "goal", "met"),
        (
            (
                row.name,
                f"{figure(row.value)} {row.unit}",
                f"{figure(row.yardstick_value)} {row.unit}: {row.yardstick}",
                f"{row.ratio:.3g}",
                row.goal,
                row.met,
            )
            for row in measurements
        ),
    )


def _learn_config(profile: Path | None, reward: RewardScheme) -> "LearnConfig":
    """A run with the settings of trainer and self-play, of which the reward is told."""
    from benchmarks.learn import LearnConfig
    from services.selfplay.settings import SelfPlaySettings
    from services.trainer.settings import TrainerSettings
    from shared.runtime.settings import load

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
    from benchmarks.imitation import ImitationSpent
    from benchmarks.learn import Spent, learn

    with progress_bar() as bar:
        task = bar.add_task("seconds of learning", total=round(60.0 * config.minutes))
        imitation = bar.add_task("seconds of imitation", total=round(60.0 * config.imitation_minutes))

        def show(spent: Spent) -> None:
            bar.update(task, completed=round(spent.seconds), description=f"{spent.episodes:,} episodes")

        def show_imitation(spent: ImitationSpent) -> None:
            described = f"imitation, {spent.updates:,} updates"
            bar.update(imitation, completed=round(spent.seconds), description=described)

        return learn(config, record=record, progress=show, imitation_progress=show_imitation)


def _learn_ways(
    config: "LearnConfig",
    left: Sequence[tuple[str, int]],
    record: "CompareRecord | None",
    runs: "list[Learned]",
    picture: Path,
) -> None:
    """Add the runs that are left, one by one; each is told, and drawn with the others, when it is done."""
    from benchmarks.compare import compare as compare_ways
    from benchmarks.compare_picture import draw_comparison

    try:
        with progress_bar() as bar:
            for run in bar.track(compare_ways(config, left, record), total=len(left), description="runs"):
                runs.append(run)
                err.print(str(run), markup=False, highlight=False, soft_wrap=True)
                draw_comparison(runs, picture)
    except KeyboardInterrupt:
        fate = "kept, the same command goes on after them" if record else "not kept without --record"
        err.print(f"interrupted; finished runs: {len(runs)}, {fate}", highlight=False, soft_wrap=True)
        raise


def _way_row(row: "WaySummary") -> tuple[object, ...]:
    diverged = f", {row.num_failed} diverged" if row.num_failed else ""
    return (
        row.way,
        f"{row.num_reached} of {row.num_runs}{diverged}",
        _range(row.median_minutes, ".2f"),
        _range(row.median_episodes, ",.0f"),
        _range(row.mean_share, ".2f") if row.mean_share else None,
    )


def _range(told: "Range", spec: str) -> str:
    """A figure of several seeds, with the least and the most; infinite is never."""
    value, low, high = (
        format(one, spec) if math.isfinite(one) else "never" for one in (told.value, told.low, told.high)
    )
    return value if low == high else f"{value} ({low} to {high})"


def _learn_document(report: "LearnReport") -> dict[str, object]:
    return {
        "benchmark": "learn",
        "config": asdict(report.config),
        "spent": asdict(report.spent),
        "learned": asdict(report.learned) if report.learned else None,
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
        "bench learn",
        {
            "market": config.market,
            "reward": config.environment.reward,
            "seed": config.seed,
            "minutes": spent.seconds / 60.0,
            "learned from": f"{spent.episodes:,} episodes, in {spent.updates:,} updates",
            "imitation of the best policy": _imitation_learned(report),
            "80 % of the imitation": _learned(report),
            "judged in": f"{len(report.starts):,} test sessions",
            "the best policy's computed reward": report.optimum_value,
        },
    )
    players = report.summaries()
    print_table(
        "A mean session, with 95 % intervals over sessions",
        ("player", "net pips", "reward", "trades"),
        ((one.name, _estimate(one.pips, 1), _estimate(one.reward, 1), one.trades) for one in players),
    )
    print_table(
        "Shares of the net pips of both yardsticks",
        ("player", "of the best policy's", "of the imitation's"),
        (
            (one.name, _estimate(one.share_of_pips, 2), _estimate(one.imitation_share_of_pips, 2))
            for one in players
        ),
    )
    print_table(
        "Shares of the reward of both yardsticks",
        ("player", "of the best policy's", "of the imitation's"),
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
        return "not reached in validation sessions"
    spent = report.learned
    return f"after {spent.seconds / 60.0:.1f} minutes and {spent.episodes:,} episodes, in validation sessions"


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
