"""An AsyncVectorEnv whose workers host several environments each and share one block of memory."""

from __future__ import annotations

import multiprocessing
from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Discrete
from gymnasium.vector import AutoresetMode
from gymnasium.vector.async_vector_env import AsyncState

from fastdqn.envs.call_arguments import (
    refuse_arguments,
    reset_mask,
    seed_list,
    values_by_env,
    with_kept_episodes,
)
from fastdqn.envs.pooled import PooledVectorEnv
from fastdqn.envs.spaces import ARRAY_SPACES, read_spaces, refuse_other_spaces
from fastdqn.envs.vector_data import as_rows, shared_memory_for, single_actions
from fastdqn.envs.workers.allocation import Allocation, choose_allocation
from fastdqn.envs.workers.settings import EnvFactory, PoolSettings
from fastdqn.envs.workers.shared_block import RowSpec
from fastdqn.envs.workers.supervision import Supervision

__all__ = ["GroupedVectorEnv"]


class GroupedVectorEnv(PooledVectorEnv):
    """Gymnasium's AsyncVectorEnv with several environments per worker process.

    Actions, observations, rewards, both end flags and the sums of finished episodes lie in one
    shared block; a step costs one byte to each worker and one back. Infos are pickled only when
    an environment returns a non-empty one. The transitions are those of Gymnasium's own class,
    whatever the number of workers. Observations and actions that are no arrays of one shape
    (Dict, Tuple, Text, spaces of the caller's own) use Gymnasium's own, slower means.

    Workers start as fresh interpreters that do not run the caller's script again, so that no
    thread and no CUDA context is forked and a script needs no `if __name__ == "__main__"`. An
    environment that raises is closed, the others go on, and the next reset rebuilds it.

    Args:
        env_fns: Factories, one per environment; pickled by value with cloudpickle.
        shared_memory: Whether observations come back through shared memory or are pickled.
        copy: Whether `reset` and `step` return copies of the observations. If False they return
            the shared block itself, which the next step overwrites.
        context: Start method (`spawn`, `forkserver`, `fork`); None is `spawn`.
        daemon: Whether workers end with the parent and may start no children of their own.
        worker: Must be None: a worker function of the caller cannot use the block.
        observation_mode: As in Gymnasium: `same`, `different` or a pair of spaces.
        autoreset_mode: As in Gymnasium.
        max_concurrency: How many workers may run an environment at a time; None is all.
        num_workers: Processes; 0 steps the environments in this process; None measures a few steps
            of a trial environment and chooses: this process and one more per further core, this one
            alone where waking others costs more, or, for slow environments, one per core.
        num_groups: Groups of environments that `send` and `recv` step separately.
        send_infos: Whether infos are sent to the caller, and environments get actions of a Discrete
            space as NumPy's, as in Gymnasium's class. The trainer turns it off.
        num_masked: Actions of `info["action_mask"]`, which the block then carries; 0 is none.
        drop_masks: Whether masks are dropped with infos that are not sent, where the block carries
            none; if not, the first one is refused.
        supervision: Restart workers that raise, die or hang; the rows of their environments are
            then not `real` for a while, listed in `infos["restarted"]`. None raises failures.
        allocation: How many processes, and how many environments in this one; None goes by
            `num_workers`.
        keep_episodes: Whether what open episodes began from and their actions are kept, so that
            other environments can go on with them. In mode SAME_STEP, for actions of a Discrete
            space and observations that are arrays.

    Attributes:
        rows: The shared block as numpy views; valid between `recv` and the next `send`.

    Raises:
        UsageError: An argument that cannot be used.
        RuntimeError: The spaces of the environments differ.
        WorkerError: A worker died.
    """

    def __init__(  # noqa: PLR0917 - the arguments of Gymnasium's class, in its order
        self,
        env_fns: Sequence[EnvFactory],
        shared_memory: bool = True,
        copy: bool = True,
        context: str | None = None,
        daemon: bool = True,
        worker: Any = None,
        observation_mode: str | tuple[gym.Space[Any], gym.Space[Any]] = "same",
        autoreset_mode: str | AutoresetMode = AutoresetMode.NEXT_STEP,
        max_concurrency: int | None = None,
        *,
        num_workers: int | None = None,
        num_groups: int = 1,
        send_infos: bool = True,
        num_masked: int = 0,
        drop_masks: bool = False,
        supervision: Supervision | None = None,
        allocation: Allocation | None = None,
        keep_episodes: bool = False,
    ) -> None:
        refuse_arguments(env_fns, worker, num_workers, num_groups, max_concurrency, supervision)
        self.shared_memory, self.copy, self.worker = shared_memory, copy, None
        self.context, self.daemon, self.max_concurrency = context, daemon, max_concurrency
        self.observation_mode = observation_mode  # type: ignore[assignment]
        self.autoreset_mode = AutoresetMode(autoreset_mode)
        self.send_infos = send_infos
        free = num_workers is None and supervision is None and allocation is None
        step_s = self._read_spaces(env_fns, measure=free)
        allocation = allocation or choose_allocation(
            num_workers, len(env_fns) // num_groups, step_s
        )
        refuse_masks = not (send_infos or num_masked or drop_masks)
        settings = self._settings(len(env_fns), num_groups, num_masked, refuse_masks, allocation)
        if keep_episodes or (supervision is not None and supervision.restore_s):
            settings = with_kept_episodes(settings, self.single_action_space)
        super().__init__(env_fns, settings, supervision)
        try:
            self._check_spaces()
        except BaseException:
            self.close()
            raise

    def _read_spaces(self, env_fns: Sequence[EnvFactory], *, measure: bool) -> float | None:
        spaces = read_spaces(env_fns, self.observation_mode, measure=measure)  # type: ignore[arg-type]
        self.metadata = {**spaces.metadata, "autoreset_mode": self.autoreset_mode}
        self.render_mode = spaces.render_mode
        self.single_action_space, self.action_space = (
            spaces.single_action_space,
            spaces.action_space,
        )
        self.single_observation_space = spaces.single_observation_space
        self.observation_space = spaces.observation_space
        return spaces.step_s

    def _settings(
        self,
        num_envs: int,
        num_groups: int,
        num_masked: int,
        refuse_masks: bool,
        allocation: Allocation,
    ) -> PoolSettings:
        space, actions = self.single_observation_space, self.single_action_space
        in_block = self.shared_memory and isinstance(space, ARRAY_SPACES)
        self._observations_in_block = in_block
        self._actions_in_block = isinstance(actions, ARRAY_SPACES)
        shared, start_method = None, self.context or "spawn"
        if self.shared_memory and not in_block:
            context = multiprocessing.get_context(start_method)
            shared = shared_memory_for(space, num_envs, context)
        int64 = isinstance(actions, Discrete) and actions.dtype == np.int64
        return PoolSettings(
            RowSpec.of_spaces(
                num_envs,
                space if in_block else None,
                actions if self._actions_in_block else None,
                num_masked,
            ),
            num_workers=allocation.processes,
            caller_envs=allocation.caller_envs,
            num_groups=num_groups,
            autoreset_mode=self.autoreset_mode.value,
            send_infos=self.send_infos,
            start_method=start_method,
            daemon=self.daemon,
            max_concurrency=self.max_concurrency,
            obs_space=None if in_block else space,
            shared_obs=shared,
            plain_actions=int64 and not self.send_infos,  # Python's numbers act as NumPy's then
            refuse_masks=refuse_masks,
            spin_s=allocation.spin_s,
            name=type(self).__name__,
        )

    # Stepping

    def step_async(self, actions: Any) -> None:
        """Hand over the actions and wake the workers; returns at once.

        Raises:
            ValueError: Actions of a wrong number, shape, dtype or range, by environment.
        """
        self._expect_idle("step_async")
        array = as_rows(actions, self.rows.action) if self._actions_in_block else None
        if array is not None:
            size = self.num_envs // self.num_groups
            for group in range(self.num_groups):
                self.send(array[group * size : (group + 1) * size], group)
            return
        singles = single_actions(actions, self.action_space, self.num_envs)
        self._send_call("step", lambda a, b: (singles[a:b],))
        self._state = AsyncState.WAITING_STEP

    def step_wait(self, timeout: float | None = None) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Wait for the step and return what Gymnasium's class returns.

        Raises:
            multiprocessing.TimeoutError: `timeout` seconds passed. The step stays pending: call
                again, or close.
        """
        observations, infos = self._received(self._answers_to(AsyncState.WAITING_STEP, timeout))
        rows = self.rows
        same_step = self.autoreset_mode is AutoresetMode.SAME_STEP
        if same_step and not self.send_infos and self._observations_in_block:
            for index in np.flatnonzero(rows.terminated | rows.truncated).tolist():
                self._add_info(infos, {"final_obs": rows.final_obs[index].copy()}, index)
        if self.num_restarts:
            infos["restarted"] = self._pool.restarted.copy()
        flags = rows.terminated.copy(), rows.truncated.copy()
        return observations, rows.reward.copy(), *flags, infos

    # Resetting

    def reset_async(
        self,
        seed: int | list[int | None] | None = None,
        options: dict[str, Any] | None = None,
    ) -> None:
        """Ask the workers to reset; `options["reset_mask"]` chooses environments."""
        self._assert_is_running()
        seeds = seed_list(seed, self.num_envs)
        self._expect_idle("reset_async")
        options = dict(options) if options is not None else None
        mask = reset_mask(options, self.num_envs)
        self._send_call("reset", lambda a, b: (seeds[a:b], options, mask[a:b]))
        self._state = AsyncState.WAITING_RESET

    def reset_wait(self, timeout: float | None = None) -> tuple[Any, dict[str, Any]]:
        """Wait for the reset and return observations and infos."""
        observations, infos = self._received(self._answers_to(AsyncState.WAITING_RESET, timeout))
        self.rows.real[:] = True
        return observations, infos

    # Calling into the environments

    def call_async(self, name: str, /, *args: Any, **kwargs: Any) -> None:
        """Ask every environment for a method's result or an attribute."""
        self._expect_idle("call_async")
        self._send_call("call", lambda _a, _b: (name, args, kwargs))
        self._state = AsyncState.WAITING_CALL

    def call_wait(self, timeout: float | None = None) -> tuple[Any, ...]:
        """Return the results, one per environment."""
        answers = self._answers_to(AsyncState.WAITING_CALL, timeout)
        return tuple(result for part in answers for result in part or ())

    def set_attr(self, name: str, values: Any) -> None:
        """Set an attribute: a list or tuple gives one value per environment."""
        self._assert_is_running()
        values = values_by_env(values, self.num_envs)
        self._expect_idle("set_attr")
        self._send_call("set_attr", lambda a, b: (name, values[a:b]))
        self._state = AsyncState.WAITING_CALL
        self._answers(None)

    def _check_spaces(self) -> None:
        spaces = self.single_observation_space, self.single_action_space
        self._send_call("check_spaces", lambda _a, _b: (self.observation_mode, *spaces))
        same = [pair for part in self._answers(None) for pair in part]
        refuse_other_spaces(same, self.observation_mode, spaces[1], type(self).__name__)
