"""The faults that the broker commits on purpose, drawn from one seeded generator."""

import asyncio

import numpy as np

from services.broker.config import FaultConfig


class Faults:
    """Draws from the faults now in force; they can be changed while the broker runs."""

    def __init__(self, config: FaultConfig) -> None:
        self.config = config
        self._random = np.random.default_rng(config.seed)

    def change(self, config: FaultConfig) -> None:
        """Put other faults in force; the generator starts again from their seed."""
        self.config = config
        self._random = np.random.default_rng(config.seed)

    def strikes(self, probability: float) -> bool:
        """Whether a fault of this probability happens now; a probability of 0 draws nothing."""
        return probability > 0 and bool(self._random.random() < probability)

    async def delay(self) -> None:
        """Let an order's latency pass: it is executed at the price in force afterwards."""
        if self.config.latency_ms:
            await asyncio.sleep(self.config.latency_ms / 1_000)
