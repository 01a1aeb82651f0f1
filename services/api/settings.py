"""The gateway's settings."""

from shared.runtime.settings import ServiceSettings


class GatewaySettings(ServiceSettings):
    """The gateway's settings."""
