"""The paper broker's settings."""

from pathlib import Path

from pydantic import Field, SecretStr

from services.broker.config import BrokerConfig, FaultConfig
from shared.runtime.settings import ServiceSettings, with_environment_name


class BrokerSettings(ServiceSettings):
    """The paper broker's settings."""

    token: SecretStr = Field(
        SecretStr("paper"),
        validation_alias=with_environment_name("OANDA_TOKEN"),
        description="bearer token that clients must send",
    )
    broker: BrokerConfig = BrokerConfig()
    faults: FaultConfig = FaultConfig()

    @property
    def broker_root(self) -> Path:
        """Folder of the broker's ledgers, one per data set."""
        return self.home / "broker"
