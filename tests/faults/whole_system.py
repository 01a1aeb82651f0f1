"""A system of all services, each with small settings, and checks that they work."""

import asyncio
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

import httpx

from services.api.config import EXPECTED_SERVICES
from services.trader.guards import Guard
from shared.adapters.streams.bus import Bus
from shared.adapters.versions.manifest import Pointer
from shared.adapters.versions.store import CheckpointStore
from shared.messages.schemas import ControlIssued, Heartbeat, VersionPromoted
from shared.messages.streams import CONTROL, PROMOTIONS
from shared.runtime.ports import free_port
from tests.services.trainer.processes import System

#: Services that must run before a version is promoted, which inference needs when it starts.
FIRST = ("trainer", "validator")

#: Services that answer `/readyz`.
ASKED = ("api", "inference")

_NO_CERTIFICATES = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)

#: Services in the order in which they are stopped, as by `up`.
STOPPED = ("trader", "selfplay", "validator", "trainer", "inference", "broker", "api")


@dataclass
class WholeSystem:
    """A trainer, a worker, a validator, inference, broker, trader and gateway."""

    system: System
    ports: dict[str, int] = field(default_factory=lambda: {name: free_port() for name in (*ASKED, "broker")})
    replaced: int | None = None  # the version that inference served when another one was promoted

    @property
    def bus(self) -> Bus:
        """The bus of the system."""
        return self.system.bus

    @property
    def store(self) -> CheckpointStore:
        """The checkpoint store of the system."""
        return CheckpointStore(self.system.home / "checkpoints")

    async def start(self, **more: str) -> None:
        """Start all services and wait until each of them works.

        Args:
            more: settings beyond those that keep the system small.
        """
        for service in FIRST:
            self._start(service, **more)
        await self.system.until("a version is promoted", self._promoted)
        for service in EXPECTED_SERVICES:
            if service not in FIRST:
                self._start(service, **more)
        await self.system.until("all run", lambda: self.all_run(since=None))
        await self.system.until("all are ready", self._all_ready)
        await self.system.until("the trader decides", self._decides)

    async def stop(self) -> list[int]:
        """Stop all services gracefully; returns their exit statuses."""
        assert set(STOPPED) == set(self.system.processes)
        return [await asyncio.to_thread(self.system.stop, service) for service in STOPPED]

    def exited(self) -> list[str]:
        """Services that have exited."""
        return [name for name, process in self.system.processes.items() if process.poll() is not None]

    def url(self, service: str) -> str:
        """URL of a service."""
        return f"http://127.0.0.1:{self.ports[service]}"

    async def beat(self, service: str, since: datetime | None) -> Heartbeat | None:
        """The last heartbeat of a running service, if it is newer than `since`."""
        beat = await self.system.beat(service)
        fresh = beat and beat.state == "running" and (since is None or beat.created_at > since)
        return beat if fresh else None

    async def all_run(self, since: datetime | None) -> bool:
        """Whether every service has sent a heartbeat after a moment and is running."""
        beats = [await self.beat(service, since) for service in EXPECTED_SERVICES]
        return all(beats)

    async def readiness(self, service: str) -> int:
        """Status of `/readyz`; 0 while nothing listens."""
        try:
            async with _client() as client:
                return (await client.get(f"{self.url(service)}/readyz")).status_code
        except httpx.TransportError:
            return 0

    async def get(self, path: str) -> dict[str, object]:
        """Answer of the gateway."""
        async with _client() as client:
            return dict((await client.get(f"{self.url('api')}{path}")).raise_for_status().json())

    async def served(self) -> int:
        """The version that inference uses."""
        async with _client() as client:
            return int((await client.get(f"{self.url('inference')}/readyz")).json()["version"])

    async def promote_another(self) -> None:
        """Promote a version that inference does not serve; only the stream announces it."""
        self.replaced = await self.served()
        other = next(version for version in self.store.versions() if version != self.replaced)
        self.store.point(Pointer.PROMOTED, other, stage="paper")
        await self.bus.announce(PROMOTIONS, VersionPromoted(version=other, stage="paper", by="test"))

    async def order(self, target: Literal["training", "trader"], state: Literal["running", "paused"]) -> None:
        """Send a control order, as the gateway does."""
        control = ControlIssued(target=target, state=state, by="test")
        await self.bus.announce(CONTROL, control, name=target)

    def signs(self, since: datetime) -> dict[str, Callable[[], Awaitable[bool]]]:
        """Whether each service has worked since a moment and received messages of the others.

        The checks are repeated. Meanwhile another version must be promoted and the trader must be paused.
        """
        first: dict[tuple[str, str], float] = {}

        async def grew(service: str, *names: str) -> bool:
            beat = await self.beat(service, since)
            if beat is None:
                return False
            values = {(service, name): float(beat.detail.get(name) or 0.0) for name in names}
            for name, value in values.items():
                first.setdefault(name, value)
            return all(value > first[name] for name, value in values.items())

        async def serves_another() -> bool:
            replaced, beat = self.replaced, await self.beat("inference", since)
            return None not in (replaced, beat) and await self.served() != replaced

        async def trades() -> bool:
            beat = await self.beat("trader", since)
            if beat is None or Guard.NO_LEASE in str(beat.detail.get("guards", Guard.NO_LEASE)):
                return False
            return await grew("trader", "decisions") and beat.detail["control"] == "paused"

        async def shows() -> bool:
            if await self.readiness("api") != httpx.codes.OK or await self.beat("api", since) is None:
                return False
            training = (await self.get("/status"))["training"]
            assert isinstance(training, dict)
            first.setdefault(("api", "version"), training["version"])
            return bool(training["version"] > first["api", "version"])

        return {
            "trainer": lambda: grew("trainer", "journalled", "version"),
            "selfplay": lambda: grew("selfplay", "episodes", "version"),
            "validator": lambda: grew("validator", "done"),
            "inference": serves_another,
            "broker": lambda: grew("broker", "time_s"),
            "trader": trades,
            "api": shows,
        }

    def _start(self, service: str, **more: str) -> None:
        self.system.start(service, **self._settings(service), **more)

    def _settings(self, service: str) -> dict[str, str]:
        """Small settings for a service, and the addresses of the others."""
        return {
            "validator": {
                "MM_VALIDATION__MAX_SESSIONS": "2",
                "MM_VALIDATION__PAGE": "false",
                "MM_GATE__PAPER_MIN_TRADES": "0",  # two sessions are not significant
                "MM_GATE__PAPER_MIN_DAYS": "0",
                "MM_GATE__PAPER_MAX_P_VALUE": "1",
                "MM_GATE__PAPER_MAX_RULE_P_VALUE": "1",
            },
            "inference": {
                "MM_INFERENCE__PORT": str(self.ports["inference"]),
                "MM_INFERENCE__POLL_SECONDS": "3600",
            },
            "broker": {  # one bar per second, for more than an hour
                "MM_BROKER__PORT": str(self.ports["broker"]),
                "MM_BROKER__SPEED": "60",
                "MM_BROKER__SPLIT": "validation",
            },
            "trader": {
                "MM_TRADER__BROKER_URL": self.url("broker"),
                "MM_TRADER__INFERENCE_URL": self.url("inference"),
                "MM_TRADER__INFERENCE_DEADLINE_MS": "10000",
            },
            "api": {"MM_GATEWAY__PORT": str(self.ports["api"])},
        }.get(service, {})

    async def _promoted(self) -> bool:
        return self.store.pointer(Pointer.PROMOTED) is not None

    async def _decides(self) -> bool:
        return await self.system.detail("trader", "decisions") > 0

    async def _all_ready(self) -> bool:
        return all([await self.readiness(service) == httpx.codes.OK for service in ASKED])


def _client() -> httpx.AsyncClient:
    """A client for one request; the default client first loads all certificates, which is slow."""
    return httpx.AsyncClient(trust_env=False, timeout=60, verify=_NO_CERTIFICATES)
