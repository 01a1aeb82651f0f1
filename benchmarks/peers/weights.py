"""A network's weights as plain arrays, laid out as matrix libraries multiply fastest by them."""

import copy

import numpy as np

from shared.model.network import Network
from shared.numeric import Float32


def exported(network: Network) -> dict[str, Float32]:
    """Every weight by its name in the network, batch norm folded into the convolutions.

    Matrices are `[inputs, outputs]` and convolutions `[kernel, inputs, outputs]`, contiguous.
    """
    folded = copy.deepcopy(network).eval().requires_grad_(False)
    folded.encoder.fold_batch_norm()
    return {
        name: np.ascontiguousarray(weight.numpy().transpose()) for name, weight in folded.state_dict().items()
    }
