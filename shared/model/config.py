"""Sizes of the networks. The manifest of a checkpoint records them, so that its weights can be loaded."""

from dataclasses import dataclass
from typing import Annotated

from shared.errors import SettingsError
from shared.setting import (
    Count,
    Natural,
    Positive,
    Range,
    check_group,
    setting,
)

#: Temporal encoders by name.
ENCODERS = ("tcn",)


@dataclass(frozen=True)
class ModelConfig:
    """The `[model]` group: sizes of representation, afterstate, dynamics, policy and value networks.

    Raises:
        SettingsError: a value is out of range, or a window is shorter than the receptive field.
    """

    encoder: str = setting("tcn", "temporal encoder")
    window_bars: Count = setting(32, "bars per window; fixed by the features")
    temporal_features: Count = setting(9, "features per bar; fixed by the features")
    static_features: Count = setting(6, "features of a position; fixed by the environment")
    num_actions: Count = setting(4, "actions; fixed by the environment")
    num_outcomes: Count = setting(3, "chance outcomes; fixed by the environment")
    temporal_channels: Count = setting(240, "channels that encode a window")
    static_channels: Count = setting(16, "channels that encode a position")
    encoder_blocks: Count = setting(3, "residual blocks of the encoder; block i has dilation 2^i")
    kernel_size: Annotated[int, Range(low=2)] = setting(3, "bars per convolution kernel")
    dropout: Annotated[float, Range(low=0.0, below=1.0)] = setting(0.1, "dropout in training")
    afterstate_blocks: Natural = setting(1, "residual blocks of the afterstate network")
    dynamics_blocks: Count = setting(3, "residual blocks of the dynamics network")
    policy_blocks: Count = setting(2, "residual blocks of the policy head")
    value_blocks: Count = setting(2, "residual blocks of the value head")
    value_bins: Annotated[int, Range(low=3)] = setting(601, "bins of the value support")
    value_bound_pips: Positive = setting(300.0, "bound of the value support on both sides of 0")

    def __post_init__(self) -> None:
        """Check names and ranges, and that the output at a window's last bar does not depend on padding."""
        if self.encoder not in ENCODERS:
            raise SettingsError(f"model.encoder is {self.encoder!r}, expected one of {', '.join(ENCODERS)}")
        check_group("model", self)
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
