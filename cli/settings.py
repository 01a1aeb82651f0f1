"""Settings of `up`, which runs the complete system as local processes."""

from pydantic import Field

from services.api.config import AlertConfig
from shared.market.session import SessionConfig, SplitConfig
from shared.market.synthetic import MAX_BARS, Market
from shared.runtime.settings import ServiceSettings


class UpSettings(ServiceSettings):
    """Processes that `up` starts, and their data."""

    replicas: int = Field(2, ge=1, le=64, description="number of self-play workers")
    port: int = Field(
        8000, ge=1, le=65535, description="port of the gateway; if it is in use, a free port is taken"
    )
    market: Market = Field(Market.OU, description="synthetic market if no data is given")
    market_bars: int = Field(
        300_000,
        ge=5_000,
        le=MAX_BARS,
        description="number of its bars; the default gives 31 days of validation, the paper gate needs 20",
    )
    market_seed: int = Field(1, ge=0, description="seed of the synthetic market")
    min_free_mb: int = Field(500, ge=0, description="free disk space in MB below which `up` does not start")
    alerts: AlertConfig = Field(
        AlertConfig(), description="`low_free_mb`: free disk space below which `up` warns"
    )
    sessions: SessionConfig = SessionConfig()
    splits: SplitConfig = SplitConfig()
