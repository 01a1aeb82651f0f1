"""Equity and loss limits: hand-worked examples, and how long a limit stays broken."""

from contextlib import closing
from dataclasses import asdict, replace
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.trader.config import GuardConfig
from services.trader.known_account import risk_after
from services.trader.ledger import Ledger, Memory, may_hold
from services.trader.orders import Holding, Intent, IntentState
from services.trader.risk import RiskBook
from shared.adapters.oanda.client import NOTHING_TO_CLOSE
from shared.environment.action import Action, Side

LIMITS = GuardConfig(daily_loss_pips=100.0, weekly_loss_pips=150.0, max_drawdown_pips=300.0)

#: Monday 2024-03-04 12:00 UTC; the trading day ends at 17:00 New York, 22:00 UTC.
NOON = 1_709_553_600
DAY = 86_400


def test_a_daily_loss_counts_open_and_closed_trades_until_the_next_day() -> None:
    book = RiskBook().marked(NOON, 0.0, LIMITS)
    book = book.closed(-60.0).marked(NOON + 60, -39.0, LIMITS)
    assert book.daily_loss == 99.0
    assert not book.daily_broken
    book = book.marked(NOON + 120, -40.0, LIMITS)
    assert book.daily_broken
    book = book.marked(NOON + 180, 500.0, LIMITS)
    assert book.daily_broken, "a recovery does not lift it"
    before_cut, after_cut = NOON + 10 * 3_600 - 60, NOON + 10 * 3_600
    book = book.marked(before_cut, -40.0, LIMITS)
    assert book.daily_broken
    book = book.closed(-40.0).marked(after_cut, 0.0, LIMITS)
    assert not book.daily_broken, "a new trading day begins at 17:00 New York"


def test_a_clock_set_back_does_not_reset_a_day_or_a_week() -> None:
    book = RiskBook().marked(NOON, 0.0, LIMITS)
    book = book.closed(-150.0).marked(NOON + 60, 0.0, LIMITS)
    assert book.daily_broken
    assert book.weekly_broken
    book = book.marked(NOON - 7 * DAY, 0.0, LIMITS)
    assert book.daily_broken
    assert book.weekly_broken
    book = book.marked(NOON + 120, 0.0, LIMITS)
    assert book.daily_broken, "the day did not begin a second time"
    assert book.weekly_broken


def test_a_weekly_loss_lasts_until_the_next_week() -> None:
    book = RiskBook().marked(NOON, 0.0, LIMITS)
    for day in range(1, 3):
        book = book.closed(-80.0).marked(NOON + day * DAY, 0.0, LIMITS)
        assert not book.daily_broken
    assert book.weekly_broken
    assert book.marked(NOON + 4 * DAY, 0.0, LIMITS).weekly_broken
    assert not book.marked(NOON + 7 * DAY, 0.0, LIMITS).weekly_broken


def test_a_loss_over_the_weekend_counts_for_the_new_week() -> None:
    friday, monday = NOON + 4 * DAY, NOON + 7 * DAY
    book = RiskBook().marked(NOON, 0.0, LIMITS).marked(friday, 10.0, LIMITS).marked(monday, -299.0, LIMITS)
    assert book.daily_loss == 309.0
    assert book.daily_broken
    assert book.weekly_broken
    assert book.drawdown == 309.0
    assert book.drawdown_broken


def test_the_drawdown_limit_lasts_until_an_operator_resumes() -> None:
    book = RiskBook().marked(NOON, 0.0, LIMITS).closed(-300.0).marked(NOON + 60, 0.0, LIMITS)
    assert book.drawdown_broken
    book = book.marked(NOON + 30 * DAY, 0.0, LIMITS)
    assert book.drawdown_broken
    book = book.resumed().marked(NOON + 30 * DAY + 60, 0.0, LIMITS)
    assert not book.drawdown_broken
    assert book.drawdown == 0.0


@pytest.mark.parametrize(
    ("state", "detail", "rejects"),
    [
        (IntentState.FILLED, "filled at 190.0", 0),
        (IntentState.REJECTED, "INSUFFICIENT_MARGIN", 3),
        (IntentState.CANCELLED, "MARKET_HALTED", 3),
        (IntentState.REJECTED, NOTHING_TO_CLOSE, 2),
    ],
)
def test_a_rejected_close_of_a_flat_account_is_not_counted(
    state: IntentState, detail: str, rejects: int
) -> None:
    assert risk_after(RiskBook(rejects=2), state, detail).rejects == rejects


def test_a_fill_resets_the_count_of_rejects() -> None:
    book = RiskBook().ordered(filled=False).ordered(filled=False)
    assert book.rejects == 2
    assert book.ordered(filled=True).rejects == 0
    assert book.resumed().rejects == 0


@given(moves=st.lists(st.tuples(st.floats(-50, 50), st.floats(-50, 50)), min_size=1, max_size=60))
def test_a_broken_limit_stays_broken_all_day(moves: list[tuple[float, float]]) -> None:
    """Compared with a slow version that computes equity, peak and largest loss step by step."""
    book, realised, equities = RiskBook().marked(NOON, 0.0, LIMITS), 0.0, [0.0]
    for step, (closed, open_pips) in enumerate(moves):
        realised += closed
        book = book.closed(closed).marked(NOON + 60 * step, open_pips, LIMITS)
        equities.append(realised + open_pips)
        assert book.equity == pytest.approx(equities[-1])
        assert book.peak == pytest.approx(max(equities))
        assert book.drawdown >= 0.0
        worst = min(equities)
        if abs(worst + 100.0) > 1e-6:
            assert book.daily_broken == (worst < -100.0)


def test_a_broken_limit_is_restored_from_the_ledger(tmp_path: Path) -> None:
    book = RiskBook().marked(NOON, 0.0, LIMITS).closed(-400.0).marked(NOON + 60, 0.0, LIMITS)
    ledger = Ledger(tmp_path)
    ledger.keep(Memory("101", Holding("GBP_JPY", 7), risk=book))
    ledger.close()
    again = Ledger(tmp_path)
    memory = again.memory()
    assert memory is not None
    assert asdict(memory.risk) == asdict(book)
    again.close()


def test_a_position_may_be_open_while_an_entry_s_outcome_is_not_known(tmp_path: Path) -> None:
    assert not may_hold(tmp_path)  # no trader has run here
    memory = Memory("101", Holding("GBP_JPY", 7))
    entry = Intent("i", "101", "GBP_JPY", 0, Action.BUY, Side.FLAT, Decimal(1), 7, 1)
    with closing(Ledger(tmp_path)) as ledger:
        ledger.keep(memory)
        assert not may_hold(tmp_path)
        ledger.add_intent(entry, memory)
        assert may_hold(tmp_path)
        ledger.keep(memory, (), [replace(entry, state=IntentState.NOT_EXECUTED)])
        assert not may_hold(tmp_path)
