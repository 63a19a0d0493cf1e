"""The pool: worker processes over one shared block, and the messages that pass between."""

from __future__ import annotations

import math
import multiprocessing
import pickle
import select
import signal
import sys
import time
import types
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from typing import Any

import cloudpickle
import gymnasium as gym
import numpy as np

from fastdqn.envs.rows import Rows, RowSpec
from fastdqn.envs.worker import CLOSE, FAILED, STEP, Failure, Task, run_worker
from fastdqn.errors import WorkerError

__all__ = ["PoolSettings", "WorkerPool", "read_payload", "without_main_module"]

CLOSE_TIMEOUT_S = 5.0
LOOK_INTERVAL_S = 1.0


@dataclass(frozen=True)
class PoolSettings:
    """How the workers run.

    Attributes:
        num_workers: Processes.
        start_method: `spawn`, `forkserver` or `fork`.
        daemon: Whether they end with the parent and may start no children of their own.
        autoreset_mode: Value of a Gymnasium AutoresetMode.
        send_infos: Whether the infos of the environments travel.
        max_concurrency: How many workers may run an environment at a time; None is all.
        name: Prefix of the process names.
    """

    num_workers: int
    start_method: str
    daemon: bool
    autoreset_mode: str
    send_infos: bool
    max_concurrency: int | None
    name: str


