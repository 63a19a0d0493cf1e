"""The episodes of a greedy evaluation, dealt out to environments and counted."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from fastdqn.envs.sources.source import EnvSource

__all__ = ["Games"]


class Games:
    """Deals E episodes of at most `max_steps` env steps out to N environments, and counts them.

    Attributes:
        returns: [E] float64, NaN for unfinished episodes.
        lengths: [E] int64.
        missing: Unfinished episodes.
        num_playing: Environments that play a counted episode.
        num_cut: Episodes that were cut.
        num_resets: How often all environments were reset.
    """

    def __init__(self, source: EnvSource, episodes: int, max_steps: int) -> None:
        self.source, self.rows, self.max_steps = source, source.rows, max_steps
        self.returns = np.full(episodes, np.nan)
        self.lengths = np.zeros(episodes, np.int64)
        self.missing = episodes
        self.num_playing = self.num_cut = self.num_resets = self._begun = 0
        self._playing = np.full(source.num_envs, -1)  # number of the episode; -1 is none
        self._so_far = np.zeros(source.num_envs)
        self._steps = np.zeros(source.num_envs, np.int64)
        self._since_reset = 0  # vector steps; no episode is longer

    @property
    def num_steps(self) -> int:
        """Env steps of the episodes that count, so far."""
        return int(self.lengths.sum() + self._steps.sum())

    def begin(self, seeds: Sequence[int]) -> None:
        """Reset all environments and begin an episode in each, as long as some are left."""
        num_envs, left = self.source.num_envs, self.missing  # all that had begun have finished
        self.source.reset(seeds)
        self.num_resets += 1
        first = _spread(left, num_envs)
        self._playing[:] = np.where(first < left, first + self._begun, -1)
        self.num_playing = min(left, num_envs)
        self._begun += self.num_playing
        self._so_far[:], self._steps[:], self._since_reset = 0.0, 0, 0
        self.rows.resting[:] = self._playing < 0

    def count(self, lost: npt.NDArray[np.bool_] | None = None) -> None:
        """Count the last step; end the episodes that ended or are too long.

        Args:
            lost: [N] bool, whose episode begins anew since a number was not finite; None is none.
        """
        rows = self.rows
        real = rows.real if lost is None else rows.real & ~lost
        self._since_reset += 1
        counted = real & (self._playing >= 0)
        np.add(self._so_far, rows.reward, out=self._so_far, where=counted)
        self._steps += counted
        if not real.all():  # a reset, or an episode lost with its worker
            self._so_far[~real], self._steps[~real] = 0.0, 0
        ended = (rows.terminated | rows.truncated) & real
        for env in np.flatnonzero(ended).tolist():
            self._end(env, rows.episode_return[env], rows.episode_length[env])
            self._begin_next(env)
        late = self._since_reset >= self.max_steps
        if late:
            self._cut()
        if late or ended.any():
            self.settle()

    def settle(self) -> None:
        """Let environments rest that play nothing, whatever else was asked of them."""
        rows, idle = self.rows, self._playing < 0
        rows.restarting[idle] = False
        np.logical_or(idle, rows.restarting, out=rows.resting)

    def _cut(self) -> None:
        """End the episodes that are too long; their environments play nothing more."""
        for env in np.flatnonzero(self._steps >= self.max_steps).tolist():
            self.num_cut += 1
            self._end(env, self._so_far[env], self._steps[env])

    def _end(self, env: int, return_: float, length: int) -> None:
        episode = self._playing[env]
        if episode >= 0:
            self.returns[episode], self.lengths[episode] = return_, length
            self.missing -= 1
            self.num_playing -= 1
        self._playing[env] = -1
        self._so_far[env], self._steps[env] = 0.0, 0

    def _begin_next(self, env: int) -> None:
        """Begin an episode in an environment that has just been reset, if one is left."""
        if self._begun < len(self.returns):
            self._playing[env] = self._begun
            self._begun += 1
            self.num_playing += 1


def _spread(episodes: int, num_envs: int) -> npt.NDArray[np.int64]:
    """Return the episode that each environment plays first [N], E where it plays none.

    Few are dealt out evenly: neighbours share a core.
    """
    first = min(episodes, num_envs)
    playing = np.full(num_envs, episodes)
    playing[np.arange(first) * num_envs // first] = np.arange(first)
    return playing
