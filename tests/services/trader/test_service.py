"""The whole trader against the paper broker over HTTP, with an inference that follows a script."""

from pathlib import Path

from shared.adapters.bus import Bus
from shared.environment.action import Action
from shared.messages.streams import DECISIONS, TRADES
from shared.runtime.redis_server import RedisServer
from tests.services.trader.parts import (
    BARS,
    FIRST_BAR,
    running_broker,
    running_oracle,
    running_trader,
    trader_settings,
    until,
)


async def test_a_round_trip_is_decided_filled_and_told(
    bus: Bus, redis_server: RedisServer, tmp_path: Path
) -> None:
    script = {FIRST_BAR + 2: Action.BUY, FIRST_BAR + 5: Action.CLOSE}
    async with running_broker(tmp_path, stop=FIRST_BAR + 12) as broker, running_oracle(script) as oracle:
        async with running_trader(trader_settings(redis_server.url, tmp_path, broker, oracle)) as trader:
            await broker.decided(FIRST_BAR + 8)
            assert trader.detail["orders"] == 2
        entry, exit_ = broker.fills()
        assert float(entry.trade_opened.price) == round(BARS.open[FIRST_BAR + 3] + 0.02, 3)
        assert float(exit_.trades_closed[0].price) == round(BARS.open[FIRST_BAR + 6] - 0.02, 3)
        assert broker.units == 0
    trades = [entry.message for entry in await bus.recent(TRADES, count=10)]
    assert len(trades) == 1
    wanted = (BARS.open[FIRST_BAR + 6] - BARS.open[FIRST_BAR + 3]) / 0.01 - 4.0
    assert abs(trades[0].pips - wanted) < 1e-6
    decisions = [entry.message for entry in await bus.recent(DECISIONS, count=100)][::-1]
    assert [d.action for d in decisions if d.action != "HOLD"] == ["BUY", "CLOSE"]
    assert all(d.executed for d in decisions)
    await until(lambda: True)
