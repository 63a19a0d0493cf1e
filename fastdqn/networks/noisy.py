"""Noisy linear layers: exploration by noise in the weights, whose size is learned."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["NoisyLinear", "inverse_erf", "noisy_linear", "scaled_noise"]

SIGMA = 0.5
"""Size of the noise at the start, times 1 / sqrt(inputs)."""
SMALLEST, LARGEST = 2.0**-25, 1.0 - 2.0**-24
"""Bounds of the uniform numbers, so that a normal number of them is finite."""
SPLIT = 5.0
"""Where `inverse_erf` changes from one polynomial to the other, in -log(1 - x^2)."""
NEAR = (
    *(2.81022636e-08, 3.43273939e-07, -3.5233877e-06, -4.39150654e-06, 2.1858087e-04),
    *(-1.25372503e-03, -4.17768164e-03, 0.246640727, 1.50140941),
)
FAR = (
    *(-2.00214257e-04, 1.00950558e-04, 1.34934322e-03, -3.67342844e-03, 5.73950773e-03),
    *(-7.6224613e-03, 9.43887047e-03, 1.00167406, 2.83297682),
)
"""Coefficients of the two polynomials of `inverse_erf`, below SPLIT and above."""


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
        noise = None if random is None else scaled_noise(random)
        return noisy_linear(x, list(self.parameters()), noise)


def noisy_linear(x: Tensor, parameters: Sequence[Tensor], noise: Tensor | None) -> Tensor:
    """Return what `NoisyLinear` does with these parameters, in the order of its attributes.

    Args:
        x: [B, p].
        parameters: W, b, S and s.
        noise: f(e_in) and f(e_out), [p + q], see `scaled_noise`; None is no noise.
    """
    weight, bias, weight_sigma, bias_sigma = parameters
    if noise is None:
        return functional.linear(x, weight, bias)
    of_inputs, of_outputs = noise[: x.shape[1]], noise[x.shape[1] :]
    # The noise of the weights has rank one: it costs two vectors, and no second matrix.
    own = functional.linear(x, weight, bias + bias_sigma * of_outputs)
    return own + functional.linear(x * of_inputs, weight_sigma) * of_outputs


def scaled_noise(random: Tensor) -> Tensor:
    """Return f(e) of normal numbers e that uniform ones in [0, 1) become; one half becomes 0."""
    bounded = random.clamp(SMALLEST, LARGEST)
    normal = math.sqrt(2.0) * inverse_erf(2.0 * bounded - 1.0)
    return normal.sign() * normal.abs().sqrt()


def inverse_erf(x: Tensor) -> Tensor:
    """Return erf^-1(x) of numbers in (-1, 1), within 1e-5 of it; 0 of 0.

    On the CPU PyTorch's compiler computes `torch.erfinv` number by number, once for each use, so
    that a compiled noisy update took longer than an eager one; this runs in vector registers.

    Source:
        Giles (2012), Approximating the erfinv function, GPU computing gems, Jade edition, chapter
        10, the single precision version.
    """
    if not x.is_cpu:
        return torch.erfinv(x)
    w = -torch.log1p(-x * x)
    near, far = w - 2.5, w.sqrt() - 3.0
    of_near, of_far = torch.full_like(w, NEAR[0]), torch.full_like(w, FAR[0])
    for one, other in zip(NEAR[1:], FAR[1:], strict=True):
        of_near, of_far = one + of_near * near, other + of_far * far
    return torch.where(w < SPLIT, of_near, of_far) * x
