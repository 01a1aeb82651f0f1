"""Publishers whose clocks are hours off: no reported age is negative, and ids stay ordered."""

import re
from datetime import timedelta
from pathlib import Path

from services.api.config import GatewayConfig
from shared.adapters.streams.bus import Bus
from shared.messages.schemas import CheckpointPublished, Heartbeat, now
from shared.messages.streams import CHECKPOINTS
from shared.runtime.redis_server import RedisServer
from tests.faults.counts import print_figures, rounds, steps
from tests.services.api.conftest import running_system

_SAMPLE = re.compile(r"^(\w+)(?:\{[^}]*\})? (\S+)$", re.MULTILINE)
_MINUTES = re.compile(r"for (-?\d+) minutes")


@rounds(2, 50)
async def test_no_reported_age_is_negative_when_clocks_jump_by_hours(
    own_redis: RedisServer, tmp_path: Path, count: int
) -> None:
    bus = Bus(own_redis.url)
    negative, ages, silent = 0, 0, []
    async with running_system(own_redis.url, bus, tmp_path, GatewayConfig()) as system:
        for number in steps(1, count + 1):
            hours = number if number % 2 else -number  # alternately ahead and behind, further each time
            moment = now() + timedelta(hours=hours)
            await bus.announce(
                CHECKPOINTS,
                CheckpointPublished(
                    created_at=moment, version=number, episode=number, update=number, weights_sha256="0" * 64
                ),
            )
            await bus.beat(
                Heartbeat(
                    created_at=moment,
                    service="trainer",
                    instance="trainer-1",
                    state="running",
                    pid=1,
                    started_at=moment,
                    detail={},
                )
            )
            await system.until(lambda: max(system.gateway.history.checkpoints, default=0) == number)  # noqa: B023
            status = (await system.client.get("/status")).json()
            reported = [
                int(minutes[1]) for alert in status["alerts"] if (minutes := _MINUTES.search(alert["detail"]))
            ]
            # Other figures may be negative, including those left by earlier tests in this process.
            exposed = [
                (name, value)
                for name, value in _SAMPLE.findall((await system.client.get("/metrics")).text)
                if name.endswith(("_seconds", "_age_episodes"))
            ]
            assert any(name == "mm_checkpoint_published_seconds" for name, _ in exposed)
            ages += len(reported) + len(exposed)
            negative += sum(minutes < 0 for minutes in reported) + sum(float(v) < 0.0 for _, v in exposed)
            silent.append(reported)
    order = [entry.message.version for entry in await bus.recent(CHECKPOINTS, count=1_000)]
    await bus.close()
    print_figures("clocks off", jumps=count, figures=ages, negative=negative, announced=len(order))
    assert negative == 0
    # Only a version published hours ago is old, not one from the future.
    assert silent == [[] if number % 2 else [60 * number] for number in range(1, count + 1)]
    assert order == list(range(count, 0, -1))
