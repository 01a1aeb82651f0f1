"""Redis is stopped and restarted while all services run as processes."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from datetime import timedelta

import pytest

from shared.messages.schemas import now
from shared.messages.streams import DECISIONS
from tests.broken_connections import BREAKS_CONNECTIONS
from tests.faults.counts import print_figures, rounds
from tests.faults.whole_system import ASKED, WholeSystem
from tests.services.trainer.processes import System

pytestmark = BREAKS_CONNECTIONS

#: Time limit for a service to recover after Redis is back, in soak tests. The default suite waits longer,
#: since the machine may be busy.
BACK_SECONDS = 10.0


@rounds(2, 30)
async def test_every_service_recovers_soon_after_a_redis_outage(
    forked_system: System, count: int, request: pytest.FixtureRequest
) -> None:
    """Redis is stopped for `count` seconds."""
    whole = WholeSystem(forked_system)
    await whole.start()
    await forked_system.learned_from(20)
    await whole.order("trader", "running")
    ready: dict[str, list[int]] = {service: [] for service in ASKED}

    stopped = now()
    await asyncio.to_thread(forked_system.redis.stop)
    while now() < stopped + timedelta(seconds=count):
        for service, statuses in ready.items():
            statuses.append(await whole.readiness(service))
        await asyncio.sleep(0.2)
    assert whole.exited() == []
    await asyncio.to_thread(forked_system.redis.start)
    back, begun = now(), time.monotonic()
    after: dict[str, float] = {}

    async def timed(service: str, holds: Callable[[], Awaitable[bool]]) -> None:
        await forked_system.until(f"{service} works again", holds)
        after[service] = round(time.monotonic() - begun, 2)

    await asyncio.gather(
        whole.promote_another(),
        whole.order("trader", "paused"),
        *(timed(service, holds) for service, holds in whole.signs(back).items()),
    )
    answers = {service: await whole.readiness(service) for service in ASKED}

    async def decided_meanwhile() -> int:
        decisions = [entry.message for entry in await forked_system.bus.recent(DECISIONS, count=1_000)]
        return sum(stopped < one.created_at < back and one.version is not None for one in decisions)

    async def recorded() -> bool:
        return await decided_meanwhile() > 0

    await forked_system.until("decisions of the outage are recorded", recorded)
    statuses = await whole.stop()
    held = forked_system.journalled_ids()
    print_figures(
        "redis stopped",
        seconds=count,
        services=len(after),
        exits=sum(status != 0 for status in statuses),
        gateway_503=ready["api"].count(503),
        gateway_other=len(ready["api"]) - ready["api"].count(503),
        inference_200=ready["inference"].count(200),
        decided_meanwhile=await decided_meanwhile(),
        journalled=len(held),
        doubled=len(held) - len(set(held)),
        **{f"{service}_after": seconds for service, seconds in sorted(after.items())},
    )
    assert statuses == [0] * 7
    assert set(ready["api"]) == {503}
    assert set(ready["inference"]) == {
        200
    }  # it decides with the loaded version; Redis only announces changes
    assert answers == dict.fromkeys(ASKED, 200)
    assert len(held) == len(set(held))
    if request.node.get_closest_marker("soak"):
        assert max(after.values()) < BACK_SECONDS
