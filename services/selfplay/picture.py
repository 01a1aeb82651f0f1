"""Draws a played session: price, position, profit, actions and policy over one time axis."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from services.selfplay.played import PlayedEpisode
from shared.adapters.picture import (
    BLUE,
    GREEN,
    GREY,
    INK,
    MUTED,
    ORANGE,
    TITLE,
    blank_figure,
    date_axis,
    panels,
    require_drawable,
    write_png,
)
from shared.environment.action import Action, Side
from shared.market.bar import BAR_SECONDS
from shared.market.clock import utc_text
from shared.numeric import Float64

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_SIDE_COLOURS = {Side.LONG: BLUE, Side.SHORT: ORANGE}
_ACTION_COLOURS = {
    Action.HOLD: GREY,
    Action.BUY: BLUE,
    Action.SELL: ORANGE,
    Action.CLOSE: INK,
}
_SECONDS_A_DAY = 86_400.0

_LEGEND: dict[str, Any] = {
    "loc": "lower right",
    "bbox_to_anchor": (1.0, 0.98),
    "ncols": 5,
    "frameon": False,
    "fontsize": 9,
    "borderaxespad": 0.0,
}


def draw_episode(episode: PlayedEpisode, path: Path) -> None:
    """Write a PNG of one session.

    Raises:
        ServiceError: matplotlib is not installed.
        DataError: the file cannot be written.
    """
    require_drawable(path)
    figure = blank_figure(13, 11)
    rows = panels(figure, (4.0, 0.5, 2.2, 1.1, 1.8), shared_x=True)
    figure.suptitle(_title(episode), x=0.01, ha="left", color=INK, fontsize=12, fontweight="bold")
    draws = (_draw_price, _draw_position, _draw_profit, _draw_actions, _draw_policy)
    for axes, draw in zip(rows, draws, strict=True):
        draw(axes, episode)
    days = _days(episode)
    rows[-1].set_xlim(days[0], days[-1])
    date_axis(rows[-1])
    rows[-1].set_xlabel("time of the decision, at a bar's close (UTC)")
    write_png(figure, path)


def _title(episode: PlayedEpisode) -> str:
    played = episode.trajectory
    pips = sum(trade.pips for trade in played.trades)
    won = sum(trade.pips > 0.0 for trade in played.trades)
    trades = "1 trade" if len(played.trades) == 1 else f"{len(played.trades)} trades"
    begin = utc_text(int(episode.time_s[0]) + BAR_SECONDS)
    return (
        f"{episode.instrument}, {len(played)} decisions from {begin}, "
        f"version {played.checkpoint_version}, seed {played.seed}\n"
        f"{trades}, {won} won, {pips:+,.1f} pips net of costs, "
        f"reward {float(played.rewards.sum()):+,.1f}"
    )


def _draw_price(axes: "Axes", episode: PlayedEpisode) -> None:
    from matplotlib.lines import Line2D

    days, start = _days(episode), episode.trajectory.start_bar
    axes.set_title("Price at each close, and trades from entry to exit", **TITLE)
    axes.set_ylabel("price")
    axes.plot(days[:-1], episode.close, color=MUTED, linewidth=1.0)
    for trade in episode.trajectory.trades:
        # An order is filled at the open of the bar after the decision.
        ends = days[[trade.entry_bar - start - 1, trade.exit_bar - start - 1]]
        prices = (trade.entry_price, trade.exit_price)
        colour, long = _SIDE_COLOURS[trade.side], trade.side is Side.LONG
        axes.plot(ends, prices, color=colour, linewidth=1.8, linestyle="-" if trade.pips > 0.0 else ":")
        axes.plot(
            ends[0], prices[0], "^" if long else "v", color=colour, markersize=7, markeredgecolor="white"
        )
        axes.plot(ends[1], prices[1], "o", color="white", markersize=5, markeredgecolor=colour)
    axes.ticklabel_format(axis="y", useOffset=False)
    axes.legend(
        handles=[
            Line2D([], [], color=BLUE, marker="^", linestyle="none", label="long entry"),
            Line2D([], [], color=ORANGE, marker="v", linestyle="none", label="short entry"),
            Line2D([], [], color=INK, marker="o", markerfacecolor="white", linestyle="none", label="exit"),
            Line2D([], [], color=INK, label="gained"),
            Line2D([], [], color=INK, linestyle=":", label="lost"),
        ],
        **_LEGEND,
    )


def _draw_position(axes: "Axes", episode: PlayedEpisode) -> None:
    # A decision is filled at the next open, so its position is in the features of the next decision.
    side = np.append(episode.trajectory.static[1:, 0], (0.0, 0.0))
    axes.set_ylabel("position")
    axes.set_yticks([-0.5, 0.5], ["short", "long"])
    axes.set_ylim(-1.05, 1.05)
    for chosen, colour in _SIDE_COLOURS.items():
        held = np.where(side == chosen, float(chosen), 0.0)
        axes.fill_between(_days(episode), held, step="post", color=colour, linewidth=0)
    axes.axhline(0.0, color=MUTED, linewidth=0.8)


def _draw_profit(axes: "Axes", episode: PlayedEpisode) -> None:
    days = _days(episode)
    open_pips = np.append(episode.pnl, 0.0)
    axes.set_title("Profit, net of costs", **TITLE)
    axes.set_ylabel("pips")
    axes.axhline(0.0, color=MUTED, linewidth=0.8)
    axes.fill_between(days, open_pips, color=GREY, linewidth=0, label="of the open position")
    axes.plot(
        days,
        _closed_pips(episode) + open_pips,
        color=GREEN,
        linewidth=1.6,
        label="cumulative, open position included",
    )
    axes.legend(**_LEGEND)


def _draw_actions(axes: "Axes", episode: PlayedEpisode) -> None:
    actions = episode.trajectory.actions
    axes.set_title("Action taken at each close", **TITLE)
    for action, colour in _ACTION_COLOURS.items():
        at = _days(episode)[:-1][actions == action]
        axes.plot(at, np.full(len(at), -int(action)), "|", color=colour, markersize=9, markeredgewidth=1.4)
    names = [f"{action.name} {np.mean(actions == action):.0%}" for action in Action]
    axes.set_yticks([-int(action) for action in Action], names)
    axes.set_ylim(-len(Action) + 0.4, 0.6)


def _draw_policy(axes: "Axes", episode: PlayedEpisode) -> None:
    shares = np.cumsum(episode.trajectory.policies, axis=1, dtype=np.float64)
    shares = np.vstack([shares, shares[-1:]])
    below = np.zeros(len(shares))
    axes.set_title("The search's policy at each close", **TITLE)
    axes.set_ylabel("share")
    axes.set_ylim(0.0, 1.0)
    for action, colour in _ACTION_COLOURS.items():
        above = shares[:, action]
        axes.fill_between(
            _days(episode), below, above, step="post", color=colour, linewidth=0, label=action.name
        )
        below = above
    axes.legend(**_LEGEND)


def _days(episode: PlayedEpisode) -> Float64:
    """`[T + 1]` time of each decision, and of one bar after the last, in days since 1970."""
    closed_s = episode.time_s + BAR_SECONDS
    days: Float64 = np.append(closed_s, closed_s[-1] + BAR_SECONDS) / _SECONDS_A_DAY
    return days


def _closed_pips(episode: PlayedEpisode) -> Float64:
    """`[T + 1]` cumulative net pips of the trades closed before each decision, and after the last."""
    closed = np.zeros(len(episode.pnl) + 1)
    for trade in episode.trajectory.trades:
        closed[trade.exit_bar - episode.trajectory.start_bar :] += trade.pips
    return closed
