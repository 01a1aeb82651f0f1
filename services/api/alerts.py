"""What is wrong at this moment, from the status alone."""

from datetime import timedelta

from services.api.config import AlertConfig
from services.api.views import ActiveAlert, Status


def active_alerts(status: Status, config: AlertConfig) -> list[ActiveAlert]:
    """Every condition of section 18 that holds now."""
    alerts: list[ActiveAlert] = []

    def alert(name: str, source: str, detail: str) -> None:
        alerts.append(ActiveAlert(name=name, source=source, detail=detail))

    if status.redis == "away":
        alert("redis_away", "redis", "Redis does not answer; what only it knows is not shown")
    live = {name: value for name, value in status.training.live.items() if isinstance(value, int | float)}
    metrics = {**status.training.metrics, **live}
    expectancy = metrics.get("expectancy_pips")
    if expectancy is not None and expectancy < config.expectancy_floor_pips:
        alert(
            "training_diverging",
            "trainer",
            f"self-play expectancy is {expectancy:.2f} pips, below {config.expectancy_floor_pips:g}",
        )
    win_rate = metrics.get("win_rate")
    if win_rate is not None and win_rate < config.win_rate_floor:
        alert(
            "policy_collapsed",
            "trainer",
            f"self-play win rate is {win_rate:.1%}, below {config.win_rate_floor:.1%}",
        )
    trade_ratio = metrics.get("trade_ratio")
    if trade_ratio is not None and trade_ratio < config.trade_ratio_floor:
        alert(
            "hold_only",
            "trainer",
            f"trade ratio is {trade_ratio:.1%}, below {config.trade_ratio_floor:.1%}",
        )
    silence = timedelta(minutes=config.checkpoint_silence_minutes)
    published = status.training.published_at
    if published and status.training.state == "running" and status.time - published > silence:
        minutes = (status.time - published).total_seconds() / 60
        alert("no_checkpoint", "trainer", f"no new version for {minutes:.0f} minutes")
    if status.dead_letters:
        alert("dead_letters", "streams", f"{status.dead_letters} entries could not be processed; see /dead")
    trader = status.trader.detail
    if trader.get("state") == "halted":
        alert("trader_halted", "trader", f"no order is sent: {trader.get('guards') or 'see its log'}")
    elif trader.get("guards"):
        alert("guard_tripped", "trader", str(trader["guards"]))
    if status.trader.state == "killed":
        alert("trader_killed", "trader", "the kill switch is on; POST /trader/resume lifts it")
    return alerts
