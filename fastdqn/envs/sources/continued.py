"""Open episodes that go on in other environments: played again, and compared on the way.

Every environment begins its episode anew from what it had begun from and takes the same actions,
all of them side by side, in their workers. What each shows is compared with what was recorded; an
environment that shows anything else begins a new episode.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt

from fastdqn.envs.workers.open_episodes import NOT_STEPPED, Histories
from fastdqn.envs.workers.origins import KIND, STEP, TOO_LONG, known_in
from fastdqn.envs.workers.shared_block import SharedBlock

if TYPE_CHECKING:
    from fastdqn.envs.sources.source import GroupedSource

__all__ = ["Continuation", "RecordedSteps"]

UNKNOWN_ORIGIN = "what its episode began from is not known"
RESTARTED = "its worker was restarted meanwhile"


class RecordedSteps(Protocol):
    """What environments showed in the steps of their open episodes, as far as it is known."""

    def differs(
        self,
        rows: SharedBlock,
        envs: npt.NDArray[np.int64],
        back: npt.NDArray[np.int64],
        *,
        stepped: bool,
    ) -> npt.NDArray[np.bool_]:
        """Return [E] bool, which environments show now what they did not show then.

        Args:
            rows: What all environments show now; [N].
            envs: [E] those that are compared.
            back: [E] how many vector steps of its group ago; 0 is the last one, which is always
                known.
            stepped: Whether the step itself is compared, too: its reward and flags.
        """
        ...


class Continuation:
    """Plays the open episodes of N environments again.

    Args:
        source: Freshly built environments, none of which steps.
        histories: What each episode began from, and its actions.
        recorded: What is compared.
        limit_s: Seconds that playing may take.

    Attributes:
        lost: Environments whose episode does not go on, and why.
    """

    def __init__(
        self,
        source: GroupedSource,
        histories: Histories,
        recorded: RecordedSteps,
        limit_s: float,
    ) -> None:
        self._source, self._rows = source, source.rows
        self._histories, self._recorded, self._limit_s = histories, recorded, limit_s
        self._lengths = np.array([len(actions) for actions in histories.actions], np.int64)
        self._lost = np.zeros(source.num_envs, np.bool_)
        self._size = source.num_envs // source.num_groups
        self.lost: dict[int, str] = {}

    def run(self, seeds: Sequence[int], fresh: Sequence[int]) -> None:
        """Play everything again; environments that are lost begin new episodes.

        Args:
            seeds: Of the last resets with a seed.
            fresh: Of new episodes.
        """
        until = time.monotonic() + self._limit_s
        self._begin(seeds, fresh)
        longest = int(self._lengths[~self._lost].max(initial=0))
        for step in range(longest):
            if time.monotonic() > until:
                self._lose(self._lengths > step, self._too_slow)
                break
            self._play(step)
        self._lose(self._begun_anew(), lambda _: RESTARTED)
        self._renew(fresh)
        self._rows.clear()

    def _begin(self, seeds: Sequence[int], fresh: Sequence[int]) -> None:
        origin = self._histories.origin
        unknown = np.array([known_in(origin, env) is None for env in range(len(origin))])
        self._lose(unknown, self._why_unknown)
        chosen = np.where(unknown, fresh, seeds).tolist()
        self._source.envs.reset_from(origin, chosen)
        self._compare(np.flatnonzero(~unknown), self._lengths, stepped=False)

    def _play(self, step: int) -> None:
        """Let the environments take their action number `step`, those that have one."""
        actions = np.full(self._source.num_envs, NOT_STEPPED)
        for env in np.flatnonzero(~self._lost & (self._lengths > step)):
            actions[env] = self._histories.actions[env][step]
        going = actions != NOT_STEPPED
        self._rows.resting[:] = ~going
        by_group, chosen = going.reshape(-1, self._size), np.maximum(actions, 0)
        groups = np.flatnonzero(by_group.any(1)).tolist()
        for group in groups:
            self._source.send(chosen[group * self._size : (group + 1) * self._size], group)
        for group in groups:
            self._source.recv(group)
        self._lose(going & ~self._rows.real, lambda _: RESTARTED)
        left = np.flatnonzero(going & ~self._lost)
        self._compare(left, self._lengths - step - 1, stepped=True)

    def _compare(
        self, envs: npt.NDArray[np.int64], back: npt.NDArray[np.int64], *, stepped: bool
    ) -> None:
        """Lose those of the environments that show something else."""
        if envs.size:
            differs = self._recorded.differs(self._rows, envs, back[envs], stepped=stepped)
            lost = np.zeros_like(self._lost)
            lost[envs[differs]] = True
            self._lose(lost, lambda env: self._why_unlike(env, int(back[env])))

    def _lose(self, envs: npt.NDArray[np.bool_], why: Callable[[int], str]) -> None:
        for env in np.flatnonzero(envs & ~self._lost).tolist():
            self.lost[env] = why(env)
        self._lost |= envs

    def _why_unknown(self, env: int) -> str:
        if self._histories.origin[env, KIND] == TOO_LONG:
            return "its episode is longer than the steps that are kept"
        return UNKNOWN_ORIGIN

    def _why_unlike(self, env: int, back: int) -> str:
        length = int(self._lengths[env])
        return f"played again, it shows something else after {length - back} of {length} steps"

    def _too_slow(self, env: int) -> str:
        return f"playing {self._lengths[env]} steps again takes longer than {self._limit_s:g} s"

    def _begun_anew(self) -> npt.NDArray[np.bool_]:
        """Return which environments began another episode since, as those of a new worker."""
        now, then = self._rows.origin.copy(), self._histories.origin
        now[:, STEP] = then[:, STEP]
        other: npt.NDArray[np.bool_] = (now != then).any(1)
        return other

    def _renew(self, fresh: Sequence[int]) -> None:
        """Begin new episodes where they are lost, and keep the histories of the others.

        A worker that ends meanwhile begins new ones in all of its environments.
        """
        began = {env for env in self.lost if known_in(self._histories.origin, env) is not None}
        if began:
            mask = np.isin(np.arange(self._source.num_envs), sorted(began))
            seeds = [seed if env in began else None for env, seed in enumerate(fresh)]
            self._source.envs.reset_async(seed=seeds, options={"reset_mask": mask})
            self._source.envs.reset_wait()
            self._lose(self._begun_anew(), lambda _: RESTARTED)
        nothing = np.zeros(0, np.int64)
        actions = [
            nothing if env in self.lost else taken
            for env, taken in enumerate(self._histories.actions)
        ]
        log = self._source.envs.episode_log
        assert log is not None
        log.place(Histories(self._histories.origin, actions))
