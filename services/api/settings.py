"""The gateway's settings."""

from pydantic import Field

from services.api.config import AlertConfig, GatewayConfig
from shared.runtime.settings import ServiceSettings


class GatewaySettings(ServiceSettings):
    """Shows the whole system over HTTP, and lets an operator promote, pause and stop."""

    gateway: GatewayConfig = Field(GatewayConfig(), description="where it listens, and who may change things")
    alerts: AlertConfig = Field(AlertConfig(), description="when something is wrong")
