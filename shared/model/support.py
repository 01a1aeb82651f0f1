"""Scalars in pips as categorical distributions over evenly spaced bins, and back.

Cross-entropy on a two-hot target keeps the gradient of one step bounded however large a reward or
return is; a squared error in pips would be ruled by the few closes of 100 pips and more.
"""

import torch
from torch import Tensor, nn


class Support(nn.Module):
    """Evenly spaced bins over [-bound, bound] pips; holds no weights."""

    positions: Tensor

    def __init__(self, bins: int, bound_pips: float) -> None:
        super().__init__()
        self.bins, self.bound_pips = bins, bound_pips
        self.step_pips = 2.0 * bound_pips / (bins - 1)
        self.register_buffer("positions", torch.linspace(-bound_pips, bound_pips, bins), persistent=False)

    def encode(self, values: Tensor) -> Tensor:
        """Two-hot distribution of each value: its mass lies on the two bins around it, with that mean.

        Args:
            values: `[...]` pips; beyond the bounds they are clipped to them.
        Returns:
            `[..., bins]`, float32, sums to 1.
        """
        bins, shares = self.two_hot(values)
        return torch.zeros(*values.shape, self.bins, device=values.device).scatter(-1, bins, shares)

    def two_hot(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """What `encode` holds that is not zero, hundreds of times as short.

        Args:
            values: `[...]` pips.
        Returns:
            `[..., 2]` int64, two neighbouring bins; `[..., 2]` float32, the share of each.
        """
        place = (values.clamp(-self.bound_pips, self.bound_pips) + self.bound_pips) / self.step_pips
        lower = place.floor().clamp(0, self.bins - 2)
        share = (place - lower).to(torch.float32)
        index = lower.to(torch.int64)
        return torch.stack((index, index + 1), dim=-1), torch.stack((1.0 - share, share), dim=-1)

    def decode(self, logits: Tensor) -> Tensor:
        """Mean of the distribution that the logits stand for: `[..., bins]` -> `[...]` pips.

        Product and sum, not a matrix-vector product: that one's last bits depend on the number of rows.
        """
        return (torch.softmax(logits.float(), dim=-1) * self.positions).sum(dim=-1)
