"""The gateway's state, and how it reads Redis and the checkpoint store.

Redis must answer within `redis_timeout_seconds`; otherwise a request that needs it fails.
"""

import asyncio
import hashlib
import hmac
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Literal, TypeVar

import structlog
from redis.exceptions import RedisError

from services.api.alerts import active_alerts
from services.api.config import EXPECTED_SERVICES, AlertConfig, GatewayConfig
from services.api.control import REPLAY_FINISHED, trader_control, training_control
from services.api.events import Events
from services.api.history import History
from services.api.roster import Roster
from services.api.standing import ConditionHistory
from services.api.views import (
    Absence,
    CheckpointSummary,
    Detail,
    Disk,
    Instance,
    Pointers,
    Promoted,
    Service,
    Status,
    Trader,
    Training,
)
from shared.adapters.streams.bus import Bus
from shared.adapters.streams.condition import RedisCondition
from shared.adapters.streams.connection import TRANSIENT
from shared.adapters.versions.manifest import WEIGHTS, Manifest, Pointed, Pointer, stage_of
from shared.adapters.versions.store import CheckpointStore
from shared.errors import CheckpointError, ServiceError, StoreUnavailableError
from shared.messages.conditions import Condition
from shared.messages.schemas import AlertRaised, CheckpointPublished, Heartbeat, now
from shared.messages.streams import DEAD, STREAMS, TRAINER_GROUP, TRAJECTORIES
from shared.runtime.disk import free_megabytes

log = structlog.get_logger()

#: Maximum number of instances per service, and of services, in the status.
MAX_INSTANCES = 64
MAX_SERVICES = 32

ControlState = Literal["running", "paused", "killed"]

#: Longest wait of the status for the checkpoint store.
STORE_SECONDS = 4.0

R = TypeVar("R")


class RedisUnavailableError(Exception):
    """Redis does not answer, and the request needs it."""


@dataclass(frozen=True)
class _RedisReading:
    """What the gateway read from Redis: heartbeats, stream lengths and the condition of Redis itself."""

    heartbeats: list[Heartbeat]
    streams: dict[str, int]
    condition: RedisCondition
    begun: dict[Condition, str] | None  # conditions that an earlier gateway announced; read once


@dataclass(frozen=True)
class StoreSnapshot:
    """The versions and the pointers in the checkpoint store."""

    versions: frozenset[int]
    pointers: dict[Pointer, Pointed | None]


