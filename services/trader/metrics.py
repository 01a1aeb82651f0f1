"""The trader's Prometheus metrics."""

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from services.trader.guards import Guard, TraderState, Trip
from services.trader.refusals import Refusal


class TraderMetrics:
    """Counters since the process began, and how things stand."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.decisions = Counter(
            "mm_trader_decisions",
            "Decisions by action and whether they were carried out",
            ["action", "executed"],
            registry=registry,
        )
        self.orders = Counter("mm_trader_orders", "Orders by outcome", ["state"], registry=registry)
        self.inference_failures = Counter(
            "mm_trader_inference_failures", "Decisions that could not be had in time", registry=registry
        )
        self.inference_seconds = Histogram(
            "mm_trader_inference_seconds",
            "One decision over HTTP, as the trader saw it",
            buckets=(0.002, 0.005, 0.01, 0.02, 0.05, 0.1),
            registry=registry,
        )
        self.bar_mismatches = Gauge(
            "mm_trader_bar_mismatches", "Own bars whose close is not the candle's", registry=registry
        )
        self.late_candles = Counter(
            "mm_trader_late_candles", "Closed bars whose candle did not come in time", registry=registry
        )
        self.reconnects = Counter(
            "mm_trader_reconnects", "Sessions with the broker that ended", registry=registry
        )
        self.refused = Counter(
            "mm_trader_refused", "Prices, lines and candles refused, by reason", ["reason"], registry=registry
        )
        self.late_ticks = Gauge(
            "mm_trader_late_ticks", "Prices that were not newer than the one before", registry=registry
        )
        self.trips = Counter(
            "mm_trader_guard_trips", "How often each guard tripped", ["guard"], registry=registry
        )
        self.tripped = Gauge("mm_trader_guard_tripped", "1 while a guard holds", ["guard"], registry=registry)
        self.state = Gauge("mm_trader_state", "1 for the state that holds", ["state"], registry=registry)
        self.side = Gauge("mm_trader_side", "-1 short, 0 flat, 1 long", registry=registry)
        self.equity = Gauge("mm_trader_equity_pips", "Realised and open pips", registry=registry)
        self.realised = Gauge("mm_trader_realised_pips", "Pips of all closed trades", registry=registry)
        self.outbox = Gauge(
            "mm_trader_outbox_rows", "Audit messages not told to every sink", registry=registry
        )
        for refusal in Refusal:
            self.refused.labels(refusal.value)
        for guard in Guard:
            self.trips.labels(guard.value)
            self.tripped.labels(guard.value)

    def show(self, state: TraderState, trips: Iterable[Trip], new: Iterable[Guard]) -> None:
        """Show the guards that hold, and count those that did not before."""
        standing = {trip.guard for trip in trips}
        for guard in Guard:
            self.tripped.labels(guard.value).set(guard in standing)
        for guard in new:
            self.trips.labels(guard.value).inc()
        for other in TraderState:
            self.state.labels(other.value).set(other is state)
