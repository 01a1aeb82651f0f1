"""Alerts to a person: posted as JSON to an address that the operator chose."""

import httpx
import stamina

from shared.errors import ServiceError
from shared.messages.schemas import AlertRaised

TIMEOUT_SECONDS = 5.0
ATTEMPTS = 3


async def post_alert(url: str, alert: AlertRaised) -> None:
    """Post one alert; `text` is what chat services show.

    Raises:
        ServiceError: the address does not take it; the text names no part of the address, which may
            hold a secret.
    """
    document = {"text": f"{alert.source}: {alert.name}: {alert.detail}", **alert.model_dump(mode="json")}
    try:
        async for attempt in stamina.retry_context(on=httpx.HTTPError, attempts=ATTEMPTS, timeout=30.0):
            with attempt:
                async with httpx.AsyncClient(timeout=TIMEOUT_SECONDS) as client:
                    (await client.post(url, json=document)).raise_for_status()
    except httpx.HTTPStatusError as refused:
        raise ServiceError(f"the alert webhook answered {refused.response.status_code}") from None
    except (httpx.HTTPError, httpx.InvalidURL) as failed:
        raise ServiceError(f"the alert webhook does not answer: {type(failed).__name__}") from None
