"""The trader's settings."""

from shared.runtime.settings import ServiceSettings


class TraderSettings(ServiceSettings):
    """The trader's settings."""
