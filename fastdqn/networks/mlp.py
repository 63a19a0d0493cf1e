"""The multilayer perceptron, the default network."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Any

import torch
from gymnasium.spaces import Box, Discrete, Space
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn import functional

from fastdqn.foundation.scalars import refuse_unless_finite, whole, whole_numbers
from fastdqn.networks.mlp_options import ACTIVATIONS, flag, parameter_shapes, refuse_unfit
from fastdqn.networks.noisy import NoisyLinear, noisy_linear, scaled_noise

__all__ = ["ACTIVATIONS", "BEYOND_ONE_HOT", "MLP", "mlp_for"]


BEYOND_ONE_HOT = "an observation is none of those that the one-hot network knows"
SMALLEST_OFFSET = -(2**63)
Layer = nn.Linear | NoisyLinear


class MLP(nn.Module):
    """A multilayer perceptron from observations to one Q-value per action.

    Observations of any shape are flattened and become float32; whole numbers of a Discrete
    space become one-hot vectors; the scale is applied here and nowhere else.

    A dueling network divides the units of its last hidden layer: the first half of them gives the
    value V of a state, the others the advantages A of its actions, and

        Q(s, a) = V(s) + A(s, a) - mean_b A(s, b)

    A noisy network has noisy layers in place of all linear ones but the first hidden one, and reads
    `num_random` numbers for a forward pass, which its rows share; see `NoisyLinear`.

    Args:
        obs_shape: Shape of one observation.
        num_actions: Actions, A.
        hidden_sizes: Units of each hidden layer; () is a linear Q-function.
        one_hot: Values of a Discrete observation space, or 0.
        offset: Subtracted from the observation before anything else.
        scale: Multiplies the observation, e.g. 1/255 for images.
        kaiming: He initialisation with zero biases instead of PyTorch's default.
        activation: What follows a hidden layer, a name in ACTIVATIONS.
        layer_norm: Normalise the units of each hidden layer before its activation.
        dueling: Estimate the value of a state apart from the advantages of its actions.
        noisy: Explore by noise in the weights, whose size is learned.
        num_atoms: Numbers for each action, K: outputs [B, A, K]; None is one, [B, A].

    Attributes:
        num_random: Uniform numbers that a forward pass reads; 0 unless it is noisy.

    Raises:
        UsageError: Sizes that are not whole numbers, units, actions or atoms below 1, an activation
            that is none of those, an option that is neither True nor False, or a dueling network
            whose last hidden layer has a single unit; a scale that is no finite number.

    Source:
        He et al. (2015), Delving deep into rectifiers, arXiv:1502.01852, section 2.2.
        Wang et al. (2016), Dueling network architectures, arXiv:1511.06581, equation 9; their
        streams are as wide as the layer that is divided here.
        Fortunato et al. (2018), Noisy networks for exploration, arXiv:1706.10295, section 3.1;
        there all layers that are no convolutions are noisy.
        Ba, Kiros, Hinton (2016), Layer normalization, arXiv:1607.06450.
    """

    num_random: int = 0

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
        activation: str = "relu",
        layer_norm: bool = False,
        dueling: bool = False,
        noisy: bool = False,
        num_atoms: int | None = None,
    ) -> None:
        super().__init__()
        obs_shape = whole_numbers("obs_shape", obs_shape, way_out="Try (4,).")
        num_actions = whole("num_actions", num_actions, least=1, way_out="Try 2.")
        hidden_sizes = whole_numbers("--hidden-sizes", hidden_sizes, least=1, way_out="Try 64 64.")
        if num_atoms is not None:
            num_atoms = whole("num_atoms", num_atoms, least=1, way_out="Try 51.")
        self.layer_norm = flag("--layer-norm", layer_norm)
        self.dueling, self.noisy = flag("--dueling", dueling), flag("--noisy", noisy)
        refuse_unfit(activation, hidden_sizes, dueling=self.dueling)
        self.one_hot = whole("one_hot", one_hot, way_out="0 is no one-hot vector.")
        self.offset = whole("offset", offset, least=SMALLEST_OFFSET, way_out="Try 0.")
        refuse_unless_finite("scale", scale, "Try 1.0, or 1 / 255 for images.")
        self.scale = float(scale)
        self.activation, self._activate = activation, ACTIVATIONS[activation]
        self.num_actions, self.num_atoms = num_actions, num_atoms
        self._plain = not (self.dueling or self.noisy or self.layer_norm or num_atoms)
        self._build([self.one_hot or math.prod(obs_shape), *hidden_sizes], num_atoms or 1)
        if flag("--kaiming", kaiming):
            self._init_kaiming()

    def _build(self, sizes: Sequence[int], num_atoms: int) -> None:
        """Build the layers over `sizes`: inputs and units of each hidden layer."""
        self._divided = sizes[-1] // 2 if self.dueling and len(sizes) > 1 else 0
        last = sizes[-1] - self._divided, self.num_actions * num_atoms
        shapes = [*pairwise(sizes), last]
        kinds = [
            NoisyLinear if self.noisy and (i or len(shapes) == 1) else nn.Linear
            for i in range(len(shapes))
        ]
        self.layers = nn.ModuleList(kind(*shape) for kind, shape in zip(kinds, shapes, strict=True))
        if self.dueling:
            self.value = kinds[-1](self._divided or sizes[-1], num_atoms)
        if self.layer_norm:
            self.norms = nn.ModuleList(nn.LayerNorm(size) for size in sizes[1:])
        layers = self._linear_layers()
        counts = [len(list(layer.parameters())) for layer in layers]
        self._first = list(accumulate(counts, initial=0))
        numbers = [layer.num_random if isinstance(layer, NoisyLinear) else 0 for layer in layers]
        self._random = list(accumulate(numbers, initial=0))
        if self.noisy:  # otherwise a subclass may have a number of its own
            self.num_random = self.num_noise

    @property
    def num_noise(self) -> int:
        """Uniform numbers that its noisy layers read together."""
        return self._random[-1]

    def _linear_layers(self) -> list[Layer]:
        """Return the layers in the order of their parameters: the value is the last one."""
        layers: Any = [*self.layers, *([self.value] if self.dueling else [])]
        return list(layers)

    @property
    def steps(self) -> list[tuple[int, int]]:
        """Inputs and outputs of each layer, in order; of a dueling network the value's is last."""
        return [(layer.in_features, layer.out_features) for layer in self._linear_layers()]

    @property
    def sizes(self) -> tuple[int, ...]:
        """Inputs, units of each hidden layer, actions."""
        layers: Any = self.layers
        hidden = (layer.out_features for layer in layers[:-1])
        return layers[0].in_features, *hidden, self.num_actions

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """Shapes that the parameters have if every layer is as wide as the one before, in order."""
        inputs, *hidden, num_actions = self.sizes
        shapes = parameter_shapes(
            inputs,
            hidden,
            num_actions,
            dueling=self.dueling,
            noisy=self.noisy,
            layer_norm=self.layer_norm,
            num_atoms=self.num_atoms,
        )
        return list(shapes.values())

    def _init_kaiming(self) -> None:
        for layer in self._linear_layers():
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)

    def forward(self, obs: Tensor, random: Tensor | None = None) -> Tensor:
        """Return Q-values [B, A] float32, or [B, A, K], of observations [B, *O].

        Args:
            obs: [B, *O].
            random: [num_random] float32 in [0, 1) for a noisy network; None is no noise.
        """
        return self.apply_to(list(self.parameters()), obs, random)

    def apply_to(
        self, parameters: Sequence[Tensor], obs: Tensor, random: Tensor | None = None
    ) -> Tensor:
        """Return what `forward` would with these parameters, in the order of the module's own."""
        if not self._plain:
            noise = None if random is None else scaled_noise(random)
            return self.head(parameters, self.features(parameters, obs, noise), noise)
        x, last = self._encode(obs), len(parameters) - 2
        for number in range(0, last, 2):
            x = self._activate(functional.linear(x, parameters[number], parameters[number + 1]))
        return functional.linear(x, parameters[last], parameters[last + 1])

    def features(
        self, parameters: Sequence[Tensor], obs: Tensor, noise: Tensor | None = None
    ) -> Tensor:
        """Return what the last hidden layer gives, [B, H], or without one the inputs.

        Args:
            parameters: As of `apply_to`.
            obs: [B, *O].
            noise: [num_noise] of the noisy layers, see `scaled_noise`; None is none.
        """
        x = self._encode(obs)
        for number in range(len(self.layers) - 1):
            x = self._linear(number, parameters, x, noise)
            if self.layer_norm:
                own = self._first[-1] + 2 * number
                x = functional.layer_norm(x, x.shape[-1:], parameters[own], parameters[own + 1])
            x = self._activate(x)
        return x

    def head(self, parameters: Sequence[Tensor], x: Tensor, noise: Tensor | None = None) -> Tensor:
        """Return what `forward` makes of `features` [B, H], with the same noise."""
        last = len(self.layers) - 1
        if not self.dueling:
            return self._by_atom(self._linear(last, parameters, x, noise))
        of_value, of_advantages = x, x
        if self._divided:
            of_value, of_advantages = x[:, : self._divided], x[:, self._divided :]
        value = self._linear(last + 1, parameters, of_value, noise)
        advantages = self._by_atom(self._linear(last, parameters, of_advantages, noise))
        if self.num_atoms:
            value = value.unsqueeze(1)
        return value + advantages - advantages.mean(1, keepdim=True)

    def _linear(
        self, number: int, parameters: Sequence[Tensor], x: Tensor, noise: Tensor | None
    ) -> Tensor:
        own = parameters[self._first[number] : self._first[number + 1]]
        if len(own) == 2:
            return functional.linear(x, own[0], own[1])
        first, end = self._random[number : number + 2]
        return noisy_linear(x, own, None if noise is None else noise[first:end])

    def _by_atom(self, outputs: Tensor) -> Tensor:
        if not self.num_atoms:
            return outputs
        return outputs.view(len(outputs), self.num_actions, self.num_atoms)

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
    space: Space[Any], num_actions: int, hidden_sizes: Sequence[int], **options: Any
) -> MLP:
    """Build the MLP that suits an observation space: one-hot for Discrete, 1/255 for images.

    Args:
        space: Of one observation.
        num_actions: A.
        hidden_sizes: Units of each hidden layer.
        options: `kaiming`, `activation`, `layer_norm`, `dueling`, `noisy`, `num_atoms` of `MLP`.
    """
    if isinstance(space, Discrete):
        one_hot, offset = int(space.n), int(space.start)
        return MLP((), num_actions, hidden_sizes, one_hot=one_hot, offset=offset, **options)
    image = isinstance(space, Box) and space.dtype == "uint8" and len(space.shape) >= 2
    scale = 1.0 / 255.0 if image else 1.0
    return MLP(tuple(space.shape or ()), num_actions, hidden_sizes, scale=scale, **options)
