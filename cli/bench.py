"""`bench`: speed, as ratios to yardsticks measured in the same run."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated

import typer

from cli.bench_options import Json, Profile, Seconds, Seed, one_thread, print_measurements, print_shares
from cli.output import err, print_json, print_table, progress_bar

app = typer.Typer(
    help="Measure speed, as ratios to named yardsticks.",
    no_args_is_help=True,
    add_completion=False,
)

Bars = Annotated[int, typer.Option(min=1_000, help="bars of the synthetic market")]

#: 3.59 years of GBP/JPY minutes, for which docs/benchmarks.md has goals.
MARKET_BARS = 1_330_000


@app.command()
def features(bars: Bars = MARKET_BARS, as_json: Json = False) -> None:
    """Temporal features of a long history, against pandas expressions of the same formulas."""
    from benchmarks.features import bench_features

    print_measurements("features", [bench_features(bars)], as_json=as_json)


@app.command()
def sessions(bars: Bars = MARKET_BARS, as_json: Json = False) -> None:
    """The session index of a long history, against NumPy over sliding windows."""
    from benchmarks.sessions import bench_sessions

    print_measurements("sessions", [bench_sessions(bars)], as_json=as_json)


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

    one_thread()
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
    print_measurements("search", rows, as_json=as_json)


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
    print_measurements("improvement", report.goals, as_json=False)
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
        float | None,
        typer.Option(min=0.1, help="play for so many seconds instead, and report how memory grew"),
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
    print_measurements("selfplay", rows, as_json=as_json, shares_of_time=shares)
    if not as_json:
        print_shares("What a worker does with its time", "precision", shares)


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
    print_measurements("stream", speed.measurements, as_json=as_json, microseconds=steps)
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

    print_measurements("replay", bench_replay(steps, seconds=seconds, seed=seed), as_json=as_json)


@app.command()
def montecarlo(
    runs: Annotated[int, typer.Option(min=1)] = 1_000,
    trades: Annotated[int, typer.Option(min=10, help="of the list, and of every run")] = 5_000,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Monte Carlo over a trade list, against a loop over runs in NumPy."""
    from benchmarks.montecarlo import bench_montecarlo

    print_measurements("montecarlo", bench_montecarlo(runs=runs, trades=trades, seed=seed), as_json=as_json)


@app.command()
def learner(seconds: Seconds = 10.0, seed: Seed = 0, profile: Profile = None, as_json: Json = False) -> None:
    """Updates of the learner, against their forward and backward passes alone, and what they are made of."""
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
        print_shares("What an update's time is spent on", "precision", {speed.precision: speed.shares})


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

    one_thread()
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

    print_measurements("inference", bench_inference(decisions=decisions), as_json=as_json)
