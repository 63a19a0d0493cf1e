"""What supervised environments showed before they stepped, for episodes that outlive a worker.

A worker that dies within a step leaves rows in the block of which some are old and some new. Where
open episodes shall go on, the rows from before the step are kept.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fastdqn.envs.workers.failures import EnvFailures
from fastdqn.envs.workers.open_episodes import EpisodeLog
from fastdqn.envs.workers.origins import KIND, STEP, UNKNOWN
from fastdqn.envs.workers.revived_envs import Past
from fastdqn.envs.workers.settings import PoolSettings
from fastdqn.envs.workers.shared_block import SharedBlock
from fastdqn.envs.workers.supervision import SupervisedWorker
from fastdqn.errors import WorkerError

__all__ = ["NoKeptRows", "kept_rows"]


class NoKeptRows:
    """Keeps nothing: the episodes of a restarted worker begin anew.

    Args:
        episodes: The actions of the open episodes, or None.
    """

    def __init__(self, episodes: EpisodeLog | None) -> None:
        self._episodes = episodes

    def keep(self, group: int) -> None:
        """Copy what a group shows before it steps. Hot path."""

    def release(self, group: int) -> None:
        """Note that the step of a group was collected: what it shows now is valid. Hot path."""

    def forget(self, group: int) -> None:
        """Note that a group gets another call than a step, which may end its episodes."""

    def leave_out(self, start: int, stop: int, group: int) -> None:
        """Note that the last step of a group did not step these environments."""
        if self._episodes is not None:
            self._episodes.leave_out(start, stop, group)

    def pasts_of(
        self,
        member: SupervisedWorker,
        error: WorkerError | EnvFailures,  # noqa: ARG002
        seeds: Sequence[int | None],  # noqa: ARG002
    ) -> list[Past | None]:
        """Return the open episodes of a worker that has ended, by group.

        Args:
            member: The worker, after its end.
            error: Why it ended; environments that raised have no past.
            seeds: Of the last resets, of all environments.
        """
        return [None for _ in member.process.spans]

    def revived(self, member: SupervisedWorker, seeds: list[int | None]) -> None:
        """Note that a worker may live again: write the seeds that its environments have now.

        Args:
            member: The worker.
            seeds: Of the last resets, of all environments, those of new episodes for its own.
        """


class KeptRows(NoKeptRows):
    """Keeps observations, masks and origins from before the last step of each group.

    An episode that the caller has cut is none that goes on.

    Args:
        rows: The block.
        settings: Of the pool.
        episodes: The actions of the open episodes.
        limit_s: Seconds that playing them again may take.
    """

    def __init__(
        self, rows: SharedBlock, settings: PoolSettings, episodes: EpisodeLog, limit_s: float
    ) -> None:
        super().__init__(episodes)
        self._log, self._rows, self._limit_s = episodes, rows, limit_s
        size = settings.spec.num_envs // settings.num_groups
        self._kept = SharedBlock.allocate(settings.spec)
        groups = [(g * size, (g + 1) * size) for g in range(settings.num_groups)]
        self._pairs = [(self._kept.columns(*span), rows.columns(*span)) for span in groups]
        self._stepping = [False] * settings.num_groups
        self._valid = [False] * settings.num_groups

    def keep(self, group: int) -> None:
        """Copy what a group shows before it steps. Hot path; allocates nothing."""
        kept, now = self._pairs[group]
        np.copyto(kept.obs, now.obs)
        np.copyto(kept.action_mask, now.action_mask)
        np.copyto(kept.origin, now.origin)
        np.copyto(kept.restarting, now.restarting)
        self._stepping[group] = self._valid[group] = True

    def release(self, group: int) -> None:
        """Note that the step of a group was collected: what it shows now is valid. Hot path."""
        self._stepping[group] = False

    def forget(self, group: int) -> None:
        """Keep no episode of a group until its next step."""
        self._valid[group] = False

    def pasts_of(
        self,
        member: SupervisedWorker,
        error: WorkerError | EnvFailures,
        seeds: Sequence[int | None],
    ) -> list[Past | None]:
        """Return the open episodes of a worker that has ended, by group; None after a second end.

        One that ended again without a step between may have been ended by an episode itself.
        """
        if member.in_a_row > 1:
            return super().pasts_of(member, error, seeds)
        raised = {each.env for each in error.failures} if isinstance(error, EnvFailures) else set()
        return [
            self._past_of(start, stop, group, raised, seeds)
            for group, (start, stop) in enumerate(member.process.spans)
        ]

    def revived(self, member: SupervisedWorker, seeds: list[int | None]) -> None:
        """Write the former seeds of environments whose episodes go on: they began with them."""
        if not member.live:
            return
        for (start, stop), past in zip(member.process.spans, member.pasts, strict=True):
            if past is not None:
                goes_on = (self._rows.origin[start:stop] == past.origin).all(1)
                for i in np.flatnonzero(goes_on).tolist():
                    seeds[start + i] = past.seeds[i]

    def _past_of(
        self, start: int, stop: int, group: int, raised: set[int], seeds: Sequence[int | None]
    ) -> Past | None:
        if not self._valid[group]:
            return None
        stepping = self._stepping[group]
        rows = (self._kept if stepping else self._rows).columns(start, stop)
        until = self._log.sent[group] - stepping
        origin, actions = rows.origin.copy(), []
        for i, env in enumerate(range(start, stop)):
            taken = self._log.raw_actions_of(env, int(origin[i, STEP]), until)
            if env in raised or taken is None or rows.restarting[i]:
                origin[i, KIND] = UNKNOWN
            actions.append(np.zeros(0, np.int64) if taken is None else taken)
        known = list(seeds[start:stop])
        return Past(origin, actions, rows.obs.copy(), rows.action_mask.copy(), known, self._limit_s)


def kept_rows(
    rows: SharedBlock, settings: PoolSettings, episodes: EpisodeLog | None, limit_s: float
) -> NoKeptRows:
    """Return what keeps rows for so many seconds of playing again; 0 keeps none."""
    if episodes is None or not limit_s:
        return NoKeptRows(episodes)
    return KeptRows(rows, settings, episodes, limit_s)
