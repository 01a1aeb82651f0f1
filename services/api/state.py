"""What the gateway knows and how it reads it: the streams, the checkpoint store, the reports.

Nothing here waits for Redis longer than set: an answer that needs it says that it is away.
"""

import asyncio
import hashlib
import hmac
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import datetime
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Literal, TypeVar

import structlog
from redis.exceptions import RedisError

from services.api.alerts import active_alerts
from services.api.config import AlertConfig, GatewayConfig
from services.api.events import Events
from services.api.history import History
from services.api.views import (
    CheckpointSummary,
    Detail,
    Instance,
    Pointers,
    Promoted,
    Service,
    Status,
    Trader,
    Training,
)
from shared.adapters.bus import Bus
from shared.adapters.checkpoints import WEIGHTS, CheckpointStore, Manifest, Pointed, Pointer
from shared.adapters.promotions import Stage
from shared.adapters.redis_condition import RedisCondition
from shared.adapters.redis_connection import TRANSIENT
from shared.errors import CheckpointError, ServiceError, StoreAwayError
from shared.messages.schemas import CheckpointPublished, ControlIssued, Heartbeat, now
from shared.messages.streams import DEAD, STREAMS, TRAINER_GROUP, TRAJECTORIES

log = structlog.get_logger()

#: Services that belong to a whole system, in the order in which they are shown.
EXPECTED_SERVICES = ("trainer", "selfplay", "validator", "inference", "trader", "broker", "api")

#: The status shows so many instances of a service, and so many services.
MAX_INSTANCES = 64
MAX_SERVICES = 32

ControlState = Literal["running", "paused", "killed"]

R = TypeVar("R")


class RedisAwayError(Exception):
    """Redis gives no answer, and without it there is no answer to this request."""


@dataclass(frozen=True)
class _Live:
    """What only Redis knows: who lives, how long the streams are, and how Redis itself is."""

    heartbeats: list[Heartbeat]
    streams: dict[str, int]
    condition: RedisCondition


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
    validation_root: Path
    config: GatewayConfig
    alerts: AlertConfig
    history: History = field(default_factory=History)
    started_at: datetime = field(default_factory=now)
    events: Events = field(init=False)

    def __post_init__(self) -> None:
        """Make room for listeners."""
        self.events = Events(self.config.max_event_clients, self.config.max_event_clients_per_peer)

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
        """The whole system at this moment; what only Redis or the store knows is empty while it is away."""
        try:
            live: _Live | None = await self.ask(self._live)
        except RedisAwayError:
            live = None
        shelf = await self._shelf_or_none()
        services = _services(live.heartbeats if live else [])
        complete = all(
            service.instances and all(instance.state != "degraded" for instance in service.instances)
            for service in services
        )
        status = Status(
            state="running" if live and shelf and complete else "degraded",
            redis="up" if live else "away",
            time=now(),
            started_at=self.started_at,
            version=installed_version("micro-stochastic-muzero"),
            services=services,
            streams=live.streams if live else {},
            dead_letters=live.streams[DEAD.key] if live else None,
            redis_condition=live.condition if live else None,
            pointers=self._pointers(shelf or Shelf(frozenset(), dict.fromkeys(Pointer))),
            training=self._training(_detail_of(services, "trainer")),
            validation=self.history.last_validation,
            trader=Trader(
                state=self.control("trader"),
                detail=_detail_of(services, "trader"),
                last_decision=self.history.last_decision,
            ),
            alerts=[],
        )
        return status.model_copy(update={"alerts": active_alerts(status, self.alerts)})

    def control(self, target: str) -> ControlState:
        """What the operator last said that a part may do."""
        issued: ControlIssued | None = self.history.controls.get(target)
        return issued.state if issued else "running"

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
            stage=_stage(promoted) if promoted and promoted.version == version else None,
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
        return _Live(heartbeats, lengths, await self.bus.condition(TRAJECTORIES, TRAINER_GROUP))

    def _pointers(self, shelf: Shelf) -> Pointers:
        best, promoted = shelf.pointers[Pointer.BEST], shelf.pointers[Pointer.PROMOTED]
        newest = max([*shelf.versions, *list(self.history.checkpoints)[-1:]], default=None)
        return Pointers(
            newest=newest,
            best=best.version if best else None,
            promoted=Promoted(version=promoted.version, stage=_stage(promoted)) if promoted else None,
        )

    async def _shelf_or_none(self) -> Shelf | None:
        """What lies in the store; None while it does not answer."""
        try:
            return await asyncio.to_thread(self.shelf)
        except StoreAwayError as away:
            log.warning("store_away", error=str(away))
            return None

    def _training(self, live: Detail) -> Training:
        newest = max(self.history.checkpoints, default=None)
        published = self.history.checkpoints[newest] if newest is not None else None
        return Training(
            state=self.control("training"),
            version=newest,
            episode=published.episode if published else None,
            update=published.update if published else None,
            published_at=published.created_at if published else None,
            metrics=published.metrics if published else {},
            live=live,
        )


def _services(heartbeats: list[Heartbeat]) -> list[Service]:
    beats_of: dict[str, list[Heartbeat]] = {name: [] for name in EXPECTED_SERVICES}
    for beat in heartbeats:
        if beat.service in beats_of or len(beats_of) < MAX_SERVICES:
            beats_of.setdefault(beat.service, []).append(beat)
    return [
        Service(
            service=name,
            num_instances=len(beats),
            instances=[
                Instance(
                    instance=beat.instance,
                    state=beat.state,
                    started_at=beat.started_at,
                    beat_at=beat.created_at,
                    detail=beat.detail,
                )
                # Sorted stably: each group keeps the order of its names.
                for beat in sorted(beats, key=lambda beat: beat.state != "degraded")[:MAX_INSTANCES]
            ],
        )
        for name, beats in beats_of.items()
    ]


def _detail_of(services: list[Service], name: str) -> Detail:
    """What the first instance of a service says of itself."""
    instances = next((service.instances for service in services if service.service == name), [])
    return instances[0].detail if instances else {}


def _stage(promoted: Pointed) -> Stage:
    return "live" if promoted.stage == "live" else "paper"


def _weights_sha256(made: CheckpointPublished | Manifest | None) -> str | None:
    match made:
        case CheckpointPublished():
            return made.weights_sha256
        case Manifest() if WEIGHTS in made.files:
            return made.files[WEIGHTS].sha256
        case _:
            return None