@dataclass
class Gateway:
    """Everything that a route needs."""

    bus: Bus
    store: CheckpointStore
    home: Path
    validation_root: Path
    config: GatewayConfig
    alerts: AlertConfig
    history: History = field(default_factory=History)
    started_at: datetime = field(default_factory=now)
    events: Events = field(init=False)
    unannounced: asyncio.Queue[AlertRaised] = field(init=False)  # conditions that began or ended

    def __post_init__(self) -> None:
        """Create the state that depends on the settings."""
        self.events = Events(self.config.max_event_clients, self.config.max_event_clients_per_peer)
        self.unannounced = asyncio.Queue()
        self._roster = Roster(timedelta(minutes=self.alerts.restart_minutes))
        self._conditions = ConditionHistory(self.alerts)
        self._resumed = False
        self._announced_missing: set[str] = set()  # announced by an earlier gateway
        self._late_snapshot: asyncio.Task[StoreSnapshot] | None = None
        self._redis_unavailable_since: datetime | None = None

    async def ask(self, query: Callable[[], Awaitable[R]]) -> R:
        """Run a query that Redis must answer in time.

        Raises:
            RedisUnavailableError: Redis does not answer in time, or refuses.
        """
        try:
            async with asyncio.timeout(self.config.redis_timeout_seconds):
                await self.bus.ping()  # one attempt, so that an unavailable Redis is noticed at once
                return await query()
        except (TimeoutError, RedisError, *TRANSIENT) as unavailable:
            raise RedisUnavailableError from unavailable
        except ServiceError as refused:
            log.error("redis_refused", error=str(refused))  # noqa: TRY400  the traceback adds nothing
            raise RedisUnavailableError from refused

    def key_is_right(self, key: str) -> bool:
        """Compare an API key in constant time, whatever its length."""
        given, expected = (
            hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest()
            for text in (key, self.config.api_key.get_secret_value())
        )
        return hmac.compare_digest(given, expected)

    async def status(self) -> Status:
        """The system at this moment, without the values of an unavailable Redis or store.

        Each call also queues the conditions that begin or end with it, to be announced.
        """
        try:
            live: _RedisReading | None = await self.ask(self._read_redis)
        except RedisUnavailableError:
            live = None
        snapshot = await self._snapshot_or_none()
        moment = now()
        self._update_roster(live, moment)
        services = self._services(live)
        complete = all(service.state == "up" for service in services if service.expected)
        status = Status(
            state="running" if live and snapshot and complete else "degraded",
            redis="up" if live else "unavailable",
            redis_unavailable_since=self._redis_unavailable_since,
            store="up" if snapshot else "unavailable",
            time=moment,
            started_at=self.started_at,
            version=installed_version("micro-stochastic-muzero"),
            changes_allowed=bool(self.config.api_key.get_secret_value()),
            services=services,
            streams=live.streams if live else {},
            dead_letters=live.streams[DEAD.key] if live else None,
            redis_condition=live.condition if live else None,
            disk=await self._disk(),
            pointers=self._pointers(snapshot or StoreSnapshot(frozenset(), dict.fromkeys(Pointer))),
            training=self._training(services),
            validation=self.history.last_validation,
            trader=self._trader(services),
            alerts=[],
        )
        alerts = active_alerts(status, self.alerts)
        for alert in self._conditions.update(alerts, time.monotonic(), redis_answers=live is not None):
            self.unannounced.put_nowait(alert)
        return status.model_copy(update={"alerts": self._conditions.active()})

    def snapshot(self) -> StoreSnapshot:
        """Read the checkpoint store.

        Raises:
            StoreUnavailableError: the store does not answer.
        """
        return StoreSnapshot(
            frozenset(self.store.versions()), {name: self._pointer(name) for name in Pointer}
        )

    def checkpoint(self, version: int, snapshot: StoreSnapshot) -> CheckpointSummary | None:
        """One version; None if it is neither stored nor was ever announced.

        Raises:
            StoreUnavailableError: the store does not answer.
        """
        stored = version in snapshot.versions
        announced = self.history.checkpoints.get(version)
        made: CheckpointPublished | Manifest | None = announced
        fault = ""
        if announced is None:
            if not stored:
                return None
            try:
                made = self.store.manifest(version)
            except CheckpointError as damaged:
                fault = str(damaged)
        promoted = snapshot.pointers[Pointer.PROMOTED]
        return CheckpointSummary(
            version=version,
            episode=made.episode if made else None,
            update=made.update if made else None,
            created_at=made.created_at if made else None,
            metrics=made.metrics if made else {},
            weights_sha256=_weights_sha256(made),
            stored=stored,
            pointers=[name.value for name, at in snapshot.pointers.items() if at and at.version == version],
            stage=stage_of(promoted) if promoted and promoted.version == version else None,
            validation=self.history.validations.get(version),
            fault=fault,
        )

    def _pointer(self, name: Pointer) -> Pointed | None:
        """The target of a pointer; None if it was never set or its file is damaged."""
        try:
            return self.store.pointer(name)
        except CheckpointError:
            return None

    async def _read_redis(self) -> _RedisReading:
        heartbeats = await self.bus.heartbeats()
        lengths = {stream.key: await self.bus.length(stream) for stream in STREAMS}
        condition = await self.bus.condition(TRAJECTORIES, TRAINER_GROUP)
        begun = None if self._resumed else await self.bus.active_conditions()
        return _RedisReading(heartbeats, lengths, condition, begun)

    def _update_roster(self, live: _RedisReading | None, moment: datetime) -> None:
        """Record which services are present, and since when Redis is unavailable."""
        if live is None:
            self._redis_unavailable_since = self._redis_unavailable_since or moment
            return
        self._redis_unavailable_since = None
        self._roster.update(self.alerts.expected_services, live.heartbeats, moment)
        if live.begun is not None and not self._resumed:
            self._conditions.resume(live.begun, time.monotonic())
            self._announced_missing = {c.source for c in live.begun if c.name == "service_missing"}
            self._resumed = True

    def _services(self, live: _RedisReading | None) -> list[Service]:
        beats_of: dict[str, list[Heartbeat]] = {name: [] for name in EXPECTED_SERVICES}
        for beat in live.heartbeats if live else []:
            if beat.service in beats_of or len(beats_of) < MAX_SERVICES:
                beats_of.setdefault(beat.service, []).append(beat)
        expected = set(self.alerts.expected_services)
        modes = {beat.detail.get("mode") for beat in beats_of["trader"]}
        if modes - {None, "paper"}:
            expected.discard("broker")  # only a trader in paper mode uses it
        return [
            self._service(name, beats, known=live is not None, expected=name in expected)
            for name, beats in beats_of.items()
        ]

    def _service(self, name: str, beats: list[Heartbeat], *, known: bool, expected: bool) -> Service:
        attendance = self._roster.of(name)
        absence = None
        if known and not beats and name != "api" and attendance.absent_since is not None:
            absence = Absence(
                since=attendance.absent_since,
                seen_at=attendance.seen_at,
                ran_out=attendance.ran_out,
                last_detail=attendance.last.detail if attendance.last else {},
                announced=name in self._announced_missing,
            )
        state = "missing" if known else "unknown"
        if beats:
            state = "degraded" if any(beat.state == "degraded" for beat in beats) else "up"
        elif name == "api":
            state = "up"  # this process answers; its first heartbeat follows
        # The sort is stable: each group keeps its order by name.
        shown = sorted(beats, key=lambda beat: beat.state != "degraded")[:MAX_INSTANCES]
        return Service.model_validate(
            {
                "service": name,
                "state": state,
                "expected": expected,
                "restarts": attendance.restarts,
                "absence": absence,
                "num_instances": len(beats),
                "instances": [_instance(beat) for beat in shown],
            }
        )

    def _trader(self, services: list[Service]) -> Trader:
        instance = _active_instance(services, "trader")
        since = self._roster.of("trader").seen_at
        control = trader_control(
            self.history.controls.get("trader"), instance.detail if instance else None, since
        )
        return Trader(
            **dict(control),
            heard_at=instance.beat_at if instance else since,
            killed_by_file=bool(instance and instance.detail.get("kill_file")),
            detail=instance.detail if instance else {},
            last_decision=self.history.last_decision,
            replay_end=_replay_end(instance.detail if instance else {}),
        )

    def _pointers(self, snapshot: StoreSnapshot) -> Pointers:
        best, promoted = snapshot.pointers[Pointer.BEST], snapshot.pointers[Pointer.PROMOTED]
        newest = max([*snapshot.versions, *list(self.history.checkpoints)[-1:]], default=None)
        return Pointers(
            newest=newest,
            best=best.version if best else None,
            promoted=Promoted(version=promoted.version, stage=stage_of(promoted)) if promoted else None,
        )

    async def _snapshot_or_none(self) -> StoreSnapshot | None:
        """Read the checkpoint store; None if it does not answer in time.

        A late read continues in its thread. No other read starts before it ends, so that a store that
        hangs cannot block every thread.
        """
        if self._late_snapshot and not self._late_snapshot.done():
            return None
        self._late_snapshot = None
        reading = asyncio.create_task(asyncio.to_thread(self.snapshot))
        finished, _ = await asyncio.wait({reading}, timeout=STORE_SECONDS)
        if not finished:
            log.warning("store_unavailable", error=f"no answer within {STORE_SECONDS:g} s")
            reading.add_done_callback(lambda late: late.cancelled() or late.exception())
            self._late_snapshot = reading
            return None
        try:
            return reading.result()
        except StoreUnavailableError as unavailable:
            log.warning("store_unavailable", error=str(unavailable))
            return None

    async def _disk(self) -> Disk | None:
        try:
            free_mb = await asyncio.to_thread(free_megabytes, self.home)
        except OSError as failed:
            log.warning("disk_not_read", home=str(self.home), error=str(failed))
            return None
        return Disk(home=str(self.home), free_mb=free_mb)

    def _training(self, services: list[Service]) -> Training:
        newest = max(self.history.checkpoints, default=None)
        published = self.history.checkpoints[newest] if newest is not None else None
        instance = _active_instance(services, "trainer")
        live = instance.detail if instance else None
        since = self._roster.of("trainer").seen_at
        return Training(
            **dict(training_control(self.history.controls.get("training"), live, since)),
            version=newest,
            episode=published.episode if published else None,
            update=published.update if published else None,
            published_at=published.created_at if published else None,
            metrics=published.metrics if published else {},
            live=live or {},
        )


