"""The causal encoder for one window, one number at a time."""

import numpy as np

from shared.model.tcn import TemporalEncoder
from shared.numeric import Float64


def _causal(steps: Float64, weight: Float64, bias: Float64, dilation: int) -> Float64:
    """`[T, inputs]` -> `[T, channels]`; steps before the first are zero."""
    channels, _, kernel = weight.shape
    out = np.zeros((len(steps), channels))
    for t in range(len(steps)):
        out[t] = bias
        for tap in range(kernel):
            source = t - (kernel - 1 - tap) * dilation
            if source >= 0:
                out[t] += weight[:, :, tap] @ steps[source]
    return out


def encode(encoder: TemporalEncoder, window: Float64) -> Float64:
    """`[window, F]` -> `[channels]`, in float64, in evaluation mode."""
    weights = {name: tensor.double().numpy() for name, tensor in encoder.state_dict().items()}
    steps = window
    for index in range(len(encoder.blocks)):
        before, dilation = steps, 2**index
        for half in ("1", "2"):
            conv, norm = f"blocks.{index}.conv{half}.", f"blocks.{index}.norm{half}."
            steps = _causal(steps, weights[conv + "weight"], weights[conv + "bias"], dilation)
            deviation = np.sqrt(weights[norm + "running_var"] + 1e-5)
            steps = (steps - weights[norm + "running_mean"]) / deviation
            steps = np.maximum(steps * weights[norm + "weight"] + weights[norm + "bias"], 0.0)
        shortcut = f"blocks.{index}.shortcut."
        if shortcut + "weight" in weights:
            before = _causal(before, weights[shortcut + "weight"], weights[shortcut + "bias"], 1)
        steps = np.maximum(steps + before, 0.0)
    last: Float64 = steps[-1]
    return last
