"""The validator's settings."""

from shared.runtime.settings import ServiceSettings


class ValidatorSettings(ServiceSettings):
    """The validator's settings."""
