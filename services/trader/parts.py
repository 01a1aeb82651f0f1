"""What a trader is made of, and on what terms it trades: what its classes are given together."""

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
    """What one trader works with."""

    client: OandaClient  # of the account
    inference: InferenceClient  # asked for decisions
    account: Account  # what is held and ordered
    ledger: Ledger  # of the account, on disk
    audit: Audit  # told of new messages
    lease: Lease  # of the account
    lifecycle: Lifecycle  # of the service
    metrics: TraderMetrics
    switch: KillSwitch  # the kill file
    status: StatusFile  # written for `kill`


@dataclass(frozen=True)
class Terms:
    """What is traded, where and how."""

    instrument: Instrument
    mode: Mode
    config: TraderConfig
    limits: GuardConfig
    costs: EnvironmentConfig  # charged to a position as the environment charges them
    api_url: str  # where the broker's requests go, as the status file names it
    wall: Callable[[], float]  # this machine's clock, in seconds since 1970 UTC
