"""An AsyncVectorEnv whose workers host several environments each and share one block of memory.

This file is longer than most: it has every call of Gymnasium's class, each in a few lines that
belong side by side. Processes and signals live in `workers.pool`, stepping in
`workers.hosted_envs`, the layout in `workers.shared_block`.
"""

from __future__ import annotations

import inspect
import multiprocessing
from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import Any, NoReturn

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from gymnasium import logger
from gymnasium.error import AlreadyPendingCallError, NoAsyncCallError
from gymnasium.spaces import Discrete
from gymnasium.vector import AsyncVectorEnv, AutoresetMode
from gymnasium.vector.async_vector_env import AsyncState, _async_worker

from fastdqn.envs.sharing import refuse_shared_by_processes
from fastdqn.envs.spaces import ARRAY_SPACES, read_spaces
from fastdqn.envs.vector_data import Observations, as_rows, shared_memory_for, single_actions
from fastdqn.envs.workers.allocation import Allocation, choose_allocation
from fastdqn.envs.workers.assisted_pool import AssistedPool
from fastdqn.envs.workers.failures import EnvFailures, Failure
from fastdqn.envs.workers.local_pool import LocalPool
from fastdqn.envs.workers.pool import PoolSettings, WorkerPool
from fastdqn.envs.workers.shared_block import RowSpec, SharedBlock
from fastdqn.envs.workers.supervised_pool import SupervisedPool
from fastdqn.envs.workers.supervision import Supervision
from fastdqn.errors import UsageError, WorkerError

__all__ = ["GroupedVectorEnv"]

EnvFactory = Callable[[], gym.Env[Any, Any]]


