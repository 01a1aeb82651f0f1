"""The status as Prometheus metrics.

Every number of a heartbeat becomes a sample under its name, so services need no HTTP server of their own.
The number of label values stays small: services, instances, streams, and names from the code.
"""

from collections.abc import Iterator

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from services.api.views import Status

REQUESTS = Counter("mm_gateway_requests", "Requests answered", ["route", "method", "status"])
WRONG_KEYS = Counter("mm_gateway_wrong_keys", "Requests with a wrong API key")
SECONDS = Histogram(
    "mm_gateway_seconds",
    "Seconds from a request to the first byte of its response",
    ["route"],
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0),
)


def exposition(status: Status) -> bytes:
    """The gateway's own metrics and one status, in Prometheus' text format."""
    registry = CollectorRegistry()
    registry.register(_StatusCollector(status))
    return generate_latest(REGISTRY) + generate_latest(registry)


class _StatusCollector(Collector):
    def __init__(self, status: Status) -> None:
        self._status = status

    def collect(self) -> Iterator[Metric]:
        """Gauges for every number of the status."""
        status = self._status
        yield _gauge("mm_redis_up", "1 while Redis answers", float(status.redis == "up"))
        if status.dead_letters is not None:
            yield _gauge("mm_dead_letters", "Entries that could not be processed", status.dead_letters)
        yield _labelled(
            "mm_stream_length",
            "Entries in a stream",
            ["stream"],
            [([stream], length) for stream, length in status.streams.items()],
        )
        if status.disk is not None:
            yield _gauge(
                "mm_disk_free_bytes", "Free disk space for the gateway's home", status.disk.free_mb * 1e6
            )
        yield from self._redis()
        yield from self._services()
        yield from self._versions()
        yield _labelled(
            "mm_training_metric",
            "Metrics of the newest version",
            ["name"],
            [([name], value) for name, value in status.training.metrics.items()],
        )
        yield _labelled(
            "mm_alert_active",
            "1 for each condition that holds now",
            ["name", "source"],
            [([alert.name, alert.source], 1.0) for alert in status.alerts],
        )

    def _redis(self) -> Iterator[Metric]:
        condition = self._status.redis_condition
        if condition is None:
            return
        yield _gauge("mm_redis_memory_bytes", "Memory that Redis uses", condition.memory_bytes)
        if condition.memory_limit_bytes is not None:
            yield _gauge("mm_redis_memory_limit_bytes", "maxmemory of Redis", condition.memory_limit_bytes)
        yield _labelled(
            "mm_redis_disk_ok",
            "1 if the last write of this kind succeeded: append, rewrite, snapshot",
            ["what"],
            [([what], float(ok)) for what, ok in condition.disk.items()],
        )
        yield _gauge(
            "mm_pending", "Trajectories delivered to the trainer and not acknowledged", condition.pending
        )
        yield _gauge("mm_pending_seconds", "Age of the oldest of these deliveries", condition.pending_seconds)
        yield _gauge(
            "mm_lag_known",
            "0 if trajectories were removed before the trainer read them",
            float(condition.lag is not None),
        )

    def _services(self) -> Iterator[Metric]:
        services = self._status.services
        yield _labelled(
            "mm_service_instances",
            "Instances of a service that send heartbeats",
            ["service"],
            [([service.service], service.num_instances) for service in services],
        )
        yield _labelled(
            "mm_service_restarts",
            "Processes of a service that exited and were replaced within the last minutes",
            ["service"],
            [([service.service], service.restarts) for service in services],
        )
        instances = [(s.service, i) for s in services for i in s.instances]
        yield _labelled(
            "mm_service_degraded",
            "1 while an instance reports that it is degraded",
            ["service", "instance"],
            [([name, i.instance], float(i.state == "degraded")) for name, i in instances],
        )
        yield _labelled(
            "mm_service_detail",
            "A number of an instance's heartbeat",
            ["service", "instance", "name"],
            [
                ([service, instance.instance, name], float(value))
                for service, instance in instances
                for name, value in instance.detail.items()
                if isinstance(value, int | float)
            ],
        )

    def _versions(self) -> Iterator[Metric]:
        status = self._status
        promoted = status.pointers.promoted
        versions = {
            "newest": status.pointers.newest,
            "best": status.pointers.best,
            "promoted": promoted.version if promoted else None,
        }
        yield _labelled(
            "mm_version",
            "Version that a name points to",
            ["name"],
            [([name], version) for name, version in versions.items() if version is not None],
        )
        if status.training.episode is not None:
            yield _gauge("mm_episodes", "Episodes of the newest version", status.training.episode)
        if status.training.update is not None:
            yield _gauge("mm_updates", "Updates of the newest version", status.training.update)
        if status.training.published_at is not None:
            yield _gauge(
                "mm_checkpoint_published_seconds",
                "When the newest version was published, in seconds since the epoch",
                status.training.published_at.timestamp(),
            )
        verdict = status.validation
        if verdict is not None:
            numbers = {
                "version": verdict.version,
                "num_trades": verdict.num_trades,
                "expectancy_pips": verdict.expectancy_pips,
                "sqn": verdict.sqn,
                "net_pips": verdict.net_pips,
                "max_drawdown_pips": verdict.max_drawdown_pips,
            }
            yield _labelled(
                "mm_validation",
                "Numbers of the last validation",
                ["name"],
                [([name], value) for name, value in numbers.items() if value is not None],
            )
        if status.trader.last_decision is not None:
            yield _gauge(
                "mm_decision_pnl_pips",
                "Pnl of the open position at the last decision",
                status.trader.last_decision.pnl_pips,
            )
            yield _gauge(
                "mm_decision_side",
                "Position after the last decision: -1 short, 0 flat, 1 long",
                status.trader.last_decision.side,
            )


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, text, value=value)


def _labelled(name: str, text: str, labels: list[str], rows: list[tuple[list[str], float]]) -> Metric:
    family = GaugeMetricFamily(name, text, labels=labels)
    for values, value in rows:
        family.add_metric(values, value)
    return family
