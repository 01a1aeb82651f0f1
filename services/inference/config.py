"""Where the inference service listens, and its limits."""

from dataclasses import dataclass

from shared.errors import SettingsError
from shared.market.bar import normal_name


@dataclass(frozen=True)
class InferenceConfig:
    """The `[inference]` group."""

    host: str = "127.0.0.1"
    port: int = 8001
    allowed_hosts: str = ""  # host names to answer to besides localhost and IP addresses; a,b,c
    instrument: str = ""  # refuse versions of another instrument; empty accepts any
    max_waiting: int = 32  # requests in progress or waiting; further ones get a 503
    poll_seconds: float = 5.0  # between two reads of the promoted pointer, unless a message comes first

    def __post_init__(self) -> None:
        """Check the range of every value.

        Raises:
            SettingsError: a number is out of range.
            DataError: the instrument is not the name of a currency pair.
        """
        if self.instrument:
            normal_name(self.instrument)
        if not 0 <= self.port <= 65535:
            raise SettingsError(f"inference.port is {self.port}, expected 0 to 65535")
        if self.max_waiting < 1:
            raise SettingsError(f"inference.max_waiting is {self.max_waiting}, expected 1 or more")
        if not 0.0 < self.poll_seconds < float("inf"):
            raise SettingsError(f"inference.poll_seconds is {self.poll_seconds}, expected a positive number")
