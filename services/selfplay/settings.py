"""A self-play worker's settings."""

from shared.runtime.settings import ServiceSettings


class SelfPlaySettings(ServiceSettings):
    """A self-play worker's settings."""
