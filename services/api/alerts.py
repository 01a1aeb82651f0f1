"""Derives the alerts that hold now from one status; `standing` decides when they begin and end."""

from collections.abc import Iterator
from datetime import timedelta

from services.api.config import AlertConfig
from services.api.control import REPLAY_FINISHED
from services.api.views import ActiveAlert, Detail, Service, Status
from shared.messages.streams import TRAJECTORIES
from shared.runtime.disk import low_disk

#: States of a trader that cannot trade, and the reason.
_NOT_TRADING = {
    "connecting": "the broker sends no prices yet",
    "reconnecting": "the broker does not answer, and the trader keeps trying",
    "waiting for the broker": "the broker has not answered since the trader started",
}

#: Guards that raise no alert: the weekend, a system without a proven version, and the kill switch, which has
#: its own alert.
_EXPECTED_GUARDS = ("market_closed", "version_unproven", "killed")

_SIDES = {-1: "short", 1: "long"}

_TRAINING_REMEDY = "see the training metrics, and pause training if they do not recover"


def active_alerts(status: Status, config: AlertConfig) -> list[ActiveAlert]:
    """Every condition that holds now."""
    found = [
        ("redis", _of_redis(status, config)),
        ("disk", _of_disk(status, config)),
        *((service.service, _of_service(service, status, config)) for service in status.services),
        ("streams", _of_streams(status, config)),
        ("trainer", _of_training(status, config)),
        ("trader", _of_trading(status)),
    ]
    return [
        ActiveAlert(name=name, source=source, detail=detail)
        for source, conditions in found
        for name, detail in conditions
    ]


def _of_service(service: Service, status: Status, config: AlertConfig) -> Iterator[tuple[str, str]]:
    absence = service.absence
    if service.expected and absence is not None:
        starting = absence.seen_at is None and not absence.announced
        patience = timedelta(seconds=config.start_seconds if starting else 0.0)
        if status.time - absence.since >= patience:
            yield "service_missing", _missing(service, status)
    degraded = [i.instance for i in service.instances if i.state == "degraded"]
    if degraded:
        yield (
            "service_degraded",
            f"degraded by their own report: {', '.join(degraded)}; see their logs for the reason",
        )
    if service.restarts >= config.restarts:
        yield (
            "service_restarting",
            f"{service.service} restarted {service.restarts} times within {config.restart_minutes:g} "
            f"minutes, less than {config.restarts} expected; see its log for the reason",
        )


def _missing(service: Service, status: Status) -> str:
    absence = service.absence
    assert absence is not None
    if absence.seen_at is None:
        text = f"no {service.service} has been seen since the gateway started: start it"
    else:
        reason = (
            "its heartbeat expired, so it was killed or hangs: see its log and restart it"
            if absence.ran_out
            else "it stopped on request: start it again"
        )
        text = f"no {service.service} since {absence.seen_at:%H:%M:%S} UTC; {reason}"
    return f"{text}. {_last_position(absence.last_detail, status)}" if service.service == "trader" else text


def _last_position(last: Detail, status: Status) -> str:
    """The position that a missing trader held, as far as it is known."""
    side, units, price = last.get("side"), last.get("units"), last.get("entry_price")
    decision = status.trader.last_decision
    if side is None:
        if decision is None:
            return "Whether it held a position is not known: check at the broker"
        if decision.side == 0:
            bar = f"{decision.bar_time:%Y-%m-%d %H:%M} UTC"
            return f"It held no position at its last decision (bar {bar}); later positions are not known"
        side = decision.side
    if side not in _SIDES:
        return "It held no position"
    held = " ".join(
        [
            _SIDES[int(side)],
            *([f"{abs(units):,} units"] if isinstance(units, int | float) else []),
            *([f"at {price:g}"] if isinstance(price, float | int) else []),
        ]
    )
    return (
        f"IT HELD A POSITION ({held}), which is not monitored now: close it at the broker or start the trader"
    )


def _of_redis(status: Status, config: AlertConfig) -> Iterator[tuple[str, str]]:
    if status.redis == "unavailable":
        yield (
            "redis_unavailable",
            (
                "Redis does not answer, so data that only Redis has is not shown. Restart Redis; it exits if "
                "its disk is full. To stop trading meanwhile, run ./run kill on the trader's host"
            ),
        )
    condition = status.redis_condition
    if condition is None:
        return
    if condition.memory_limit_bytes and condition.memory_share > config.redis_memory_share:
        used, limit = condition.memory_bytes / 1e6, condition.memory_limit_bytes / 1e6
        yield (
            "redis_memory",
            f"Redis uses {used:,.1f} of {limit:,.1f} MB ({condition.memory_share:.0%}), at most "
            f"{config.redis_memory_share:.0%} expected. When it is full, self-play stops until the trainer "
            "has read trajectories; the other services continue. Check that the trainer reads, or raise "
            "maxmemory",
        )
    failed = [name for name, ok in condition.disk.items() if not ok]
    if failed:
        yield (
            "redis_disk",
            f"Redis could not write to its disk ({', '.join(failed)}): free disk space or see its log. "
            "With appendfsync always, Redis exits as soon as it cannot append",
        )


