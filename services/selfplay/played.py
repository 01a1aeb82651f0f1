"""Played sessions in a Parquet file for people to inspect, with one row per decision.

A trade is in the row of the decision that closed it. The rows hold the complete trajectory, so that it can be
read back, and also price and profit, so that it can be drawn without the bars.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
import pyarrow as pa
import pyarrow.parquet

from shared.adapters.outputs import atomic_output, check_output
from shared.agent.trajectory import Trajectory
from shared.environment.action import Action, Side
from shared.environment.environment import EnvironmentConfig, Prices
from shared.environment.episode import replay
from shared.environment.outcome import ChanceOutcome
from shared.environment.position import STATIC_NAMES
from shared.environment.trade import Trade
from shared.errors import DataError
from shared.market.bar import BarSeries
from shared.numeric import Float64, Int64

_arrow: Any = pa  # pyarrow has no types

_MICROSECONDS = 1_000_000

_ACTIONS = tuple(action.name for action in Action)
_OUTCOMES = tuple(outcome.name for outcome in ChanceOutcome)
_POLICY = tuple(f"policy_{name.lower()}" for name in _ACTIONS)
_PROBABILITIES = tuple(f"probability_{name.lower()}" for name in _OUTCOMES)

_TEXT, _INT64, _FLOAT64, _FLOAT32 = _arrow.string(), _arrow.int64(), _arrow.float64(), _arrow.float32()

_TRADE: dict[str, Any] = {
    "trade_side": _TEXT,
    "trade_entry_bar": _INT64,
    "trade_exit_bar": _INT64,
    "trade_entry_price": _FLOAT64,
    "trade_exit_price": _FLOAT64,
    "trade_pips": _FLOAT64,
    "trade_max_drawdown_pips": _FLOAT64,
    "trade_bars_held": _INT64,
}

_SCHEMA = _arrow.schema(
    {
        "episode": _arrow.int32(),  # from 0
        "trajectory_id": _TEXT,
        "worker": _TEXT,
        "version": _INT64,
        "dataset": _TEXT,
        "seed": _INT64,
        "instrument": _TEXT,
        "step": _arrow.int32(),  # from 0
        "bar_index": _INT64,  # the decision is made at the close of this bar
        "time": _arrow.timestamp("us", "UTC"),  # open of the bar, as in data sets
        "close": _FLOAT64,
        "pnl_pips": _FLOAT64,  # of the position that is open at the decision, net of costs
        **dict.fromkeys(STATIC_NAMES, _FLOAT32),
        "action": _TEXT,
        "reward_pips": _FLOAT32,
        **dict.fromkeys(_POLICY, _FLOAT32),
        "value_pips": _FLOAT32,
        "outcome": _TEXT,
        **dict.fromkeys(_PROBABILITIES, _FLOAT32),
        **_TRADE,
    }
)


@dataclass(frozen=True)
class PlayedEpisode:
    """A trajectory with the prices that it was played on."""

    trajectory: Trajectory
    instrument: str
    time_s: Int64  # [T] open of each bar
    close: Float64  # [T]
    pnl: Float64  # [T] pips of the open position at the decision, 0 when flat

    @classmethod
    def of(
        cls, trajectory: Trajectory, bars: BarSeries, prices: Prices, environment: EnvironmentConfig
    ) -> "PlayedEpisode":
        """Add prices and profit to a trajectory.

        Args:
            trajectory: trajectory that was played on these bars.
            bars: bars of the data set.
            prices: prices of the same bars.
            environment: the costs of the session.
        """
        rows = slice(trajectory.start_bar, trajectory.start_bar + len(trajectory))
        episode = replay(trajectory.start_bar, trajectory.actions.tolist(), prices, environment)
        return cls(trajectory, bars.instrument.name, bars.time_s[rows], bars.close[rows], episode.pnl)


def refuse_to_replace(path: Path) -> Path:
    """Check, before anything is played, that a file can be written and does not exist yet.

    Returns:
        The file to write, with every link resolved.
    Raises:
        DataError: the file exists, or its folder does not.
    """
    if path.exists():
        raise DataError(f"{path} exists: choose another name, nothing was changed")
    if not path.absolute().parent.is_dir():
        raise DataError(f"{path}: expected a file name in a folder that exists")
    return check_output(path, "file of episodes to replace", lambda _: False)


def write_episodes(path: Path, episodes: Iterable[PlayedEpisode]) -> None:
    """Write a file of episodes atomically.

    Raises:
        DataError: the file cannot be written.
    """
    target = refuse_to_replace(path)
    rows = [_table(number, episode) for number, episode in enumerate(episodes)]
    with atomic_output(target) as temporary:
        _arrow.parquet.write_table(_arrow.concat_tables([_SCHEMA.empty_table(), *rows]), temporary)


def read_episode(path: Path, number: int) -> PlayedEpisode:
    """Read one episode of a file.

    Args:
        path: a file that `write_episodes` wrote.
        number: number of the episode, from 0.
    Raises:
        DataError: the file cannot be read, holds other columns, or has no such episode.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file; `selfplay --once --out {path}` writes one")
    try:
        file = _arrow.parquet.ParquetFile(path)
        if not file.schema_arrow.equals(_SCHEMA):
            raise DataError(f"{path}: expected a file of episodes as written by `selfplay --once --out`")
        table = file.read()
    except (OSError, _arrow.ArrowException) as damaged:
        raise DataError(f"{path}: cannot be read as Parquet: {damaged}") from damaged
    episodes = table["episode"].to_numpy()
    if not (episodes == number).any():
        count = len(np.unique(episodes))
        raise DataError(f"{path} has no episode {number}: expected 0 to {count - 1}")
    return _episode(table.filter(_arrow.array(episodes == number)))


