"""The trainer's settings."""

from shared.runtime.settings import ServiceSettings


class TrainerSettings(ServiceSettings):
    """The trainer's settings."""