def _of_disk(status: Status, config: AlertConfig) -> Iterator[tuple[str, str]]:
    disk = status.disk
    if disk and (low := low_disk(disk.free_mb, config.low_free_mb, disk.home)):
        yield "disk_low", low


def _of_streams(status: Status, config: AlertConfig) -> Iterator[tuple[str, str]]:
    if status.dead_letters:
        entries = "1 entry" if status.dead_letters == 1 else f"{status.dead_letters:,} entries"
        yield "dead_letters", f"{entries} could not be processed: see /dead for the reasons"
    backlog = status.streams.get(TRAJECTORIES.key, 0)
    if backlog > config.backlog_trajectories:
        yield (
            "backlog",
            f"{backlog:,} trajectories wait for the trainer, at most {config.backlog_trajectories:,} "
            "expected: check that the trainer reads, and that the workers pause at the high-water mark",
        )
    condition = status.redis_condition
    if condition is None:
        return
    if condition.pending_seconds > config.pending_seconds:
        yield (
            "pending",
            f"the trainer received trajectories {condition.pending_seconds:,.0f} s ago and has not written "
            f"them to its journal, at most {config.pending_seconds:g} s expected "
            f"({condition.pending} not acknowledged): see its log and its disk",
        )
    if condition.lag is None:
        yield (
            "entries_removed",
            f"entries of {TRAJECTORIES.key} were removed before the trainer read them: find the program that "
            "trims or deletes this stream",
        )


def _of_training(status: Status, config: AlertConfig) -> Iterator[tuple[str, str]]:
    live = {name: value for name, value in status.training.live.items() if isinstance(value, int | float)}
    metrics = {**status.training.metrics, **live}
    expectancy = metrics.get("expectancy_pips")
    if expectancy is not None and expectancy < config.expectancy_floor_pips:
        yield (
            "training_diverging",
            f"self-play expectancy is {expectancy:.2f} pips, at least {config.expectancy_floor_pips:g} "
            f"expected: {_TRAINING_REMEDY}",
        )
    win_rate = metrics.get("win_rate")
    if win_rate is not None and win_rate < config.win_rate_floor:
        yield (
            "policy_collapsed",
            f"self-play win rate is {win_rate:.1%}, at least {config.win_rate_floor:.1%} expected: "
            f"{_TRAINING_REMEDY}",
        )
    trade_ratio, episode = metrics.get("trade_ratio"), metrics.get("episode", status.training.episode)
    early = episode is None or episode < config.trade_ratio_after_episodes
    if trade_ratio is not None and trade_ratio < config.trade_ratio_floor and not early:
        yield (
            "hold_only",
            f"trade ratio is {trade_ratio:.1%}, at least {config.trade_ratio_floor:.1%} expected: "
            f"{_TRAINING_REMEDY}",
        )
    silence = timedelta(minutes=config.checkpoint_silence_minutes)
    published = status.training.published_at
    if published and status.training.state != "paused" and status.time - published > silence:
        minutes = (status.time - published).total_seconds() / 60
        yield (
            "no_checkpoint",
            f"no new version for {minutes:.0f} minutes, at most {config.checkpoint_silence_minutes:g} "
            "expected: see the trainer's log",
        )


def _of_trading(status: Status) -> Iterator[tuple[str, str]]:
    trader = status.trader
    state = trader.detail.get("state")
    all_guards = str(trader.detail.get("guards") or "").split(", ")
    guards = ", ".join(guard for guard in all_guards if guard not in _EXPECTED_GUARDS)
    closed = "market_closed" in all_guards
    if state in _NOT_TRADING:
        yield (
            "broker_unavailable",
            f"{_NOT_TRADING[str(state)]}: no order is sent and no position is monitored",
        )
    elif state == "standby":
        yield (
            "trader_standby",
            "the only trader present waits for the lease of another one, which has no heartbeat: "
            "stop that process if it still runs",
        )
    elif state == "halted" and not closed:
        yield "trader_halted", f"no order is sent: {guards or 'see the log of the trader'}"
    elif guards and state != REPLAY_FINISHED:  # after a replay there is nothing to trade
        yield "guard_tripped", guards
    if trader.state == "killed" or (trader.order and trader.order.state == "killed"):
        lift = "" if trader.killed_by_file else "; POST /trader/resume lifts it"
        yield "trader_killed", f"the kill switch is on: {trader.summary}{lift}"
