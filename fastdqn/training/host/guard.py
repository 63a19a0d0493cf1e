"""Guards against numbers of environments that are not finite: they raise, skip or replace them.

The sum of squares of all rewards and observations is the one look that every vector step pays for.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from fastdqn.envs.sources.new_episode import NewEpisode
from fastdqn.envs.sources.protocol import EnvSource
from fastdqn.training.nonfinite import Tally, limits_of

__all__ = ["NO_ENVS", "Guard", "bad_rows", "guard_of"]

_LARGEST = {
    name: np.dtype(name).type(min(np.finfo(name).max, np.finfo(np.float32).max))
    for name in ("float16", "float32", "float64")
}
"""Largest magnitude by dtype that is finite and stays so in float32."""
NO_ENVS = np.zeros(0, np.int64)

Flags = npt.NDArray[np.bool_]
"""[M] bool of a group."""
Returns = npt.NDArray[np.float64]


class Guard:
    """Looks at what the environments of a group returned, and raises what is not finite.

    Args:
        source: The environments.
        group: Which of them.
        tally: Counts, and decides what is an error.
        progress: Returns env steps, or what else grows with every step that counts.

    Attributes:
        group: See above.
        rows: The group's rows; subclasses mend them in place.
        first_env: Its first environment.
    """

    returns: Returns | None = None
    """[M] of the running episodes, with what was put in the place of other rewards; None where
    they are not counted here."""
    skips = False
    """Whether a row may be no transition on account of what was found."""
    going_on: Flags | None = None
    """[M] bool, whose episode was cut and goes on, since its environment cannot be reset alone;
    who counts whole episodes clears it where one has ended. None is nowhere."""

    def __init__(
        self, source: EnvSource, group: int, tally: Tally, progress: Callable[[], int]
    ) -> None:
        self.source, self.group, self.rows = source, group, source.rows_of(group)
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

    @property
    def spoiled(self) -> Flags:
        """[M] bool, whose next row is no transition; a copy."""
        nowhere = np.zeros(self._size, np.bool_)
        return nowhere if self._spoiled is None else self._spoiled.copy()

    def go_on_from(self, spoiled: Flags, returns: Returns) -> None:
        """Go on with `spoiled` and `returns` of another guard; copied."""
        self._spoiled = spoiled.copy() if spoiled.any() else None
        if self.returns is not None:
            self.returns[:] = returns

    def stored(self, name: str, values: npt.NDArray[Any]) -> npt.NDArray[Any]:  # noqa: ARG002
        """Return what the ring holds of numbers that environments returned.

        Args:
            name: The array of the block that they are of.
            values: [E, ...] of any environments.
        """
        return values

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

    def begin(self, begun: Flags | None = None) -> None:
        """Look at the first observations of new episodes.

        Args:
            begun: [M] whose they are, in the middle of the others' episodes; None is all.

        Raises:
            NonFiniteError: See `Tally`.
        """
        begun = np.ones(self._size, np.bool_) if begun is None else begun
        self._forget(begun)
        obs = bad_rows(self.rows.obs) & begun
        if obs.any():
            self._note(obs, "observation", self.rows.obs, obs)
            self._mend_start(obs)

    def _forget(self, begun: Flags) -> None:
        """Keep nothing of the former episodes of environments."""
        self._spoil(self.spoiled & ~begun)
        self.ended(begun)

    def ended(self, envs: Flags) -> None:
        """Note whose episode is over: what begins now is whole."""
        if self.going_on is not None:
            self.going_on = self.going_on & ~envs

    def _spoil(self, envs: Flags) -> None:
        self._spoiled = envs if envs.any() else None

    def _judge(self, over: npt.NDArray[np.int64]) -> Flags | None:
        rows, final = self.rows, np.zeros(self._size, np.bool_)
        reward, obs = bad_rows(rows.reward), bad_rows(rows.obs)
        final[over] = bad_rows(rows.final_obs[over])
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

    def stored(self, name: str, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return what the ring holds of numbers that environments returned; a copy."""
        values, where = values.copy(), bad_rows(values)
        if name == "reward":
            values[where] = 0.0
        elif where.any():
            values[where] = self._mended(values[where])
        return values

    def _mended(self, obs: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return finite observations [E, *O]; writes into its argument."""
        unfit = ~(np.abs(obs) <= _LARGEST[obs.dtype.name])
        obs[unfit] = np.where(np.isnan(obs), 0.0, np.clip(obs, *self._limits))[unfit]
        return obs

    def _mend_rows(self, reward: Flags, obs: Flags, final: Flags) -> None:
        self.rows.reward[reward] = 0.0
        for values, where in ((self.rows.obs, obs), (self.rows.final_obs, final)):
            if where.any():
                values[where] = self._mended(values[where])


class _SkippingGuard(_MendingGuard):
    """Leaves out a step with a number that is not finite, and lets its environment begin anew."""

    skips = True

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
        if when is NewEpisode.NEVER:
            self.going_on = anew if self.going_on is None else anew | self.going_on
        if when is NewEpisode.NOW:
            spoiled = bad_rows(self.rows.obs)
            if spoiled.any():
                self._tally.count += int(spoiled.sum())  # within a step that was noted already
                self._mend_rows(np.zeros_like(obs), spoiled, np.zeros_like(obs))
        self._spoil(self.spoiled | spoiled)


class _ReplacingGuard(_MendingGuard):
    """Puts finite numbers in the place of those that are not; returns of episodes count them."""

    returns: Returns

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.returns = np.zeros(self._size)

    def look(self, over: npt.NDArray[np.int64] = NO_ENVS) -> Flags | None:
        """Look at the last step; add up rewards, since who stepped them has added a NaN."""
        super().look(over)
        rows, returns = self.rows, self.returns
        np.add(returns, rows.reward, out=returns, where=rows.real)
        ended = rows.terminated | rows.truncated
        if ended.any():
            wrong = ended & bad_rows(rows.episode_return)
            rows.episode_return[wrong] = returns[wrong]
        returns[ended | ~rows.real] = 0.0
        return None

    def _forget(self, begun: Flags) -> None:
        self.returns[begun] = 0.0
        super()._forget(begun)

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


def bad_rows(values: npt.NDArray[Any]) -> Flags:
    """Return which rows hold a NaN, an infinity, or what float32 cannot hold; integers are fine."""
    if not _looks_bad(values):
        return np.zeros(len(values), np.bool_)
    fits: Flags = (np.abs(values).reshape(len(values), -1) <= _LARGEST[values.dtype.name]).all(1)
    return ~fits
