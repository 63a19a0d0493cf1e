"""Exploration as a pure function of values and of uniform numbers that were drawn before."""

from __future__ import annotations

from torch import Tensor, where

from fastdqn.algorithms.td_losses import masked_q

__all__ = ["NUM_ACTING", "explore"]

NUM_ACTING = 2
"""Uniform numbers that the choice of one action takes."""


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


def _any_allowed(action_mask: Tensor, uniform: Tensor) -> Tensor:
    """Choose one of the allowed actions per row of [N, A] bool, or of all where none is allowed."""
    allowed = action_mask | ~action_mask.any(1, keepdim=True)
    rank = allowed.cumsum(1)  # 1 for the first allowed action, 2 for the second
    return (rank <= (uniform * rank[:, -1:]).long()).sum(1)
