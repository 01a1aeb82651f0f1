"""The trader's Prometheus metrics."""

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from services.trader.guards import Guard, TraderState, Trip
from services.trader.refusals import Refusal


class TraderMetrics:
    """Counters since the process began, and gauges of the trader's state."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.decisions = Counter(
            "mm_trader_decisions",
            "Decisions by action and by whether they were carried out",
            ["action", "executed"],
            registry=registry,
        )
        self.orders = Counter("mm_trader_orders", "Orders by outcome", ["state"], registry=registry)
        self.inference_failures = Counter(
            "mm_trader_inference_failures", "Decisions that did not arrive in time", registry=registry
        )
        self.inference_seconds = Histogram(
            "mm_trader_inference_seconds",
            "Latency of one decision over HTTP, as seen by the trader",
            buckets=(0.002, 0.005, 0.01, 0.02, 0.05, 0.1),
            registry=registry,
        )
        self.bar_mismatches = Gauge(
            "mm_trader_bar_mismatches",
            "Bars built from ticks whose close differs from the broker's candle",
            registry=registry,
        )
        self.late_candles = Counter(
            "mm_trader_late_candles", "Closed bars whose candle did not arrive in time", registry=registry
        )
        self.reconnects = Counter(
            "mm_trader_reconnects", "Sessions with the broker that broke", registry=registry
        )
        self.refused = Counter(
            "mm_trader_refused", "Prices, lines and candles refused, by reason", ["reason"], registry=registry
        )
        self.late_ticks = Gauge(
            "mm_trader_late_ticks", "Prices not newer than the one before", registry=registry
        )
        self.trips = Counter(
            "mm_trader_guard_trips", "How often each guard tripped", ["guard"], registry=registry
        )
        self.tripped = Gauge(
            "mm_trader_guard_tripped", "1 while a guard is tripped", ["guard"], registry=registry
        )
        self.state = Gauge("mm_trader_state", "1 for the present state", ["state"], registry=registry)
        self.side = Gauge("mm_trader_side", "-1 short, 0 flat, 1 long", registry=registry)
        self.equity = Gauge("mm_trader_equity_pips", "Realised and open pips", registry=registry)
        self.realised = Gauge("mm_trader_realised_pips", "Pips of all closed trades", registry=registry)
        self.outbox = Gauge(
            "mm_trader_outbox_rows", "Audit messages not delivered to every sink", registry=registry
        )
        for refusal in Refusal:
            self.refused.labels(refusal.value)
        for guard in Guard:
            self.trips.labels(guard.value)
            self.tripped.labels(guard.value)

    def show(self, state: TraderState, trips: Iterable[Trip], new: Iterable[Guard]) -> None:
        """Show the state and the tripped guards, and count the newly tripped ones."""
        tripped = {trip.guard for trip in trips}
        for guard in Guard:
            self.tripped.labels(guard.value).set(guard in tripped)
        for guard in new:
            self.trips.labels(guard.value).inc()
        for other in TraderState:
            self.state.labels(other.value).set(other is state)
