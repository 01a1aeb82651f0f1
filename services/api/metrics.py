"""The status as Prometheus metrics.

Every number of a heartbeat becomes a sample by its name, so that a service need not serve HTTP to be
seen. Labels stay few: services, instances, streams, and names that the code chose.
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
    "From a request to its answer's first byte",
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
        """Gauges of everything that the status holds as a number."""
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
            yield _gauge("mm_disk_free_bytes", "Free disk for the gateway's home", status.disk.free_mb * 1e6)
        yield from self._redis()
        yield from self._services()
        yield from self._versions()
        yield _labelled(
            "mm_training_metric",
            "What the newest version measured",
            ["name"],
            [([name], value) for name, value in status.training.metrics.items()],
        )
        yield _labelled(
            "mm_alert_active",
            "1 for each condition that is wrong now",
            ["name", "source"],
            [([alert.name, alert.source], 1.0) for alert in status.alerts],
        )

    def _redis(self) -> Iterator[Metric]:
        condition = self._status.redis_condition
        if condition is None:
            return
        yield _gauge("mm_redis_memory_bytes", "Memory that Redis uses", condition.memory_bytes)
        if condition.memory_limit_bytes is not None:
            yield _gauge("mm_redis_memory_limit_bytes", "Its maxmemory", condition.memory_limit_bytes)
        yield _labelled(
            "mm_redis_disk_ok",
            "1 while Redis could write what it last wanted to: append, rewrite, snapshot",
            ["what"],
            [([what], float(ok)) for what, ok in condition.disk.items()],
        )
        yield _gauge("mm_pending", "Trajectories given to the trainer, not acknowledged", condition.pending)
        yield _gauge(
            "mm_pending_seconds", "How long the longest of them is with it", condition.pending_seconds
        )
        yield _gauge(
            "mm_lag_known",
            "0 when trajectories were removed before the trainer was given them",
            float(condition.lag is not None),
        )

    def _services(self) -> Iterator[Metric]:
        services = self._status.services
        yield _labelled(
            "mm_service_instances",
            "Instances of a service that say they live",
            ["service"],
            [([service.service], service.num_instances) for service in services],
        )
        yield _labelled(
            "mm_service_restarts",
            "Processes of a service that ended and were replaced within the last minutes",
            ["service"],
            [([service.service], service.restarts) for service in services],
        )
        instances = [(s.service, i) for s in services for i in s.instances]
        yield _labelled(
            "mm_service_degraded",
            "1 while an instance says that it is degraded",
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
            "Checkpoint version that a name stands for",
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
                "The last validation's numbers",
                ["name"],
                [([name], value) for name, value in numbers.items() if value is not None],
            )
        if status.trader.last_decision is not None:
            yield _gauge(
                "mm_decision_pnl_pips",
                "Running pnl at the last decision",
                status.trader.last_decision.pnl_pips,
            )
            yield _gauge(
                "mm_decision_side",
                "After the last decision: -1 short, 0 flat, 1 long",
                status.trader.last_decision.side,
            )


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, text, value=value)


def _labelled(name: str, text: str, labels: list[str], rows: list[tuple[list[str], float]]) -> Metric:
    family = GaugeMetricFamily(name, text, labels=labels)
    for values, value in rows:
        family.add_metric(values, value)
    return family
