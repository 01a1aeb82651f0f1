"""`bench`: measures speed as ratios to yardsticks of the same run."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated

import typer

from cli.bench_options import Json, Profile, Seconds, Seed, one_thread, print_measurements, print_shares
from cli.output import err, print_json, print_table, progress_bar

app = typer.Typer(
    help="Measure speed as ratios to named yardsticks.",
    no_args_is_help=True,
    add_completion=False,
)

Bars = Annotated[int, typer.Option(min=1_000, help="bars of the synthetic market")]

#: 3.59 years of GBP/JPY minutes, the size of the goals in docs/benchmarks.md.
MARKET_BARS = 1_330_000


@app.command()
def features(bars: Bars = MARKET_BARS, as_json: Json = False) -> None:
    """Compute temporal features of a long history; yardstick: pandas with the same formulas."""
    from benchmarks.features import bench_features

    print_measurements("features", [bench_features(bars)], as_json=as_json)


@app.command()
def sessions(bars: Bars = MARKET_BARS, as_json: Json = False) -> None:
    """Compute the session index of a long history; yardstick: NumPy over sliding windows."""
    from benchmarks.sessions import bench_sessions

    print_measurements("sessions", [bench_sessions(bars)], as_json=as_json)


@app.command()
def search(
    batch: Annotated[list[int] | None, typer.Option(min=1, help="number of roots, repeatable")] = None,
    simulations: Annotated[
        list[int] | None, typer.Option(min=1, help="simulations per decision, repeatable")
    ] = None,
    peers: Annotated[bool, typer.Option(help="measure mctx and other searches too")] = True,
    seconds: Seconds = 1.0,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Decisions of the search; yardsticks: network calls alone, other searches. `--seconds` is per size."""
    from benchmarks.peers.lightzero import lightzero_missing
    from benchmarks.peers.process import mctx_missing
    from benchmarks.search import BATCHES, SIMULATIONS, compare_search

    one_thread()
    for peer, reason in (("mctx", mctx_missing()), ("LightZero's tree", lightzero_missing())):
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
    print_measurements("search", rows, as_json=as_json, rows_are="roots × simulations, precision")


@app.command()
def improvement(
    problems: Annotated[int, typer.Option(min=2, help="number of random one-step problems")] = 4_096,
    spread: Annotated[
        float, typer.Option(min=0.0, help="spread of the outcomes of an action around its Q")
    ] = 0.0,
    seed: Seed = 0,
    out: Annotated[Path, typer.Option("--out", help="PNG file for the picture")] = Path("improvement.png"),
    as_json: Json = False,
) -> None:
    """Value of the policy targets of each selection rule; yardstick: always the best action."""
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
        f"Gain of the policy target over the prior, in true Q; maximum {report.best_gain:+.3f}",
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
    print_measurements("improvement", report.goals, as_json=False)
    err.print(f"picture: {out}", soft_wrap=True)


