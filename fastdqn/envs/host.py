"""The environments of one host, stepped one after the other; results go into the shared block.

A worker process has one host for each group of environments; without workers the caller's own
process has it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import write_to_shared_memory

from fastdqn.envs.failures import EnvFailures, Failure, StepTold, on_action
from fastdqn.envs.lines import CheckedLine, lines_over
from fastdqn.envs.masks import MASK, refuse_mask_shape
from fastdqn.envs.residents import Residents
from fastdqn.envs.rows import Rows
from fastdqn.envs.task import EnvFactory, Task

__all__ = ["Host"]


class Host(Residents):
    """Some environments and the columns of the block that they own.

    Args:
        task: What to do.
        env_fns: Factories of its environments.
        rows: The whole block.
        shared_obs: Gymnasium's shared memory for observations that do not lie in the block; None
            where they do, or where they travel with the answers.
        permit: Held while an environment runs.
    """

    def __init__(
        self,
        task: Task,
        env_fns: Sequence[EnvFactory],
        rows: Rows,
        shared_obs: Any = None,
        permit: Any = None,
    ) -> None:
        super().__init__(task, env_fns)
        self.shared_obs = shared_obs
        self.rows = rows.columns(task.first_env, task.first_env + task.num_envs)
        self.travelling: list[Any] = [None] * task.num_envs
        self.returns, self.lengths = [0.0] * task.num_envs, [0] * task.num_envs
        self.ended = [False] * task.num_envs
        self.last_obs: Any = None
        self.permit = permit or contextlib.nullcontext()
        self.in_block = task.obs_space is None
        self.travels = not self.in_block and shared_obs is None
        self._lines = lines_over(self.rows.obs)
        self.put = self._put_in_block if self.in_block else self._put_elsewhere
        # Items of a memoryview are written in half the time of those of an array.
        columns: Any = self.rows
        self._reward: Any = memoryview(columns.reward)
        self._terminated: Any = memoryview(columns.terminated)
        self._truncated: Any = memoryview(columns.truncated)
        self._real: Any = memoryview(columns.real)
        self._resting: Any = memoryview(columns.resting)
        self._masked, self._infos_travel = task.spec.num_masked > 0, task.send_infos
        same_step = task.autoreset_mode == AutoresetMode.SAME_STEP.value
        self._plain = same_step and self.in_block and not (self._masked or self._infos_travel)
        self.step_one = {
            AutoresetMode.NEXT_STEP.value: self._step_or_reset,
            AutoresetMode.SAME_STEP.value: self._step_and_reset,
            AutoresetMode.DISABLED.value: self._step_only,
        }[task.autoreset_mode]

    def _put_in_block(self, i: int, obs: Any) -> None:
        """Write an observation into its line; one that is not of the block's dtype, too."""
        try:
            self._lines[i][:] = obs
        except (TypeError, ValueError):
            self._lines[i] = CheckedLine(self.rows.obs, i)
            self._lines[i][:] = obs

    def _put_elsewhere(self, i: int, obs: Any) -> None:
        """Put an observation that is no plain array where the caller reads it."""
        if self.travels:
            self.travelling[i] = obs
            return
        space: Any = self.task.obs_space
        write_to_shared_memory(space, self.task.first_env + i, obs, self.shared_obs)

    # Stepping

    def step(self, actions: Sequence[Any] | None = None) -> StepTold:
        """Step every environment that is not at rest; hot path.

        Args:
            actions: One per environment; None takes them from the block.

        Raises:
            EnvFailures: Some environments raised; the others were stepped.
        """
        given = self._actions() if actions is None else actions
        if self._plain:
            self._step_plainly(given)
            return None
        infos: dict[int, dict[str, Any]] = {}
        failures: list[Failure] = []
        with self.permit:
            for i, action in enumerate(given):
                if self._resting[i]:
                    continue
                try:
                    info = self.step_one(i, action)
                except Exception as error:  # whatever an environment raises goes to the caller
                    failures.append(self._shut(i, error, on_action(self.envs[i], action)))
                    continue
                if info and self._infos_travel:
                    infos[self.task.first_env + i] = info
        if failures:
            raise EnvFailures(failures, self._told(infos))
        return self._told(infos)

    def _step_plainly(self, actions: Sequence[Any]) -> None:
        """Do what `step` does where all that is asked for lies in the block; hot path.

        One loop without calls of its own, which takes 0.6 of the time of one that calls `step_one`.
        """
        resting, reward_, lines = self._resting, self._reward, self._lines
        terminated_, truncated_ = self._terminated, self._truncated
        returns, lengths = self.returns, self.lengths
        failures: list[Failure] = []
        with self.permit:
            for i, (env, action) in enumerate(zip(self.envs, actions, strict=True)):
                if resting[i]:
                    continue
                try:
                    obs, reward, terminated, truncated, _ = env.step(action)
                    if not isinstance(reward, float):
                        reward = _scalar_reward(reward)
                    try:
                        lines[i][:] = obs
                    except (TypeError, ValueError):
                        self._put_in_block(i, obs)
                    reward_[i] = reward
                    terminated_[i] = terminated
                    truncated_[i] = truncated
                    returns[i] += reward
                    lengths[i] += 1
                    if terminated or truncated:
                        self._note_end(i)
                        self._keep_final(i, {})
                        self._reset_one(i, None, None)
                except Exception as error:  # whatever an environment raises goes to the caller
                    failures.append(self._shut(i, error, on_action(env, action)))
        if failures:
            raise EnvFailures(failures)

    def _note_end(self, i: int) -> None:
        """Write what is told of an episode that has ended."""
        self.ended[i] = True
        self.rows.episode_return[i] = self.returns[i]
        self.rows.episode_length[i] = self.lengths[i]

    def _actions(self) -> Any:
        """Return copies, since an environment may keep its action."""
        return self.rows.action.tolist() if self.task.plain_actions else self.rows.action.copy()

    def _told(self, infos: dict[int, dict[str, Any]]) -> StepTold:
        if self.travels:
            return infos, self.travelling
        return (infos, None) if infos else None

    def _step_only(self, i: int, action: Any) -> dict[str, Any]:
        """Step environment `i` and write its row; the episode's sums are written at its end."""
        obs, reward, terminated, truncated, info = self.envs[i].step(action)
        self.last_obs = obs
        if not isinstance(reward, float):
            reward = _scalar_reward(reward)
        self.put(i, obs)
        self._reward[i] = reward
        self._terminated[i] = terminated
        self._truncated[i] = truncated
        self.returns[i] += reward
        self.lengths[i] += 1
        if self._masked:
            self._read_mask(i, info)
        if terminated or truncated:
            self._note_end(i)
        return info

    def _step_and_reset(self, i: int, action: Any) -> dict[str, Any]:
        """SAME_STEP: an ended environment is reset at once; its last observation is kept."""
        info = self._step_only(i, action)
        if self.ended[i]:
            info = {**self._keep_final(i, info), **self._reset_one(i, None, None)}
        return info

    def _keep_final(self, i: int, info: dict[str, Any]) -> dict[str, Any]:
        """Keep the last row in the block; where infos travel, return what is told of the end.

        All of it is copied: an environment may overwrite its own arrays in the reset.
        """
        self.rows.final_action_mask[i] = self.rows.action_mask[i]
        if self.in_block:
            self.rows.final_obs[i] = self.rows.obs[i]
        if not self.task.send_infos:
            return {}
        copied = {k: v.copy() if isinstance(v, np.ndarray) else v for k, v in info.items()}
        return {"final_info": copied, "final_obs": deepcopy(self.last_obs)}

    def _step_or_reset(self, i: int, action: Any) -> dict[str, Any]:
        """NEXT_STEP: an ended environment is reset by the next step, which is no transition."""
        if not self.ended[i]:
            self._real[i] = True
            return self._step_only(i, action)
        self._real[i] = False
        self.rows.reward[i] = 0.0
        self.rows.terminated[i] = self.rows.truncated[i] = False
        return self._reset_one(i, None, None)

    def _reset_one(
        self, i: int, seed: int | None, options: dict[str, Any] | None
    ) -> dict[str, Any]:
        obs, info = self.envs[i].reset(seed=seed, options=options)
        self.put(i, obs)
        if self._masked:
            self._read_mask(i, info)
        self.returns[i], self.lengths[i], self.ended[i] = 0.0, 0, False
        return info

    def _read_mask(self, i: int, info: dict[str, Any]) -> None:
        """Write the actions that the info allows; all of them where it says nothing."""
        mask = info.get(MASK)
        if mask is not None:
            env = f"environment {self.task.first_env + i}"
            refuse_mask_shape(env, np.shape(mask), self.task.spec.num_masked)
        self.rows.action_mask[i] = True if mask is None else mask

    # Resetting

    def reset(
        self, seeds: list[int | None], options: dict[str, Any] | None, mask: list[bool]
    ) -> tuple[dict[int, dict[str, Any]], list[Any] | None]:
        """Reset the environments that the mask names, rebuilding those that were shut down.

        Returns:
            Their infos by index, and observations that travel.

        Raises:
            EnvFailures: Some environments raised.
        """
        infos: dict[int, dict[str, Any]] = {}
        failures: list[Failure] = []
        for i in np.flatnonzero(mask).tolist():
            try:
                self._rebuild_if_shut(i)
                with self.permit:
                    info = self._reset_one(i, seeds[i], options)
            except Exception as error:
                failures.append(self._shut(i, error))
                continue
            if self.task.send_infos:
                infos[self.task.first_env + i] = info
        told = infos, self.travelling if self.travels else None
        if failures:
            raise EnvFailures(failures, told)
        return told


def _scalar_reward(reward: Any) -> float:
    if np.ndim(reward) != 0:
        raise ValueError(
            f"the reward must be a scalar, got {reward!r} of shape {np.shape(reward)}: "
            "return float(reward[0]) from the environment's step"
        )
    return float(reward)
