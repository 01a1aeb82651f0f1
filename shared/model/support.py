"""Scalars in pips as categorical distributions over evenly spaced bins, and back.

With cross-entropy on a two-hot target the gradient of one step is bounded for any reward or return. A
squared error in pips would be dominated by the few closes of 100 pips and more.
"""

import torch
from torch import Tensor, nn


class Support(nn.Module):
    """Evenly spaced bins over [-bound, bound] pips, without weights."""

    positions: Tensor

    def __init__(self, bins: int, bound_pips: float) -> None:
        super().__init__()
        self.bins, self.bound_pips = bins, bound_pips
        self.step_pips = 2.0 * bound_pips / (bins - 1)
        self.register_buffer("positions", torch.linspace(-bound_pips, bound_pips, bins), persistent=False)

    def encode(self, values: Tensor) -> Tensor:
        """Two-hot distribution of each value: the two neighbouring bins have mass, and the mean is the value.

        Args:
            values: `[...]` pips, clipped to the bounds.
        Returns:
            `[..., bins]` float32, sums to 1.
        """
        bins, shares = self.two_hot(values)
        return torch.zeros(*values.shape, self.bins, device=values.device).scatter(-1, bins, shares)

    def two_hot(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """The non-zero entries of `encode`, as indices and shares.

        Args:
            values: `[...]` pips, clipped to the bounds.
        Returns:
            `[..., 2]` int64, two neighbouring bins; `[..., 2]` float32, the mass of each.
        """
        position = (values.clamp(-self.bound_pips, self.bound_pips) + self.bound_pips) / self.step_pips
        lower = position.floor().clamp(0, self.bins - 2)
        share = (position - lower).to(torch.float32)
        index = lower.to(torch.int64)
        return torch.stack((index, index + 1), dim=-1), torch.stack((1.0 - share, share), dim=-1)

    def decode(self, logits: Tensor) -> Tensor:
        """Mean of the distribution with these logits: `[..., bins]` -> `[...]` pips.

        Computed as product and sum, because the last bits of a matrix-vector product depend on the number of
        rows.
        """
        return (torch.softmax(logits.float(), dim=-1) * self.positions).sum(dim=-1)
