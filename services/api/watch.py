"""Announces conditions that begin or end, and posts every alert to the operator's webhook."""

import asyncio
import contextlib
import time
from collections import deque

import structlog

from services.api.outbox import MAX_WAITING, Outbox
from services.api.state import Gateway, RedisUnavailableError
from shared.adapters.webhook import post_alert
from shared.errors import WebhookError
from shared.messages.schemas import AlertRaised
from shared.messages.streams import ALERTS

log = structlog.get_logger()

#: Longest pause before an alert is posted again. The pause doubles with every failure.
MAX_PAUSE_SECONDS = 60.0


async def watch(gateway: Gateway) -> None:
    """Read the status periodically; each reading queues the conditions that begin or end."""
    while True:
        await gateway.status()
        await asyncio.sleep(gateway.alerts.check_seconds)


async def announce(gateway: Gateway, outbox: Outbox) -> None:
    """Append queued alerts to `mm:alerts` in order; while Redis is unavailable, post them at once."""
    waiting: deque[AlertRaised] = deque()
    while True:
        while not waiting or not gateway.unannounced.empty():
            waiting.append(await _next_unannounced(gateway))
        appended = await _append(gateway, waiting[0])
        if appended is None:
            for alert in waiting:
                outbox.put(alert, time.monotonic())
            await asyncio.sleep(gateway.alerts.check_seconds)
            continue
        alert = waiting.popleft()
        if appended:
            outbox.put(alert, time.monotonic())  # the relay may not follow the stream yet


async def relay(gateway: Gateway, outbox: Outbox) -> None:
    """Put every alert that any service raises from now on into the outbox."""
    after = await gateway.bus.last_id(ALERTS)
    async for entries in gateway.bus.follow(ALERTS, after):
        for entry in entries:
            outbox.put(entry.message, time.monotonic())


async def deliver(gateway: Gateway, outbox: Outbox) -> None:
    """Post the alerts one by one; without a webhook, drop them."""
    url = gateway.alerts.webhook_url.get_secret_value()
    pause = 1.0
    while True:
        alert = await _next(outbox)
        if not url or await _posted(url, outbox, alert):
            pause = 1.0
        else:
            outbox.put_back(alert)
            await asyncio.sleep(pause)
            pause = min(2.0 * pause, MAX_PAUSE_SECONDS)


async def _next(outbox: Outbox) -> AlertRaised:
    while True:
        now_s = time.monotonic()
        alert = outbox.take(now_s)
        if alert is not None:
            return alert
        outbox.arrived.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(outbox.seconds_to_release(now_s)):
                await outbox.arrived.wait()


async def _next_unannounced(gateway: Gateway) -> AlertRaised:
    alert = await gateway.unannounced.get()
    log.warning("alert_raised", source=alert.source, name=alert.name, phase=alert.phase, detail=alert.detail)
    return alert


async def _append(gateway: Gateway, alert: AlertRaised) -> bool | None:
    """False if another gateway has already announced it; None while Redis is unavailable."""
    try:
        return await gateway.ask(lambda: gateway.bus.append_condition_alert(alert))
    except RedisUnavailableError:
        return None


async def _posted(url: str, outbox: Outbox, alert: AlertRaised) -> bool:
    """Post one alert; False if it should be posted again later."""
    if outbox.num_dropped:
        log.error("alerts_given_up", number=outbox.num_dropped, most_waiting=MAX_WAITING)
        outbox.num_dropped = 0
    try:
        await post_alert(url, alert)
    except WebhookError as undelivered:
        log.error(  # noqa: TRY400  the traceback adds nothing
            "alert_not_delivered", name=alert.name, error=str(undelivered), again=undelivered.again
        )
        return not undelivered.again
    return True