class WorkerPool:
    """Worker processes, each hosting a range of the environments.

    Args:
        env_fns: Factories, one per environment; pickled by value.
        spec: Layout of the shared block.
        settings: How the workers run.

    Attributes:
        rows: The shared block; the workers' between `send_step` and `collect`.
        ranges: (first, last + 1) environment of each worker.

    Raises:
        WorkerError: A worker died while it built its environments.
        Exception: Whatever a factory raised.
    """

    def __init__(
        self,
        env_fns: Sequence[Callable[[], gym.Env[Any, Any]]],
        spec: RowSpec,
        settings: PoolSettings,
    ) -> None:
        context: Any = multiprocessing.get_context(settings.start_method)
        self._settings = settings
        self._block = context.RawArray("B", spec.nbytes)
        self.rows = Rows.over(memoryview(self._block), spec)
        self.rows.real[:] = True
        bounds = np.linspace(0, len(env_fns), settings.num_workers + 1).astype(int).tolist()
        self.ranges = list(pairwise(bounds))
        self.pipes: list[Connection] = []
        self.processes: list[Any] = []
        self._answers: dict[int, bytes] = {}
        permits = settings.max_concurrency
        self._semaphore = context.BoundedSemaphore(permits) if permits else None
        self._pollers: list[select.poll] = []
        try:
            with without_main_module():
                for start, stop in self.ranges:
                    self._start(context, spec, start, env_fns[start:stop])
            self.ask("make", [()] * settings.num_workers)
        except BaseException:
            self.close(0.0)
            raise

    def _start(
        self,
        context: Any,
        spec: RowSpec,
        first_env: int,
        env_fns: Sequence[Callable[[], gym.Env[Any, Any]]],
    ) -> None:
        settings = self._settings
        ours, theirs = context.Pipe()
        task = Task(
            first_env,
            cloudpickle.dumps(list(env_fns)),
            spec,
            settings.autoreset_mode,
            settings.send_infos,
            self._semaphore,
        )
        forked = settings.start_method == "fork"
        process = context.Process(
            target=run_worker,
            args=(theirs, self._block, task, [*self.pipes, ours] if forked else []),
            name=f"Worker<{settings.name}>-{first_env}..{first_env + len(env_fns) - 1}",
            daemon=settings.daemon,
        )
        with _interrupts_held():
            process.start()
        theirs.close()
        self.pipes.append(ours)
        self.processes.append(process)
        self._pollers.append(_poller(ours))

    # Messages

    def send_step(self) -> None:
        """Wake every worker for one step; hot path."""
        for index, pipe in enumerate(self.pipes):
            try:
                pipe.send_bytes(STEP)
            except OSError as error:
                raise self._dead(index) from error

    def tell(self, name: str, data: Sequence[tuple[Any, ...]]) -> None:
        """Send each worker its own arguments for a call; `collect` brings the answers.

        All arguments are pickled before the first is sent: a call is made everywhere or nowhere.
        """
        messages = [cloudpickle.dumps((name, part)) for part in data]
        for index, (pipe, message) in enumerate(zip(self.pipes, messages, strict=True)):
            try:
                pipe.send_bytes(message)
            except OSError as error:
                raise self._dead(index) from error

    def ask(self, name: str, data: Sequence[tuple[Any, ...]]) -> list[Any]:
        """Send each worker its own arguments and return what the workers return."""
        self.tell(name, data)
        return [read_payload(answer) for answer in self.collect(None)]

    def collect(self, timeout: float | None) -> list[bytes]:
        """Wait for one answer of each worker; hot path.

        Answers that came before a timeout are kept for the next call, so that a late one is
        never taken for the answer to a later message.

        Raises:
            TimeoutError: `timeout` seconds passed.
            WorkerError: A worker died.
            Exception: Whatever an environment raised, its traceback in the cause.
        """
        deadline = math.inf if timeout is None else time.monotonic() + timeout
        for index, pipe in enumerate(self.pipes):
            if index in self._answers:
                continue
            if not self._readable(index, deadline):
                raise multiprocessing.TimeoutError(
                    f"worker {index} (environments {self._span(index)}) has not answered "
                    f"within {timeout} s"
                )
            try:
                self._answers[index] = pipe.recv_bytes()
            except (EOFError, OSError) as error:
                raise self._dead(index) from error
        answers = [self._answers[index] for index in range(len(self.pipes))]
        self._answers.clear()
        for index, answer in enumerate(answers):
            if answer[:1] == FAILED:
                _raise_failure(index, answer)
        return answers

    def _readable(self, index: int, deadline: float) -> bool:
        """Wait until worker `index` answers; look now and then whether another one has died.

        The dead one may hold the permit that this one waits for.
        """
        while True:
            remaining_s = max(0.0, deadline - time.monotonic())
            if self._pollers[index].poll(min(remaining_s, LOOK_INTERVAL_S) * 1000):
                return True
            self._refuse_dead()
            if remaining_s <= LOOK_INTERVAL_S:
                return False

    def _refuse_dead(self) -> None:
        for index, process in enumerate(self.processes):
            if not process.is_alive():
                raise self._dead(index)

    def _dead(self, index: int) -> WorkerError:
        process = self.processes[index]
        process.join(1.0)
        code = process.exitcode
        how = "does not answer" if code is None else f"ended with {_describe_exit(code)}"
        return WorkerError(
            f"worker {index} (pid {process.pid}, environments {self._span(index)}) {how}"
        )

    def _span(self, index: int) -> str:
        start, stop = self.ranges[index]
        return f"{start} to {stop - 1}"

    def close(self, timeout: float | None) -> None:
        """End the workers: politely within `timeout` seconds (None is five), then by force."""
        polite = CLOSE_TIMEOUT_S if timeout is None else timeout
        if polite:
            self._say_close()
        deadline = time.monotonic() + polite
        for process in self.processes:
            process.join(max(0.0, deadline - time.monotonic()))
            if process.is_alive():
                process.kill()
                process.join()
            process.close()
        for pipe in self.pipes:
            pipe.close()

    def _say_close(self) -> None:
        for pipe in self.pipes:
            try:
                pipe.send_bytes(CLOSE)
            except OSError:
                continue  # that worker has gone already


@contextmanager
def without_main_module() -> Iterator[None]:
    """Hide the caller's script from multiprocessing, which would run it again in each worker."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """Start a worker deaf to Ctrl-C: it is the parent's business, from its first line on."""
    resource_tracker.ensure_running()  # lifts the block when it starts by itself
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def read_payload(answer: bytes) -> Any:
    """Return what a worker pickled behind the first byte of its answer."""
    return pickle.loads(answer[1:])  # noqa: S301 - written by our own worker


def _poller(pipe: Connection) -> select.poll:
    poller = select.poll()
    poller.register(pipe, select.POLLIN)
    return poller


def _raise_failure(index: int, answer: bytes) -> None:
    failure: Failure = read_payload(answer)
    report = WorkerError(
        f"environment {failure.env} (worker {index}) raised:\n{failure.text.rstrip()}"
    )
    if failure.error is None:
        raise report
    raise failure.error from report


def _describe_exit(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    hint = ", often out of memory" if -code == signal.SIGKILL else ""
    return f"{signal.Signals(-code).name}{hint}"
