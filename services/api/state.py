"""What the gateway knows and how it reads it: the streams, the checkpoint store, the reports.

Nothing here waits for Redis longer than `redis_timeout_seconds`; an answer that needs Redis is then an error.
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
from services.api.standing import Standing
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
from shared.errors import CheckpointError, ServiceError, StoreAwayError
from shared.messages.conditions import Condition
from shared.messages.schemas import AlertRaised, CheckpointPublished, Heartbeat, now
from shared.messages.streams import DEAD, STREAMS, TRAINER_GROUP, TRAJECTORIES
from shared.runtime.disk import free_megabytes

log = structlog.get_logger()

#: The status shows so many instances of a service, and so many services.
MAX_INSTANCES = 64
MAX_SERVICES = 32

ControlState = Literal["running", "paused", "killed"]

#: The status does not wait longer than this for the checkpoint store.
STORE_SECONDS = 4.0

R = TypeVar("R")


class RedisAwayError(Exception):
    """Redis gives no answer, and without it there is no answer to this request."""


@dataclass(frozen=True)
class _Live:
    """What only Redis knows: who lives, how long the streams are, and how Redis itself is."""

    heartbeats: list[Heartbeat]
    streams: dict[str, int]
    condition: RedisCondition
    begun: dict[Condition, str] | None  # what an earlier gateway announced; read once


@dataclass(frozen=True)
class Shelf:
    """What lies in the store: versions, and where each pointer stands."""

    versions: frozenset[int]
    pointers: dict[Pointer, Pointed | None]


@dataclass
class Gateway:
    """Everything a route needs."""

    bus: Bus
    store: CheckpointStore
    home: Path
    validation_root: Path
    config: GatewayConfig
    alerts: AlertConfig
    history: History = field(default_factory=History)
    started_at: datetime = field(default_factory=now)
    events: Events = field(init=False)
    noted: asyncio.Queue[AlertRaised] = field(init=False)  # what began or ended, to be announced

    def __post_init__(self) -> None:
        """Make room for listeners, and begin to look."""
        self.events = Events(self.config.max_event_clients, self.config.max_event_clients_per_peer)
        self.noted = asyncio.Queue()
        self._roster = Roster(timedelta(minutes=self.alerts.restart_minutes))
        self._standing = Standing(self.alerts)
        self._recalled = False
        self._announced_missing: set[str] = set()  # services, by an earlier gateway
        self._late_reading: asyncio.Task[Shelf] | None = None
        self._redis_away_since: datetime | None = None

    async def ask(self, question: Callable[[], Awaitable[R]]) -> R:
        """The answer to a question that Redis must answer in time.

        Raises:
            RedisAwayError: it does not, or refuses.
        """
        try:
            async with asyncio.timeout(self.config.redis_timeout_seconds):
                await self.bus.ping()  # one try: when it is away, that is known at once
                return await question()
        except (TimeoutError, RedisError, *TRANSIENT) as away:
            raise RedisAwayError from away
        except ServiceError as refused:
            log.error("redis_refused", error=str(refused))  # noqa: TRY400  the text says it all
            raise RedisAwayError from refused

    def key_is_right(self, key: str) -> bool:
        """Compare an API key in constant time, whatever its length."""
        given, right = (
            hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest()
            for text in (key, self.config.api_key.get_secret_value())
        )
        return hmac.compare_digest(given, right)

    async def status(self) -> Status:
        """The system at this moment; what only Redis or the store knows is unknown while it is away.

        Each reading is a look: conditions that begin or end with it are noted, to be announced.
        """
        try:
            live: _Live | None = await self.ask(self._live)
        except RedisAwayError:
            live = None
        shelf = await self._shelf_or_none()
        moment = now()
        self._look(live, moment)
        services = self._services(live)
        complete = all(service.state == "up" for service in services if service.expected)
        status = Status(
            state="running" if live and shelf and complete else "degraded",
            redis="up" if live else "away",
            redis_away_since=self._redis_away_since,
            store="up" if shelf else "away",
            time=moment,
            started_at=self.started_at,
            version=installed_version("micro-stochastic-muzero"),
            changes_allowed=bool(self.config.api_key.get_secret_value()),
            services=services,
            streams=live.streams if live else {},
            dead_letters=live.streams[DEAD.key] if live else None,
            redis_condition=live.condition if live else None,
            disk=await self._disk(),
            pointers=self._pointers(shelf or Shelf(frozenset(), dict.fromkeys(Pointer))),
            training=self._training(services),
            validation=self.history.last_validation,
            trader=self._trader(services),
            alerts=[],
        )
        held = active_alerts(status, self.alerts)
        for alert in self._standing.look(held, time.monotonic(), redis_answers=live is not None):
            self.noted.put_nowait(alert)
        return status.model_copy(update={"alerts": self._standing.active()})

    def shelf(self) -> Shelf:
        """What lies in the store now.

        Raises:
            StoreAwayError: it does not answer.
        """
        return Shelf(frozenset(self.store.versions()), {name: self._pointer(name) for name in Pointer})

    def checkpoint(self, version: int, shelf: Shelf) -> CheckpointSummary | None:
        """One version, or None when it is neither stored nor was ever announced.

        Raises:
            StoreAwayError: the store does not answer.
        """
        stored = version in shelf.versions
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
        promoted = shelf.pointers[Pointer.PROMOTED]
        return CheckpointSummary(
            version=version,
            episode=made.episode if made else None,
            update=made.update if made else None,
            created_at=made.created_at if made else None,
            metrics=made.metrics if made else {},
            weights_sha256=_weights_sha256(made),
            stored=stored,
            pointers=[name.value for name, at in shelf.pointers.items() if at and at.version == version],
            stage=stage_of(promoted) if promoted and promoted.version == version else None,
            validation=self.history.validations.get(version),
            fault=fault,
        )

    def _pointer(self, name: Pointer) -> Pointed | None:
        """Where a pointer stands; None when it was never set or its file is damaged."""
        try:
            return self.store.pointer(name)
        except CheckpointError:
            return None

    async def _live(self) -> _Live:
        heartbeats = await self.bus.heartbeats()
        lengths = {stream.key: await self.bus.length(stream) for stream in STREAMS}
        condition = await self.bus.condition(TRAJECTORIES, TRAINER_GROUP)
        begun = None if self._recalled else await self.bus.begun_conditions()
        return _Live(heartbeats, lengths, condition, begun)

    def _look(self, live: _Live | None, moment: datetime) -> None:
        """Note who is there, and since when Redis is away."""
        if live is None:
            self._redis_away_since = self._redis_away_since or moment
            return
        self._redis_away_since = None
        self._roster.look(self.alerts.expected_services, live.heartbeats, moment)
        if live.begun is not None and not self._recalled:
            self._standing.resume(live.begun, time.monotonic())
            self._announced_missing = {c.source for c in live.begun if c.name == "service_missing"}
            self._recalled = True

    def _services(self, live: _Live | None) -> list[Service]:
        beats_of: dict[str, list[Heartbeat]] = {name: [] for name in EXPECTED_SERVICES}
        for beat in live.heartbeats if live else []:
            if beat.service in beats_of or len(beats_of) < MAX_SERVICES:
                beats_of.setdefault(beat.service, []).append(beat)
        expected = set(self.alerts.expected_services)
        modes = {beat.detail.get("mode") for beat in beats_of["trader"]}
        if modes - {None, "paper"}:
            expected.discard("broker")  # the paper broker has nothing to do
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
            state = "up"  # this one, which answers; its heartbeat comes in a moment
        # Sorted stably: each group keeps the order of its names.
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
        spokesman = _spokesman(services, "trader")
        since = self._roster.of("trader").seen_at
        control = trader_control(
            self.history.controls.get("trader"), spokesman.detail if spokesman else None, since
        )
        return Trader(
            **dict(control),
            heard_at=spokesman.beat_at if spokesman else since,
            killed_by_file=bool(spokesman and spokesman.detail.get("kill_file")),
            detail=spokesman.detail if spokesman else {},
            last_decision=self.history.last_decision,
            replay_end=_replay_end(spokesman.detail if spokesman else {}),
        )

    def _pointers(self, shelf: Shelf) -> Pointers:
        best, promoted = shelf.pointers[Pointer.BEST], shelf.pointers[Pointer.PROMOTED]
        newest = max([*shelf.versions, *list(self.history.checkpoints)[-1:]], default=None)
        return Pointers(
            newest=newest,
            best=best.version if best else None,
            promoted=Promoted(version=promoted.version, stage=stage_of(promoted)) if promoted else None,
        )

    async def _shelf_or_none(self) -> Shelf | None:
        """What lies in the store; None while it does not answer in time.

        A reading that is late goes on in its thread. No other one starts before it ends, so that a store
        that hangs does not take every thread.
        """
        if self._late_reading and not self._late_reading.done():
            return None
        self._late_reading = None
        reading = asyncio.create_task(asyncio.to_thread(self.shelf))
        finished, _ = await asyncio.wait({reading}, timeout=STORE_SECONDS)
        if not finished:
            log.warning("store_away", error=f"no answer within {STORE_SECONDS:g} s")
            reading.add_done_callback(lambda late: late.cancelled() or late.exception())
            self._late_reading = reading
            return None
        try:
            return reading.result()
        except StoreAwayError as away:
            log.warning("store_away", error=str(away))
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
        spokesman = _spokesman(services, "trainer")
        live = spokesman.detail if spokesman else None
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


def _spokesman(services: list[Service], name: str) -> Instance | None:
    """The instance that speaks for a service: not a trader that waits in standby behind another."""
    instances = next((service.instances for service in services if service.service == name), [])
    return min(instances, key=lambda instance: instance.detail.get("state") == "standby", default=None)


def _replay_end(trader: Detail) -> str:
    """The end of a paper replay in words, by the trader's own report; empty while the replay goes on."""
    if trader.get("state") != REPLAY_FINISHED:
        return ""
    last_bar = str(trader.get("last_bar") or "an unknown bar").replace("T", " ").replace("+00:00", " UTC")
    return (
        f"replay finished at {last_bar}: {trader.get('decisions', 0)} decisions since the trader started, "
        f"{trader.get('trades', 0)} trades. To go on, start with other bars (`./run up --data FILE`); "
        "docs/trading.md says how to replay these again."
    )


def _weights_sha256(made: CheckpointPublished | Manifest | None) -> str | None:
    match made:
        case CheckpointPublished():
            return made.weights_sha256
        case Manifest() if WEIGHTS in made.files:
            return made.files[WEIGHTS].sha256
        case _:
            return None
