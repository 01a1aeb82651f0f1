"""Address and limits of the inference service."""

from dataclasses import dataclass

from shared.market.bar import normalized_name
from shared.setting import (
    Count,
    Port,
    Positive,
    check_group,
    setting,
)


@dataclass(frozen=True)
class InferenceConfig:
    """The `[inference]` group.

    Raises:
        SettingsError: a value is out of range.
        DataError: the instrument is not the name of a currency pair.
    """

    host: str = setting("127.0.0.1", "interface that the port listens on")
    port: Port = setting(8001, "port of the inference API")
    allowed_hosts: str = setting("", "more host names accepted besides localhost and IP addresses, as a,b,c")
    instrument: str = setting("", "refuse versions of another pair; empty accepts any")
    max_waiting: Count = setting(32, "requests in progress or waiting, beyond which clients get 503")
    poll_seconds: Positive = setting(5.0, "interval between two reads of the promoted pointer")

    def __post_init__(self) -> None:
        """Check every range and the instrument."""
        check_group("inference", self)
        if self.instrument:
            normalized_name(self.instrument)
