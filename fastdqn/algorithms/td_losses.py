"""The equations of Q-learning as pure functions of tensors; none of them knows a network."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from fastdqn.errors import UsageError

__all__ = [
    "LOSSES",
    "bootstrapped",
    "discount_of",
    "double_dqn_target",
    "double_value",
    "dqn_target",
    "huber",
    "huber_loss",
    "largest_value",
    "masked_q",
    "mse_loss",
    "soft_update_",
    "td_error",
]


def masked_q(q: Tensor, action_mask: Tensor | None) -> Tensor:
    """Return Q-values among which a forbidden action is never the largest.

        Q(s, a)        if a may be done in s, or nothing may
        -infinity      otherwise

    Where nothing may be done, every action counts as allowed, so that a maximum stays finite.

    Args:
        q: [B, A] float.
        action_mask: [B, A] bool, True where the action may be done; None returns `q` itself.

    Raises:
        ValueError: The mask is not bool, or its shape is not that of `q`.

    Source:
        Huang, Ontanon (2022), A closer look at invalid action masking in policy gradient
        algorithms, arXiv:2006.14171, section 3, where it is done to logits.
    """
    if action_mask is None:
        return q
    if action_mask.shape != q.shape or action_mask.dtype is not torch.bool:
        raise ValueError(
            f"action mask {tuple(action_mask.shape)} {action_mask.dtype}, Q {tuple(q.shape)}: "
            "want [B, A] bool, [B, A]"
        )
    forbidden = ~action_mask & action_mask.any(1, keepdim=True)
    return q.masked_fill(forbidden, -torch.inf)


def discount_of(terminated: Tensor, gamma: float) -> Tensor:
    """Return the discount of one-step transitions: 0 if terminated, else gamma.

    Args:
        terminated: [B] bool.
        gamma: Discount per env step, in [0, 1].

    Returns:
        [B] float32.
    """
    return torch.full_like(terminated, gamma, dtype=torch.float32).masked_fill_(terminated, 0.0)


def bootstrapped(reward: Tensor, discount: Tensor, next_value: Tensor) -> Tensor:
    """Return the target of every method that bootstraps.

        y = r                    where the discount is 0, whatever the value
        y = r + discount V       elsewhere

    A value that is no finite number thus does no harm where nothing follows.

    Args:
        reward: [B] float32, of n steps discounted and summed.
        discount: [B] float32, gamma^n, or 0 where the episode has terminated.
        next_value: [B] float32, of the state n steps later.

    Returns:
        [B] float32.

    Raises:
        ValueError: The shapes are not [B] thrice, which would broadcast silently.
    """
    if reward.ndim != 1 or not reward.shape == discount.shape == next_value.shape:
        raise ValueError(
            f"reward {tuple(reward.shape)}, discount {tuple(discount.shape)}, "
            f"next value {tuple(next_value.shape)}: want [B], [B], [B]"
        )
    return torch.where(discount == 0.0, reward, reward + discount * next_value)


def largest_value(next_q: Tensor, action_mask: Tensor | None = None) -> Tensor:
    """Return max_a Q(s', a) [B] over the allowed actions, of `next_q` [B, A]; see `masked_q`."""
    return masked_q(next_q, action_mask).amax(1)


def double_value(
    next_q_online: Tensor, next_q_target: Tensor, action_mask: Tensor | None = None
) -> Tensor:
    """Return Q_target(s', argmax_a Q_online(s', a)) [B], the argmax over the allowed actions.

    Args:
        next_q_online: [B, A] float32.
        next_q_target: [B, A] float32.
        action_mask: [B, A] bool, what may be done in s'; see `masked_q`.
    """
    best = masked_q(next_q_online, action_mask).argmax(1, keepdim=True)
    return next_q_target.gather(1, best).squeeze(1)


def dqn_target(
    reward: Tensor,
    terminated: Tensor,
    next_q_target: Tensor,
    gamma: float,
    *,
    next_action_mask: Tensor | None = None,
) -> Tensor:
    """Bootstrap from the target network's own best action.

        y = r                                     if terminated
        y = r + gamma max_a Q_target(s', a)       otherwise, truncated or not

    The maximum is taken over the actions that s' allows; where it allows none and the episode
    goes on, over all of them.

    Args:
        reward: [B] float32.
        terminated: [B] bool.
        next_q_target: [B, A] float32, Q-values of s' by the target network.
        gamma: Discount per env step, in [0, 1].
        next_action_mask: [B, A] bool, what may be done in s'; None allows everything.

    Returns:
        [B] float32.

    Raises:
        ValueError: The shapes are not [B], [B], [B, A] and [B, A], or the mask is not bool.

    Source:
        Mnih et al. (2015), Human-level control through deep reinforcement learning,
        Nature 518, algorithm 1.
    """
    _refuse_shapes(reward, terminated, next_q_target)
    value = largest_value(next_q_target, next_action_mask)
    return bootstrapped(reward, discount_of(terminated, gamma), value)


def double_dqn_target(
    reward: Tensor,
    terminated: Tensor,
    next_q_online: Tensor,
    next_q_target: Tensor,
    gamma: float,
    *,
    next_action_mask: Tensor | None = None,
) -> Tensor:
    """Let the online network choose the next action and the target network value it.

        a* = argmax_a Q_online(s', a)
        y  = r                                    if terminated
        y  = r + gamma Q_target(s', a*)           otherwise, truncated or not

    The choice is among the actions that s' allows; where it allows none and the episode goes
    on, among all of them.

    Args:
        reward: [B] float32.
        terminated: [B] bool.
        next_q_online: [B, A] float32, Q-values of s' by the online network.
        next_q_target: [B, A] float32, Q-values of s' by the target network.
        gamma: Discount per env step, in [0, 1].
        next_action_mask: [B, A] bool, what may be done in s'; None allows everything.

    Returns:
        [B] float32.

    Raises:
        ValueError: The shapes are not [B], [B] and [B, A] thrice, or the mask is not bool.

    Source:
        van Hasselt, Guez, Silver (2016), Deep reinforcement learning with double Q-learning,
        arXiv:1509.06461, equation 4.
    """
    _refuse_shapes(reward, terminated, next_q_target)
    _refuse_shapes(reward, terminated, next_q_online)
    value = double_value(next_q_online, next_q_target, next_action_mask)
    return bootstrapped(reward, discount_of(terminated, gamma), value)


def td_error(q: Tensor, action: Tensor, target: Tensor) -> Tensor:
    """Return Q(s, a) - y, the error that the update shrinks.

    Args:
        q: [B, A] float32.
        action: [B] int64.
        target: [B] float32; no gradient flows into it.

    Returns:
        [B] float32.

    Raises:
        ValueError: `action` or `target` is not [B], which would broadcast silently.
    """
    if action.shape != q.shape[:1] or target.shape != action.shape:
        raise ValueError(
            f"q {tuple(q.shape)}, action {tuple(action.shape)}, target {tuple(target.shape)}: "
            "want [B, A], [B], [B]"
        )
    return q.gather(1, action.unsqueeze(1)).squeeze(1) - target.detach()


def huber(error: Tensor) -> Tensor:
    """Return 0.5 e^2 where |e| < 1 and |e| - 0.5 elsewhere, for each row.

    Args:
        error: [B] float32.

    Returns:
        [B] float32.

    Source:
        Mnih et al. (2015), Nature 518, methods: the error term clipped to [-1, 1].
    """
    return functional.smooth_l1_loss(error, torch.zeros_like(error), reduction="none")


LOSSES: dict[str, Callable[[Tensor], Tensor]] = {"huber": huber, "mse": torch.square}
"""Name on the command line -> loss of each row, a function of the TD error [B]."""


def huber_loss(error: Tensor) -> Tensor:
    """Return the mean of `huber` over the rows of `error` [B] float32."""
    return huber(error).mean()


def mse_loss(error: Tensor) -> Tensor:
    """Return the mean of e^2 over the rows of `error` [B] float32."""
    return error.square().mean()


def soft_update_(target: list[Tensor], online: list[Tensor], tau: float) -> None:
    """Move every target parameter a fraction tau towards its online twin, in place.

        theta_target <- (1 - tau) theta_target + tau theta_online

    Hot path: one multi-tensor kernel, no allocation that lives, no wait.

    Args:
        target: Parameters of the target network, any shapes, float32; written.
        online: Parameters of the online network, same order and shapes; read.
        tau: Fraction per call, in (0, 1]; 1 copies.

    Raises:
        UsageError: tau lies outside (0, 1].
        ValueError: The lists differ in length or shapes.

    Source:
        Lillicrap et al. (2016), Continuous control with deep reinforcement learning,
        arXiv:1509.02971, section 3.
    """
    if not 0.0 < tau <= 1.0:
        raise UsageError(f"--tau {tau}", "it is a fraction in (0, 1]", "Try 0.005.")
    if [t.shape for t in target] != [o.shape for o in online]:
        raise ValueError("target and online parameters differ in number or shapes")
    with torch.no_grad():
        torch._foreach_lerp_(target, online, tau)


def _refuse_shapes(reward: Tensor, terminated: Tensor, next_q: Tensor) -> None:
    if reward.ndim != 1 or terminated.shape != reward.shape or next_q.shape[:-1] != reward.shape:
        raise ValueError(
            f"reward {tuple(reward.shape)}, terminated {tuple(terminated.shape)}, "
            f"next Q {tuple(next_q.shape)}: want [B], [B], [B, A]"
        )
