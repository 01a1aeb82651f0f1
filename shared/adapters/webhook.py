"""Alerts to the operator, posted as JSON to a configured URL."""

import asyncio
import re

import httpx

from shared.errors import WebhookError
from shared.messages.schemas import AlertRaised

#: Chat services may take several seconds to answer. After this time-out the alert is not repeated, because
#: the receiver may have it.
ANSWER_SECONDS = 30.0
CONNECT_SECONDS = 5.0

_ZERO_WIDTH = "\u200b"


async def post_alert(url: str, alert: AlertRaised) -> None:
    """Post an alert once.

    Chat services show `text`. `alert_id`, also in the header `Idempotency-Key`, is the same in every delivery
    of an alert.

    Raises:
        WebhookError: the alert was not delivered. The text contains no part of the URL, which may include a
            secret.
    """
    document = {"text": chat_text(alert), **alert.model_dump(mode="json")}
    timeout = httpx.Timeout(ANSWER_SECONDS, connect=CONNECT_SECONDS)
    headers = {"Idempotency-Key": str(alert.alert_id)}
    try:
        async with (
            asyncio.timeout(CONNECT_SECONDS + ANSWER_SECONDS),
            httpx.AsyncClient(timeout=timeout) as client,
            client.stream("POST", url, json=document, headers=headers) as answer,
        ):
            status = answer.status_code  # the body is not needed, and may never end
    except (httpx.InvalidURL, UnicodeError):  # UnicodeError: a host name that IDNA rejects
        raise WebhookError("the alert webhook is not a URL", again=False) from None
    except (httpx.HTTPError, TimeoutError) as failed:
        unsent = isinstance(failed, httpx.ConnectError | httpx.ConnectTimeout)
        raise WebhookError(
            f"the alert webhook does not answer: {type(failed).__name__}", again=unsent
        ) from None
    if httpx.codes.is_success(status):
        return
    overloaded = httpx.codes.is_server_error(status) or status == httpx.codes.TOO_MANY_REQUESTS
    raise WebhookError(f"the alert webhook answered {status}", again=overloaded)


def chat_text(alert: AlertRaised) -> str:
    """One line for a chat, escaped so that the alert's text cannot mention people or contain markup.

    Slack interprets `<!channel>`; other services interpret `@here` and `[text](address)`.
    """
    times = f" after {alert.occurrences:,} occurrences" if alert.occurrences > 1 else ""
    phase = "" if alert.phase == "event" else f" {alert.phase}"
    if alert.phase == "event" and alert.occurrences > 1:
        times = f", {alert.occurrences:,} times"
    line = " ".join(f"{alert.source}: {alert.name}{phase}{times}: {alert.detail}".split())
    line = line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace("`", "'")
    return re.sub(r"@|(?<=\])(?=\()", lambda found: f"{found[0]}{_ZERO_WIDTH}", line)
