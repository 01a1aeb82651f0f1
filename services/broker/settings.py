"""The paper broker's settings."""

from shared.runtime.settings import ServiceSettings


class BrokerSettings(ServiceSettings):
    """The paper broker's settings."""
