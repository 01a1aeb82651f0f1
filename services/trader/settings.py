"""The trader's settings."""

from pydantic import Field, SecretStr

from services.trader.config import GuardConfig, Mode, TraderConfig
from shared.environment.environment import EnvironmentConfig
from shared.runtime.settings import ServiceSettings, with_environment_name


class TraderSettings(ServiceSettings):
    """Trades the promoted version's decisions at the broker."""

    mode: Mode = Field(
        Mode.PAPER,
        validation_alias=with_environment_name("TRADER_MODE"),
        description="paper, practice or live",
    )
    oanda_token: SecretStr = Field(
        SecretStr(""),
        validation_alias=with_environment_name("OANDA_TOKEN"),
        description="personal access token; the paper broker accepts any",
    )
    oanda_account: str = Field(
        "",
        validation_alias=with_environment_name("OANDA_ACCOUNT"),
        description="account id; if unset, the token's only account",
    )
    trader: TraderConfig = Field(TraderConfig(), description="where it trades, and how it sends orders")
    guards: GuardConfig = Field(GuardConfig(), description="limits of what may be traded")
    environment: EnvironmentConfig = Field(
        EnvironmentConfig(), description="trading costs; the spread is used where a trade's own is not known"
    )
