"""The account, its position, its trades and its history."""

from typing import Annotated

from fastapi import APIRouter, HTTPException, Query, Request
from starlette.responses import Response

from services.broker.exchange.account import Trade
from services.broker.exchange.transactions import Transaction
from services.broker.http.requests import (
    BAD_REQUEST,
    NOT_FOUND,
    OUT_OF_RANGE,
    Count,
    OfAccount,
    OfMarket,
    invalid_value,
    read_id,
    read_ids,
    read_time_ns,
)
from services.broker.http.streams import LineStream
from services.broker.http.views import (
    account_json,
    changes_json,
    matching_trades,
    position_json,
    positions_json,
    summary_json,
    trade_json,
)
from services.broker.venue import Venue
from services.broker.wire import Json
from shared.adapters.oanda.records import format_time

router = APIRouter(prefix="/v3/accounts")

#: Maximum number of transactions in one answer.
MAX_TRANSACTIONS = 1_000


@router.get("")
async def accounts(venue: OfMarket) -> Json:
    """The one account."""
    return {"accounts": [{"id": venue.exchange.terms.account_id, "tags": []}]}


@router.get("/{account}")
async def account_details(venue: OfAccount) -> Json:
    """The account with its trades, positions and pending orders."""
    return {"account": account_json(venue.exchange), **venue.last_transaction}


@router.get("/{account}/summary")
async def account_summary(venue: OfAccount) -> Json:
    """Amounts, and numbers of trades, positions and orders."""
    return {"account": summary_json(venue.exchange), **venue.last_transaction}


@router.get("/{account}/instruments")
async def account_instruments(venue: OfAccount, instruments: str | None = None) -> Json:
    """The one instrument."""
    rules = venue.exchange.rules
    if instruments is not None and any(name != rules.name for name in instruments.split(",")):
        raise invalid_value("instruments")
    return {"instruments": [rules.json_object()], **venue.last_transaction}


@router.get("/{account}/changes")
async def account_changes(venue: OfAccount, since: Annotated[str, Query(alias="sinceTransactionID")]) -> Json:
    """Changes since a transaction."""
    return changes_json(venue.exchange, _known_id(venue, since, "sinceTransactionID"))


@router.get("/{account}/positions")
@router.get("/{account}/openPositions")
async def positions(venue: OfAccount, request: Request) -> Json:
    """All positions since the account was opened, or only the open ones."""
    only_open = request.url.path.endswith("openPositions")
    held = positions_json(venue.exchange)
    return {
        "positions": held if venue.exchange.account.open_ids or not only_open else [],
        **venue.last_transaction,
    }


@router.get("/{account}/positions/{instrument}")
async def position(venue: OfAccount, instrument: str) -> Json:
    """The position of one instrument."""
    if instrument != venue.exchange.rules.name:
        raise HTTPException(NOT_FOUND, "The position specified does not exist")
    return {"position": position_json(venue.exchange), **venue.last_transaction}


@router.get("/{account}/trades")
async def trades(
    venue: OfAccount,
    ids: str | None = None,
    state: str = "OPEN",
    instrument: str | None = None,
    count: Count = 50,
    before: Annotated[str | None, Query(alias="beforeID")] = None,
) -> Json:
    """Trades, the newest first."""
    if state not in ("OPEN", "CLOSED", "ALL"):
        raise invalid_value("state")
    before_id = None if before is None else read_id(before, "beforeID")
    found = matching_trades(venue.exchange.account, state, read_ids(ids), before_id, count)
    if instrument not in (None, venue.exchange.rules.name):
        found = []
    return {
        "trades": [trade_json(venue.exchange, trade) for trade in found],
        **venue.last_transaction,
    }


@router.get("/{account}/openTrades")
async def open_trades(venue: OfAccount) -> Json:
    """Open trades, the newest first."""
    found = venue.exchange.account.open_trades[::-1]
    return {
        "trades": [trade_json(venue.exchange, trade) for trade in found],
        **venue.last_transaction,
    }


