"""The inference service's settings."""

from shared.runtime.settings import ServiceSettings


class InferenceSettings(ServiceSettings):
    """The inference service's settings."""
