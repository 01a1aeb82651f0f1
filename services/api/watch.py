"""Raises an alert when something goes wrong, once, and carries every alert to the operator's webhook."""

import asyncio

import structlog

from services.api.state import Gateway, RedisAwayError
from services.api.views import ActiveAlert
from shared.adapters.webhook import post_alert
from shared.errors import ServiceError
from shared.messages.schemas import AlertRaised
from shared.messages.streams import ALERTS

log = structlog.get_logger()


async def watch(gateway: Gateway) -> None:
    """Look at the status now and then; what was not wrong before and is now becomes an alert."""
    known: set[tuple[str, str]] = set()
    while True:
        active = (await gateway.status()).alerts
        for alert in active:
            if (alert.name, alert.source) not in known:
                await _raise(gateway, alert)
        known = {(alert.name, alert.source) for alert in active}
        await asyncio.sleep(gateway.alerts.check_seconds)


async def relay(gateway: Gateway) -> None:
    """Carry each alert that anyone raises from now on to the webhook; without one there is nothing to do."""
    if not gateway.alerts.webhook_url.get_secret_value():
        return
    after = await gateway.bus.last_id(ALERTS)
    async for entries in gateway.bus.follow(ALERTS, after):
        for entry in entries:
            await _post(gateway, entry.message)


async def _raise(gateway: Gateway, alert: ActiveAlert) -> None:
    raised = AlertRaised(source=alert.source, name=alert.name, detail=alert.detail)
    log.warning("alert_raised", source=raised.source, name=raised.name, detail=raised.detail)
    try:
        await gateway.ask(lambda: gateway.bus.append(ALERTS, raised))
    except RedisAwayError:
        await _post(gateway, raised)  # the way over the stream is closed


async def _post(gateway: Gateway, alert: AlertRaised) -> None:
    url = gateway.alerts.webhook_url.get_secret_value()
    if not url:
        return
    try:
        await post_alert(url, alert)
    except ServiceError as undelivered:
        log.error("alert_not_delivered", name=alert.name, error=str(undelivered))  # noqa: TRY400  the text says it all
