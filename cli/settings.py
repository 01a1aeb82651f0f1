"""Settings of `up`: the whole system as local processes."""

from pydantic import Field

from shared.runtime.settings import ServiceSettings


class UpSettings(ServiceSettings):
    """What `up` starts, and where."""

    replicas: int = Field(2, ge=1, le=64, description="self-play workers")
