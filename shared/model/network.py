"""The networks of the agent: representation, prediction, afterstate with its two heads, and dynamics.

    representation   window, static features      -> hidden state
    prediction       hidden state                 -> policy logits, value logits
    afterstate       hidden state, action         -> afterstate
    afterstate heads afterstate                   -> chance outcome logits, value logits
    dynamics         afterstate, action, outcome  -> next hidden state, reward logits

Hidden states and afterstates are normalised by LayerNorm. The usual alternative, min-max scaling over the
channels of a state, would let the largest channel set the scale of all channels, although temporal and
static channels have different meanings. With LayerNorm the gradient reaches every channel, and the scale
stays the same over an unroll of any length.

Rewards are categorical on the same support as values. Both are in pips and heavy-tailed: a reward is 0 or
-0.05 on most steps and up to ±100 at some closes. Cross-entropy keeps their loss terms comparable.

The weights of the few inputs for position, action and outcome start larger than usual (`EVENT_GAIN`,
`STATIC_GAINS`), so that these inputs have as much influence as the hundreds of window features. A long
position gains what a short one loses: the reward depends on the product of market move and side. At the
usual initial scale the hidden units hardly depend on the side, and the network needs thousands of updates
before it begins to learn this product (docs/learning.md).

The last layer of every head starts at zero. Version 0 therefore has a uniform policy, uniform chance
outcomes, and values and rewards of zero.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from shared.model.config import ModelConfig
from shared.model.support import Support
from shared.model.tcn import TemporalEncoder
from shared.numeric import Float32

#: Initial scale of the weights of one-hot events, relative to the default initialisation.
EVENT_GAIN = 8.0

#: Initial scales of the two layers of the static features, relative to the default initialisation.
STATIC_GAINS = (4.0, 8.0)


class ResidualLayers(nn.Module):
    """Residual MLP block: `x + W2 relu(W1 norm(x))`."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(size)
        self.inner = nn.Linear(size, size)
        self.outer = nn.Linear(size, size)

    def forward(self, inputs: Tensor) -> Tensor:
        """`[N, size]` -> `[N, size]`."""
        outputs: Tensor = inputs + self.outer(functional.relu(self.inner(self.norm(inputs))))
        return outputs


class Head(nn.Module):
    """Residual blocks and a linear layer whose weights start at zero."""

    def __init__(self, size: int, blocks: int, outputs: int) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*(ResidualLayers(size) for _ in range(blocks)))
        self.last = nn.Linear(size, outputs)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, inputs: Tensor) -> Tensor:
        """`[N, size]` -> `[N, outputs]`."""
        outputs: Tensor = self.last(self.blocks(inputs))
        return outputs


class Transition(nn.Module):
    """Next state from a state and one-hot events: a linear layer, residual blocks, LayerNorm."""

    def __init__(self, size: int, events: int, blocks: int) -> None:
        super().__init__()
        self.first = nn.Linear(size + events, size)
        self.blocks = nn.Sequential(*(ResidualLayers(size) for _ in range(blocks)))
        self.norm = nn.LayerNorm(size)
        with torch.no_grad():
            self.first.weight[:, size:] *= EVENT_GAIN

    def forward(self, state: Tensor, *events: Tensor) -> Tensor:
        """`[N, size]` and one-hot rows -> `[N, size]`."""
        inputs = functional.relu(self.first(torch.cat((state, *events), dim=-1)))
        outputs: Tensor = self.norm(self.blocks(inputs))
        return outputs


class Network(nn.Module):
    """All weights of one checkpoint version."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        size = config.hidden_size
        self.config = config
        self.support = Support(config.value_bins, config.value_bound_pips)
        self.encoder = TemporalEncoder(config)
        static = (
            nn.Linear(config.static_features, config.static_channels),
            nn.Linear(config.static_channels, config.static_channels),
        )
        with torch.no_grad():
            for layer, gain in zip(static, STATIC_GAINS, strict=True):
                layer.weight *= gain
        self.static = nn.Sequential(static[0], nn.ReLU(), static[1])
        self.hidden_norm = nn.LayerNorm(size)
        self.to_afterstate = Transition(size, config.num_actions, config.afterstate_blocks)
        self.outcome_head = Head(size, 0, config.num_outcomes)
        self.q_head = Head(size, 0, config.value_bins)
        self.to_hidden = Transition(size, config.num_actions + config.num_outcomes, config.dynamics_blocks)
        self.reward_head = Head(size, 0, config.value_bins)
        self.policy_head = Head(size, config.policy_blocks, config.num_actions)
        self.value_head = Head(size, config.value_blocks, config.value_bins)

    def representation(self, windows: Tensor, static: Tensor, rows: Tensor | None = None) -> Tensor:
        """`[N, window, F]`, `[N, static]` -> hidden states `[N, H]`.

        If `rows` (int64 `[N]`) is given, `windows` holds S spans of bars, `[S, receptive_field - 1 + L, F]`,
        instead. The encoder returns an embedding of each span's last L bars, and `rows` selects N of these
        S·L embeddings.
        """
        if rows is None:
            return self.combine(self.encoder.encode_windows(windows), static)
        return self.combine(self.encoder.encode_spans(windows)[rows], static)

    def combine(self, temporal: Tensor, static: Tensor) -> Tensor:
        """Temporal embeddings `[N, temporal_channels]` and static features -> hidden states `[N, H]`."""
        hidden: Tensor = self.hidden_norm(torch.cat((temporal, self.static(static)), dim=-1))
        return hidden

    def prediction(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """`[N, H]` -> policy logits `[N, A]`, value logits `[N, bins]`."""
        return self.policy_head(hidden), self.value_head(hidden)

    def afterstate(self, hidden: Tensor, actions: Tensor) -> Tensor:
        """`[N, H]`, int64 `[N]` -> afterstates `[N, H]`."""
        outputs: Tensor = self.to_afterstate(hidden, self._one_hot(actions, self.config.num_actions, hidden))
        return outputs

    def afterstate_heads(self, afterstates: Tensor) -> tuple[Tensor, Tensor]:
        """`[N, H]` -> chance outcome logits `[N, C]`, value logits `[N, bins]`."""
        return self.outcome_head(afterstates), self.q_head(afterstates)

    def dynamics(self, afterstates: Tensor, actions: Tensor, outcomes: Tensor) -> tuple[Tensor, Tensor]:
        """`[N, H]`, int64 `[N]`, int64 `[N]` -> next hidden states `[N, H]`, reward logits `[N, bins]`."""
        hidden: Tensor = self.to_hidden(
            afterstates,
            self._one_hot(actions, self.config.num_actions, afterstates),
            self._one_hot(outcomes, self.config.num_outcomes, afterstates),
        )
        return hidden, self.reward_head(hidden)

    def arrays(self) -> dict[str, Float32]:
        """A copy of every weight and running statistic, by its name in `state_dict`."""
        return {
            name: tensor.detach().to("cpu", torch.float32).numpy().copy()
            for name, tensor in self.state_dict().items()
        }

    @staticmethod
    def _one_hot(index: Tensor, size: int, like: Tensor) -> Tensor:
        return functional.one_hot(index, size).to(like.dtype)


def initial_network(config: ModelConfig, seed: int) -> Network:
    """A network with random weights determined by the seed; torch's global random state does not change."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Network(config)
