"""Exploration as a pure function of values and of uniform numbers that were drawn before."""

from __future__ import annotations

import torch
from torch import Tensor, where

from fastdqn.algorithms.td_losses import masked_q

__all__ = ["NUM_ACTING", "bend_", "explore", "ladder_of"]

NUM_ACTING = 2
"""Uniform numbers that the choice of one action takes."""
BELOW_ONE = 1.0 - 2.0**-24
"""The largest number below 1 of float32, and of uniform numbers."""


def explore(
    q: Tensor, epsilon: Tensor | float, uniform: Tensor, action_mask: Tensor | None = None
) -> Tensor:
    """Do what `policy.epsilon_greedy` does by uniform numbers that were drawn before.

        a = argmax_a Q(s, a)                          where uniform[:, 0] >= epsilon
        a = the floor(uniform[:, 1] C)-th action      elsewhere, of the C that are allowed

    The second line is uniform within C 2^-24, since a float32 uniform has 24 bits. Hot path; never
    waits for the device.

    Args:
        q: [N, A] float32.
        epsilon: A number, or a scalar float32 on the device of `q`.
        uniform: [N, 2 or more] float32 in [0, 1); the first two are read.
        action_mask: [N, A] bool, or None.

    Returns:
        [N] int64 on the device of `q`.

    Raises:
        ValueError: The mask is not bool, or its shape is not that of `q`.
    """
    best = masked_q(q, action_mask).argmax(1)
    if not isinstance(epsilon, Tensor) and epsilon <= 0.0:
        return best  # no uniform number is below it
    if action_mask is None:
        anything = (uniform[:, 1] * q.shape[1]).long()
    else:
        anything = _any_allowed(action_mask, uniform[:, 1:2])
    return where(uniform[:, 0] < epsilon, anything, best)


def ladder_of(num_envs: int, alpha: float) -> Tensor:
    """Return the inverse exponents of an epsilon ladder, for `bend_`.

        epsilon_i = epsilon^(1 + alpha i / (N - 1)),    i = 0 .. N - 1

    A single environment explores with epsilon itself.

    Args:
        num_envs: Environments, N, at least 1.
        alpha: How far the probabilities lie apart, at least 0.

    Returns:
        [N] float32 in (0, 1], 1 / (1 + alpha i / (N - 1)).

    Source:
        Horgan et al. (2018), Distributed prioritized experience replay, arXiv:1803.00933, section
        4.1, with epsilon = 0.4 and alpha = 7.
    """
    exponents = [1.0 + alpha * (env / max(num_envs - 1, 1)) for env in range(num_envs)]
    return torch.tensor([1.0 / exponent for exponent in exponents], dtype=torch.float32)


def bend_(uniform: Tensor, ladder: Tensor) -> None:
    """Let each environment explore by an epsilon of its own, in place, whatever acts.

        u < epsilon^k    if and only if    u^(1/k) < epsilon

    So every actor that compares the first number with one epsilon explores by the powers of it,
    within 2^-24, the spacing of uniform numbers. Hot path; never waits for the device.

    Args:
        uniform: [..., N, 2 or more] float32 in [0, 1); the first of each environment is written.
        ladder: [N] float32 on the same device, 1 / k; see `ladder_of`.
    """
    uniform[..., 0].pow_(ladder).clamp_(max=BELOW_ONE)


def _any_allowed(action_mask: Tensor, uniform: Tensor) -> Tensor:
    """Choose one of the allowed actions per row of [N, A] bool, or of all where none is allowed."""
    allowed = action_mask | ~action_mask.any(1, keepdim=True)
    rank = allowed.cumsum(1)  # 1 for the first allowed action, 2 for the second
    return (rank <= (uniform * rank[:, -1:]).long()).sum(1)
