"""Closing a position at the broker without the ledger.

Used by a trader that waits for its lease or cannot read its account, and by `micro-muzero kill`. A close can
only reduce the position, and the callers repeat it until the account is flat.
"""

import asyncio
from uuid import uuid4

import structlog

from services.trader.orders import snapshot_holding
from shared.adapters.oanda.client import NOTHING_TO_CLOSE, OandaClient
from shared.environment.action import Side
from shared.errors import BrokerError, OrderRejectedError

log = structlog.get_logger()

#: If the account cannot be read within this time, a close is sent for both sides.
_READ_SECONDS = 3.0


async def close_at_broker(client: OandaClient, instrument: str) -> tuple[int | None, str]:
    """Send one close of an account's position in an instrument, if there is one.

    If the account cannot be read, both sides are closed: the broker rejects the close of a flat side.

    Returns:
        If the account is flat, its last transaction and an empty text; otherwise None and the reason why it
        is not known to be flat.
    """
    try:
        async with asyncio.timeout(_READ_SECONDS):
            snapshot = await client.snapshot()
    except (BrokerError, TimeoutError) as unreadable:
        failures = [await _close(client, instrument, long=long) for long in (True, False)]
        return None, "; ".join(
            filter(None, (f"the account cannot be read: {str(unreadable) or 'no answer in time'}", *failures))
        )
    held = snapshot_holding(snapshot, instrument, None)
    if not held.trades:
        return snapshot.summary.last_transaction_id, ""
    failure = await _close(client, instrument, long=held.side is Side.LONG)
    return None, failure or f"the account held {held.units} units of {instrument}; a close was sent"


async def _close(client: OandaClient, instrument: str, *, long: bool) -> str:
    """Send one close; returns the reason for its failure, or an empty text."""
    log.warning("closing_at_broker", instrument=instrument, long=long)
    try:
        outcome = await client.close_position(instrument, long=long, client_id=f"mm-kill-{uuid4().hex[:24]}")
    except OrderRejectedError as rejected:
        return "" if rejected.reject_reason == NOTHING_TO_CLOSE else str(rejected)
    except BrokerError as failed:
        return str(failed)
    return f"the broker cancelled the close: {outcome.cancel.reason}" if outcome.cancel else ""
