"""The actions of open episodes, kept so that the episodes can be played again.

What an episode began from lies in the block, written by the process that hosts the environment.
The actions since are kept here, in the caller's process, which chose them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fastdqn.envs.workers.origins import KIND, STEP, TOO_LONG, Origins, known_in
from fastdqn.envs.workers.settings import PoolSettings
from fastdqn.envs.workers.shared_block import SharedBlock

__all__ = ["NOT_STEPPED", "EpisodeLog", "Histories"]

MOST_STEPS, FEWEST_STEPS, LOG_BYTES = 2**16, 2**10, 2**26
"""Vector steps that are kept: the first, fewer where they would take more bytes, down to the
second."""
NOT_STEPPED = -1
"""In place of an action, where a vector step left the environment out."""
NO_ACTIONS = NO_ENVS = np.zeros(0, np.int64)
SET = b"\1"


@dataclass(frozen=True)
class Histories:
    """The open episodes of N environments: what each began from, and the actions since.

    Attributes:
        origin: [N, 8] see `origins`; other kinds than SEEDED and GENERATOR have no actions. The
            vector step is 0, since every process counts from its own start.
        actions: N arrays [L] int64, counted from 0, one per vector step; NOT_STEPPED in some.
    """

    origin: Origins
    actions: list[npt.NDArray[np.int64]]


class EpisodeLog:
    """The actions of the last vector steps, and how many there were.

    Memory is allocated as it is filled.

    Args:
        settings: Of the pool; its `action_range` is set.
        rows: The block.

    Attributes:
        sent: Vector steps by group.
        longest: The last so many of them are kept.
    """

    def __init__(self, settings: PoolSettings, rows: SharedBlock) -> None:
        assert settings.action_range is not None
        self._first_action, high = settings.action_range
        dtype = _smallest(self._first_action, high)
        num_envs, num_groups = settings.spec.num_envs, settings.num_groups
        fitting = LOG_BYTES // (num_envs * dtype.itemsize)
        self.longest = max(min(MOST_STEPS, fitting), FEWEST_STEPS)
        self._log = np.zeros((self.longest, num_envs), dtype)
        self._mark = int(np.iinfo(dtype).min)
        self._rows, self._size = rows, num_envs // num_groups
        self.sent = [0] * num_groups
        self._unreal: list[npt.NDArray[np.int64]] = [NO_ENVS] * num_groups
        starts = range(0, num_envs, self._size)
        self._groups = [self._columns(start, start + self._size) for start in starts]

    def _columns(self, start: int, stop: int) -> tuple[Any, ...]:
        """Return the log, actions, counter and resting environments of a group."""
        rows: Any = self._rows.columns(start, stop)
        return self._log[:, start:stop], rows.action, rows.steps_sent, memoryview(rows.resting)

    def append(self, group: int) -> None:
        """Keep the actions that a group is about to take. Hot path; allocates nothing.

        The actions lie in the block, and the group does not step yet.
        """
        log, action, counter, resting = self._groups[group]
        sent = self.sent[group]
        place = sent % self.longest
        log[place] = action
        if SET in resting.tobytes():
            log[place][np.asarray(resting)] = self._mark
        self.sent[group] = sent + 1
        counter.fill(sent + 1)
        if self._unreal[group].size:
            self._rows.real[self._unreal[group]] = True
            self._unreal[group] = NO_ENVS

    def leave_out(self, start: int, stop: int, group: int) -> None:
        """Note that the last vector step of a group did not step these environments."""
        self._log[(self.sent[group] - 1) % self.longest, start:stop] = self._mark

    def mark_unreal(self, envs: npt.NDArray[np.int64]) -> None:
        """Mark the rows of environments as no transitions, until the next vector step."""
        self._rows.real[envs] = False
        for group in range(len(self.sent)):
            mine = envs[envs // self._size == group]
            self._unreal[group] = np.union1d(self._unreal[group], mine)

    def actions_of(self, env: int, since: int, until: int) -> npt.NDArray[np.int64] | None:
        """Return the actions of an environment in the vector steps of its group.

        Args:
            env: Which one.
            since: The first step, counted from 0.
            until: The first one that is left out.

        Returns:
            [L] int64 counted from the space's first one, NOT_STEPPED in some; None if they are not
            kept any more.
        """
        kept = self._between(env, since, until)
        if kept is None:
            return None
        return np.where(kept == self._mark, NOT_STEPPED, kept - self._first_action)

    def raw_actions_of(self, env: int, since: int, until: int) -> npt.NDArray[np.int64] | None:
        """Return the actions that an environment took, as it took them; see `actions_of`."""
        kept = self._between(env, since, until)
        return None if kept is None else kept[kept != self._mark]

    def _between(self, env: int, since: int, until: int) -> npt.NDArray[np.int64] | None:
        if until - since > self.longest:
            return None
        kept = self._log[np.arange(since, until) % self.longest, env]
        actions: npt.NDArray[np.int64] = kept.astype(np.int64)
        return actions

    def histories(self) -> Histories:
        """Return the open episodes of all environments, none of which steps now; copies."""
        origin = self._rows.origin.copy()
        actions = []
        for env, words in enumerate(origin):
            until = self.sent[env // self._size]
            known = known_in(origin, env) is not None
            taken = self.actions_of(env, int(words[STEP]), until) if known else NO_ACTIONS
            words[STEP] = 0
            if taken is None:
                words[KIND], taken = TOO_LONG, NO_ACTIONS
            actions.append(taken)
        return Histories(origin, actions)

    def place(self, histories: Histories) -> None:
        """Let the last vector steps of each environment be those of its history.

        For environments that were played again beside others with longer episodes, so that one
        step of an environment is one step of its group again.
        """
        longest = max(map(len, histories.actions), default=0)
        self.sent = [max(sent, longest) for sent in self.sent]
        for sent, (_, _, counter, _) in zip(self.sent, self._groups, strict=True):
            counter.fill(sent)
        for env, actions in enumerate(histories.actions):
            until = self.sent[env // self._size]
            kept = actions[-self.longest :]
            places = np.arange(until - len(kept), until) % self.longest
            marked = np.where(kept == NOT_STEPPED, self._mark, kept + self._first_action)
            self._log[places, env] = marked
            self._rows.origin[env, STEP] = until - len(actions)


def _smallest(low: int, high: int) -> np.dtype[Any]:
    """Return the smallest dtype that holds actions and a mark below them."""
    for dtype in (np.int8, np.int16, np.int32):
        if np.iinfo(dtype).min < low and high <= np.iinfo(dtype).max:
            return np.dtype(dtype)
    return np.dtype(np.int64)
