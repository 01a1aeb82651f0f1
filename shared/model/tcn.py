"""The causal temporal encoder, in three forms that give the same numbers.

The encoder is read out at a window's last bar, which depends on the last `receptive_field` bars only.
So besides the plain pass over a zero-padded window there are two that compute nothing in vain:

    forward          [N, window, F]   the definition: every layer over all steps of the padded window
    encode_windows   [N, window, F]   only the steps that the last one depends on: learning from single steps
    encode_spans     [N, 28 + L, F]   every bar with enough bars before it: learning from stretches of steps

Zero padding reaches no step that is read out, so the others use no padding at all: they are exact, not
approximations, and keep padding out of the batch statistics. Agents embed windows, and all bars of a session
in one pass, in kernels of their own (shared/engine/networks.py), which are tested equal to `forward`.
"""

from torch import Tensor, nn
from torch.nn import functional

from shared.model.config import ModelConfig


class ResidualBlock(nn.Module):
    """Twice convolution, batch norm, ReLU, dropout; plus a shortcut, then ReLU (Bai et al. 2018)."""

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
        """`[N, inputs, T]` -> `[N, channels, T]`: each convolution is padded with zeros on the left."""
        padding = (self.dilation * (self.conv1.kernel_size[0] - 1), 0)
        inner = self._activate(
            self.norm1, _convolve(self.conv1, functional.pad(steps, padding), self.dilation)
        )
        inner = self._activate(
            self.norm2, _convolve(self.conv2, functional.pad(inner, padding), self.dilation)
        )
        return self._add(inner, steps)

    def unpadded(self, steps: Tensor) -> Tensor:
        """Without padding: `[N, inputs, T]` -> `[N, channels, T - 2 (kernel - 1) dilation]`."""
        inner = self._activate(self.norm1, _convolve(self.conv1, steps, self.dilation))
        inner = self._activate(self.norm2, _convolve(self.conv2, inner, self.dilation))
        return self._add(inner, steps[..., steps.shape[-1] - inner.shape[-1] :])

    def thinned(self, steps: Tensor, stride: int) -> Tensor:
        """Without padding, on steps that are `dilation` bars apart; keeps every `stride`-th and the last."""
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
    """Causal TCN: dilations 1, 2, 4, ... and the last step's channels as embedding."""

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
        """The plain pass: `[N, window, F]` -> `[N, channels]`."""
        steps = windows.transpose(1, 2)
        for block in self._blocks():
            steps = block.padded(steps)
        return steps[..., -1]

    def encode_windows(self, windows: Tensor) -> Tensor:
        """Only what the last step depends on: `[N, window, F]` -> `[N, channels]`.

        Of block i, steps 2^i bars apart are needed; taking every second step after each block turns
        the dilated convolutions into dense ones. At the reference sizes 5.9 M multiply-adds, not 27.9 M.
        """
        steps = windows[:, -self.receptive_field :].transpose(1, 2)
        last = len(self.blocks) - 1
        for index, block in enumerate(self._blocks()):
            steps = block.thinned(steps, 1 if index == last else 2)
        return steps[..., -1]

    def encode_spans(self, spans: Tensor) -> Tensor:
        """Every bar that has enough before it: `[N, receptive_field - 1 + L, F]` -> `[N * L, channels]`."""
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
