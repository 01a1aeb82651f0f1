"""The ledger: what a restart finds, and which files are refused."""

import contextlib
import sqlite3
from decimal import Decimal
from pathlib import Path

import pytest

from services.broker.exchange.exchange import Exchange
from services.broker.exchange.ledger import Ledger, ReplayProgress
from services.broker.exchange.planning import AccountTerms
from services.broker.exchange.transactions import MarketOrderFields
from shared.errors import BrokerError
from tests.services.broker.markets import RULES, quote


def ledger_in(folder: Path, account: str = "1-1-1-1", dataset: str = "ab") -> Ledger:
    return Ledger(folder / "ledger.sqlite", account=account, dataset=dataset)


def test_committed_steps_are_read_back(tmp_path: Path) -> None:
    exchange = Exchange(AccountTerms(), RULES)
    ledger = ledger_in(tmp_path)
    assert ledger.progress() is None
    ledger.commit(exchange.open(0), ReplayProgress(3, 0))
    exchange.on_quote(quote("188.000", "188.040"))
    order = MarketOrderFields.model_validate(
        {"instrument": "GBP_JPY", "units": "1", "stopLossOnFill": {"distance": "0.100"}}
    )
    ledger.commit(exchange.market_order(order, 7).transactions, ReplayProgress(4, 60))
    ledger.close()

    again = ledger_in(tmp_path)
    assert again.progress() == ReplayProgress(4, 60)
    assert Exchange(AccountTerms(), RULES, again.transactions()).account == exchange.account
    again.close()


def test_a_step_is_stored_atomically(tmp_path: Path) -> None:
    exchange = Exchange(AccountTerms(), RULES)
    ledger = ledger_in(tmp_path)
    opening = exchange.open(0)
    ledger.commit(opening, ReplayProgress(1, 0))
    with pytest.raises(BrokerError, match="UNIQUE"):
        ledger.commit(opening, ReplayProgress(2, 0))
    assert ledger.progress() == ReplayProgress(1, 0)
    ledger.close()


def test_a_step_that_cannot_be_stored_is_a_broker_error(tmp_path: Path) -> None:
    ledger = ledger_in(tmp_path)
    with contextlib.closing(sqlite3.connect(tmp_path / "ledger.sqlite")) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(BrokerError, match="locked"):
            ledger.commit((), ReplayProgress(1, 0))
    ledger.commit((), ReplayProgress(2, 0))
    assert ledger.progress() == ReplayProgress(2, 0)
    ledger.close()


@pytest.mark.parametrize(("account", "dataset"), [("2-2-2-2", "ab"), ("1-1-1-1", "cd")])
def test_another_account_or_data_set_is_refused(tmp_path: Path, account: str, dataset: str) -> None:
    ledger_in(tmp_path).close()
    with pytest.raises(BrokerError, match="delete the file to start over"):
        ledger_in(tmp_path, account, dataset)


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "ledger.sqlite").write_bytes(b"no database" * 100)
    with pytest.raises(BrokerError, match=r"ledger\.sqlite"):
        ledger_in(tmp_path)


def test_the_error_names_a_damaged_transaction(tmp_path: Path) -> None:
    ledger_in(tmp_path).close()
    file = sqlite3.connect(tmp_path / "ledger.sqlite")
    with file:
        file.execute("INSERT INTO transactions VALUES (1, '{}')")
    file.close()
    ledger = ledger_in(tmp_path)
    with pytest.raises(BrokerError, match="transaction 1"):
        ledger.transactions()
    ledger.close()


def test_a_gap_in_the_history_is_refused() -> None:
    exchange = Exchange(AccountTerms(balance=Decimal(5)), RULES)
    history = exchange.open(0)
    with pytest.raises(BrokerError, match="the ledger is damaged"):
        Exchange(AccountTerms(), RULES, history[1:])
