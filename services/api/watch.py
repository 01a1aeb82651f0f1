"""Announces conditions when they begin and end, and carries every alert to the operator's webhook."""

import asyncio
import contextlib
import time
from collections import deque

import structlog

from services.api.outbox import MOST_WAITING, Outbox
from services.api.state import Gateway, RedisAwayError
from shared.adapters.webhook import post_alert
from shared.errors import WebhookError
from shared.messages.schemas import AlertRaised
from shared.messages.streams import ALERTS

log = structlog.get_logger()

#: Pauses before an alert that the webhook did not take is posted again: doubled each time, up to this.
MOST_PAUSE_SECONDS = 60.0


async def watch(gateway: Gateway) -> None:
    """Look at the status now and then; each look notes what begins and ends."""
    while True:
        await gateway.status()
        await asyncio.sleep(gateway.alerts.check_seconds)


async def announce(gateway: Gateway, post: Outbox) -> None:
    """Append noted alerts to `mm:alerts` in order; while Redis is away they go to the webhook at once."""
    waiting: deque[AlertRaised] = deque()
    while True:
        while not waiting or not gateway.noted.empty():
            waiting.append(await _noted(gateway))
        appended = await _append(gateway, waiting[0])
        if appended is None:
            for alert in waiting:
                post.put(alert, time.monotonic())
            await asyncio.sleep(gateway.alerts.check_seconds)
            continue
        alert = waiting.popleft()
        if appended:
            post.put(alert, time.monotonic())  # also where the relay does not follow the stream yet


async def relay(gateway: Gateway, post: Outbox) -> None:
    """Put each alert that anyone raises from now on into the outbox."""
    after = await gateway.bus.last_id(ALERTS)
    async for entries in gateway.bus.follow(ALERTS, after):
        for entry in entries:
            post.put(entry.message, time.monotonic())


async def deliver(gateway: Gateway, post: Outbox) -> None:
    """Post one alert after the other; without a webhook there is nothing to do."""
    url = gateway.alerts.webhook_url.get_secret_value()
    pause = 1.0
    while True:
        alert = await _next(post)
        if not url or await _posted(url, post, alert):
            pause = 1.0
        else:
            post.put_back(alert)
            await asyncio.sleep(pause)
            pause = min(2.0 * pause, MOST_PAUSE_SECONDS)


async def _next(post: Outbox) -> AlertRaised:
    while True:
        moment = time.monotonic()
        alert = post.take(moment)
        if alert is not None:
            return alert
        post.arrived.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(post.seconds_to_release(moment)):
                await post.arrived.wait()


async def _noted(gateway: Gateway) -> AlertRaised:
    alert = await gateway.noted.get()
    log.warning("alert_raised", source=alert.source, name=alert.name, phase=alert.phase, detail=alert.detail)
    return alert


async def _append(gateway: Gateway, alert: AlertRaised) -> bool | None:
    """False when another gateway, or an earlier one, has announced the same; None while Redis is away."""
    try:
        return await gateway.ask(lambda: gateway.bus.append_phase(alert))
    except RedisAwayError:
        return None


async def _posted(url: str, post: Outbox, alert: AlertRaised) -> bool:
    """False when the alert should be posted again later."""
    if post.given_up:
        log.error("alerts_given_up", number=post.given_up, most_waiting=MOST_WAITING)
        post.given_up = 0
    try:
        await post_alert(url, alert)
    except WebhookError as undelivered:
        log.error(  # noqa: TRY400  the text says it all
            "alert_not_delivered", name=alert.name, error=str(undelivered), again=undelivered.again
        )
        return not undelivered.again
    return True
