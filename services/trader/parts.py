"""The objects and the terms that the trader's classes share."""

from collections.abc import Callable
from dataclasses import dataclass

from services.trader.account import Account
from services.trader.audit import Audit
from services.trader.config import GuardConfig, Mode, TraderConfig
from services.trader.kill_switch import KillSwitch, StatusFile
from services.trader.ledger import Ledger
from services.trader.metrics import TraderMetrics
from shared.adapters.inference import InferenceClient
from shared.adapters.oanda.client import OandaClient
from shared.adapters.streams.lease import Lease
from shared.environment.environment import EnvironmentConfig
from shared.market.bar import Instrument
from shared.runtime.lifecycle import Lifecycle


@dataclass(frozen=True)
class Parts:
    """The objects that one trader works with."""

    client: OandaClient
    inference: InferenceClient
    account: Account  # position and orders
    ledger: Ledger
    audit: Audit  # delivers the ledger's messages
    lease: Lease  # lease of the account
    lifecycle: Lifecycle
    metrics: TraderMetrics
    switch: KillSwitch
    status: StatusFile  # read by `micro-muzero kill`


@dataclass(frozen=True)
class Terms:
    """The instrument, the broker and the limits of one trader."""

    instrument: Instrument
    mode: Mode
    config: TraderConfig
    limits: GuardConfig
    costs: EnvironmentConfig  # charged to a position as the environment charges them
    api_url: str  # base URL of the broker, for the status file
    wall: Callable[[], float]  # this machine's clock, in seconds since 1970 UTC
