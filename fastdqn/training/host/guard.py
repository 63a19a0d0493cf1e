"""Guards against numbers of environments that are not finite: they raise, skip or replace them.

The sum of squares of all rewards and observations is the one look that every vector step pays for.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from fastdqn.envs.sources.new_episode import NewEpisode
from fastdqn.envs.sources.source import EnvSource
from fastdqn.training.nonfinite import Tally, limits_of

__all__ = ["NO_ENVS", "Guard", "guard_of"]

_LARGEST = {
    name: np.dtype(name).type(min(np.finfo(name).max, np.finfo(np.float32).max))
    for name in ("float16", "float32", "float64")
}
"""Largest magnitude by dtype that is finite and stays so in float32."""
NO_ENVS = np.zeros(0, np.int64)

Flags = npt.NDArray[np.bool_]
"""[M] bool of a group."""


class Guard:
    """Looks at what the environments of a group returned, and raises what is not finite.

    Args:
        source: The environments.
        group: Which of them.
        tally: Counts, and decides what is an error.
        progress: Returns env steps, or what else grows with every step that counts.

    Attributes:
        rows: The group's rows; subclasses mend them in place.
        first_env: Its first environment.
    """

    def __init__(
        self, source: EnvSource, group: int, tally: Tally, progress: Callable[[], int]
    ) -> None:
        self.source, self.rows = source, source.rows_of(group)
        self._tally, self._progress = tally, progress
        self._size = len(self.rows.real)
        self.first_env = group * self._size
        watched = [v for v in (self.rows.reward, self.rows.obs) if v.dtype.kind == "f"]
        self._watched = [(v.reshape(-1), float(_LARGEST[v.dtype.name])) for v in watched]
        assert all(
            np.shares_memory(flat, values)
            for (flat, _), values in zip(self._watched, watched, strict=True)
        )
        self._spoiled: Flags | None = None  # whose next row is no transition

    def look(self, over: npt.NDArray[np.int64] = NO_ENVS) -> Flags | None:
        """Look at the last step. Hot path: nothing is found in nearly all cases.

        Args:
            over: Environments that ended and were reset within the step, from 0.

        Returns:
            [M] True where the row is no transition on account of what was found; None is nowhere.

        Raises:
            NonFiniteError: See `Tally`.
        """
        for flat, limit in self._watched:
            if not flat.dot(flat) <= limit:
                return self._judge(over)
        if self._spoiled is not None or (over.size and _looks_bad(self.rows.final_obs[over])):
            return self._judge(over)
        return None

    def begin(self) -> None:
        """Look at the first observations after a reset of all environments.

        Raises:
            NonFiniteError: See `Tally`.
        """
        self._spoiled = None
        obs = _bad(self.rows.obs)
        if obs.any():
            self._note(obs, "observation", self.rows.obs, obs)
            self._mend_start(obs)

    def _judge(self, over: npt.NDArray[np.int64]) -> Flags | None:
        rows, final = self.rows, np.zeros(self._size, np.bool_)
        reward, obs = _bad(rows.reward), _bad(rows.obs)
        final[over] = _bad(rows.final_obs[over])
        bad: Flags = reward | obs | final
        named = (
            ("reward", rows.reward, reward),
            ("observation", rows.obs, obs),
            ("observation", rows.final_obs, final),
        )
        for what, values, where in named:
            if where.any():
                self._note(where, what, values, bad)
                break
        return self._mend(reward, obs, final, over)

    def _note(self, where: Flags, what: str, values: npt.NDArray[Any], bad: Flags) -> None:
        index, steps = int(where.argmax()), self._progress()
        words = (
            f"environment {self.first_env + index}{self._tally.of} returned the {what} "
            f"{values[index]} after env step {steps}"
        )
        self._tally.note(int(bad.sum()), words, steps)

    def _mend(
        self, reward: Flags, obs: Flags, final: Flags, over: npt.NDArray[np.int64]
    ) -> Flags | None:
        """Mend the rows; return which are no transitions. With `raise` nothing was found."""

    def _mend_start(self, obs: Flags) -> None:
        """Mend first observations."""


class _MendingGuard(Guard):
    """A guard that lets no number through that is not finite."""

    def __init__(self, source: EnvSource, *rest: Any) -> None:
        super().__init__(source, *rest)
        self._limits = limits_of(source.description.obs_space)

    def _mend_rows(self, reward: Flags, obs: Flags, final: Flags) -> None:
        self.rows.reward[reward] = 0.0
        for values, where in ((self.rows.obs, obs), (self.rows.final_obs, final)):
            if where.any():
                some = values[where]
                unfit = ~(np.abs(some) <= _LARGEST[some.dtype.name])
                mended = np.where(np.isnan(some), 0.0, np.clip(some, *self._limits))
                some[unfit] = mended[unfit]
                values[where] = some


class _SkippingGuard(_MendingGuard):
    """Leaves out a step with a number that is not finite, and lets its environment begin anew."""

    def _mend(
        self, reward: Flags, obs: Flags, final: Flags, over: npt.NDArray[np.int64]
    ) -> Flags | None:
        ended = np.zeros(self._size, np.bool_)
        ended[over] = True  # their `obs` is the first one of the next episode
        own = reward | final | (obs & ~ended)
        lost = own if self._spoiled is None else own | self._spoiled
        self._spoiled = None
        self._mend_rows(reward, obs, final)
        self.rows.terminated[lost] = self.rows.truncated[lost] = False
        anew = obs | (own & ~ended)
        if anew.any():
            self._begin_anew(anew, obs)
        return lost if lost.any() else None

    def _mend_start(self, obs: Flags) -> None:
        self._mend_rows(np.zeros_like(obs), obs, np.zeros_like(obs))
        self._begin_anew(obs, obs)

    def _begin_anew(self, anew: Flags, obs: Flags) -> None:
        """Let environments begin anew; `obs` says whose observation is not their own."""
        when = self.source.begin_anew(np.flatnonzero(anew) + self.first_env)
        spoiled = anew if when is NewEpisode.NEXT else anew & obs
        if when is NewEpisode.NOW:
            spoiled = _bad(self.rows.obs)
            if spoiled.any():
                self._note(spoiled, "observation", self.rows.obs, spoiled)
                self._mend_rows(np.zeros_like(obs), spoiled, np.zeros_like(obs))
        self._spoiled = spoiled if spoiled.any() else None


class _ReplacingGuard(_MendingGuard):
    """Puts finite numbers in the place of those that are not; returns of episodes count them."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._returns = np.zeros(self._size)

    def look(self, over: npt.NDArray[np.int64] = NO_ENVS) -> Flags | None:
        """Look at the last step; add up rewards, since who stepped them has added a NaN."""
        super().look(over)
        rows, returns = self.rows, self._returns
        np.add(returns, rows.reward, out=returns, where=rows.real)
        ended = rows.terminated | rows.truncated
        if ended.any():
            wrong = ended & ~np.isfinite(rows.episode_return)
            rows.episode_return[wrong] = returns[wrong]
        returns[ended | ~rows.real] = 0.0
        return None

    def begin(self) -> None:
        """Look at first observations; count returns anew."""
        self._returns[:] = 0.0
        super().begin()

    def _mend(
        self,
        reward: Flags,
        obs: Flags,
        final: Flags,
        over: npt.NDArray[np.int64],  # noqa: ARG002
    ) -> Flags | None:
        self._mend_rows(reward, obs, final)
        return None

    def _mend_start(self, obs: Flags) -> None:
        self._mend_rows(np.zeros_like(obs), obs, np.zeros_like(obs))


KINDS: dict[str, type[Guard]] = {"raise": Guard, "skip": _SkippingGuard, "replace": _ReplacingGuard}


def guard_of(source: EnvSource, group: int, tally: Tally, progress: Callable[[], int]) -> Guard:
    """Return the guard that does what a tally says; arguments as of `Guard`."""
    return KINDS[tally.on_nonfinite](source, group, tally, progress)


def _looks_bad(values: npt.NDArray[Any]) -> bool:
    """Return whether a number may be bad: one pass over the sum of squares, mostly False."""
    flat = values.reshape(-1)
    return values.dtype.kind == "f" and not np.dot(flat, flat) <= _LARGEST[values.dtype.name]


def _bad(values: npt.NDArray[Any]) -> Flags:
    """Return which rows hold a NaN, an infinity, or what float32 cannot hold; integers are fine."""
    if not _looks_bad(values):
        return np.zeros(len(values), np.bool_)
    fits: Flags = (np.abs(values).reshape(len(values), -1) <= _LARGEST[values.dtype.name]).all(1)
    return ~fits