def _table(number: int, episode: PlayedEpisode) -> Any:
    trajectory = episode.trajectory
    steps = len(trajectory)
    same = {
        "episode": number,
        "trajectory_id": str(trajectory.trajectory_id),
        "worker": trajectory.worker,
        "version": trajectory.checkpoint_version,
        "dataset": trajectory.dataset,
        "seed": trajectory.seed,
        "instrument": episode.instrument,
    }
    columns = {
        **{name: [value] * steps for name, value in same.items()},
        "step": np.arange(steps),
        "bar_index": trajectory.start_bar + np.arange(steps),
        "time": episode.time_s * _MICROSECONDS,
        "close": episode.close,
        "pnl_pips": episode.pnl,
        **dict(zip(STATIC_NAMES, trajectory.static.T, strict=True)),
        "action": [_ACTIONS[action] for action in trajectory.actions],
        "reward_pips": trajectory.rewards,
        **dict(zip(_POLICY, trajectory.policies.T, strict=True)),
        "value_pips": trajectory.values,
        "outcome": [_OUTCOMES[outcome] for outcome in trajectory.outcomes],
        **dict(zip(_PROBABILITIES, trajectory.outcome_probabilities.T, strict=True)),
        **_trade_columns(trajectory),
    }
    return _arrow.table([_arrow.array(columns[field.name], field.type) for field in _SCHEMA], schema=_SCHEMA)


def _trade_columns(trajectory: Trajectory) -> dict[str, list[object]]:
    """Columns that are null except where a decision closed a trade, which exits at the next bar's open."""
    columns: dict[str, list[object]] = {name: [None] * len(trajectory) for name in _TRADE}
    for trade in trajectory.trades:
        row = trade.exit_bar - 1 - trajectory.start_bar
        for name, value in vars(trade).items():
            columns[f"trade_{name}"][row] = value.name if isinstance(value, Side) else value
    return columns


def _episode(table: Any) -> PlayedEpisode:
    def column(name: str) -> Any:
        return table[name].to_numpy()

    def matrix(names: tuple[str, ...]) -> Any:
        return np.column_stack([column(name) for name in names])

    first = table.slice(0, 1).to_pylist()[0]
    trades = [
        Trade(
            **{**{name.removeprefix("trade_"): row[name] for name in _TRADE}, "side": Side[row["trade_side"]]}
        )
        for row in table.select(list(_TRADE)).to_pylist()
        if row["trade_side"] is not None
    ]
    trajectory = Trajectory(
        trajectory_id=UUID(first["trajectory_id"]),
        worker=first["worker"],
        checkpoint_version=first["version"],
        dataset=first["dataset"],
        start_bar=first["bar_index"],
        seed=first["seed"],
        static=matrix(STATIC_NAMES),
        actions=np.array([Action[name] for name in column("action")], np.int8),
        rewards=column("reward_pips"),
        policies=matrix(_POLICY),
        values=column("value_pips"),
        outcomes=np.array([ChanceOutcome[name] for name in column("outcome")], np.int8),
        outcome_probabilities=matrix(_PROBABILITIES),
        trades=tuple(trades),
    )
    time_s = column("time").astype("datetime64[s]").astype(np.int64)
    return PlayedEpisode(trajectory, first["instrument"], time_s, column("close"), column("pnl_pips"))