class GroupedVectorEnv(AsyncVectorEnv):
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
    ) -> None:
        _refuse(env_fns, worker, num_workers, num_groups, max_concurrency, supervision)
        self.env_fns = env_fns
        self.shared_memory, self.copy, self.worker = shared_memory, copy, None
        self.context, self.daemon = context, daemon
        self.observation_mode = observation_mode  # type: ignore[assignment]
        self.autoreset_mode = AutoresetMode(autoreset_mode)
        self.max_concurrency = max_concurrency
        self.num_envs, self.num_groups = len(env_fns), num_groups
        self.send_infos = send_infos
        self._refuse_masks = not (send_infos or num_masked or drop_masks)
        free = num_workers is None and supervision is None and allocation is None
        step_s = self._read_spaces(measure=free)
        per_group = self.num_envs // num_groups
        self._allocation = allocation or choose_allocation(num_workers, per_group, step_s)
        self.num_workers = self._allocation.processes
        self._start(num_masked, supervision)

    def _read_spaces(self, *, measure: bool) -> float | None:
        spaces = read_spaces(self.env_fns, self.observation_mode, measure=measure)  # type: ignore[arg-type]
        self.metadata = {**spaces.metadata, "autoreset_mode": self.autoreset_mode}
        self.render_mode = spaces.render_mode
        self.single_action_space, self.action_space = (
            spaces.single_action_space,
            spaces.action_space,
        )
        self.single_observation_space = spaces.single_observation_space
        self.observation_space = spaces.observation_space
        return spaces.step_s

    def _start(self, num_masked: int, supervision: Supervision | None) -> None:
        space, actions = self.single_observation_space, self.single_action_space
        in_block = self.shared_memory and isinstance(space, ARRAY_SPACES)
        self._actions_in_block = isinstance(actions, ARRAY_SPACES)
        spec = RowSpec.of_spaces(
            self.num_envs,
            space if in_block else None,
            actions if self._actions_in_block else None,
            num_masked,
        )
        shared = None
        if self.shared_memory and not in_block:
            context = multiprocessing.get_context(self.context or "spawn")
            shared = shared_memory_for(space, self.num_envs, context)
        settings = PoolSettings(
            num_workers=self._allocation.processes,
            caller_envs=self._allocation.caller_envs,
            num_groups=self.num_groups,
            autoreset_mode=self.autoreset_mode.value,
            send_infos=self.send_infos,
            start_method=self.context or "spawn",
            daemon=self.daemon,
            max_concurrency=self.max_concurrency,
            obs_space=None if in_block else space,
            shared_obs=shared,
            plain_actions=_are_int64(actions) and not self.send_infos,
            refuse_masks=self._refuse_masks,
            spin_s=self._allocation.spin_s,
            name=type(self).__name__,
        )
        if self._allocation.processes:
            refuse_shared_by_processes(self.env_fns, settings.spans(self.num_envs))
        self._pool = self._new_pool(spec, settings, supervision)
        self.rows: SharedBlock = self._pool.rows
        self._groups = [
            self.rows.columns(group[0][0], group[-1][1])
            for group in zip(*self._pool.spans, strict=True)
        ]
        self._obs_in_block = in_block
        in_rows = self.rows.obs if in_block else None
        self._reader = Observations(space, self.num_envs, in_rows, shared)
        self._travelled: list[Any] = []
        self._state = AsyncState.DEFAULT
        try:
            self._check_spaces()
        except BaseException:
            self.close()
            raise

    def _new_pool(
        self, spec: RowSpec, settings: PoolSettings, supervision: Supervision | None
    ) -> WorkerPool | AssistedPool | LocalPool:
        try:
            if self.num_workers == 0:
                return LocalPool(self.env_fns, spec, settings, supervision)
            if self._allocation.caller_envs:
                return AssistedPool(self.env_fns, spec, settings, supervision)
            if supervision is not None:
                return SupervisedPool(self.env_fns, spec, settings, supervision)
            return WorkerPool(self.env_fns, spec, settings)
        except EnvFailures as error:
            _raise_with_cause(error.failures[-1])
            raise

    @property
    def processes(self) -> list[Any]:  # type: ignore[override]
        """The worker processes."""
        return [worker.process for worker in self._pool.workers]

    @property
    def parent_pipes(self) -> list[Any]:  # type: ignore[override]
        """The parent's ends of the connections to the workers."""
        return [worker.wire.messages for worker in self._pool.workers]

    @property
    def observations(self) -> Any:
        """The current observations; not a copy."""
        return self._reader.read()

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
        self._expect(AsyncState.WAITING_STEP, "step")
        infos = self._gather(self._answers(timeout))
        rows = self.rows
        if self.autoreset_mode is AutoresetMode.SAME_STEP and not self.send_infos:
            self._add_final_obs(infos)
        if self.num_restarts:
            infos["restarted"] = self._pool.restarted.copy()
        return (
            self._returned(),
            rows.reward.copy(),
            rows.terminated.copy(),
            rows.truncated.copy(),
            infos,
        )

    def send(self, actions: npt.NDArray[Any], group: int = 0) -> None:
        """Hot path of `step_async`: no checks; the group's rows are the workers' until `recv`.

        Args:
            actions: [M, *A] of the group's environments, in the dtype of the action space; copied.
            group: Which group steps; groups are received in the order in which they were sent.
        """
        np.copyto(self._groups[group].action, actions)
        self._pool.send_step(group)
        self._state = AsyncState.WAITING_STEP

    def recv(self, timeout: float | None = None, group: int = 0) -> list[Any]:
        """Hot path of `step_wait`: wait until the group's rows hold the step; builds no info.

        Returns:
            What each worker sent beside the block: None, or infos and observations.

        Raises:
            multiprocessing.TimeoutError: `timeout` seconds passed; the call may be repeated.
            WorkerError: A worker died.
            Exception: An exception of an environment, with its traceback as the cause.
        """
        try:
            answers = self._pool.collect(timeout, group)
        except multiprocessing.TimeoutError:
            raise  # still pending
        except BaseException as error:
            self._state = AsyncState.DEFAULT
            if isinstance(error, EnvFailures):
                _raise_with_cause(error.failures[-1])
            raise
        self._state = AsyncState.DEFAULT
        return answers

    def rows_of(self, group: int) -> SharedBlock:
        """Return the columns of the block that belong to a group."""
        return self._groups[group]

    # Resetting

    def reset_async(
        self,
        seed: int | list[int | None] | None = None,
        options: dict[str, Any] | None = None,
    ) -> None:
        """Ask the workers to reset; `options["reset_mask"]` chooses environments."""
        self._assert_is_running()
        seeds = self._seed_list(seed)
        self._expect_idle("reset_async")
        options = dict(options) if options is not None else None
        mask = self._reset_mask(options)
        self._send_call("reset", lambda a, b: (seeds[a:b], options, mask[a:b]))
        self._state = AsyncState.WAITING_RESET

    def reset_wait(self, timeout: float | None = None) -> tuple[Any, dict[str, Any]]:
        """Wait for the reset and return observations and infos."""
        self._expect(AsyncState.WAITING_RESET, "reset")
        infos = self._gather(self._answers(timeout))
        self.rows.real[:] = True
        return self._returned(), infos

    def _seed_list(self, seed: int | list[int | None] | None) -> list[int | None]:
        if seed is None:
            return [None] * self.num_envs
        if isinstance(seed, int):
            return [seed + i for i in range(self.num_envs)]
        if len(seed) != self.num_envs:
            raise ValueError(
                "If seeds are passed as a list the length must match "
                f"num_envs={self.num_envs} but got length={len(seed)}."
            )
        return list(seed)

    def _reset_mask(self, options: dict[str, Any] | None) -> list[bool]:
        if options is None or "reset_mask" not in options:
            return [True] * self.num_envs
        mask, name = options.pop("reset_mask"), "`options['reset_mask']`"
        if not isinstance(mask, np.ndarray):
            raise TypeError(f"{name} must be a numpy array, got {type(mask)}")
        if mask.shape != (self.num_envs,):
            raise ValueError(f"{name} must have shape `({self.num_envs},)`, got {mask.shape}")
        if mask.dtype != np.bool_:
            raise TypeError(f"{name} must have `dtype=np.bool_`, got {mask.dtype}")
        if not mask.any():
            raise ValueError(
                f"{name} must contain a boolean array with at least one True value, "
                f"got reset_mask={mask}"
            )
        return [bool(chosen) for chosen in mask]

    # Calling into the environments

    def call_async(self, name: str, /, *args: Any, **kwargs: Any) -> None:
        """Ask every environment for a method's result or an attribute."""
        self._expect_idle("call_async")
        self._send_call("call", lambda _a, _b: (name, args, kwargs))
        self._state = AsyncState.WAITING_CALL

    def call_wait(self, timeout: float | None = None) -> tuple[Any, ...]:
        """Return the results, one per environment."""
        self._expect(AsyncState.WAITING_CALL, "call")
        return tuple(result for part in self._answers(timeout) for result in part)

    def set_attr(self, name: str, values: Any) -> None:
        """Set an attribute: a list or tuple gives one value per environment."""
        self._assert_is_running()
        if not isinstance(values, list | tuple):
            values = [values] * self.num_envs
        if len(values) != self.num_envs:
            raise ValueError(
                "Values must be a list or tuple with length equal to the number of environments. "
                f"Got `{len(values)}` values for {self.num_envs} environments."
            )
        self._expect_idle("set_attr")
        self._send_call("set_attr", lambda a, b: (name, list(values[a:b])))
        self._answers(None)

    def _check_spaces(self) -> None:
        data = (self.observation_mode, self.single_observation_space, self.single_action_space)
        self._send_call("check_spaces", lambda _a, _b: data)
        same = [pair for part in self._answers(None) for pair in part]
        for index, (same_obs, same_action) in enumerate(same):
            if not same_obs:
                raise RuntimeError(self._other_observations(index))
            if not same_action:
                raise RuntimeError(
                    "Some environments have an action space different from "
                    f"`{self.single_action_space}`. In order to batch actions, the action spaces "
                    f"from all environments must be equal. Environment {index} differs."
                )

    def _other_observations(self, index: int) -> str:
        name = type(self).__name__
        if self.observation_mode == "same":
            return (
                f"{name}(..., observation_mode='same') however some of the sub-environments "
                "observation spaces are not equivalent. If this is intentional, use "
                f"`observation_mode='different'` instead. Environment {index} differs."
            )
        return (
            f"{name}(..., observation_mode='different' or custom space) however the "
            "sub-environment's observation spaces do not share a common shape and dtype. "
            f"Environment {index} differs."
        )

    # Signals and answers

    def _send_call(self, name: str, part: Callable[[int, int], tuple[Any, ...]]) -> None:
        """Send a call to every worker and group, each with its own part of the arguments."""
        for group, spans in enumerate(zip(*self._pool.spans, strict=True)):
            self._pool.send_call(name, [part(a, b) for a, b in spans], group)

    def _answers(self, timeout: float | None) -> list[Any]:
        """Return the answers of all groups and workers, in the order of the environments."""
        try:
            answers = [
                answer
                for group in range(self.num_groups)
                for answer in self._pool.collect(timeout, group)
            ]
        except multiprocessing.TimeoutError as error:  # the call is still pending
            raise multiprocessing.TimeoutError(
                f"The call to `{self._state.value}_wait` has timed out after {timeout} second(s). "
                f"Of the workers, {error}."
            ) from None
        except BaseException as error:
            self._state = AsyncState.DEFAULT
            if isinstance(error, EnvFailures):
                _log_failures(error.failures)
                _raise_with_cause(error.failures[-1])
            raise
        self._state = AsyncState.DEFAULT
        return answers

    def _gather(self, answers: list[Any]) -> dict[str, Any]:
        """Batch the infos; keep pickled observations."""
        infos: dict[str, Any] = {}
        self._travelled = []
        for message, observations in filter(None, answers):
            for index, info in message.items():
                infos = self._add_info(infos, info, index)
            self._travelled += observations or []
        return infos

    def _returned(self) -> Any:
        """Return the observations, as copies if the caller wants copies."""
        seen = self._reader.read(self._travelled)
        if not self.copy:
            return seen
        return seen.copy() if isinstance(seen, np.ndarray) else deepcopy(seen)

    def _add_final_obs(self, infos: dict[str, Any]) -> None:
        if self._obs_in_block:
            ended = self.rows.terminated | self.rows.truncated
            for index in np.flatnonzero(ended).tolist():
                self._add_info(infos, {"final_obs": self.rows.final_obs[index].copy()}, index)

    @property
    def supervised(self) -> bool:
        """Whether workers that fail are restarted."""
        return self._pool.budget is not None

    @property
    def num_restarts(self) -> int:
        """Restarts of workers so far."""
        budget = self._pool.budget
        return budget.count if budget else 0

    @property
    def restarts(self) -> Sequence[str]:
        """Why workers were restarted, in order; the newest thousand."""
        budget = self._pool.budget
        return list(budget.restarts) if budget else []

    # States

    def _expect_idle(self, call: str) -> None:
        self._assert_is_running()
        if self._state is not AsyncState.DEFAULT:
            raise AlreadyPendingCallError(
                f"Calling `{call}` while waiting for a pending call to "
                f"`{self._state.value}` to complete.",
                str(self._state.value),
            )

    def _expect(self, state: AsyncState, call: str) -> None:
        self._assert_is_running()
        if self._state is not state:
            raise NoAsyncCallError(
                f"Calling `{call}_wait` without any prior call to `{call}_async`.", state.value
            )

    def __del__(self) -> None:
        """Close what the caller did not, politely: environments may have started programs."""
        if not getattr(self, "closed", True) and hasattr(self, "_state"):
            self.close(quiet=True)

    def close_extras(
        self, timeout: float | None = None, terminate: bool = False, *, quiet: bool = False
    ) -> None:
        """End the workers.

        Args:
            timeout: Seconds until workers are killed; None is five.
            terminate: Kill them at once.
            quiet: Do not warn of a call that is still pending.
        """
        pending = self._state
        self._pool.close(0.0 if terminate else timeout)
        if pending is not AsyncState.DEFAULT and not quiet:
            logger.warn(
                f"Calling `close` while waiting for a pending call to `{pending.value}` to "
                "complete."
            )