@router.get("/{account}/trades/{specifier}")
async def trade_details(venue: OfAccount, specifier: str) -> Json:
    """One trade by its id, or by @ and the client's id."""
    found = find_trade(venue, specifier)
    if found is None:
        raise HTTPException(NOT_FOUND, "The trade ID specified does not exist")
    return {"trade": trade_json(venue.exchange, found, details=True), **venue.last_transaction}


def find_trade(venue: Venue, specifier: str) -> Trade | None:
    """The trade that a path names by its id, or by @ and the client's id."""
    account = venue.exchange.account
    if specifier.startswith("@"):
        return account.trade_by_client_id(specifier[1:])
    return account.trades.get(read_id(specifier, "tradeSpecifier"))


# -- transactions ------------------------------------------------------------------------------------


@router.get("/{account}/transactions")
async def transaction_pages(
    venue: OfAccount,
    request: Request,
    from_time: Annotated[str | None, Query(alias="from")] = None,
    to_time: Annotated[str | None, Query(alias="to")] = None,
    page_size: Annotated[int, Query(alias="pageSize", ge=1, le=1_000)] = 100,
) -> Json:
    """URLs of the pages of a history, each an idrange query."""
    history = venue.exchange.account.transactions
    first_ns = read_time_ns(from_time, "from") or history[0].time
    to_ns = read_time_ns(to_time, "to")
    last_ns = venue.now_ns if to_ns is None else to_ns
    ids = [item.id for item in history if first_ns <= item.time <= last_ns]
    base = str(request.url.replace(query="")) + "/idrange"
    chunks = [ids[start : start + page_size] for start in range(0, len(ids), page_size)]
    return {
        "from": format_time(first_ns),
        "to": format_time(last_ns),
        "pageSize": page_size,
        "count": len(ids),
        "pages": [f"{base}?from={chunk[0]}&to={chunk[-1]}" for chunk in chunks],
        **venue.last_transaction,
    }


@router.get("/{account}/transactions/idrange")
async def transactions_between(
    venue: OfAccount,
    first: Annotated[str, Query(alias="from")],
    last: Annotated[str, Query(alias="to")],
) -> Json:
    """Transactions from one id to another, both included, at most 1,000."""
    low, high = _known_id(venue, first, "from", lowest=1), _known_id(venue, last, "to", lowest=1)
    if high < low:
        raise invalid_value("to")
    if high - low >= MAX_TRANSACTIONS:
        raise HTTPException(BAD_REQUEST, f"The range is larger than {MAX_TRANSACTIONS} transactions")
    return _listed(venue, venue.exchange.account.transactions[low - 1 : high])


@router.get("/{account}/transactions/sinceid")
async def transactions_since(venue: OfAccount, number: Annotated[str, Query(alias="id")]) -> Json:
    """Transactions after an id, at most 1,000. For more, repeat with the last id."""
    since = _known_id(venue, number, "id")
    return _listed(venue, venue.exchange.account.transactions[since : since + MAX_TRANSACTIONS])


@router.get("/{account}/transactions/stream")
async def transaction_stream(venue: OfAccount) -> Response:
    """Transactions as they are booked, one per line, and heartbeats with the last id."""
    return LineStream(
        venue,
        venue.transaction_lines(),
        first=[],
        heartbeat=lambda: {
            "type": "HEARTBEAT",
            "time": format_time(venue.now_ns),
            **venue.last_transaction,
        },
    )


@router.get("/{account}/transactions/{number}")
async def transaction(venue: OfAccount, number: str) -> Json:
    """One transaction."""
    history = venue.exchange.account.transactions
    wanted = read_id(number, "transactionID")
    if not 1 <= wanted <= len(history):
        raise HTTPException(NOT_FOUND, "The transaction ID specified does not exist")
    return {"transaction": history[wanted - 1].json_object(), **venue.last_transaction}


def _listed(venue: Venue, found: list[Transaction]) -> Json:
    return {"transactions": [item.json_object() for item in found], **venue.last_transaction}


def _known_id(venue: Venue, text: str, name: str, *, lowest: int = 0) -> int:
    number = read_id(text, name)
    if not lowest <= number <= venue.exchange.account.last_id:
        raise HTTPException(OUT_OF_RANGE, f"The transaction id {number} is out of range")
    return number
