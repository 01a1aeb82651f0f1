"""The running market: pacing, gaps, the end of the tape, and a restart after a crash."""

import asyncio
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from structlog.testing import capture_logs

from services.broker.config import BrokerConfig, Pacing
from services.broker.exchange.transactions import MarketOrderFields
from services.broker.market.pace import Pace
from services.broker.venue import Venue
from shared.errors import BrokerError
from shared.market.bar import BarSeries
from tests.services.broker.conftest import venue_of
from tests.services.broker.markets import START_S, bars_of
from tests.services.broker.replay import running
from tests.waiting import PATIENCE_SECONDS, until

ACKNOWLEDGED = BrokerConfig(pacing=Pacing.ACKNOWLEDGED)
CLOSES = (188.0, 188.1, 188.2, 188.3, 188.4)


async def settle(venue: Venue) -> None:
    """Let the replay run until it makes no step for some iterations of the event loop."""
    before = None
    while before != (venue.progress, venue.now_ns):
        before = (venue.progress, venue.now_ns)
        for _ in range(20):
            await asyncio.sleep(0)


def buy() -> MarketOrderFields:
    return MarketOrderFields.model_validate({"instrument": "GBP_JPY", "units": "1"})


async def test_each_bar_waits_for_the_acknowledgement_of_the_one_before(tmp_path: Path) -> None:
    venue = venue_of(tmp_path, bars_of(CLOSES), ACKNOWLEDGED)
    async with running(venue):
        for bar in range(1, len(CLOSES)):
            await settle(venue)
            assert venue.progress.next_tick == 4 * bar + 1  # only the opening price of the next bar was sent
            assert venue.newest_complete_bar() == bar - 1
            assert venue.now_ns == (START_S + 60 * bar) * 1_000_000_000
            venue.acknowledge(START_S + 60 * (bar - 1))
        await settle(venue)
    assert venue.all_ticks_sent
    assert venue.newest_complete_bar() == len(CLOSES) - 1


async def test_a_decision_at_the_close_is_filled_at_the_next_open(tmp_path: Path) -> None:
    bars = bars_of(CLOSES)
    bars.open[1] = 188.002  # not where bar 0 closed
    venue = venue_of(tmp_path, bars, ACKNOWLEDGED)
    async with running(venue):
        await settle(venue)
        answer = venue.market_order(buy())
    assert answer.filled is not None
    assert float(answer.filled.price) == 188.022


async def test_a_bar_that_is_not_complete_cannot_be_acknowledged(tmp_path: Path) -> None:
    venue = venue_of(tmp_path, bars_of(CLOSES), ACKNOWLEDGED)
    async with running(venue):
        await settle(venue)
        with pytest.raises(BrokerError, match="not complete"):
            venue.acknowledge(START_S + 60)
        venue.acknowledge(START_S)
        venue.acknowledge(START_S - 600)  # an earlier bar changes nothing
        assert venue.progress.acknowledged_s == START_S


async def test_a_restarted_broker_continues_the_replay(tmp_path: Path) -> None:
    bars = bars_of(CLOSES)
    venue = venue_of(tmp_path, bars, ACKNOWLEDGED)
    async with running(venue):
        await settle(venue)
        venue.acknowledge(START_S)
        await settle(venue)
        venue.market_order(buy())
    # Nothing is closed or flushed, as after a crash.
    again = venue_of(tmp_path, bars, ACKNOWLEDGED)
    assert again.progress == venue.progress
    assert again.exchange.account == venue.exchange.account
    assert again.exchange.quote == venue.exchange.quote
    assert again.now_ns == venue.now_ns
    async with running(again):
        await settle(again)
        assert again.progress == venue.progress  # still waiting for the same bar
        again.acknowledge(START_S + 60)
        await settle(again)
        assert again.newest_complete_bar() == 2
    venue.ledger.close()
    again.ledger.close()


async def test_a_stream_receives_every_tick_of_every_bar(tmp_path: Path) -> None:
    venue = venue_of(tmp_path, bars_of(CLOSES), ACKNOWLEDGED)
    with venue.price_lines() as subscription:
        async with running(venue):
            while not venue.all_ticks_sent:
                await settle(venue)
                venue.acknowledge(int(venue.tape.time_s[venue.newest_complete_bar()]))
            await settle(venue)
        lines = [subscription.lines.get_nowait() for _ in range(subscription.lines.qsize())]
    assert len(lines) == 4 * len(CLOSES) + 1
    assert [line["tradeable"] for line in lines] == [True] * (4 * len(CLOSES)) + [False]
    times = [line["time"] for line in lines]
    assert times == sorted(set(times))


def with_weekend() -> BarSeries:
    """Three bars to Friday's close and two from Sunday's opening, in New York summer time."""
    friday = 1_710_536_220  # 2024-03-15 20:57 UTC
    sunday = 1_710_709_380  # 2024-03-17 21:03 UTC
    return bars_of(
        [188.0, 188.1, 188.2, 186.0, 186.1], times_s=[friday, friday + 60, friday + 120, sunday, sunday + 60]
    )


