"""Settings of `up`: the whole system as local processes."""

from pydantic import Field

from services.api.config import AlertConfig
from shared.market.session import SessionConfig, SplitConfig
from shared.market.synthetic import MAX_BARS, Market
from shared.runtime.settings import ServiceSettings


class UpSettings(ServiceSettings):
    """What `up` starts, and on what."""

    replicas: int = Field(2, ge=1, le=64, description="self-play workers")
    port: int = Field(8000, ge=1, le=65535, description="port of the gateway; a free one when it is taken")
    market: Market = Field(Market.OU, description="synthetic market when no data is given")
    market_bars: int = Field(
        300_000, ge=5_000, le=MAX_BARS, description="of it; 31 days of validation, paper asks for 20"
    )
    market_seed: int = Field(1, ge=0)
    min_free_mb: int = Field(500, ge=0, description="MB of free disk below which `up` does not start")
    alerts: AlertConfig = Field(AlertConfig(), description="`low_free_mb`: free disk below which `up` warns")
    sessions: SessionConfig = SessionConfig()
    splits: SplitConfig = SplitConfig()
