"""The multilayer perceptron, the default network."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from gymnasium.spaces import Box, Discrete, Space
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn import functional

from fastdqn.foundation.scalars import whole, whole_numbers

__all__ = ["BEYOND_ONE_HOT", "MLP", "mlp_for"]


BEYOND_ONE_HOT = "an observation is none of those that the one-hot network knows"


class MLP(nn.Module):
    """A multilayer perceptron from observations to one Q-value per action.

    Observations of any shape are flattened and become float32; whole numbers of a Discrete
    space become one-hot vectors; the scale is applied here and nowhere else.

    Args:
        obs_shape: Shape of one observation.
        num_actions: Outputs, A.
        hidden_sizes: Units of each hidden layer; () is a linear Q-function.
        one_hot: Values of a Discrete observation space, or 0.
        offset: Subtracted from the observation before anything else.
        scale: Multiplies the observation, e.g. 1/255 for images.
        kaiming: He initialisation with zero biases instead of PyTorch's default.

    Raises:
        UsageError: Sizes that are not whole numbers, or units or actions below 1.

    Source:
        He et al. (2015), Delving deep into rectifiers, arXiv:1502.01852, section 2.2.
    """

    def __init__(
        self,
        obs_shape: tuple[int, ...],
        num_actions: int,
        hidden_sizes: Sequence[int] = (128, 128),
        *,
        one_hot: int = 0,
        offset: int = 0,
        scale: float = 1.0,
        kaiming: bool = False,
    ) -> None:
        super().__init__()
        obs_shape = whole_numbers("obs_shape", obs_shape, way_out="Try (4,).")
        num_actions = whole("num_actions", num_actions, least=1, way_out="Try 2.")
        hidden_sizes = whole_numbers("--hidden-sizes", hidden_sizes, least=1, way_out="Try 64 64.")
        self.one_hot, self.offset, self.scale = one_hot, offset, scale
        sizes = [one_hot or math.prod(obs_shape), *hidden_sizes, num_actions]
        self.layers = nn.ModuleList(
            nn.Linear(inputs, outputs) for inputs, outputs in pairwise(sizes)
        )
        if kaiming:
            self._init_kaiming()

    @property
    def steps(self) -> list[tuple[int, int]]:
        """Inputs and outputs of each layer, in order."""
        layers: Any = self.layers
        return [(layer.in_features, layer.out_features) for layer in layers]

    @property
    def sizes(self) -> tuple[int, ...]:
        """Inputs, units of each hidden layer, actions."""
        return self.steps[0][0], *(outputs for _, outputs in self.steps)

    def _init_kaiming(self) -> None:
        for parameter in self.parameters():
            if parameter.ndim > 1:
                nn.init.kaiming_normal_(parameter, nonlinearity="relu")
            else:
                nn.init.zeros_(parameter)

    def forward(self, obs: Tensor) -> Tensor:
        """Return Q-values [B, A] float32 of observations [B, *O]."""
        return self.apply_to(list(self.parameters()), obs)

    def apply_to(self, parameters: Sequence[Tensor], obs: Tensor) -> Tensor:
        """Return what `forward` would with these parameters (weight, bias, weight, ...)."""
        x = self._encode(obs)
        last = len(parameters) - 2
        for i in range(0, last, 2):
            x = functional.linear(x, parameters[i], parameters[i + 1]).relu()
        return functional.linear(x, parameters[last], parameters[last + 1])

    def _encode(self, obs: Tensor) -> Tensor:
        if self.one_hot:
            return _one_hot(obs.long() - self.offset, self.one_hot)
        x = (obs.flatten(1) if obs.ndim > 1 else obs.unsqueeze(1)).float()
        return x * self.scale if self.scale != 1.0 else x


def _one_hot(numbers: Tensor, size: int) -> Tensor:
    """Return one-hot vectors [B, size] float32 of whole numbers [B].

    A number outside of [0, size) is an error on the CPU; in a compiled step, or on a card, its row
    is NaN, so that the update is skipped.

    Raises:
        IndexError: On the CPU: such a number.
    """
    if numbers.device.type == "cpu" and not isinstance(numbers, FakeTensor):
        try:
            return functional.one_hot(numbers, size).float()
        except RuntimeError as error:
            if "Class values" not in str(error):
                raise
            raise IndexError(f"{BEYOND_ONE_HOT}, 0 to {size - 1} after its offset") from error
    hot = (numbers.unsqueeze(-1) == torch.arange(size, device=numbers.device)).float()
    return hot / hot.sum(-1, keepdim=True)


def mlp_for(
    space: Space[Any], num_actions: int, hidden_sizes: Sequence[int], *, kaiming: bool = False
) -> MLP:
    """Build the MLP that suits an observation space: one-hot for Discrete, 1/255 for images."""
    if isinstance(space, Discrete):
        one_hot, offset = int(space.n), int(space.start)
        return MLP((), num_actions, hidden_sizes, one_hot=one_hot, offset=offset, kaiming=kaiming)
    image = isinstance(space, Box) and space.dtype == "uint8" and len(space.shape) >= 2
    return MLP(
        tuple(space.shape or ()),
        num_actions,
        hidden_sizes,
        scale=1.0 / 255.0 if image else 1.0,
        kaiming=kaiming,
    )
