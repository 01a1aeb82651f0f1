"""`selfplay --once` and `selfplay --render`: play or draw episodes without Redis."""

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

if TYPE_CHECKING:  # these import torch, so they are imported only to play episodes
    from services.selfplay.played import PlayedEpisode
    from services.selfplay.settings import SelfPlaySettings
    from shared.agent.agent import Agent

#: With one of these options, `selfplay` does not run as a service.
OPTIONS = ("--once", "--render", "--from", "--out", "--episodes")

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@app.command()
def selfplay(
    once: Annotated[bool, typer.Option("--once", help="play some episodes and exit, without Redis")] = False,
    episodes: Annotated[
        int | None, typer.Option(min=1, help="number of episodes; default: 1, or as many as --render needs")
    ] = None,
    out_file: Annotated[
        Path | None,
        typer.Option("--out", help="new Parquet file with one row per decision; must not exist yet"),
    ] = None,
    render: Annotated[
        int | None,
        typer.Option(min=0, help="number of the episode to draw, from 0; needs --once or --from"),
    ] = None,
    from_file: Annotated[
        Path | None, typer.Option("--from", help="file to draw from, written by --out")
    ] = None,
    picture: Annotated[
        Path | None, typer.Option(help="PNG file to write, may exist; default: selfplay-EPISODE.png")
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(help="data set; default: that of the last local run, or a synthetic market"),
    ] = None,
    checkpoint: Annotated[
        str | None,
        typer.Option(help="number of a version, or latest, best, promoted; default: random weights"),
    ] = None,
    store: Annotated[
        str | None,
        typer.Option(help="checkpoint store; `checkpoints --help` lists the defaults"),
    ] = None,
    seed: Annotated[
        int, typer.Option(min=0, help="random seed of sessions, exploration and random weights")
    ] = 0,
    profile: Annotated[
        Path | None, typer.Option(help="TOML file of settings, such as config/tuned.toml")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON document")] = False,
) -> None:
    """Play some episodes and save them, draw one of them, or both.

    The episodes are sessions of the train split, played with exploration as a self-play worker plays them.
    Equal options give equal episodes. The file and the picture are each written completely or not at all.
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
        print_json({"picture": str(drawn)}) if as_json else _print_line(f"picture: {drawn}")
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
    """Whether the arguments are for this command instead of the service."""
    return any(argument.partition("=")[0] in OPTIONS for argument in arguments)


def main(arguments: list[str]) -> None:
    """Run the command and exit the process."""
    typer.main.get_command(app).main(args=arguments, prog_name="micro-muzero selfplay")


@dataclass(frozen=True)
class _Session:
    """Episodes that were played, and their data set."""

    dataset: Path
    seed: int
    seconds: float
    episodes: "list[PlayedEpisode]"

    def summary(self) -> dict[str, object]:
        """Figures of all episodes, by name."""
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
    """Check that the options can be combined.

    Raises:
        SettingsError: they cannot; the error text names the expected options.
    """
    if once:
        if from_file is not None:
            raise SettingsError("--from draws episodes from a file: expected it without --once")
        if render is None and "--out" not in played_with:
            raise SettingsError("--once: expected --out FILE, --render EPISODE, or both")
    elif render is None or from_file is None:
        raise SettingsError(
            "expected --once to play, or --render EPISODE --from FILE to draw an episode of a file"
        )
    elif played_with:
        raise SettingsError(f"{played_with[0]}: expected it with --once")


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
    """The agent that plays, and the number of episodes that it learned from."""
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
    """The data set given or configured, or that of the last local run, or a synthetic one as in `up`."""
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


def _print_line(line: str) -> None:
    out.print(line, highlight=False, soft_wrap=True)
