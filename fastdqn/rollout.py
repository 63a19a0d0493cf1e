"""The rollout: environments become rows of the replay ring."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from fastdqn.envs.source import EnvSource
from fastdqn.envs.transfer import transfer_to
from fastdqn.errors import NonFiniteError
from fastdqn.policy import Policy
from fastdqn.replay import ReplayBuffer
from fastdqn.report import Episode

__all__ = ["Rollout"]

_LARGEST = {
    name: np.dtype(name).type(min(np.finfo(name).max, np.finfo(np.float32).max))
    for name in ("float16", "float32", "float64")
}
"""Largest magnitude by dtype that is finite and stays so in float32."""


class Rollout:
    """Acts in N environments and writes what happens into the replay ring.

    `send` and `collect` are the two halves of a vector step; between them the workers step and
    the caller may learn.

    Args:
        source: The environments; between `collect` and `send` their rows are ours.
        policy: Chooses the actions.
        replay: Takes the transitions; also holds what the environments show now.

    Attributes:
        env_steps: Real transitions so far.
        episodes: Finished episodes so far.
    """

    def __init__(self, source: EnvSource, policy: Policy, replay: ReplayBuffer) -> None:
        self.source, self.policy, self.replay = source, policy, replay
        self.env_steps = 0
        self.episodes = 0
        self._transfer = transfer_to(source.rows, replay.device)
        self._action = torch.zeros(source.num_envs, dtype=torch.int64, device=replay.device)

    def reset(self, seeds: Sequence[int]) -> None:
        """Start new episodes everywhere; the running ones are cut, not joined."""
        self.source.reset(seeds)
        self.replay.cut()
        self._refuse_if_bad("observation", self.source.rows.obs)
        self.replay.begin(self._transfer.load().obs)

    def send(self, epsilon: float) -> None:
        """Choose an action for every environment and start the step.

        The copy of the actions to the host is the one wait of a vector step.
        """
        self._action = self.policy.act(self.replay.shown(), epsilon)
        self.source.send(self._action.cpu().numpy())

    def collect(self) -> None:
        """Wait for the step that `send` started; the rows are valid afterwards."""
        self.source.recv()

    def write(self) -> list[Episode]:
        """Write the rows into the ring and return the episodes that ended.

        Raises:
            NonFiniteError: An environment returned a NaN or an infinity; nothing is written.
        """
        rows, source = self.source.rows, self.source
        ended = np.flatnonzero(rows.terminated | rows.truncated)
        within_step = source.resets_within_step
        self._refuse_non_finite(ended if within_step else ended[:0])
        step = self._transfer.load()
        self.replay.write(
            self._action,
            step.reward,
            step.terminated,
            step.truncated,
            step.obs,
            final_obs=step.final_obs if within_step else None,
            ended=ended,
            real=None if within_step else rows.real,
        )
        self.env_steps += source.num_envs if within_step else int(np.count_nonzero(rows.real))
        return [self._episode(index) for index in ended.tolist()]

    def _episode(self, index: int) -> Episode:
        rows = self.source.rows
        self.episodes += 1
        return Episode(
            self.episodes,
            self.env_steps,
            float(rows.episode_return[index]),
            int(rows.episode_length[index]),
            bool(rows.truncated[index] and not rows.terminated[index]),
        )

    def _refuse_non_finite(self, ended: npt.NDArray[np.int64]) -> None:
        rows = self.source.rows
        self._refuse_if_bad("reward", rows.reward)
        self._refuse_if_bad("observation", rows.obs)
        if ended.size:
            self._refuse_if_bad("observation", rows.final_obs[ended], ended)

    def _refuse_if_bad(
        self, what: str, values: npt.NDArray[Any], envs: npt.NDArray[np.int64] | None = None
    ) -> None:
        """Refuse a NaN, an infinity, or a number that float32 cannot hold; integers are fine.

        The sum of squares tells in one pass that all is well, which it nearly always is.
        """
        flat = values.reshape(-1)
        if values.dtype.kind != "f" or np.dot(flat, flat) <= _LARGEST[values.dtype.name]:
            return
        bad = ~(np.abs(values).reshape(len(values), -1) <= _LARGEST[values.dtype.name]).all(1)
        if not bad.any():
            return  # large, but no larger than float32 holds
        first = int(np.flatnonzero(bad)[0])
        env = first if envs is None else int(envs[first])
        raise NonFiniteError(
            f"environment {env} returned the {what} {values[first]} after env step "
            f"{self.env_steps}: DQN cannot learn from it. Fix the environment, or wrap it "
            "so that it returns finite numbers."
        )
