"""Where the inference service listens, and its bounds."""

from dataclasses import dataclass

from shared.errors import SettingsError
from shared.market.bar import normal_name


@dataclass(frozen=True)
class InferenceConfig:
    """The `[inference]` group."""

    host: str = "127.0.0.1"
    port: int = 8001
    allowed_hosts: str = ""  # host names that are answered besides localhost and addresses; a,b,c
    instrument: str = ""  # the only one that is answered for; empty: the one the version was trained on
    max_waiting: int = 32  # requests in work or waiting; more are refused with 503
    poll_seconds: float = 5.0  # how often the promoted pointer is read when no message says that it moved

    def __post_init__(self) -> None:
        """Refuse numbers that cannot be.

        Raises:
            SettingsError: names the field, its value and what is right.
            DataError: the instrument is not the name of a pair.
        """
        if self.instrument:
            normal_name(self.instrument)
        if not 0 <= self.port <= 65535:
            raise SettingsError(f"inference.port is {self.port}, expected 0 to 65535")
        if self.max_waiting < 1:
            raise SettingsError(f"inference.max_waiting is {self.max_waiting}, expected 1 or more")
        if not 0.0 < self.poll_seconds < float("inf"):
            raise SettingsError(f"inference.poll_seconds is {self.poll_seconds}, expected a positive number")