def _instance(beat: Heartbeat) -> Instance:
    return Instance(
        instance=beat.instance,
        state=beat.state,
        started_at=beat.started_at,
        beat_at=beat.created_at,
        detail=beat.detail,
    )


def _active_instance(services: list[Service], name: str) -> Instance | None:
    """The instance that represents a service: an active one rather than one in standby."""
    instances = next((service.instances for service in services if service.service == name), [])
    return min(instances, key=lambda instance: instance.detail.get("state") == "standby", default=None)


def _replay_end(trader: Detail) -> str:
    """How the paper replay ended, as the trader reports it; empty while the replay continues."""
    if trader.get("state") != REPLAY_FINISHED:
        return ""
    last_bar = str(trader.get("last_bar") or "an unknown bar").replace("T", " ").replace("+00:00", " UTC")
    return (
        f"replay finished at {last_bar}: {trader.get('decisions', 0)} decisions since the trader started, "
        f"{trader.get('trades', 0)} trades. To continue, start with other bars (`./run up --data FILE`); "
        "docs/trading.md describes how to replay these again."
    )


def _weights_sha256(made: CheckpointPublished | Manifest | None) -> str | None:
    match made:
        case CheckpointPublished():
            return made.weights_sha256
        case Manifest() if WEIGHTS in made.files:
            return made.files[WEIGHTS].sha256
        case _:
            return None
