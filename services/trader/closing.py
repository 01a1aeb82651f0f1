"""Closing a position at the broker without the ledger.

For a trader that waits for its lease or cannot read its account, and for `kill`. A close is reduce-only and
is repeated until the account shows that nothing is held.
"""

import asyncio
from uuid import uuid4

import structlog

from services.trader.orders import snapshot_holding
from shared.adapters.oanda.client import NOTHING_TO_CLOSE, OandaClient
from shared.environment.action import Side
from shared.errors import BrokerError, OrderRejectedError

log = structlog.get_logger()

#: An account that does not answer in time is closed unread.
_READ_SECONDS = 3.0


async def close_at_broker(client: OandaClient, instrument: str) -> tuple[int | None, str]:
    """Close what an account holds of an instrument, once, if it holds anything.

    An account that cannot be read is closed on both sides: a side that is flat only rejects it.

    Returns:
        The transaction at which the account is flat and an empty text, or None and why it is not known to be.
    """
    try:
        async with asyncio.timeout(_READ_SECONDS):
            snapshot = await client.snapshot()
    except (BrokerError, TimeoutError) as unreadable:
        tried = [await _close(client, instrument, long=long) for long in (True, False)]
        return None, "; ".join(
            filter(None, (f"the account cannot be read: {str(unreadable) or 'no answer in time'}", *tried))
        )
    held = snapshot_holding(snapshot, instrument, None)
    if not held.trades:
        return snapshot.summary.last_transaction_id, ""
    failure = await _close(client, instrument, long=held.side is Side.LONG)
    return None, failure or f"{held.units} units of {instrument} were held; the close was sent"


async def _close(client: OandaClient, instrument: str, *, long: bool) -> str:
    """Send one close; what went wrong, or an empty text."""
    log.warning("closing_at_broker", instrument=instrument, long=long)
    try:
        outcome = await client.close_position(instrument, long=long, client_id=f"mm-kill-{uuid4().hex[:24]}")
    except OrderRejectedError as rejected:
        return "" if rejected.reject_reason == NOTHING_TO_CLOSE else str(rejected)
    except BrokerError as failed:
        return str(failed)
    return f"the close was cancelled: {outcome.cancel.reason}" if outcome.cancel else ""
