"""`simulate`: replay a list of actions on real prices, and show what each action earned."""

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
    data: Annotated[Path, typer.Option("--data", help="data set, as `data import` writes it")],
    start: Annotated[
        int, typer.Option("--start", help="index of the bar at whose close the first action is decided")
    ],
    actions: Annotated[
        Path,
        typer.Option("--actions", help="file with one action per line: HOLD, BUY, SELL, CLOSE, or 0 to 3"),
    ],
    reward: Annotated[RewardScheme, typer.Option("--reward", help="reward scheme")] = RewardScheme.AMDDP1,
    spread: Annotated[
        float, typer.Option("--spread", help="cost of a round trip, in pips")
    ] = EnvironmentConfig.spread_pips,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON document")] = False,
) -> None:
    """Replay a list of actions on a data set, one per bar.

    The list has at most 360 actions. Each action is decided at the close of its bar and filled at the open of
    the next bar. A position that is still open after the last action is closed at that open.
    """
    config = EnvironmentConfig(spread_pips=spread, reward=reward)
    chosen = read_actions(actions)
    dataset = read_dataset(data)
    require_bars(start, len(chosen), len(dataset.bars))
    if start not in dataset.sessions.starts:
        err.print(f"note: no valid session of {SESSION_BARS} bars starts at bar {start}; see `data sessions`")
    episode = replay(start, chosen, Prices.of(dataset.bars), config)
    if as_json:
        print_json({"steps": _steps(episode), "trades": _trades(episode)})
    else:
        _print(episode, dataset)


def read_actions(path: Path) -> list[Action]:
    """Read a file with one action per line; empty lines are skipped.

    Raises:
        FormatError: the file cannot be read or has no action, or a line is not an action.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as failure:
        raise FormatError(str(path), f"cannot be read as a list of actions: {failure}") from failure
    words = [(number, line.strip()) for number, line in enumerate(lines, start=1) if line.strip()]
    if not words:
        raise FormatError(str(path), "has no action, expected one per line")
    if len(words) > SESSION_BARS:
        raise FormatError(
            str(path),
            f"more actions than the {SESSION_BARS} decisions of a session",
            line=words[SESSION_BARS][0],
        )
    return [_action(path, number, word) for number, word in words]


def require_bars(start: int, num_actions: int, num_bars: int) -> None:
    """Check that the data set has the warm-up bars before an episode and the bars of its fills.

    Raises:
        DataError: it lacks them.
    """
    last_start = num_bars - 1 - num_actions
    if last_start < FIRST_WINDOW_BAR:
        raise DataError(
            f"{num_actions} actions need {FIRST_WINDOW_BAR + num_actions + 1} bars, warm-up included; "
            f"the data set has {num_bars}"
        )
    if not FIRST_WINDOW_BAR <= start <= last_start:
        raise DataError(
            f"start {start}: expected {FIRST_WINDOW_BAR} to {last_start}, so that the warm-up before it and "
            f"{num_actions} bars after it exist"
        )


def _action(path: Path, number: int, word: str) -> Action:
    by_word = {key: action for action in Action for key in (action.name, str(int(action)))}
    action = by_word.get(word.upper())
    if action is None:
        names = ", ".join(one.name for one in Action)
        raise FormatError(
            str(path), f"{word!r} is not an action, expected one of {names}, or 0 to 3", line=number
        )
    return action


def _steps(episode: Episode) -> list[dict[str, Any]]:
    """The action at the close of each bar, its reward, and the position before it."""
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
        "Steps: position before each action, and reward after it, in pips",
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