async def test_the_market_closes_before_a_weekend_that_is_jumped_over(tmp_path: Path) -> None:
    venue = venue_of(tmp_path, with_weekend(), ACKNOWLEDGED)
    venue.acknowledge(0)
    with venue.price_lines() as subscription:
        async with running(venue):
            while venue.progress.next_tick < 13:
                await settle(venue)
                venue.acknowledge(int(venue.tape.time_s[venue.newest_complete_bar()]))
            lines = [subscription.lines.get_nowait() for _ in range(subscription.lines.qsize())]
    closing = [line for line in lines if not line["tradeable"]]
    assert [line["time"][:16] for line in closing] == ["2024-03-15T21:00"]
    after = lines[lines.index(closing[0]) + 1]
    assert (after["time"][:16], after["bids"][0]["price"]) == ("2024-03-17T21:03", "188.180")


async def test_a_stop_is_filled_at_the_price_after_the_weekend(tmp_path: Path) -> None:
    bars = with_weekend()
    bars.open[3:] = np.array([186.0, 186.0])
    bars.high[3], bars.low[3] = 186.1, 185.9
    venue = venue_of(tmp_path, bars, ACKNOWLEDGED)
    fields = {"instrument": "GBP_JPY", "units": "1", "stopLossOnFill": {"price": "187.500"}}
    async with running(venue):
        await settle(venue)
        venue.market_order(MarketOrderFields.model_validate(fields))
        while venue.progress.next_tick < 13:
            venue.acknowledge(int(venue.tape.time_s[venue.newest_complete_bar()]))
            await settle(venue)
    fills = [order.filled for order in venue.exchange.account.orders.values() if order.filled]
    assert [(fill.reason, float(fill.price)) for fill in fills][-1] == ("STOP_LOSS_ORDER", 185.98)
    assert venue.exchange.account.units == 0


async def test_with_pacing_speed_the_replay_needs_no_client(tmp_path: Path) -> None:
    config = BrokerConfig(pacing=Pacing.SPEED, speed=100_000)
    venue = venue_of(tmp_path, bars_of(CLOSES), config)
    async with running(venue) as replay:
        await replay
    assert venue.all_ticks_sent
    assert venue.now_ns == venue.tape.end_ns(len(CLOSES) - 1)


async def test_simulated_time_never_reaches_the_next_price_early(tmp_path: Path) -> None:
    venue = venue_of(tmp_path, bars_of(CLOSES), BrokerConfig(pacing=Pacing.SPEED, speed=100_000))
    await asyncio.sleep(0.01)  # far more than a simulated minute, while the replay does not run
    assert venue.now_ns < venue.tape.tick_time_ns(1)


async def test_a_replay_of_other_bars_is_refused(tmp_path: Path) -> None:
    venue = venue_of(tmp_path, bars_of(CLOSES), ACKNOWLEDGED)
    venue.ledger.close()
    with pytest.raises(BrokerError, match="outside the replayed bars"):
        venue_of(tmp_path, bars_of(CLOSES), ACKNOWLEDGED, first=2)


async def test_orders_are_cancelled_after_the_end_of_the_tape(tmp_path: Path) -> None:
    venue = venue_of(tmp_path, bars_of([188.0]), ACKNOWLEDGED)
    async with running(venue) as replay:
        await replay
        answer = venue.market_order(buy())
    assert answer.cancelled is not None
    assert answer.cancelled.reason == "MARKET_HALTED"


def newest_s(venue: Venue) -> int:
    return int(venue.tape.time_s[venue.newest_complete_bar()])


FAST = BrokerConfig(pacing=Pacing.SPEED, speed=100_000)  # a bar in 0.6 ms


async def test_with_pacing_speed_the_replay_waits_for_an_acknowledging_client(tmp_path: Path) -> None:
    """The client sees every bar, however slow it is, and simulated time stops meanwhile."""
    venue = venue_of(tmp_path, bars_of(CLOSES), FAST)
    venue.acknowledge(0)
    with venue.price_lines():
        async with running(venue) as replay:
            for bar in range(1, len(CLOSES)):
                await until(lambda bar=bar: venue.progress.next_tick == 4 * bar + 1)  # type: ignore[misc]
                await asyncio.sleep(0.01)  # the time of many bars
                assert venue.progress.next_tick == 4 * bar + 1
                assert newest_s(venue) == START_S + 60 * (bar - 1)
                assert venue.now_ns < venue.tape.tick_time_ns(4 * bar + 1)
                assert venue.waiting_seconds > 0
                venue.acknowledge(newest_s(venue))
            async with asyncio.timeout(PATIENCE_SECONDS):
                await replay
    assert venue.is_finished
    assert venue.waiting_seconds == 0


async def test_the_replay_does_not_wait_for_a_client_that_left(tmp_path: Path) -> None:
    venue = venue_of(tmp_path, bars_of(CLOSES), FAST)
    venue.acknowledge(0)
    async with running(venue) as replay:
        with venue.price_lines():
            await until(lambda: venue.progress.next_tick == 5)
            await asyncio.sleep(0.01)
            assert not replay.done()
        async with asyncio.timeout(PATIENCE_SECONDS):
            await replay  # the client's stream has ended, so the replay continues


