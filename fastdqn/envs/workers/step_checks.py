"""Checks of what an environment returned from a step."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastdqn.errors import UsageError

__all__ = ["refuse_flags", "scalar_reward"]

FLAGS = (bool, np.bool_, int, np.integer, np.ndarray, type(None))
"""Types of `terminated` and `truncated`."""


def refuse_flags(terminated: Any, truncated: Any) -> None:
    """Refuse flags that are no bool, such as "False" or NaN, which Python takes for true."""
    for name, flag in (("terminated", terminated), ("truncated", truncated)):
        if flag is not True and flag is not False and not isinstance(flag, FLAGS):
            raise UsageError(
                f"{name} {flag!r}",
                f"it is a {type(flag).__name__}, and no flag",
                "Return True or False from the environment's step.",
            )


def scalar_reward(reward: Any) -> float:
    """Return a reward as a float, or refuse what is no number, or an array of several."""
    if reward is None or isinstance(reward, str | bytes):
        raise UsageError(
            f"reward {reward!r}", "it is no number", "Return a float from the environment's step."
        )
    if np.ndim(reward) != 0:
        raise ValueError(
            f"the reward must be a scalar, got {reward!r} of shape {np.shape(reward)}: "
            "return float(reward[0]) from the environment's step"
        )
    return float(reward)
