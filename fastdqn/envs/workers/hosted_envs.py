"""The environments of one host, stepped one after the other into the shared block.

A worker process has one host for each group of environments; without workers the caller's own
process has it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from copy import deepcopy
from functools import partial
from itertools import chain
from typing import Any

import numpy as np
from gymnasium import Env
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import write_to_shared_memory

from fastdqn.envs.masks import (
    MASK,
    allowed_in,
    mask_name,
    refuse_mask_shape,
    refuse_unexpected_mask,
)
from fastdqn.envs.space_check import SpaceCheck
from fastdqn.envs.workers.env_access import EnvAccess
from fastdqn.envs.workers.failures import Answer, EnvFailures, Failure, on_action
from fastdqn.envs.workers.observation_writer import CallingWriter, CheckedWriter, writers_over
from fastdqn.envs.workers.origins import OriginColumn, Origins, begin_from, known_in
from fastdqn.envs.workers.settings import EnvFactory, PoolSettings
from fastdqn.envs.workers.shared_block import SharedBlock
from fastdqn.envs.workers.step_checks import refuse_flags, scalar_reward

__all__ = ["HostedEnvs"]

_Step = tuple[Iterator[tuple[int, Any]], dict[int, dict[str, Any]], list[Failure]]
"""The environments that are left of a step, with their actions; infos and failures so far."""


class HostedEnvs(EnvAccess):
    """Some environments of a process, and their rows of the block.

    Args:
        settings, span, env_fns: See `EnvAccess`.
        rows: The whole block.
        permit: Held while an environment runs; None is not needed.
    """

    def __init__(
        self,
        settings: PoolSettings,
        span: tuple[int, int],
        env_fns: Sequence[EnvFactory],
        rows: SharedBlock,
        permit: Any = None,
    ) -> None:
        super().__init__(settings, span, env_fns)
        self.settings, self.rows = settings, rows.columns(*span)
        self.pickled: list[Any] = [None] * self.num_envs
        self.returns, self.lengths = [0.0] * self.num_envs, [0] * self.num_envs
        self.ended = [False] * self.num_envs
        self._interrupted: _Step | None = None  # the rest of a step, which the next call makes
        self.permit = permit or contextlib.nullcontext()
        self.pickles = settings.obs_space is not None and settings.shared_obs is None
        self._writers: list[Any] = []
        self._checks: list[SpaceCheck] = []
        # Items of a memoryview are written in half the time of those of an array.
        columns: Any = self.rows
        self._reward: Any = memoryview(columns.reward)
        self._terminated: Any = memoryview(columns.terminated)
        self._truncated: Any = memoryview(columns.truncated)
        self._real: Any = memoryview(columns.real)
        self._resting: Any = memoryview(columns.resting)
        self._restarting: Any = memoryview(columns.restarting)
        num_masked = settings.spec.num_masked
        self._masked, self._mask_shape = num_masked > 0, (num_masked,)
        self._mask_names = [mask_name(env) for env in range(*span)]
        self._refuses_masks, self._infos_travel = settings.refuse_masks, settings.send_infos
        self._resets_same = settings.autoreset_mode == AutoresetMode.SAME_STEP.value
        self._resets_next = settings.autoreset_mode == AutoresetMode.NEXT_STEP.value
        self._origins = OriginColumn.over(self.rows)

    def make(self) -> None:
        """Build the environments, and the writers of their observations."""
        super().make()
        self._writers = self._new_writers()

    def take_envs(self, envs: list[Env[Any, Any]]) -> None:
        """Step environments that another host has built; both hold the same list."""
        self.envs = envs
        self._writers = self._new_writers()

    def _new_writers(self) -> list[Any]:
        """Return a writer for each environment's observation, into the block or elsewhere."""
        if self.pickles:
            return [
                CallingWriter(partial(self.pickled.__setitem__, i)) for i in range(self.num_envs)
            ]
        space, obs = self.settings.obs_space, self.rows.obs
        if space is None:
            self._checks = [
                SpaceCheck(env.observation_space, obs.shape[1:], obs.dtype) for env in self.envs
            ]
            return writers_over(obs, self._checks, self.first_env)
        write = partial(write_to_shared_memory, space, shared_memory=self.settings.shared_obs)
        return [CallingWriter(partial(write, self.first_env + i)) for i in range(self.num_envs)]

    # Stepping

    def step(self, actions: Sequence[Any] | None = None) -> Answer | None:
        """Step every environment that is not at rest, in one loop with few calls; hot path.

        Args:
            actions: One per environment; None takes them from the block.

        Raises:
            EnvFailures: Some environments raised; the others were stepped.
        """
        turns, infos, failures = self._turns(actions)
        writers, reward_, resting = self._writers, self._reward, self._resting
        terminated_, truncated_ = self._terminated, self._truncated
        returns, lengths = self.returns, self.lengths
        with self.permit:
            for i, (env, action) in turns:
                try:
                    if resting[i]:
                        self._reset_if_asked(i)
                        continue
                    if self._resets_next and self._resets_instead(i):
                        info = self._reset_one(i, None, None)
                    else:
                        obs, reward, terminated, truncated, info = env.step(action)
                        if not isinstance(reward, float):
                            reward = scalar_reward(reward)
                        try:
                            writers[i][:] = obs
                        except (TypeError, ValueError):
                            self._put_checked(i, obs)
                        reward_[i] = reward
                        terminated_[i] = terminated
                        truncated_[i] = truncated
                        returns[i] += reward
                        lengths[i] += 1
                        if self._masked:
                            self._read_mask(i, info)
                        elif info and self._refuses_masks:
                            refuse_unexpected_mask(self.first_env + i, info)
                        if terminated or truncated:
                            refuse_flags(terminated, truncated)
                            info = self._end(i, obs, info)
                except Exception as error:  # any exception of an environment goes to the caller
                    failures.append(self._close_failed(i, error, on_action(env, action)))
                    continue
                except BaseException:  # Ctrl-C, in the caller's process
                    self._interrupted = chain([(i, (env, action))], turns), infos, failures
                    raise
                if info and self._infos_travel:
                    infos[self.first_env + i] = info
        return self._answer(infos, failures)

    def _turns(self, actions: Sequence[Any] | None) -> _Step:
        """Return (i, (env, action)) of all environments, and room for infos and failures.

        After an interrupted step, return the rest of it.
        """
        interrupted, self._interrupted = self._interrupted, None
        if interrupted is not None:
            return interrupted
        given = self._actions() if actions is None else actions
        return enumerate(zip(self.envs, given, strict=True)), {}, []

    def _reset_if_asked(self, i: int) -> None:
        """Reset an environment at rest if the caller has cut its episode."""
        if self._restarting[i]:
            self._reset_one(i, None, None)
            self._reward[i] = 0.0
            self._terminated[i] = self._truncated[i] = False
            self._resting[i] = self._restarting[i] = False

    def _put_checked(self, i: int, obs: Any) -> None:
        """Write an observation that the fast writer refused, with a check; later ones likewise."""
        if not isinstance(self._writers[i], memoryview):
            raise  # noqa: PLE0704 - called while the exception is handled
        self._writers[i] = CheckedWriter(self.rows.obs, i, self._checks[i], self.first_env + i)
        self._writers[i][:] = obs

    def _actions(self) -> Any:
        """Return copies, since an environment may keep its action."""
        return self.rows.action.tolist() if self.settings.plain_actions else self.rows.action.copy()

    def _answer(self, infos: dict[int, dict[str, Any]], failures: list[Failure]) -> Answer | None:
        answer = (infos, self.pickled if self.pickles else None) if infos or self.pickles else None
        if failures:
            raise EnvFailures(failures, answer)
        return answer

    def _end(self, i: int, obs: Any, info: dict[str, Any]) -> dict[str, Any]:
        """Write return and length of an episode at its end; in SAME_STEP mode, begin the next one.

        The last info is copied: an environment may overwrite its own arrays in the reset.
        """
        self.ended[i] = True
        rows = self.rows
        rows.episode_return[i], rows.episode_length[i] = self.returns[i], self.lengths[i]
        if not self._resets_same:
            return info
        rows.final_action_mask[i] = rows.action_mask[i]
        if self.settings.obs_space is None:
            rows.final_obs[i] = rows.obs[i]
        if not self._infos_travel:
            return self._reset_one(i, None, None)
        copied = {k: v.copy() if isinstance(v, np.ndarray) else v for k, v in info.items()}
        final = {"final_info": copied, "final_obs": deepcopy(obs)}
        return {**final, **self._reset_one(i, None, None)}

    def _resets_instead(self, i: int) -> bool:
        """NEXT_STEP: return whether this step only resets; then its reward is 0, without an end."""
        over = self.ended[i]
        self._real[i] = not over
        if over:
            self._reward[i] = 0.0
            self._terminated[i] = self._truncated[i] = False
        return over

    def _reset_one(
        self, i: int, seed: int | None, options: dict[str, Any] | None, origin: Any = None
    ) -> dict[str, Any]:
        env = self.envs[i]
        if self._origins is not None:
            self._origins.note(i, env, seed, options, origin)
        if origin is None:
            obs, info = env.reset(seed=seed, options=options)
        else:
            obs, info = begin_from(env, origin, seed)
        try:
            self._writers[i][:] = obs
        except (TypeError, ValueError):
            self._put_checked(i, obs)
        if self._masked:
            self._read_mask(i, info)
        elif info and self._refuses_masks:
            refuse_unexpected_mask(self.first_env + i, info)
        self.returns[i], self.lengths[i], self.ended[i] = 0.0, 0, False
        return info

    def _read_mask(self, i: int, info: dict[str, Any]) -> None:
        """Write the action mask of an info; without one every action is allowed."""
        mask = info.get(MASK)
        if mask is None:
            self.rows.action_mask[i] = True
            return
        allowed = allowed_in(mask, self._mask_names[i])
        if allowed.shape != self._mask_shape:
            env = f"environment {self.first_env + i}"
            refuse_mask_shape(env, allowed.shape, self._mask_shape[0])
        self.rows.action_mask[i] = allowed

    # Resetting

    def reset(
        self,
        seeds: list[int | None],
        options: dict[str, Any] | None,
        mask: list[bool],
        origins: Origins | None = None,
    ) -> Answer:
        """Reset the environments in the mask, rebuilding those that were closed after a failure.

        Args:
            seeds: One per environment.
            options: Of the resets.
            mask: Which environments.
            origins: [N, 8] what those begin from that have one; None has none.

        Raises:
            EnvFailures: Some environments raised.
        """
        infos: dict[int, dict[str, Any]] = {}
        failures: list[Failure] = []
        for i in np.flatnonzero(mask).tolist():
            try:
                self._rebuild_if_closed(i)
                with self.permit:
                    info = self._reset_one(i, seeds[i], options, known_in(origins, i))
                if self._restarting[i]:
                    self._resting[i] = self._restarting[i] = False
            except Exception as error:
                failures.append(self._close_failed(i, error))
                continue
            if self._infos_travel:
                infos[self.first_env + i] = info
        message = infos, self.pickled if self.pickles else None
        if failures:
            raise EnvFailures(failures, message)
        return message
