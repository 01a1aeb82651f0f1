"""What is wrong at this moment, from the status alone."""

from collections.abc import Iterator
from datetime import timedelta

from services.api.config import AlertConfig
from services.api.views import ActiveAlert, Status
from shared.messages.streams import TRAJECTORIES


def active_alerts(status: Status, config: AlertConfig) -> list[ActiveAlert]:
    """Every condition of section 18 that holds now."""
    return [
        ActiveAlert(name=name, source=source, detail=detail)
        for source, found in {
            "redis": _of_redis(status, config),
            "streams": _of_streams(status, config),
            "trainer": _of_training(status, config),
            "trader": _of_trading(status),
        }.items()
        for name, detail in found
    ]


def _of_redis(status: Status, config: AlertConfig) -> Iterator[tuple[str, str]]:
    if status.redis == "away":
        yield "redis_away", "Redis does not answer; what only it knows is not shown"
    condition = status.redis_condition
    if condition is None:
        return
    if condition.memory_limit_bytes and condition.memory_share > config.redis_memory_share:
        used, limit = condition.memory_bytes / 1e6, condition.memory_limit_bytes / 1e6
        yield (
            "redis_memory",
            f"Redis holds {used:,.1f} of {limit:,.1f} MB ({condition.memory_share:.0%}); when it is full, "
            "workers wait with their trajectories, and nothing else does, until the trainer makes room: see "
            "that it reads, or raise maxmemory",
        )
    failed = [name for name, ok in condition.disk.items() if not ok]
    if failed:
        yield (
            "redis_disk",
            f"Redis could not write to its disk ({', '.join(failed)}): make room there, or see its log",
        )


def _of_streams(status: Status, config: AlertConfig) -> Iterator[tuple[str, str]]:
    if status.dead_letters:
        yield "dead_letters", f"{status.dead_letters} entries could not be processed; see /dead"
    backlog = status.streams.get(TRAJECTORIES.key, 0)
    if backlog > config.backlog_trajectories:
        yield (
            "backlog",
            f"{backlog:,} trajectories wait for the trainer, more than {config.backlog_trajectories:,}: see "
            "that it reads, and that the workers pause at their high water",
        )
    condition = status.redis_condition
    if condition is None:
        return
    if condition.pending_seconds > config.pending_seconds:
        yield (
            "pending",
            f"the trainer was given trajectories {condition.pending_seconds:,.0f} s ago and has not put them "
            f"into its journal ({condition.pending} not acknowledged): see its log and its disk",
        )
    if condition.lag is None:
        yield (
            "entries_removed",
            f"entries of {TRAJECTORIES.key} were removed before the trainer was given them: somebody trims "
            "or deletes there",
        )


def _of_training(status: Status, config: AlertConfig) -> Iterator[tuple[str, str]]:
    live = {name: value for name, value in status.training.live.items() if isinstance(value, int | float)}
    metrics = {**status.training.metrics, **live}
    expectancy = metrics.get("expectancy_pips")
    if expectancy is not None and expectancy < config.expectancy_floor_pips:
        yield (
            "training_diverging",
            f"self-play expectancy is {expectancy:.2f} pips, below {config.expectancy_floor_pips:g}",
        )
    win_rate = metrics.get("win_rate")
    if win_rate is not None and win_rate < config.win_rate_floor:
        yield "policy_collapsed", f"self-play win rate is {win_rate:.1%}, below {config.win_rate_floor:.1%}"
    trade_ratio = metrics.get("trade_ratio")
    if trade_ratio is not None and trade_ratio < config.trade_ratio_floor:
        yield "hold_only", f"trade ratio is {trade_ratio:.1%}, below {config.trade_ratio_floor:.1%}"
    silence = timedelta(minutes=config.checkpoint_silence_minutes)
    published = status.training.published_at
    if published and status.training.state == "running" and status.time - published > silence:
        minutes = (status.time - published).total_seconds() / 60
        yield "no_checkpoint", f"no new version for {minutes:.0f} minutes"


def _of_trading(status: Status) -> Iterator[tuple[str, str]]:
    trader = status.trader.detail
    if trader.get("state") == "halted":
        yield "trader_halted", f"no order is sent: {trader.get('guards') or 'see its log'}"
    elif trader.get("guards"):
        yield "guard_tripped", str(trader["guards"])
    if status.trader.state == "killed":
        yield "trader_killed", "the kill switch is on; POST /trader/resume lifts it"