def _raise_with_cause(failure: Failure) -> NoReturn:
    """Raise the exception of an environment, with its traceback as the cause."""
    report = WorkerError(str(failure))
    if failure.error is None:
        raise report from None
    raise failure.error from report


def _log_failures(failures: Sequence[Failure]) -> None:
    """Log what Gymnasium's class logs when environments raise in a step or a reset."""
    if not any(failure.ended and not failure.final for failure in failures):
        return
    for failure in failures:
        logger.error(f"Received the following error from Worker-{failure.env} - Shutting it down")
        logger.error(f"{failure.text}")
    logger.error("Raising the last exception back to the main process.")


def _are_int64(actions: gym.Space[Any]) -> bool:
    """Return whether actions are int64, for which Python's numbers act as NumPy's."""
    return isinstance(actions, Discrete) and actions.dtype == np.int64


def _refuse_signature(worker: Any) -> None:
    """Refuse a worker function with the wrong signature, as Gymnasium's class does."""
    try:
        inspect.signature(worker).bind(*(None,) * 8)
    except TypeError as error:
        raise ValueError(
            "A custom `worker` must accept 8 arguments. Got the signature "
            f"{inspect.signature(worker)} which should match {inspect.signature(_async_worker)}."
        ) from error


def _refuse(  # noqa: PLR0917 - called once, with names that are its own
    env_fns: Sequence[EnvFactory],
    worker: Any,
    num_workers: int | None,
    num_groups: int,
    max_concurrency: int | None,
    supervision: Supervision | None,
) -> None:
    if not env_fns:
        raise UsageError("env_fns []", "a vector needs an environment", "Pass one factory or more.")
    if worker is not None:
        _refuse_signature(worker)
        raise UsageError(
            "worker", "a foreign worker does not know the block", "Use gymnasium's own class."
        )
    if max_concurrency is not None and not isinstance(max_concurrency, int | np.integer):
        raise ValueError(
            f"`max_concurrency` must be an integer or None, got {type(max_concurrency)}."
        )
    if max_concurrency is not None and max_concurrency < 1:
        raise ValueError(f"`max_concurrency` must be a positive or None, got {max_concurrency}.")
    if num_workers is not None and num_workers < 0:
        raise UsageError(f"num_workers={num_workers}", "it is negative", "0 steps in this process.")
    if num_groups < 1 or len(env_fns) % num_groups:
        raise UsageError(
            f"--env-groups {num_groups}",
            f"{len(env_fns)} environments do not fall into that many equal groups",
            "Choose --num-envs as a multiple of it.",
        )
    if supervision is not None and max_concurrency is not None:
        raise UsageError(
            f"max_concurrency={max_concurrency} with supervision",
            "a worker that dies takes its permit along",
            "Choose fewer workers instead.",
        )
