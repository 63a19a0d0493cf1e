"""Refuses vectors in mode SAME_STEP that reuse their arrays, which overwrites last observations.

In that mode a vector resets an ended environment within the step. If environment or vector write
every observation into one array, the last observation of an episode that they return is the first
one of the next: every bootstrap from a truncated episode would be wrong, unnoticed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, VectorEnv

from fastdqn.envs.grouped import GroupedVectorEnv
from fastdqn.envs.masks import MASK
from fastdqn.envs.workers.settings import EnvFactory
from fastdqn.errors import UsageError
from fastdqn.foundation.trial_env import trial_env

__all__ = ["ReuseWatch", "refuse_reused_arrays"]

SUSPICIOUS_ENDS = 10
"""Ends in a row that equal the next start; one may be chance."""
TRIED_STEPS = 10
WAY_OUT = (
    "Return a copy from its step, or build the vector with autoreset_mode=AutoresetMode.NEXT_STEP "
    "or DISABLED."
)


class ReuseWatch:
    """Compares the ends of episodes with the starts that follow, until each environment is cleared.

    One end that differs from the next start clears an environment. Equal ones are suspicious only
    if the starts vary and the end differs from the observation before it, so that chains which end
    where they start, and environments of one state, are not refused.

    Args:
        num_envs: Environments, N.
    """

    def __init__(self, num_envs: int) -> None:
        self._suspicious = dict.fromkeys(range(num_envs), 0)
        self._starts: dict[int, bytes] = {}

    @property
    def over(self) -> bool:
        """Whether every environment is cleared."""
        return not self._suspicious

    def look(
        self,
        env: int,
        acted_on: npt.NDArray[Any],
        last: npt.NDArray[Any],
        start: npt.NDArray[Any],
        *,
        one_memory: bool = False,
    ) -> None:
        """Compare at the end of an episode.

        Args:
            env: Whose episode ended.
            acted_on: [*O] the observation that its last action was chosen for.
            last: [*O] the returned last observation.
            start: [*O] the first observation of the next episode.
            one_memory: Whether both lie in the same memory, which is as suspicious as starts
                that vary.

        Raises:
            UsageError: Too many ends equalled the next start.
        """
        if env not in self._suspicious:
            return
        if not np.array_equal(last, start):
            del self._suspicious[env]
            return
        began = start.tobytes()
        varies = one_memory or self._starts.setdefault(env, began) != began
        self._starts[env] = began
        self._suspicious[env] += varies and not np.array_equal(last, acted_on)
        if sum(self._suspicious.values()) >= SUSPICIOUS_ENDS:
            raise _reuses(env, f"{SUSPICIOUS_ENDS} episodes ended with the first observation of")


def refuse_reused_arrays(envs: VectorEnv[Any, Any, Any], *, masks: bool) -> None:
    """Try an environment of an AsyncVectorEnv, which pickles a step's observation after the reset.

    Args:
        envs: Any vector; only Gymnasium's AsyncVectorEnv in mode SAME_STEP is tried.
        masks: Whether masks in infos are read.

    Raises:
        UsageError: A step and the reset after it return the same memory.
    """
    vector: Any = envs.unwrapped
    theirs = isinstance(vector, AsyncVectorEnv) and not isinstance(vector, GroupedVectorEnv)
    if not theirs or vector.autoreset_mode is not AutoresetMode.SAME_STEP:
        return
    what = None
    with contextlib.suppress(Exception):  # the vector's process will raise it again
        what = _overwritten(vector.env_fns[0], masks=masks)
    if what is not None:
        raise _reuses(0, f"its reset overwrites the {what} of its last step with that of")


def _reuses(env: int, what: str) -> UsageError:
    return UsageError(
        f"environment {env} of a vector in mode SAME_STEP that reuses its arrays",
        f"{what} the next episode",
        WAY_OUT,
    )


def _overwritten(factory: EnvFactory, *, masks: bool) -> str | None:
    """Return what a reset overwrites of the step before it, by a trial of a few steps."""
    with trial_env(factory) as env:
        env.reset(seed=0)
        for steps in range(1, TRIED_STEPS + 1):
            obs, info = _after(env, steps)
            shown = [("observation", part) for part in _arrays_in(obs)]
            shown += [("mask", part) for part in _arrays_in(info.get(MASK)) if masks]
            before = [part.copy() for _, part in shown]
            env.reset()
            for (what, part), kept in zip(shown, before, strict=True):
                if not np.array_equal(part, kept):
                    return what
    return None


def _after(env: Any, steps: int) -> tuple[Any, dict[str, Any]]:
    """Return observation and info after so many steps, or at the end of the episode."""
    for _ in range(steps):
        obs, _, terminated, truncated, info = env.step(env.action_space.start)
        if terminated or truncated:
            break
    return obs, info


def _arrays_in(obs: Any) -> Iterator[npt.NDArray[Any]]:
    if isinstance(obs, np.ndarray):
        yield obs
    elif isinstance(obs, dict):
        for part in obs.values():
            yield from _arrays_in(part)
