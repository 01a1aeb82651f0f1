"""Settings of the inference service."""

from pydantic import Field

from services.inference.config import InferenceConfig
from shared.runtime.settings import ServiceSettings
from shared.search.config import SearchConfig


class InferenceSettings(ServiceSettings):
    """Answers POST /inference with the promoted version's decision."""

    inference: InferenceConfig = Field(InferenceConfig(), description="address, port and limits")
    search: SearchConfig = Field(
        SearchConfig(), description="search; decisions are greedy with either selection rule"
    )
