"""The causal temporal encoder, computed in three ways with the same result.

The output is the last step of a window, which depends on the last `receptive_field` bars only:

    forward          [N, window, F]   the definition: every layer at every step of the zero-padded window
    encode_windows   [N, window, F]   only the steps that the output depends on; to learn from single steps
    encode_spans     [N, 28 + L, F]   every bar with enough bars before it; to learn from consecutive steps

The output does not depend on the zero padding, so the last two use none. They are exact, and they keep
padding out of the batch statistics. Agents use kernels instead (shared/engine/networks.py), which tests
compare with `forward`.
"""

from torch import Tensor, nn
from torch.nn import functional

from shared.model.config import ModelConfig


class ResidualBlock(nn.Module):
    """Convolution, batch norm, ReLU and dropout, twice; then the shortcut is added, and ReLU applied.

    Source: Bai et al. 2018.
    """

    def __init__(self, inputs: int, channels: int, kernel_size: int, dilation: int, dropout: float) -> None:
        super().__init__()
        self.dilation = dilation
        self.conv1 = nn.Conv1d(inputs, channels, kernel_size)
        self.norm1 = nn.BatchNorm1d(channels)
        self.conv2 = nn.Conv1d(channels, channels, kernel_size)
        self.norm2 = nn.BatchNorm1d(channels)
        self.dropout = nn.Dropout(dropout)
        self.shortcut: nn.Module = nn.Identity() if inputs == channels else nn.Conv1d(inputs, channels, 1)

    def padded(self, steps: Tensor) -> Tensor:
        """`[N, inputs, T]` -> `[N, channels, T]`; pads each convolution with zeros on the left."""
        padding = (self.dilation * (self.conv1.kernel_size[0] - 1), 0)
        inner = self._activate(
            self.norm1, _convolve(self.conv1, functional.pad(steps, padding), self.dilation)
        )
        inner = self._activate(
            self.norm2, _convolve(self.conv2, functional.pad(inner, padding), self.dilation)
        )
        return self._add(inner, steps)

    def unpadded(self, steps: Tensor) -> Tensor:
        """`[N, inputs, T]` -> `[N, channels, T - 2 (kernel - 1) dilation]`, without padding."""
        inner = self._activate(self.norm1, _convolve(self.conv1, steps, self.dilation))
        inner = self._activate(self.norm2, _convolve(self.conv2, inner, self.dilation))
        return self._add(inner, steps[..., steps.shape[-1] - inner.shape[-1] :])

    def thinned(self, steps: Tensor, stride: int) -> Tensor:
        """Like `unpadded` for steps `dilation` bars apart; keeps every `stride`-th step up to the last."""
        inner = self._activate(self.norm1, _convolve(self.conv1, steps, 1))
        inner = self._activate(self.norm2, _convolve(self.conv2, inner, 1, stride))
        kept = (inner.shape[-1] - 1) * stride + 1
        return self._add(inner, steps[..., steps.shape[-1] - kept :: stride])

    def _activate(self, norm: nn.Module, steps: Tensor) -> Tensor:
        activated: Tensor = self.dropout(functional.relu(norm(steps)))
        return activated

    def _add(self, inner: Tensor, steps: Tensor) -> Tensor:
        return functional.relu(inner + self.shortcut(steps))


class TemporalEncoder(nn.Module):
    """Causal TCN with dilations 1, 2, 4, …; the embedding is the last step."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.window_bars, self.receptive_field = config.window_bars, config.receptive_field
        self.blocks = nn.ModuleList(
            ResidualBlock(
                config.temporal_channels if index else config.temporal_features,
                config.temporal_channels,
                config.kernel_size,
                2**index,
                config.dropout,
            )
            for index in range(config.encoder_blocks)
        )

    def forward(self, windows: Tensor) -> Tensor:
        """`[N, window, F]` -> `[N, channels]`, with every layer computed at every step."""
        steps = windows.transpose(1, 2)
        for block in self._blocks():
            steps = block.padded(steps)
        return steps[..., -1]

    def encode_windows(self, windows: Tensor) -> Tensor:
        """`[N, window, F]` -> `[N, channels]`, computing only the steps that the output depends on.

        Block i needs only steps that are 2^i bars apart. Keeping every second step after each block turns the
        dilated convolutions into dense ones. At the reference sizes this takes 5.9 M multiply-adds instead of
        27.9 M.
        """
        steps = windows[:, -self.receptive_field :].transpose(1, 2)
        last = len(self.blocks) - 1
        for index, block in enumerate(self._blocks()):
            steps = block.thinned(steps, 1 if index == last else 2)
        return steps[..., -1]

    def encode_spans(self, spans: Tensor) -> Tensor:
        """`[N, receptive_field - 1 + L, F]` -> `[N * L, channels]`, the embeddings of the last L bars."""
        if spans.shape[1] == self.receptive_field:
            return self.encode_windows(spans)
        steps = spans.transpose(1, 2)
        for block in self._blocks():
            steps = block.unpadded(steps)
        return steps.transpose(1, 2).flatten(0, 1)

    def _blocks(self) -> list[ResidualBlock]:
        return [block for block in self.blocks if isinstance(block, ResidualBlock)]


def _convolve(conv: nn.Conv1d, steps: Tensor, dilation: int, stride: int = 1) -> Tensor:
    return functional.conv1d(steps, conv.weight, conv.bias, stride=stride, dilation=dilation)
