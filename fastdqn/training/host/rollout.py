"""The rollout on the host: steps environments and writes transitions into the replay ring."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import TypeGuard

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fastdqn.envs.sources.protocol import ContinuingSource, EnvSource
from fastdqn.envs.workers.open_episodes import Histories
from fastdqn.envs.workers.shared_block import SharedBlock
from fastdqn.envs.workers.supervision import fresh_seeds
from fastdqn.errors import FastDQNError
from fastdqn.foundation.state import PartState
from fastdqn.policies.policy import Policy
from fastdqn.replay import ReplayBuffer
from fastdqn.training.events import Episode
from fastdqn.training.host.group import EnvGroup
from fastdqn.training.host.guard import NO_ENVS, bad_rows, guard_of
from fastdqn.training.host.recorded_steps import RecordedInRing
from fastdqn.training.host.saved_guards import SavedGuards
from fastdqn.training.host.saved_rollout import SHOWN, SavedRollout
from fastdqn.training.nonfinite import Tally

__all__ = ["HostRollout"]

RESTORE_LIMIT_S = 60.0
RESUMED = 0
"""Branch of the seeds of episodes that begin anew in `restore`; restarts count from 1."""
NOT_KEPT = "the episodes of these environments are not kept"


class HostRollout:
    """Acts in N environments and writes their transitions into the replay ring.

    `send` and `collect` are the two halves of a vector step; between them the workers step and
    the caller may learn. With two groups of environments (double buffering) a vector step steps
    one group: while the caller acts for it and learns, the other group steps.

    Args:
        source: The environments; between `collect` and `send` a group's rows may be read here.
        policy: Chooses the actions.
        replay: Gets the transitions; also holds the current observations.
        ladder: [N] float32 on the device of the network, see `exploration.bend_`; None explores
            alike everywhere.
        on_nonfinite: What is done about a NaN or an infinity: `raise`, `skip` or `replace`.

    Attributes:
        num_envs: Environments, N.
        num_workers: Processes or threads that step them; 0 is none beside this one.
        env_steps: Real transitions so far.
        episodes: Finished episodes so far.
        restore_limit_s: Seconds that `restore` may take to play open episodes again.
        lost: Environments that began new episodes in `restore`, and why.
    """

    def __init__(
        self,
        source: EnvSource,
        policy: Policy,
        replay: ReplayBuffer,
        ladder: Tensor | None = None,
        on_nonfinite: str = "raise",
    ) -> None:
        self.source, self.policy, self.replay = source, policy, replay
        self.num_envs, self.num_workers = source.num_envs, source.num_workers
        self.env_steps = self.episodes = 0
        self._tally, groups = Tally(on_nonfinite), range(source.num_groups)
        guards = [guard_of(source, index, self._tally, lambda: self.env_steps) for index in groups]
        self._groups = [EnvGroup(source, guard, replay.device, ladder) for guard in guards]
        self._guards = SavedGuards(guards, self._tally)
        self._waiting: deque[EnvGroup] = deque()  # they act next
        self._stepping: deque[EnvGroup] = deque()  # they step now, the oldest first
        self._received = 0  # of those, how many have arrived, and are not written yet
        self._seeds: list[int] = []
        self.restore_limit_s = RESTORE_LIMIT_S
        self.lost: dict[int, str] = {}

    @property
    def num_restarts(self) -> int:
        """Workers that were restarted so far."""
        return self.source.num_restarts

    @property
    def restarts(self) -> Sequence[str]:
        """Why workers were restarted, the newest last."""
        return self.source.restarts

    @property
    def nonfinite(self) -> int:
        """Steps of environments so far with a number that is not finite."""
        return self._tally.count

    def nonfinite_words(self) -> str:
        """Return what the first of them was since the last call, or nothing."""
        return self._tally.take_words()

    @property
    def has_nothing(self) -> bool:
        """Whether the ring is empty since all of its transitions were skipped."""
        return self._tally.count > 0 and not len(self.replay)

    def reset(self, seeds: Sequence[int]) -> None:
        """Start new episodes everywhere; the running ones are cut.

        Raises:
            NonFiniteError: An environment showed a NaN or an infinity.
        """
        self._stepping.clear()
        self._received = 0
        self._seeds = list(seeds)
        self.source.reset(seeds)
        self.replay.cut()
        for group in self._groups:
            group.guard.begin()
        for group in self._groups:
            shown = group.arrived()
            self.replay.begin(shown.obs, shown.action_mask, group=group.index)
        first = self.replay.next_group
        self._waiting = deque(self._groups[first:] + self._groups[:first])

    def send(self, epsilon: float) -> None:
        """Choose actions for the waiting groups and start their steps.

        The copy of the actions to the host is the one wait of a vector step.
        """
        while self._waiting:
            group = self._waiting.popleft()
            self.source.send(self._choose_for(group, epsilon), group.index)
            self._stepping.append(group)

    def _choose_for(self, group: EnvGroup, epsilon: float) -> npt.NDArray[np.int64]:
        """Choose a group's actions and return them on the host."""
        if group.shown is None:
            shown, mask = self.replay.shown(group.index), self.replay.shown_mask(group.index)
            chosen = group.action = self.policy.act(shown, epsilon, mask, group.ladder).numpy()
            return chosen
        shown, mask = group.shown
        action, chosen = self.policy.act_on_host(shown, epsilon, mask, group.ladder)
        group.action = chosen if group.on_host else action
        return chosen

    def collect(self) -> None:
        """Wait for the step that was started first; its rows are valid afterwards."""
        if not self._received:
            self.source.recv(self._stepping[0].index)
            self._received = 1

    def write(self) -> list[Episode]:
        """Write the rows into the ring and return the episodes that ended.

        Raises:
            NonFiniteError: An environment returned a NaN or an infinity, which is not skipped or
                replaced; nothing is written.
        """
        group = self._stepping.popleft()
        self._received -= 1
        rows, within_step = group.rows, self.source.resets_within_step
        ended = group.ended()
        lost = group.guard.look(ended if within_step else NO_ENVS)
        real = None if group.all_real() else rows.real
        if lost is not None:
            ended, real = group.ended(), rows.real & ~lost
        step = group.arrived()
        self.replay.write(
            group.action,
            step.reward,
            step.terminated,
            step.truncated,
            step.obs,
            final_obs=step.final_obs if within_step else None,
            ended=ended,
            real=real,
            action_mask=step.action_mask,
            final_action_mask=step.final_action_mask,
        )
        self._waiting.append(group)
        self.env_steps += len(rows.real) if real is None else int(np.count_nonzero(real))
        return [self._episode(rows, index) for index in ended.tolist()]

    # Saving and going on

    def state(self) -> PartState:
        """Return counts, turns of the groups, what they show, and the open episodes; copies.

        Waits for the groups that step, whose rows are written later, as if nothing had been saved.
        After a failure of the source there are no open episodes.
        """
        order, source, seeds = [*self._stepping, *self._waiting], self.source, self._seeds
        try:
            while self._received < len(self._stepping):
                source.recv(self._stepping[self._received].index)
                self._received += 1
            histories = _histories_of(source)
            if isinstance(source, ContinuingSource) and histories is not None:
                seeds = [int(seed or 0) for seed in source.last_seeds]
        except FastDQNError:  # as of workers that are restarted no more
            histories = None
        actions = [torch.as_tensor(group.action).cpu().numpy() for group in self._groups]
        return (
            SavedRollout(
                self.env_steps,
                self.episodes,
                seeds,
                [group.index for group in order],
                0 if histories is None else self._received,
                {name: getattr(source.rows, name) for name in SHOWN},
                np.concatenate(actions),
                histories,
            )
            .state()
            .with_parts({"guards": self._guards.state()})
        )

    def restore(self, state: PartState) -> None:
        """Go on from a state, instead of a `reset`; the ring was restored before, or is empty.

        Open episodes are played again and compared with what is recorded. Environments that show
        anything else begin new episodes, which `lost` lists, and are cut in the ring.

        Raises:
            CheckpointError: Names a value that is missing or cannot be.
            NonFiniteError: A new episode begins with a NaN or an infinity; see `reset`.
        """
        saved, replay = SavedRollout.read(state, self.source), self.replay
        fresh_ring = replay.valid.mark[1] == 0
        if not fresh_ring and saved.order[0] != replay.next_group:
            raise state.refusal("order", f"{saved.order}, and group {replay.next_group} is next")
        self._guards.restore(state.part("guards"))
        self.env_steps, self.episodes = saved.env_steps, saved.episodes
        fresh = [int(seed or 0) for seed in fresh_seeds(saved.seeds, RESUMED)]
        continues = saved.histories is not None and _continues(self.source)
        self.lost = self._continue(saved, fresh)
        self._seeds = [
            fresh[env] if env in self.lost else seed for env, seed in enumerate(saved.seeds)
        ]
        lost = np.isin(np.arange(self.num_envs), list(self.lost))
        num_unread = saved.num_unread if continues and not fresh_ring else 0
        order = sorted(saved.order) if fresh_ring else saved.order
        self._stepping = deque(self._groups[index] for index in order[:num_unread])
        self._waiting = deque(self._groups[index] for index in order[num_unread:])
        self._received = num_unread
        self._show(saved, lost, fresh_ring=fresh_ring)

    def _continue(self, saved: SavedRollout, fresh: Sequence[int]) -> dict[int, str]:
        """Let open episodes go on; return the environments that begin new ones, and why."""
        source = self.source
        if saved.histories is None or not _continues(source):
            source.reset(fresh)
            return dict.fromkeys(range(self.num_envs), NOT_KEPT)
        stored = self._groups[0].guard.stored
        recorded = RecordedInRing(self.replay, saved.rows, saved.unread, stored)
        return source.continue_episodes(
            saved.histories, recorded, seeds=saved.seeds, fresh=fresh, limit_s=self.restore_limit_s
        )

    def _show(self, saved: SavedRollout, lost: npt.NDArray[np.bool_], *, fresh_ring: bool) -> None:
        """Give groups whose step is not written yet their rows, and the ring what others show."""
        rows, kept = self.source.rows, np.flatnonzero(~lost)
        for name in set(SHOWN) - {"real"}:
            getattr(rows, name)[kept] = saved.rows[name][kept]
        rows.resting[kept] = rows.restarting[kept]
        for group in self._groups:
            group.take(saved.action[group.envs])
        for group in self._stepping:
            own = np.zeros(self.num_envs, np.bool_)
            own[group.envs] = True
            assert _continues(self.source)
            self.source.leave_out(np.flatnonzero(own & (lost | ~saved.rows["real"])))
            lost = lost & ~own
        if lost.any() and not fresh_ring:
            self.replay.cut(lost)
        for group in self._waiting:
            group.guard.begin(lost[group.envs] | bad_rows(group.rows.obs))
            shown = group.arrived()
            self.replay.begin(shown.obs, shown.action_mask, group=group.index)

    def _episode(self, rows: SharedBlock, index: int) -> Episode:
        self.episodes += 1
        return Episode(
            self.episodes,
            self.env_steps,
            float(rows.episode_return[index]),
            int(rows.episode_length[index]),
            bool(rows.truncated[index] and not rows.terminated[index]),
        )


def _histories_of(source: EnvSource) -> Histories | None:
    return source.histories() if isinstance(source, ContinuingSource) else None


def _continues(source: EnvSource) -> TypeGuard[ContinuingSource]:
    """Return whether a source can go on with open episodes of another one."""
    return _histories_of(source) is not None
