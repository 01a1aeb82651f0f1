"""The weights of a network as arrays in the layout that is fastest for matrix libraries."""

import copy

import numpy as np
import torch.nn.utils.fusion

from shared.model.network import Network
from shared.model.tcn import ResidualBlock
from shared.numeric import Float32


def exported(network: Network) -> dict[str, Float32]:
    """Every weight by its name in the network, with batch norm folded into the convolutions.

    Matrices are `[inputs, outputs]` and convolutions `[kernel, inputs, outputs]`, contiguous.
    """
    folded = copy.deepcopy(network).eval().requires_grad_(False)
    for block in folded.encoder.modules():
        if isinstance(block, ResidualBlock):
            block.conv1 = torch.nn.utils.fusion.fuse_conv_bn_eval(block.conv1, block.norm1)
            block.conv2 = torch.nn.utils.fusion.fuse_conv_bn_eval(block.conv2, block.norm2)
    return {
        name: np.ascontiguousarray(weight.numpy().transpose()) for name, weight in folded.state_dict().items()
    }
