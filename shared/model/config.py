"""Sizes of the networks. The manifest of a checkpoint records them, so that its weights can be loaded."""

from dataclasses import dataclass

from shared.errors import SettingsError

#: Temporal encoders by name.
ENCODERS = ("tcn",)


@dataclass(frozen=True)
class ModelConfig:
    """Sizes of the representation, afterstate, dynamics, policy and value networks."""

    encoder: str = "tcn"
    window_bars: int = 32
    temporal_features: int = 9
    static_features: int = 6
    num_actions: int = 4
    num_outcomes: int = 3
    temporal_channels: int = 240
    static_channels: int = 16
    encoder_blocks: int = 3  # block i has dilation 2^i: 1, 2, 4
    kernel_size: int = 3
    dropout: float = 0.1
    afterstate_blocks: int = 1
    dynamics_blocks: int = 3
    policy_blocks: int = 2
    value_blocks: int = 2
    value_bins: int = 601
    value_bound_pips: float = 300.0

    def __post_init__(self) -> None:
        """Check names and ranges, and that the output at the last bar of a window depends on no padding."""
        if self.encoder not in ENCODERS:
            raise SettingsError(f"model.encoder is {self.encoder!r}, expected one of {', '.join(ENCODERS)}")
        for name, minimum in _MINIMA.items():
            if getattr(self, name) < minimum:
                raise SettingsError(f"model.{name} is {getattr(self, name)}, expected {minimum} or more")
        if not 0.0 <= self.dropout < 1.0:
            raise SettingsError(f"model.dropout is {self.dropout}, expected 0 or more and below 1")
        if not 0.0 < self.value_bound_pips < float("inf"):
            raise SettingsError(
                f"model.value_bound_pips is {self.value_bound_pips}, expected a positive number"
            )
        if self.receptive_field > self.window_bars:
            raise SettingsError(
                f"model.window_bars is {self.window_bars}, expected at least the encoder's receptive field of"
                f" {self.receptive_field} bars, so that its output depends on bars only, not on padding"
            )

    @property
    def hidden_size(self) -> int:
        """Channels of a hidden state: the temporal channels followed by the static ones."""
        return self.temporal_channels + self.static_channels

    @property
    def receptive_field(self) -> int:
        """Bars that the last output step depends on: block i has two convolutions of dilation 2^i."""
        return 1 + 2 * (self.kernel_size - 1) * ((1 << self.encoder_blocks) - 1)


_MINIMA = {
    "window_bars": 1,
    "temporal_features": 1,
    "static_features": 1,
    "num_actions": 1,
    "num_outcomes": 1,
    "temporal_channels": 1,
    "static_channels": 1,
    "encoder_blocks": 1,
    "kernel_size": 2,
    "afterstate_blocks": 0,
    "dynamics_blocks": 1,
    "policy_blocks": 1,
    "value_blocks": 1,
    "value_bins": 3,
}
