"""Noisy linear layers: exploration by noise in the weights, whose size is learned."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["NoisyLinear", "noisy_linear"]

SIGMA = 0.5
"""Size of the noise at the start, times 1 / sqrt(inputs)."""
SMALLEST, LARGEST = 2.0**-25, 1.0 - 2.0**-24
"""Bounds of the uniform numbers, so that a normal number of them is finite."""


class NoisyLinear(nn.Module):
    """A linear layer with factorised Gaussian noise in its weights.

        y = (W + S * f(e_out) f(e_in)^T) x + b + s * f(e_out),    f(e) = sign(e) sqrt(|e|)

    Args:
        in_features: Inputs, p.
        out_features: Outputs, q.

    Attributes:
        weight: W [q, p].
        bias: b [q].
        weight_sigma: S [q, p].
        bias_sigma: s [q].
        num_random: p + q uniform numbers, which become e_in and e_out.

    Source:
        Fortunato et al. (2018), Noisy networks for exploration, arXiv:1706.10295, equations 10 and
        11, section 3.2.
    """

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.num_random = in_features + out_features
        bound = 1.0 / math.sqrt(in_features)
        self.weight = nn.Parameter(torch.empty(out_features, in_features).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(out_features).uniform_(-bound, bound))
        self.weight_sigma = nn.Parameter(torch.full_like(self.weight, SIGMA * bound))
        self.bias_sigma = nn.Parameter(torch.full_like(self.bias, SIGMA * bound))

    def forward(self, x: Tensor, random: Tensor | None = None) -> Tensor:
        """Return [B, q] of `x` [B, p]; `random` [p + q] in [0, 1), or None for no noise."""
        return noisy_linear(x, list(self.parameters()), random)


def noisy_linear(x: Tensor, parameters: Sequence[Tensor], random: Tensor | None) -> Tensor:
    """Return what `NoisyLinear` does with these parameters, in the order of its attributes."""
    weight, bias, weight_sigma, bias_sigma = parameters
    if random is None:
        return functional.linear(x, weight, bias)
    noise = scaled_noise(random)
    of_inputs, of_outputs = noise[: x.shape[1]], noise[x.shape[1] :]
    # The noise of the weights has rank one: it costs two vectors, and no second matrix.
    own = functional.linear(x, weight, bias + bias_sigma * of_outputs)
    return own + functional.linear(x * of_inputs, weight_sigma) * of_outputs


def scaled_noise(random: Tensor) -> Tensor:
    """Return f(e) of normal numbers e that uniform ones in [0, 1) become; one half becomes 0."""
    bounded = random.clamp(SMALLEST, LARGEST)
    normal = math.sqrt(2.0) * torch.erfinv(2.0 * bounded - 1.0)
    return normal.sign() * normal.abs().sqrt()
