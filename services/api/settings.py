"""The gateway's settings."""

from pydantic import Field

from services.api.config import AlertConfig, GatewayConfig
from shared.runtime.settings import ServiceSettings


class GatewaySettings(ServiceSettings):
    """Shows the system over HTTP; an operator can promote versions, pause training and stop trading."""

    gateway: GatewayConfig = Field(GatewayConfig(), description="address, API key and limits")
    alerts: AlertConfig = Field(AlertConfig(), description="thresholds of the alerts")