async def test_after_a_restart_the_replay_waits_for_a_known_client(tmp_path: Path) -> None:
    """The ledger stores that bars were acknowledged."""
    venue = venue_of(tmp_path, bars_of(CLOSES), ACKNOWLEDGED)
    async with running(venue):
        await settle(venue)
        venue.acknowledge(START_S)
    venue.ledger.close()
    again = venue_of(tmp_path, bars_of(CLOSES), FAST)
    with again.price_lines():
        async with running(again):
            await until(lambda: again.progress.next_tick == 9)
            await asyncio.sleep(0.01)
            assert again.progress.next_tick == 9  # bar 0 is acknowledged, bar 1 is not
    again.ledger.close()


async def test_the_wait_for_a_silent_client_times_out_once(tmp_path: Path) -> None:
    config = replace(FAST, patience_seconds=0.2)
    venue = venue_of(tmp_path, bars_of(CLOSES), config)
    venue.acknowledge(0)
    with venue.price_lines(), capture_logs() as logs:
        async with running(venue) as replay:
            async with asyncio.timeout(PATIENCE_SECONDS):
                await replay
    silent = [line for line in logs if line["event"] == "client_silent"]
    assert [line["bar_time_s"] for line in silent] == [START_S]  # logged once, without a second wait


async def test_the_replay_waits_again_for_a_client_that_acknowledges_again(tmp_path: Path) -> None:
    config = BrokerConfig(pacing=Pacing.SPEED, speed=600, patience_seconds=0.05)  # a bar in 0.1 s
    venue = venue_of(tmp_path, bars_of(CLOSES), config)
    venue.acknowledge(0)
    with venue.price_lines():
        async with running(venue):
            await until(lambda: venue.progress.next_tick >= 6)
            venue.acknowledge(START_S)
            before = venue.progress.next_tick
            await until(lambda: venue.waiting_seconds > 0)
            assert venue.progress.next_tick > before
            assert venue.progress.next_tick % 4 == 1


async def test_simulated_time_does_not_catch_up_after_a_wait(tmp_path: Path) -> None:
    """The replay does not run faster to make up for the wait."""
    config = BrokerConfig(pacing=Pacing.SPEED, speed=120)  # a bar in 0.5 s
    venue = venue_of(tmp_path, bars_of(CLOSES), config)
    venue.acknowledge(0)
    with venue.price_lines():
        async with running(venue):
            await until(lambda: venue.waiting_seconds > 1.0)
            stood = venue.now_ns
            began = time.monotonic()
            venue.acknowledge(newest_s(venue))
            await until(lambda: venue.progress.next_tick >= 8)
            passed_s = (venue.now_ns - stood) / 1e9
            assert passed_s <= (time.monotonic() - began) * 120 + 1


async def test_the_replay_jumps_the_weekend_only_after_the_last_decision(tmp_path: Path) -> None:
    venue = venue_of(tmp_path, with_weekend(), ACKNOWLEDGED)
    async with running(venue):
        for bar in range(2):
            await settle(venue)
            venue.acknowledge(int(venue.tape.time_s[bar]))
        await settle(venue)
        assert newest_s(venue) == venue.tape.time_s[2]
        assert venue.progress.next_tick == 12  # the market is closed; Sunday's first price is still to come
        assert venue.now_ns == venue.tape.end_ns(2)
        venue.acknowledge(newest_s(venue))
        await settle(venue)
        assert venue.progress.next_tick == 17  # Sunday's first bar is complete and awaits its decision


async def test_the_replay_is_over_when_its_last_bar_is_complete(tmp_path: Path) -> None:
    venue = venue_of(tmp_path, bars_of([188.0, 188.1]), BrokerConfig(pacing=Pacing.SPEED, speed=300))
    async with running(venue) as replay:
        await until(lambda: venue.progress.next_tick == 8)
        if venue.newest_complete_bar() == 0:
            assert venue.status()["over"] is False
        await replay
    assert venue.status()["over"] is True
    assert venue.status()["newestCompleteSeconds"] == START_S + 60


def test_speed_is_a_mean_over_sixty_bars_and_a_slow_replay_is_reported_once() -> None:
    pace = Pace(300.0)  # a bar in 0.2 s
    reported = []
    for _ in range(59):
        pace.add_wait(0.2)
        reported.append(pace.became_too_slow())
    assert pace.speed == pytest.approx(150.0)
    pace.add_wait(0.2)
    assert reported == [False] * 59  # too few bars to measure the speed
    assert [pace.became_too_slow(), pace.became_too_slow()] == [True, False]
    for _ in range(60):
        pace.add_wait(0.0)
    assert pace.speed == 300.0


def test_a_slightly_slow_replay_is_not_reported() -> None:
    pace = Pace(300.0)
    for _ in range(100):
        pace.add_wait(0.03)
        assert not pace.became_too_slow()
