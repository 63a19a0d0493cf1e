"""An AsyncVectorEnv whose workers host several environments each and share one block of memory."""

from __future__ import annotations

import multiprocessing
import pickle
import select
import signal
import sys
import time
import types
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import cloudpickle
import gymnasium as gym
import numpy as np
from gymnasium.error import AlreadyPendingCallError, NoAsyncCallError
from gymnasium.spaces import Box, Discrete, MultiBinary, MultiDiscrete
from gymnasium.vector import AsyncVectorEnv, AutoresetMode
from gymnasium.vector.async_vector_env import AsyncState
from gymnasium.vector.utils import batch_differing_spaces, batch_space

from fastdqn.device import available_cores
from fastdqn.envs.rows import Rows, RowSpec
from fastdqn.envs.worker import CLOSE, FAILED, PAYLOAD, STEP, Failure, Task, run_worker
from fastdqn.errors import UsageError, WorkerError

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

__all__ = ["GroupedVectorEnv", "row_spec", "without_main_module"]

EnvFactory = Callable[[], gym.Env[Any, Any]]
CLOSE_TIMEOUT_S = 5.0


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

    def __init__(
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
        self._spec = row_spec(
            self.num_envs, self.single_observation_space, self.single_action_space
        )
        self._start_workers()

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
            spaces = [env_fn().observation_space for env_fn in self.env_fns]
            self.single_observation_space = spaces[0]
            self.observation_space = batch_differing_spaces(spaces)
        else:
            raise ValueError(f"observation_mode {mode!r}: choose 'same', 'different' or two spaces")
        env.close()

    def _start_workers(self) -> None:
        context: Any = multiprocessing.get_context(self.context or "spawn")
        block = context.RawArray("B", self._spec.nbytes)
        self.rows = Rows.over(block, self._spec)
        self.rows.real[:] = True
        self.observations = self.rows.obs
        self.parent_pipes: list[Connection] = []
        self.processes = []
        self._state = AsyncState.DEFAULT
        self._answers: dict[int, bytes] = {}
        bounds = np.linspace(0, self.num_envs, self.num_workers + 1).astype(int).tolist()
        self._ranges = list(zip(bounds[:-1], bounds[1:], strict=True))
        permits = self.max_concurrency
        semaphore = context.BoundedSemaphore(permits) if permits else None
        with without_main_module():
            for start, stop in self._ranges:
                self._start_worker(context, block, start, stop, semaphore)
        self._pollers = [_poller(pipe) for pipe in self.parent_pipes]
        try:
            self._ask_all("make", [()] * self.num_workers)
            self._check_spaces()
        except BaseException:
            self.close(terminate=True)
            raise

    def _start_worker(
        self, context: Any, block: Any, start: int, stop: int, semaphore: Any
    ) -> None:
        ours, theirs = context.Pipe()
        factories = cloudpickle.dumps(list(self.env_fns[start:stop]))
        mode = self.autoreset_mode.value
        task = Task(start, factories, self._spec, mode, self.send_infos, semaphore)
        forked = context.get_start_method() == "fork"
        inherited = [*self.parent_pipes, ours] if forked else []
        process = context.Process(
            target=run_worker,
            args=(theirs, block, task, inherited),
            name=f"Worker<{type(self).__name__}>-{start}..{stop - 1}",
            daemon=self.daemon,
        )
        process.start()
        theirs.close()
        self.parent_pipes.append(ours)
        self.processes.append(process)

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
            TimeoutError: `timeout` seconds passed. The step stays pending: call again, or close.
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
        for index, pipe in enumerate(self.parent_pipes):
            try:
                pipe.send_bytes(STEP)
            except OSError as error:
                raise self._dead(index) from error
        self._state = AsyncState.WAITING_STEP

    def recv(self, timeout: float | None = None) -> list[bytes]:
        """Hot path of `step_wait`: wait until `rows` holds the step; builds no info.

        Raises:
            TimeoutError: `timeout` seconds passed; the call may be repeated.
            WorkerError: A worker died.
            Exception: Whatever an environment raised, with its traceback as the cause.
        """
        answers = self._collect(timeout)
        self._state = AsyncState.DEFAULT
        for index, answer in enumerate(answers):
            if answer[:1] == FAILED:
                self._raise_failure(index, answer)
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
        parts = [(seeds[a:b], options, mask[a:b]) for a, b in self._ranges]
        self._tell_all("reset", parts)
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
        self._tell_all("call", [(name, args, kwargs)] * self.num_workers)
        self._state = AsyncState.WAITING_CALL

    def call_wait(self, timeout: float | None = None) -> tuple[Any, ...]:
        """Return the results, one per environment."""
        self._expect(AsyncState.WAITING_CALL, "call")
        answers = self.recv(timeout)
        return tuple(result for answer in answers for result in _payload(answer))

    def set_attr(self, name: str, values: Any) -> None:
        """Set an attribute: a list or tuple gives one value per environment."""
        self._expect_idle("set_attr")
        if not isinstance(values, list | tuple):
            values = [values] * self.num_envs
        if len(values) != self.num_envs:
            raise ValueError(f"{len(values)} values for {self.num_envs} environments")
        self._ask_all("set_attr", [(name, list(values[a:b])) for a, b in self._ranges])

    def _check_spaces(self) -> None:
        data = (self.observation_mode, self.single_observation_space, self.single_action_space)
        answers = self._ask_all("check_spaces", [data] * self.num_workers)
        for index, (same_obs, same_action) in enumerate(pair for part in answers for pair in part):
            if not (same_obs and same_action):
                which = "action" if same_obs else "observation"
                raise RuntimeError(
                    f"environment {index} has another {which} space than environment 0: "
                    "all environments of a vector must share both"
                )

    # Messages

    def _tell_all(self, name: str, data: Sequence[tuple[Any, ...]]) -> None:
        for index, (pipe, part) in enumerate(zip(self.parent_pipes, data, strict=True)):
            try:
                pipe.send_bytes(cloudpickle.dumps((name, part)))
            except OSError as error:
                raise self._dead(index) from error

    def _ask_all(self, name: str, data: Sequence[tuple[Any, ...]]) -> list[Any]:
        self._tell_all(name, data)
        return [_payload(answer) for answer in self.recv()]

    def _collect(self, timeout: float | None) -> list[bytes]:
        """Wait for one answer of each worker; those that came before a timeout are kept."""
        deadline = None if timeout is None else time.monotonic() + timeout
        for index, pipe in enumerate(self.parent_pipes):
            if index in self._answers:
                continue
            if deadline is not None and not self._readable(index, deadline):
                raise multiprocessing.TimeoutError(
                    f"worker {index} (environments {self._span(index)}) has not answered "
                    f"within {timeout} s"
                )
            try:
                self._answers[index] = pipe.recv_bytes()
            except (EOFError, OSError) as error:
                raise self._dead(index) from error
        answers = [self._answers[i] for i in range(self.num_workers)]
        self._answers.clear()
        return answers

    def _readable(self, index: int, deadline: float) -> bool:
        remaining_ms = max(0.0, deadline - time.monotonic()) * 1000
        return bool(self._pollers[index].poll(remaining_ms))

    def _raise_failure(self, index: int, answer: bytes) -> None:
        failure: Failure = pickle.loads(answer[1:])  # noqa: S301 - written by our own worker
        report = WorkerError(
            f"environment {failure.env} (worker {index}) raised:\n{failure.text.rstrip()}"
        )
        if failure.error is None:
            raise report
        raise failure.error from report

    def _dead(self, index: int) -> WorkerError:
        process = self.processes[index]
        process.join(1.0)
        code = process.exitcode
        how = "is not answering" if code is None else f"ended with {_describe_exit(code)}"
        return WorkerError(
            f"worker {index} (pid {process.pid}, environments {self._span(index)}) {how}"
        )

    def _span(self, index: int) -> str:
        start, stop = self._ranges[index]
        return f"{start} to {stop - 1}"

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
                for index, info in _payload(answer).items():
                    infos = self._add_info(infos, info, index)
        return infos

    def _add_final_obs(self, infos: dict[str, Any]) -> None:
        ended = self.rows.terminated | self.rows.truncated
        for index in np.flatnonzero(ended).tolist():
            self._add_info(infos, {"final_obs": self.rows.final_obs[index].copy()}, index)

    # Closing

    def close_extras(self, timeout: float | None = None, terminate: bool = False) -> None:
        """End the workers: politely, or by force after `timeout` seconds or on `terminate`."""
        polite = 0.0 if terminate else CLOSE_TIMEOUT_S if timeout is None else timeout
        if polite:
            self._say_close()
        for process in self.processes:
            process.join(polite)
            if process.is_alive():
                process.kill()
                process.join()
            process.close()
        for pipe in self.parent_pipes:
            pipe.close()

    def _say_close(self) -> None:
        for pipe in self.parent_pipes:
            try:
                pipe.send_bytes(CLOSE)
            except OSError:
                continue  # that worker has gone already


def row_spec(num_envs: int, obs: gym.Space[Any], action: gym.Space[Any]) -> RowSpec:
    """Return the layout of the rows for these single-environment spaces.

    Raises:
        UsageError: A space has no fixed shape and numeric dtype.
    """
    fixed = (Box, Discrete, MultiBinary, MultiDiscrete)
    for name, space in (("observation", obs), ("action", action)):
        if not isinstance(space, fixed):
            raise UsageError(
                f"{name} space {space}",
                "the shared block takes arrays of one fixed shape and dtype",
                "Wrap the environment (gymnasium.wrappers.FlattenObservation) "
                "or use Gymnasium's own AsyncVectorEnv.",
            )
    return RowSpec(
        num_envs,
        tuple(obs.shape or ()),
        np.dtype(obs.dtype).name,
        tuple(action.shape or ()),
        np.dtype(action.dtype).name,
    )


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


@contextmanager
def without_main_module() -> Iterator[None]:
    """Hide the caller's script from multiprocessing, which would run it again in each worker."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def _poller(pipe: Connection) -> select.poll:
    poller = select.poll()
    poller.register(pipe, select.POLLIN)
    return poller


def _payload(answer: bytes) -> Any:
    return pickle.loads(answer[1:])  # noqa: S301 - written by our own worker


def _describe_exit(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    hint = ", often out of memory" if -code == signal.SIGKILL else ""
    return f"{signal.Signals(-code).name}{hint}"
