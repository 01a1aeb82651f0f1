"""Injected faults, drawn from one seeded generator."""

import asyncio

import numpy as np

from services.broker.config import FaultConfig


class Faults:
    """Decides when a fault happens; the configuration can be changed while the broker runs."""

    def __init__(self, config: FaultConfig) -> None:
        self.config = config
        self._random = np.random.default_rng(config.seed)

    def change(self, config: FaultConfig) -> None:
        """Replace the configuration and restart the generator from its seed."""
        self.config = config
        self._random = np.random.default_rng(config.seed)

    def occurs(self, probability: float) -> bool:
        """Draw whether a fault of this probability occurs now. A probability of 0 uses no random number."""
        return probability > 0 and bool(self._random.random() < probability)

    async def delay(self) -> None:
        """Wait for the latency of an order, which is then executed at the newest price."""
        if self.config.latency_ms:
            await asyncio.sleep(self.config.latency_ms / 1_000)