@app.command()
def selfplay(
    lanes: Annotated[
        int | None, typer.Option(min=1, help="number of lanes; default: the built-in setting")
    ] = None,
    simulations: Annotated[
        int | None, typer.Option(min=1, help="simulations per decision; default: the built-in setting")
    ] = None,
    replicas: Annotated[
        int,
        typer.Option(min=1, help="processes to measure at once, one per core; one alone is measured first"),
    ] = 1,
    bars: Bars = 100_000,
    seconds: Seconds = 15.0,
    minutes: Annotated[
        float | None,
        typer.Option(min=0.1, help="minutes to play instead of --seconds; also reports memory growth"),
    ] = None,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Self-play workers; yardstick: their network evaluations alone."""
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
    if gain := bfloat16_measurement(speeds):
        rows.append(gain)
    shares = {speed.precision.value: speed.shares for speed in speeds}
    print_measurements("selfplay", rows, as_json=as_json, shares_of_time=shares)
    if not as_json:
        print_shares("Shares of a worker's time", "precision", shares)


@app.command()
def stream(
    count: Annotated[int, typer.Option(min=1, help="number of trajectories")] = 1_024,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Trajectories through Redis with fsync on every write; yardstick: redis-benchmark, same payload."""
    from benchmarks.stream import bench_stream

    speed = bench_stream(count, seed=seed)
    if speed.tool is None:
        err.print("redis-benchmark is left out: it is not on PATH, nor is valkey-benchmark", soft_wrap=True)
    steps = {name: round(cost, 1) for name, cost in speed.steps.rows}
    print_measurements("stream", speed.measurements, as_json=as_json, microseconds=steps)
    if not as_json:
        total = sum(cost for _, cost in speed.steps.rows)
        print_table(
            f"Steps of one trajectory into the replay: {total:,.0f} µs",
            ("step", "µs", "share in %"),
            ((name, f"{cost:,.1f}", f"{100.0 * cost / total:.1f}") for name, cost in speed.steps.rows),
        )


@app.command()
def replay(
    steps: Annotated[int, typer.Option(min=10_000, help="steps in the large replay")] = 10_000_000,
    seconds: Seconds = 2.0,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Inserts, draws and memory of a large replay; yardstick: a replay of 10,000 steps."""
    from benchmarks.replay import bench_replay

    print_measurements("replay", bench_replay(steps, seconds=seconds, seed=seed), as_json=as_json)


@app.command()
def montecarlo(
    runs: Annotated[int, typer.Option(min=1, help="number of runs")] = 1_000,
    trades: Annotated[int, typer.Option(min=10, help="trades in the list and in each run")] = 5_000,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Monte Carlo over a trade list; yardstick: a loop over runs in NumPy."""
    from benchmarks.montecarlo import bench_montecarlo

    print_measurements("montecarlo", bench_montecarlo(runs=runs, trades=trades, seed=seed), as_json=as_json)


@app.command()
def learner(seconds: Seconds = 10.0, seed: Seed = 0, profile: Profile = None, as_json: Json = False) -> None:
    """Updates of the learner and the time of their parts; yardstick: forward and backward passes alone."""
    from benchmarks.learner import bench_learner
    from services.selfplay.settings import SelfPlaySettings
    from services.trainer.settings import TrainerSettings
    from services.trainer.training import TrainingConfig
    from shared.runtime.settings import load

    given = {"profile": profile} if profile else {}
    training = load(TrainerSettings, **given)
    discount = load(SelfPlaySettings, **given).search.discount
    trainer = replace(training.trainer, seed=seed)
    speed = bench_learner(
        TrainingConfig(training.model, training.replay, training.learner, trainer, discount),
        seconds=seconds,
    )
    print_measurements("learner", speed.measurements, as_json=as_json, shares_of_time=speed.shares)
    if not as_json:
        print_shares("Shares of an update's time", "precision", {speed.precision: speed.shares})


@app.command()
def networks(
    batch: Annotated[
        list[int] | None,
        typer.Option("--batch", min=1, help="rows per call, repeatable; default: 1, 16, 64, 256 and 1024"),
    ] = None,
    seconds: Seconds = 2.0,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """The networks in every available engine, and the passes of the encoder; yardstick: plain torch."""
    from benchmarks.encodings import bench_encodings
    from benchmarks.engines import engines
    from benchmarks.networks import BATCHES, bench_engines

    one_thread()
    candidates = engines()
    encodings = bench_encodings(seconds=seconds, seed=seed)
    speeds = []
    with progress_bar() as bar:
        for rows in bar.track(batch or BATCHES, description="batch sizes"):
            speeds += bench_engines(batches=[rows], among=candidates, seconds=seconds, seed=seed)
    left_out = {engine.label: engine.missing for engine in candidates if engine.missing}
    if as_json:
        documents = [*(s.document() for s in encodings), *(s.document() for s in speeds)]
        print_json({"benchmark": "networks", "measurements": documents, "left_out": left_out})
        return
    print_table(
        "bench networks: one embedding; ratios are relative to the plain pass",
        ("windows", "encoded by", "µs", "ratio", "multiply-adds", "ratio"),
        (
            (s.windows, s.encoding, s.microseconds, s.measurement.ratio, round(s.multiply_adds), s.saving)
            for s in encodings
        ),
    )
    print_table(
        "bench networks: dynamics, reward and value; a ratio above 1 is faster than torch eager in float32",
        ("rows", "engine", "precision", "µs", "GFLOP/s", "ratio"),
        ((s.rows, s.engine, s.precision, s.microseconds, s.gigaflops, s.measurement.ratio) for s in speeds),
    )
    for label, reason in left_out.items():
        err.print(f"left out: {label}: {reason}", highlight=False, soft_wrap=True)


@app.command()
def inference(
    decisions: Annotated[int, typer.Option(min=1, help="number of decisions, one after the other")] = 500,
    as_json: Json = False,
) -> None:
    """One decision over HTTP; yardstick: the same decision in the client process."""
    from benchmarks.inference import bench_inference

    print_measurements("inference", bench_inference(decisions=decisions), as_json=as_json)
