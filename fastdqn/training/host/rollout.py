"""The rollout on the host: steps environments and writes transitions into the replay ring."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fastdqn.envs.sources.source import EnvSource
from fastdqn.envs.workers.shared_block import SharedBlock
from fastdqn.policies.policy import Policy
from fastdqn.replay import ReplayBuffer
from fastdqn.training.events import Episode
from fastdqn.training.host.guard import NO_ENVS, Guard, guard_of
from fastdqn.training.nonfinite import Tally
from fastdqn.training.transfer import PackedTransfer, Rows, arrays_over, tensors_over
from fastdqn.transition import storage_dtype

__all__ = ["HostRollout"]

FALSE, TRUE = b"\0", b"\1"

Shown = tuple[Tensor, Tensor | None]
"""Observations [M, *O] and masks [M, A] of a group; None where there are no masks."""


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
        self._groups = [_Group(source, index, replay.device, ladder) for index in groups]
        for group in self._groups:
            group.guard = guard_of(source, group.index, self._tally, lambda: self.env_steps)
        self._waiting: deque[_Group] = deque()  # they act next
        self._stepping: deque[_Group] = deque()  # they step now, the oldest first

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

    def _choose_for(self, group: _Group, epsilon: float) -> npt.NDArray[np.int64]:
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
        self.source.recv(self._stepping[0].index)

    def write(self) -> list[Episode]:
        """Write the rows into the ring and return the episodes that ended.

        Raises:
            NonFiniteError: An environment returned a NaN or an infinity, which is not skipped or
                replaced; nothing is written.
        """
        group = self._stepping.popleft()
        rows, within_step = group.rows, self.source.resets_within_step
        ended = group.ended()
        lost = group.guard.look(ended if within_step else NO_ENVS)
        real = rows.real if _holds(group.real, FALSE) else None
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

    def _episode(self, rows: SharedBlock, index: int) -> Episode:
        self.episodes += 1
        return Episode(
            self.episodes,
            self.env_steps,
            float(rows.episode_return[index]),
            int(rows.episode_length[index]),
            bool(rows.truncated[index] and not rows.terminated[index]),
        )


class _Group:
    """A group of environments with its rows and buffers.

    Attributes:
        index: Which group.
        first_env: Its first environment.
        rows: Its rows.
        on_host: Whether the replay reads the host's memory.
        guard: Looks at its numbers after each step.
        real: The bytes of its column `real`.
        arrived: Returns the rows of its last step, for the replay.
        shown: Observations and masks at a fixed address on the network's device; None on the host
            if only the replay has them in the dtype that the network takes.
        action: [M] int64, its last actions, for the replay.
        ladder: [M] of its environments, or None.
    """

    guard: Guard

    def __init__(
        self, source: EnvSource, index: int, device: torch.device, ladder: Tensor | None
    ) -> None:
        self.index = index
        self.rows = source.rows_of(index)
        size = len(self.rows.real)
        self.first_env = index * size
        self.ladder = None if ladder is None else ladder[self.first_env : self.first_env + size]
        columns: Any = self.rows  # arrays are buffers, which NumPy's types do not say
        self._terminated = memoryview(columns.terminated)
        self._truncated = memoryview(columns.truncated)
        self.real = memoryview(columns.real)
        self.on_host = device.type == "cpu"
        self.action: Any = np.zeros(size, np.int64)
        arrays = arrays_over(self.rows)
        self.arrived: Callable[[], Rows[Any]] = lambda: arrays
        self.shown: Shown | None = None
        if not self.on_host:
            transfer = PackedTransfer(self.rows, device)
            self.shown, self.arrived = transfer.rows.shown, transfer.load
        elif storage_dtype(self.rows.obs.dtype) is torch.from_numpy(self.rows.obs).dtype:
            self.shown = tensors_over(self.rows).shown

    def ended(self) -> npt.NDArray[np.int64]:
        """Return the environments whose episode has ended in this step, from 0; mostly none."""
        if _holds(self._terminated, TRUE) or _holds(self._truncated, TRUE):
            return np.flatnonzero(self.rows.terminated | self.rows.truncated)
        return NO_ENVS


def _holds(flags: memoryview, flag: bytes) -> bool:  # faster than `any` for few
    return flag in flags.tobytes()
