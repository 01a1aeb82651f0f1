"""`selfplay --once` and `selfplay --render`: some episodes into a file and a picture, without Redis."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.local_data import prepare_dataset
from cli.output import out, print_fields, print_json, progress_bar
from cli.runs import checkpoint_store, chosen_version, last_run
from cli.settings import UpSettings
from shared.errors import SettingsError
from shared.runtime.settings import load

if TYPE_CHECKING:  # these bring torch along: they are imported when something is to be played
    from services.selfplay.played import PlayedEpisode
    from services.selfplay.settings import SelfPlaySettings
    from shared.agent.agent import Agent

#: What `selfplay` is not run as a service with.
OPTIONS = ("--once", "--render", "--from", "--out", "--episodes")

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@app.command()
def selfplay(
    once: Annotated[
        bool, typer.Option("--once", help="play so many episodes and end, without Redis")
    ] = False,
    episodes: Annotated[
        int | None, typer.Option(min=1, help="to play; 1 when not given, or as many as --render needs")
    ] = None,
    out_file: Annotated[
        Path | None,
        typer.Option("--out", help="a new Parquet file, a row per decision; one that exists is not replaced"),
    ] = None,
    render: Annotated[
        int | None,
        typer.Option(min=0, help="draw this episode, counted from 0; without --once from the file --from"),
    ] = None,
    from_file: Annotated[
        Path | None, typer.Option("--from", help="a file that --out has written, to draw from")
    ] = None,
    picture: Annotated[
        Path | None, typer.Option(help="the PNG to draw, replaced if it is there; selfplay-EPISODE.png")
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(help="a data set; the last local run's, or a synthetic market, when not given"),
    ] = None,
    checkpoint: Annotated[
        str | None,
        typer.Option(help="a version's number, or latest, best, promoted; random weights when not given"),
    ] = None,
    store: Annotated[
        str | None,
        typer.Option(help="folder or URL of versions; MM_CHECKPOINTS or the last local run's else"),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="of sessions, exploration and random weights")] = 0,
    profile: Annotated[Path | None, typer.Option(help="TOML file with a table per group of settings")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON document")] = False,
) -> None:
    """Play some episodes into a file, draw one of them, or both.

    Sessions of the train split are played as a self-play worker plays them, exploration included; equal
    options give equal episodes. The file and the picture are written completely or not at all.
    """
    from services.selfplay.picture import draw_episode
    from services.selfplay.played import read_episode, refuse_to_replace, write_episodes
    from shared.adapters.picture import require_drawable

    played_with = {"--episodes": episodes, "--out": out_file, "--data": data, "--checkpoint": checkpoint}
    _check(once, render, from_file, [name for name, value in played_with.items() if value is not None])
    drawn = picture or Path(f"selfplay-{render}.png")
    if render is not None:
        require_drawable(drawn)
    if from_file is not None and render is not None:
        draw_episode(read_episode(from_file, render), drawn)
        print_json({"picture": str(drawn)}) if as_json else _tell(f"picture: {drawn}")
        return
    if out_file is not None:
        refuse_to_replace(out_file)
    count = episodes if episodes is not None else (render or 0) + 1
    if render is not None and render >= count:
        raise SettingsError(f"--render {render}: {count} episodes are numbered 0 to {count - 1}")
    session = _play(count, data, checkpoint, store, seed, profile)
    if out_file is not None:
        write_episodes(out_file, session.episodes)
    if render is not None:
        draw_episode(session.episodes[render], drawn)
    written = {"out": out_file, "picture": drawn if render is not None else None}
    document = {**session.summary(), **{key: str(path) for key, path in written.items() if path is not None}}
    print_json(document) if as_json else print_fields("episodes played", document)


def wants(arguments: list[str]) -> bool:
    """Whether a command line asks for this, rather than for the service."""
    return any(argument.partition("=")[0] in OPTIONS for argument in arguments)


def main(arguments: list[str]) -> None:
    """Run the command; it ends the process as every command does."""
    typer.main.get_command(app).main(args=arguments, prog_name="micro-muzero selfplay")


@dataclass(frozen=True)
class _Session:
    """What was played, and on what."""

    dataset: Path
    seed: int
    seconds: float
    episodes: "list[PlayedEpisode]"

    def summary(self) -> dict[str, object]:
        """In a few numbers, by name."""
        import numpy as np

        from shared.environment.action import Action

        played = [episode.trajectory for episode in self.episodes]
        actions = np.concatenate([trajectory.actions for trajectory in played])
        pips = [trade.pips for trajectory in played for trade in trajectory.trades]
        rewards = sum(float(trajectory.rewards.sum()) for trajectory in played)
        return {
            "data": str(self.dataset),
            "fingerprint": played[0].dataset,
            "version": played[0].checkpoint_version,
            "seed": self.seed,
            "episodes": len(played),
            "decisions": len(actions),
            "decisions_per_second": len(actions) / self.seconds,
            "trades": len(pips),
            "won": sum(one > 0.0 for one in pips),
            "pips_per_episode": sum(pips) / len(played),
            "reward_per_episode": rewards / len(played),
            **{f"share_{action.name.lower()}": float((actions == action).mean()) for action in Action},
        }


def _check(once: bool, render: int | None, from_file: Path | None, played_with: list[str]) -> None:
    """Refuse options that do not go together.

    Raises:
        SettingsError: they do not; names them and what would be right.
    """
    if once:
        if from_file is not None:
            raise SettingsError("--from draws what was played before: expected it without --once")
        if render is None and "--out" not in played_with:
            raise SettingsError("--once: expected --out FILE, --render EPISODE, or both")
    elif render is None or from_file is None:
        raise SettingsError(
            "expected --once to play, or --render EPISODE --from FILE to draw what was played"
        )
    elif played_with:
        raise SettingsError(f"{played_with[0]}: nothing is played without --once")


def _play(
    count: int,
    data: Path | None,
    checkpoint: str | None,
    store: str | None,
    seed: int,
    profile: Path | None,
) -> _Session:
    import numpy as np

    from services.selfplay.played import PlayedEpisode
    from services.selfplay.settings import SelfPlaySettings
    from services.selfplay.worker import SelfPlayWorker
    from shared.adapters.tables.dataset import read_dataset
    from shared.environment.environment import Prices

    settings = load(SelfPlaySettings, **_overrides(profile))
    path = _dataset_path(data, settings, profile)
    dataset = read_dataset(path)
    agent, learned = _agent(checkpoint, store, seed, settings)
    worker = SelfPlayWorker.of("once", dataset, settings, np.random.default_rng(seed))
    begin = time.monotonic()
    with progress_bar() as bar:
        task = bar.add_task("decisions", total=count * settings.environment.session_bars)
        played = worker.episodes(agent, learned, count, lambda decisions: bar.advance(task, decisions))
    seconds = time.monotonic() - begin
    prices = Prices.of(dataset.bars)
    episodes = [PlayedEpisode.of(one, dataset.bars, prices, settings.environment) for one in played]
    return _Session(path, seed, seconds, episodes)


def _agent(
    checkpoint: str | None, store: str | None, seed: int, settings: "SelfPlaySettings"
) -> "tuple[Agent, int]":
    """The version that plays, and how many episodes it learned from."""
    from services.trainer.settings import TrainerSettings
    from shared.adapters.versions.agents import load_agent
    from shared.agent.agent import Agent
    from shared.model.network import initial_network

    if checkpoint is None:
        sizes = load(TrainerSettings, **_overrides(settings.profile)).model
        return Agent(initial_network(sizes, seed), 0, settings.precision), 0
    versions = checkpoint_store(store)
    version = chosen_version(versions, checkpoint)
    return load_agent(versions, version, settings.precision), versions.manifest(version).episode


def _dataset_path(data: Path | None, settings: "SelfPlaySettings", profile: Path | None) -> Path:
    """The data set given, set, or of the last local run; else a synthetic one, as `up` makes it."""
    if data is not None:
        return data
    run = last_run(settings.home)
    if run is not None and "dataset" not in settings.model_fields_set:
        return Path(run.dataset)
    if "dataset" in settings.model_fields_set or settings.dataset.is_file():
        return settings.dataset
    return prepare_dataset(settings.home, None, load(UpSettings, **_overrides(profile)))


def _overrides(profile: Path | None) -> dict[str, Path]:
    return {"profile": profile} if profile else {}


def _tell(line: str) -> None:
    out.print(line, highlight=False, soft_wrap=True)
