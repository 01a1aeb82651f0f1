"""`simulate`: replay a list of actions on real prices, and see what each of them earned."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from cli.output import err, print_json, print_table
from shared.adapters.tables.dataset import Dataset, read_dataset
from shared.environment.action import Action, Side
from shared.environment.environment import EnvironmentConfig, Prices
from shared.environment.episode import Episode, replay
from shared.environment.reward import RewardScheme
from shared.errors import DataError, FormatError
from shared.features.window import FIRST_WINDOW_BAR
from shared.market.bar import BAR_SECONDS
from shared.market.clock import utc_text
from shared.market.session import SESSION_BARS


def simulate(
    data: Annotated[Path, typer.Option("--data", help="a data set, as `data import` makes it")],
    start: Annotated[int, typer.Option("--start", help="the bar at whose close the first action is decided")],
    actions: Annotated[
        Path,
        typer.Option("--actions", help="a file with one action a line: HOLD, BUY, SELL, CLOSE, or 0 to 3"),
    ],
    reward: Annotated[
        RewardScheme, typer.Option("--reward", help="what a step is paid")
    ] = RewardScheme.AMDDP1,
    spread: Annotated[
        float, typer.Option("--spread", help="pips that a round trip costs")
    ] = EnvironmentConfig.spread_pips,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON document")] = False,
) -> None:
    """Replay a list of actions, one per bar; the episode is as long as the list, 360 actions at most.

    An action is decided at the close of its bar and filled at the open of the next. A position that is
    still open after the last action is closed at that same open.
    """
    config = EnvironmentConfig(spread_pips=spread, reward=reward)
    chosen = read_actions(actions)
    dataset = read_dataset(data)
    require_bars(start, len(chosen), len(dataset.bars))
    if start not in dataset.sessions.starts:
        err.print(f"note: bar {start} starts no valid session of {SESSION_BARS} bars; see `data sessions`")
    episode = replay(start, chosen, Prices.of(dataset.bars), config)
    if as_json:
        print_json({"steps": _steps(episode), "trades": _trades(episode)})
    else:
        _print(episode, dataset)


def read_actions(path: Path) -> list[Action]:
    """The actions of a file, one a line; lines without a word are passed over.

    Raises:
        FormatError: the file cannot be read, holds no action, or a line holds something else; names the line.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as failure:
        raise FormatError(str(path), f"cannot be read as a list of actions: {failure}") from failure
    words = [(number, line.strip()) for number, line in enumerate(lines, start=1) if line.strip()]
    if not words:
        raise FormatError(str(path), "holds no action, expected one a line")
    if len(words) > SESSION_BARS:
        raise FormatError(
            str(path),
            f"more actions than the {SESSION_BARS} decisions of a session",
            line=words[SESSION_BARS][0],
        )
    return [_action(path, number, word) for number, word in words]


def require_bars(start: int, num_actions: int, num_bars: int) -> None:
    """Check that the data set has the warm-up before an episode and the fills after it.

    Raises:
        DataError: it has not.
    """
    last_start = num_bars - 1 - num_actions
    if last_start < FIRST_WINDOW_BAR:
        raise DataError(
            f"{num_actions} actions need {FIRST_WINDOW_BAR + num_actions + 1} bars, warm-up included; "
            f"the data set has {num_bars}"
        )
    if not FIRST_WINDOW_BAR <= start <= last_start:
        raise DataError(
            f"start {start}: expected a bar from {FIRST_WINDOW_BAR}, which has its warm-up, to {last_start}, "
            f"from which the next {num_actions} bars exist"
        )


def _action(path: Path, number: int, word: str) -> Action:
    by_word = {key: action for action in Action for key in (action.name, str(int(action)))}
    action = by_word.get(word.upper())
    if action is None:
        names = ", ".join(one.name for one in Action)
        raise FormatError(
            str(path), f"{word!r} is no action, expected one of {names}, or 0 to 3", line=number
        )
    return action


def _steps(episode: Episode) -> list[dict[str, Any]]:
    """What was decided at the close of each bar, what it earned, and the position before it."""
    columns = (episode.bars, episode.actions, episode.rewards, episode.pnl, episode.static)
    return [
        {"bar": bar, "action": Action(action).name, "reward": reward, "pnl": pnl, "static": static}
        for bar, action, reward, pnl, static in zip(*(column.tolist() for column in columns), strict=True)
    ]


def _trades(episode: Episode) -> list[dict[str, Any]]:
    rows = [asdict(trade) for trade in episode.trades]
    for row in rows:
        row["side"] = int(row["side"])
        row["max_drawdown"] = row.pop("max_drawdown_pips")
    return rows


def _print(episode: Episode, dataset: Dataset) -> None:
    closed_s = dataset.bars.time_s[episode.bars] + BAR_SECONDS
    decimals = dataset.bars.instrument.price_decimals
    print_table(
        "Steps: the position before each action, and the reward after it, in pips",
        ("bar", "closed (UTC)", "position", "pnl", "action", "reward"),
        (
            (
                step["bar"],
                utc_text(time_s).removesuffix(" UTC"),
                _word(Side(int(step["static"][0]))),
                step["pnl"],
                step["action"],
                step["reward"],
            )
            for step, time_s in zip(_steps(episode), closed_s.tolist(), strict=True)
        ),
    )
    print_table(
        "Trades",
        ("entry bar", "exit bar", "side", "entry price", "exit price", "pips", "max drawdown", "bars held"),
        (
            (
                trade.entry_bar,
                trade.exit_bar,
                _word(trade.side),
                f"{trade.entry_price:.{decimals}f}",
                f"{trade.exit_price:.{decimals}f}",
                trade.pips,
                trade.max_drawdown_pips,
                trade.bars_held,
            )
            for trade in episode.trades
        ),
    )
    pips = sum(trade.pips for trade in episode.trades)
    print_table(
        "Sum", ("trades", "pips", "reward"), [(len(episode.trades), pips, sum(episode.rewards.tolist()))]
    )


def _word(side: Side) -> str:
    return side.name.lower()
