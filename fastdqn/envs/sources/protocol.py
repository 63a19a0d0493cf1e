"""Sources of experience: anything that steps environments, seen by the rollout as rows.

A source fills `rows` with true transitions, whatever the vector environment and its autoreset
mode.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from fastdqn.envs.description import EnvDescription
from fastdqn.envs.sources.continued import RecordedSteps
from fastdqn.envs.sources.new_episode import NewEpisode
from fastdqn.envs.workers.open_episodes import Histories
from fastdqn.envs.workers.shared_block import SharedBlock

__all__ = ["ContinuingSource", "EnvSource"]


class EnvSource(Protocol):
    """N environments, in one or more groups, that take actions and fill rows.

    `send` starts a step of a group and `recv` ends it; groups are received in the order in which
    they were sent. Between `recv` and the next `send` a group's rows belong to the caller; in
    between they belong to the source. Rows that are not `real` are no transitions.
    """

    rows: SharedBlock
    num_envs: int
    num_workers: int
    num_groups: int
    description: EnvDescription
    resets_within_step: bool
    """Whether the last observation of an ended episode lies in `rows.final_obs`, and the first of
    the next already in `rows.obs`; if not, the last one comes as an ordinary `rows.obs`."""

    @property
    def num_restarts(self) -> int:
        """Workers that were restarted so far."""

    @property
    def restarts(self) -> Sequence[str]:
        """Why workers were restarted, one text each, the newest last."""

    def rows_of(self, group: int) -> SharedBlock:
        """Return the rows of a group: columns of `rows`."""

    def reset(self, seeds: Sequence[int]) -> None:
        """Start new episodes everywhere; fills `rows.obs`. Steps under way are dropped."""

    def send(self, actions: npt.NDArray[np.int64], group: int = 0) -> None:
        """Start a step of a group with its actions [M] int64, counted from 0."""

    def recv(self, group: int = 0) -> None:
        """Wait for the step of a group and fill its rows."""

    def begin_anew(self, envs: npt.NDArray[np.int64]) -> NewEpisode:
        """Cut the episodes of some environments between `recv` and `send`; begin new ones."""

    def close(self) -> None:
        """End processes and free memory."""


@runtime_checkable
class ContinuingSource(EnvSource, Protocol):
    """A source whose open episodes can go on in another one, freshly built."""

    def histories(self) -> Histories | None:
        """Return the open episodes, copied; None where they are not kept. No group steps now."""

    @property
    def last_seeds(self) -> Sequence[int | None]:
        """Of the last reset with a seed of each environment; a restart gives other ones."""

    def continue_episodes(
        self,
        histories: Histories,
        recorded: RecordedSteps,
        *,
        seeds: Sequence[int],
        fresh: Sequence[int],
        limit_s: float,
    ) -> dict[int, str]:
        """Go on with the open episodes of another source, instead of a `reset`; fills `rows.obs`.

        Args:
            histories: Of the other source, of as many environments.
            recorded: What is compared on the way.
            seeds: [N] `last_seeds` of the other source.
            fresh: [N] of episodes that begin anew.
            limit_s: Seconds that playing the episodes again may take.

        Returns:
            The environments that began new episodes, and why.
        """

    def leave_out(self, envs: npt.NDArray[np.int64]) -> None:
        """Mark the rows of environments as no transitions until their next step."""
