"""An AsyncVectorEnv whose workers host several environments each and share one block of memory.

It is longer than most files: it answers every call of Gymnasium's class, each in a few lines that
belong side by side; processes and messages live in `pool`, the layout in `rows`.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.error import AlreadyPendingCallError, NoAsyncCallError
from gymnasium.vector import AsyncVectorEnv, AutoresetMode
from gymnasium.vector.async_vector_env import AsyncState
from gymnasium.vector.utils import batch_differing_spaces, batch_space

from fastdqn.device import available_cores
from fastdqn.envs.pool import PoolSettings, WorkerPool, read_payload
from fastdqn.envs.rows import Rows, RowSpec
from fastdqn.envs.worker import PAYLOAD
from fastdqn.errors import UsageError

__all__ = ["GroupedVectorEnv"]

EnvFactory = Callable[[], gym.Env[Any, Any]]


class GroupedVectorEnv(AsyncVectorEnv):
    """Gymnasium's AsyncVectorEnv with several environments per worker process.

    Actions, observations, rewards, both end flags and the sums of finished episodes lie in one
    shared block; a step costs one short message to each worker and one back. Infos are pickled
    only when an environment returns a non-empty one. The transitions are those of Gymnasium's
    own class, whatever the number of workers.

    Workers start as fresh interpreters that do not run the caller's script again, so that no
    thread and no CUDA context is forked and a script needs no `if __name__ == "__main__"`.

    Args:
        env_fns: Factories, one per environment; pickled by value with cloudpickle.
        shared_memory: Must be True: there is no slower way here.
        copy: Whether `reset` and `step` return copies of the observations. If False they return
            the shared block itself, which the next step overwrites.
        context: Start method (`spawn`, `forkserver`, `fork`); None is `spawn`.
        daemon: Whether workers end with the parent and may start no children of their own.
        worker: Must be None: a foreign worker does not know the block.
        observation_mode: As in Gymnasium: `same`, `different` or a pair of spaces.
        autoreset_mode: As in Gymnasium.
        max_concurrency: How many workers may run an environment at a time; None is all.
        num_workers: Processes; None is one per core, at most one per environment.
        send_infos: Whether the infos of the environments travel. The trainer turns them off.

    Attributes:
        rows: The shared block as numpy views; valid between `recv` and the next `send`.

    Raises:
        UsageError: An argument that cannot be honoured, or a space without a fixed shape.
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
        send_infos: bool = True,
    ) -> None:
        _refuse(env_fns, shared_memory, worker, num_workers, max_concurrency)
        self.env_fns = env_fns
        self.shared_memory, self.copy, self.worker = shared_memory, copy, None
        self.context, self.daemon = context, daemon
        self.observation_mode = observation_mode  # type: ignore[assignment]
        self.autoreset_mode = AutoresetMode(autoreset_mode)
        self.max_concurrency = max_concurrency
        self.num_envs = len(env_fns)
        self.num_workers = min(num_workers or available_cores(), self.num_envs)
        self.send_infos = send_infos
        self._read_spaces()
        self._start_workers(
            RowSpec.of_spaces(
                self.num_envs, self.single_observation_space, self.single_action_space
            )
        )

    def _read_spaces(self) -> None:
        """Build one environment here to learn its spaces and metadata, then close it."""
        env = self.env_fns[0]()
        self.metadata = {**env.metadata, "autoreset_mode": self.autoreset_mode}
        self.render_mode = env.render_mode
        self.single_action_space = env.action_space
        self.action_space = batch_space(env.action_space, self.num_envs)
        mode = self.observation_mode
        if isinstance(mode, tuple):
            self.observation_space, self.single_observation_space = mode
        elif mode == "same":
            self.single_observation_space = env.observation_space
            self.observation_space = batch_space(env.observation_space, self.num_envs)
        elif mode == "different":
            spaces = [_observation_space(env_fn) for env_fn in self.env_fns]
            self.single_observation_space = spaces[0]
            self.observation_space = batch_differing_spaces(spaces)
        else:
            raise ValueError(f"observation_mode {mode!r}: choose 'same', 'different' or two spaces")
        env.close()

    def _start_workers(self, spec: RowSpec) -> None:
        settings = PoolSettings(
            num_workers=self.num_workers,
            start_method=self.context or "spawn",
            daemon=self.daemon,
            autoreset_mode=self.autoreset_mode.value,
            send_infos=self.send_infos,
            max_concurrency=self.max_concurrency,
            name=type(self).__name__,
        )
        self._pool = WorkerPool(self.env_fns, spec, settings)
        self.rows: Rows = self._pool.rows
        self.observations = self.rows.obs
        self.parent_pipes, self.processes = self._pool.pipes, self._pool.processes
        self._state = AsyncState.DEFAULT
        try:
            self._check_spaces()
        except BaseException:
            self.close(terminate=True)
            raise

    # Stepping

    def step_async(self, actions: Any) -> None:
        """Write the actions into the block and wake the workers; returns at once."""
        self._expect_idle("step_async")
        actions = np.asarray(actions)
        if actions.shape != self.rows.action.shape:
            raise ValueError(
                f"actions of shape {actions.shape}: {self.num_envs} environments take "
                f"actions of shape {self.rows.action.shape}"
            )
        self.send(actions)

    def step_wait(self, timeout: float | None = None) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Wait for the step and return what Gymnasium's class returns.

        Raises:
            multiprocessing.TimeoutError: `timeout` seconds passed. The step stays pending: call
                again, or close.
        """
        self._expect(AsyncState.WAITING_STEP, "step")
        infos = self._gather_infos(self.recv(timeout))
        if self.autoreset_mode is AutoresetMode.SAME_STEP:
            self._add_final_obs(infos)
        rows = self.rows
        return (
            self._observations(),
            rows.reward.copy(),
            rows.terminated.copy(),
            rows.truncated.copy(),
            infos,
        )

    def send(self, actions: np.ndarray[Any, Any]) -> None:
        """Hot path of `step_async`: no checks; the block is the workers' until `recv` returns.

        Args:
            actions: [N, *A] in the dtype of the action space; copied into the block.
        """
        np.copyto(self.rows.action, actions)
        self._pool.send_step()
        self._state = AsyncState.WAITING_STEP

    def recv(self, timeout: float | None = None) -> list[bytes]:
        """Hot path of `step_wait`: wait until `rows` holds the step; builds no info.

        Raises:
            multiprocessing.TimeoutError: `timeout` seconds passed; the call may be repeated.
            WorkerError: A worker died.
            Exception: Whatever an environment raised, with its traceback as the cause.
        """
        try:
            answers = self._pool.collect(timeout)
        except multiprocessing.TimeoutError:
            raise  # still pending
        except Exception:
            self._state = AsyncState.DEFAULT
            raise
        self._state = AsyncState.DEFAULT
        return answers

    # Resetting

    def reset_async(
        self,
        seed: int | list[int | None] | None = None,
        options: dict[str, Any] | None = None,
    ) -> None:
        """Ask the workers to reset; `options["reset_mask"]` chooses environments."""
        self._expect_idle("reset_async")
        seeds = self._seed_list(seed)
        options = dict(options) if options is not None else None
        mask = self._reset_mask(options)
        parts = [(seeds[a:b], options, mask[a:b]) for a, b in self._pool.ranges]
        self._pool.tell("reset", parts)
        self._state = AsyncState.WAITING_RESET

    def reset_wait(self, timeout: float | None = None) -> tuple[Any, dict[str, Any]]:
        """Wait for the reset and return observations and infos."""
        self._expect(AsyncState.WAITING_RESET, "reset")
        infos = self._gather_infos(self.recv(timeout))
        self.rows.real[:] = True
        return self._observations(), infos

    def _seed_list(self, seed: int | list[int | None] | None) -> list[int | None]:
        if seed is None:
            return [None] * self.num_envs
        if isinstance(seed, int):
            return [seed + i for i in range(self.num_envs)]
        if len(seed) != self.num_envs:
            raise ValueError(f"{len(seed)} seeds for {self.num_envs} environments")
        return list(seed)

    def _reset_mask(self, options: dict[str, Any] | None) -> list[bool]:
        if options is None or "reset_mask" not in options:
            return [True] * self.num_envs
        mask = options.pop("reset_mask")
        if not isinstance(mask, np.ndarray) or mask.dtype != np.bool_:
            raise TypeError(f"options['reset_mask'] must be a numpy bool array, got {mask!r}")
        if mask.shape != (self.num_envs,) or not mask.any():
            raise ValueError(
                f"options['reset_mask'] must have shape ({self.num_envs},) and a True, got {mask}"
            )
        return [bool(chosen) for chosen in mask]

    # Calling into the environments

    def call_async(self, name: str, /, *args: Any, **kwargs: Any) -> None:
        """Ask every environment for a method's result or an attribute."""
        self._expect_idle("call_async")
        self._pool.tell("call", [(name, args, kwargs)] * self.num_workers)
        self._state = AsyncState.WAITING_CALL

    def call_wait(self, timeout: float | None = None) -> tuple[Any, ...]:
        """Return the results, one per environment."""
        self._expect(AsyncState.WAITING_CALL, "call")
        answers = self.recv(timeout)
        return tuple(result for answer in answers for result in read_payload(answer))

    def set_attr(self, name: str, values: Any) -> None:
        """Set an attribute: a list or tuple gives one value per environment."""
        self._expect_idle("set_attr")
        if not isinstance(values, list | tuple):
            values = [values] * self.num_envs
        if len(values) != self.num_envs:
            raise ValueError(f"{len(values)} values for {self.num_envs} environments")
        self._pool.ask("set_attr", [(name, list(values[a:b])) for a, b in self._pool.ranges])

    def _check_spaces(self) -> None:
        data = (self.observation_mode, self.single_observation_space, self.single_action_space)
        answers = self._pool.ask("check_spaces", [data] * self.num_workers)
        for index, (same_obs, same_action) in enumerate(pair for part in answers for pair in part):
            if not (same_obs and same_action):
                which = "action" if same_obs else "observation"
                raise RuntimeError(
                    f"environment {index} has another {which} space than environment 0: "
                    "all environments of a vector must share both"
                )

    # States and results

    def _expect_idle(self, call: str) -> None:
        self._assert_is_running()
        if self._state is not AsyncState.DEFAULT:
            raise AlreadyPendingCallError(
                f"{call} while a call to {self._state.value} is pending", str(self._state.value)
            )

    def _expect(self, state: AsyncState, call: str) -> None:
        self._assert_is_running()
        if self._state is not state:
            raise NoAsyncCallError(f"{call}_wait without {call}_async before it", state.value)

    def _observations(self) -> Any:
        return self.rows.obs.copy() if self.copy else self.rows.obs

    def _gather_infos(self, answers: list[bytes]) -> dict[str, Any]:
        infos: dict[str, Any] = {}
        for answer in answers:
            if answer[:1] == PAYLOAD:
                for index, info in read_payload(answer).items():
                    infos = self._add_info(infos, info, index)
        return infos

    def _add_final_obs(self, infos: dict[str, Any]) -> None:
        ended = self.rows.terminated | self.rows.truncated
        for index in np.flatnonzero(ended).tolist():
            self._add_info(infos, {"final_obs": self.rows.final_obs[index].copy()}, index)

    # Closing

    def close_extras(self, timeout: float | None = None, terminate: bool = False) -> None:
        """End the workers: politely, or by force after `timeout` seconds or on `terminate`."""
        self._pool.close(0.0 if terminate else timeout)


def _observation_space(env_fn: EnvFactory) -> gym.Space[Any]:
    env = env_fn()
    env.close()
    return env.observation_space


def _refuse(
    env_fns: Sequence[EnvFactory],
    shared_memory: bool,
    worker: Any,
    num_workers: int | None,
    max_concurrency: int | None,
) -> None:
    if not env_fns:
        raise UsageError("env_fns []", "a vector needs an environment", "Pass one factory or more.")
    if not shared_memory:
        raise UsageError(
            "shared_memory=False", "the block is the only way here", "Use gymnasium's own class."
        )
    if worker is not None:
        raise UsageError(
            "worker", "a foreign worker does not know the block", "Use gymnasium's own class."
        )
    for name, value in (("num_workers", num_workers), ("max_concurrency", max_concurrency)):
        if value is not None and value < 1:
            raise UsageError(f"{name}={value}", "it must be at least 1", "Leave it out for all.")
