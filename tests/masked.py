"""Counters whose masks follow from what they show.

Light on purpose, as `tests.oracles`: workers import this module.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium.spaces import Box, Dict

from tests.oracles import CounterEnv, CounterRules, Info, Step, Stored, assert_counted

NUM_ACTIONS = 4
DISTINCT_SEEDS = 16


class ForbiddenError(Exception):
    """A forbidden action was done."""


def allowed(env_id: int, episode: int, t: int, *, seldom: bool = False) -> list[bool]:
    """Return what may be done where a counter shows this: something, and not everything.

    With `seldom`, every third place says nothing, and everything may be done there.
    """
    if seldom and (env_id + episode + t) % 3 == 1:
        return [True] * NUM_ACTIONS
    code = 1 + (5 * env_id + 3 * episode + 7 * t) % 14  # 0 would be nothing, 15 everything
    return [bool(code >> action & 1) for action in range(NUM_ACTIONS)]


class MaskedCounterEnv(CounterEnv):
    """Says in its info what may be done, and raises on the rest.

    Args:
        env_id: Which counter; -1 takes the seed of the reset, of which few are distinguished.
        episode_length: As in `CounterRules`.
        ends_by: As in `CounterRules`.
        seldom: Whether the info says nothing at every third place.
        strict: Whether a forbidden action raises.
        reuses: Whether it writes its masks into one array for ever.
    """

    def __init__(
        self,
        env_id: int = 0,
        episode_length: int | tuple[int, ...] = 3,
        ends_by: str = "truncated",
        *,
        seldom: bool = False,
        strict: bool = True,
        reuses: bool = True,
    ) -> None:
        super().__init__(env_id, episode_length, ends_by, NUM_ACTIONS)
        self.by_seed, self.seldom, self.strict = env_id < 0, seldom, strict
        self.reuses = reuses
        self.mask = np.zeros(NUM_ACTIONS, np.int8)

    def allowed(self) -> list[bool]:
        return allowed(self.env_id, self.episode, self.t, seldom=self.seldom)

    def message(self) -> Info:
        self.mask = self.mask if self.reuses else self.mask.copy()
        self.mask[:] = self.allowed()
        return {} if self.mask.all() else {"action_mask": self.mask}

    def reset(self, *, seed: int | None = None, options: Info | None = None) -> tuple[Any, Info]:
        if self.by_seed and seed is not None:
            self.env_id = seed % DISTINCT_SEEDS
        obs, _ = super().reset(seed=seed, options=options)
        return obs, self.message()

    def step(self, action: int) -> Step:
        if self.strict and not self.allowed()[int(action) - self.first_action]:
            raise ForbiddenError(f"{action} at {self._obs()}")
        return *super().step(action)[:4], self.message()


class OffsetMaskedCounterEnv(MaskedCounterEnv):
    """Counts its actions from 5."""

    first_action = 5


class ListMaskedCounterEnv(MaskedCounterEnv):
    """Gives its mask as a list of Python numbers."""

    def message(self) -> Info:
        return {key: mask.tolist() for key, mask in super().message().items()}


class LateMaskedCounterEnv(MaskedCounterEnv):
    """Says nothing in the info of a reset."""

    def allowed(self) -> list[bool]:
        return super().allowed() if self.t else [True] * NUM_ACTIONS


class MuchLaterMaskedCounterEnv(MaskedCounterEnv):
    """Says nothing in the first steps of an episode, or in the first episodes.

    Args:
        from_t: Steps of an episode before its first mask.
        from_episode: Episodes before the first mask.
    """

    def __init__(self, *args: Any, from_t: int = 2, from_episode: int = 0, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.from_t, self.from_episode = from_t, from_episode

    def allowed(self) -> list[bool]:
        late = self.t < self.from_t or self.episode < self.from_episode
        return [True] * NUM_ACTIONS if late else super().allowed()


class DictMaskedCounterEnv(MaskedCounterEnv):
    """Has its mask in a Dict observation."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        mask = Box(0, 1, (NUM_ACTIONS,), np.int8)
        self.observation_space: Any = Dict(
            {"observation": self.observation_space, "action_mask": mask}
        )

    def reset(self, *, seed: int | None = None, options: Info | None = None) -> tuple[Any, Info]:
        obs, _ = super().reset(seed=seed, options=options)
        return {"observation": obs, "action_mask": self.mask}, {}

    def step(self, action: int) -> Step:
        obs, *rest, _ = super().step(action)
        return {"observation": obs, "action_mask": self.mask}, *rest, {}


class WrongMaskEnv(MaskedCounterEnv):
    """Gives a mask of three actions where it has four, in its n-th step.

    Args:
        at: The step, from 1; 0 is the first reset.
    """

    def __init__(self, *args: Any, at: int = 2, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.at = at

    def message(self) -> Info:
        wrong = self.wakes == self.at
        return {"action_mask": np.ones(3, np.int8)} if wrong else super().message()


class CrashingMaskedEnv(MaskedCounterEnv):
    """Raises in its n-th step, counted from 1."""

    at = 7

    def step(self, action: int) -> Step:
        if self.wakes + 1 == self.at:
            raise RuntimeError("out of luck")
        return super().step(action)


def assert_masked(stored: Stored, rules: CounterRules, *, seldom: bool = False) -> None:
    """Check transitions of masked counters, and their actions and masks, by what they show."""
    assert_counted(stored, rules)
    assert stored.next_action_mask is not None
    shown = stored.obs.astype(int).tolist()
    following = stored.next_obs.astype(int).tolist()
    for obs, action, after, mask in zip(
        shown, stored.action.tolist(), following, stored.next_action_mask.tolist(), strict=True
    ):
        assert allowed(*obs, seldom=seldom)[action], f"{action} at {obs}"
        assert mask == allowed(*after, seldom=seldom), f"mask at {after}"
