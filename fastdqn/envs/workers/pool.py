"""Worker processes over one shared block, and the signals between them and their parent.

Where environments form groups that step in turn (double buffering), every worker hosts some of
each group, and serves the signals in the order in which they come.
"""

from __future__ import annotations

import math
import multiprocessing
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import cloudpickle
import gymnasium as gym
import numpy as np

from fastdqn.envs.specs.registrations import packed_registry
from fastdqn.envs.workers.at_exit import closed_at_exit
from fastdqn.envs.workers.failures import EnvFailures
from fastdqn.envs.workers.process import LOOK_INTERVAL_S, WorkerProcess
from fastdqn.envs.workers.shared_block import RowSpec, SharedBlock
from fastdqn.envs.workers.spawning import parent_pid, signals_blocked, without_main_module
from fastdqn.envs.workers.system_limits import (
    refuse_unless_openable,
    refuse_unless_parent,
    refuse_unless_shareable,
)
from fastdqn.envs.workers.task import Task
from fastdqn.envs.workers.worker import CALL, DONE, WorkerSetup, new_wire, run_worker

__all__ = ["PoolSettings", "WorkerPool"]

CLOSE_TIMEOUT_S = 5.0
EnvFactory = Callable[[], gym.Env[Any, Any]]


@dataclass(frozen=True)
class PoolSettings:
    """How the environments are dealt out and stepped.

    Attributes:
        num_workers: Processes, at most one per environment of a group.
        caller_envs: Environments of each group, the last ones, that the caller's process hosts.
        num_groups: Groups of environments, each stepped by signals of its own.
        autoreset_mode: Value of a Gymnasium AutoresetMode.
        send_infos: Whether infos are sent to the caller.
        start_method: `spawn`, `forkserver` or `fork`.
        daemon: Whether workers end with the parent and may start no children of their own.
        max_concurrency: How many may run an environment at a time; None is all.
        obs_space: Space of an observation that does not lie in the block, or None.
        shared_obs: Gymnasium's shared memory for such observations; None pickles them.
        plain_actions: See `Task`.
        refuse_masks: See `Task`.
        spin_s: Seconds to stay awake for a signal; 0 goes to sleep at once.
        name: Prefix of the process names.
    """

    num_workers: int
    caller_envs: int = 0
    num_groups: int = 1
    autoreset_mode: str = "SameStep"
    send_infos: bool = False
    start_method: str = "spawn"
    daemon: bool = True
    max_concurrency: int | None = None
    obs_space: gym.Space[Any] | None = None
    shared_obs: Any = None
    plain_actions: bool = False
    refuse_masks: bool = False
    spin_s: float = 0.0
    name: str = "Workers"

    def spans(self, num_envs: int) -> list[list[tuple[int, int]]]:
        """Return (first, last + 1) environment by share and group, in order.

        Workers have even shares; the caller's is the last one, where it takes one.
        """
        edges = []
        for first, last in pairwise(range(0, num_envs + 1, num_envs // self.num_groups)):
            own = last - self.caller_envs
            even = np.linspace(first, own, self.num_workers + 1).astype(int).tolist()
            edges.append([*even, last] if self.caller_envs else even)
        return [list(spans) for spans in zip(*map(pairwise, edges), strict=True)]

    def task(self, span: tuple[int, int], spec: RowSpec) -> Task:
        """Return what the host of these environments is to do."""
        first, stop = span
        mode, infos = self.autoreset_mode, self.send_infos
        flags = self.plain_actions, self.refuse_masks
        return Task(first, stop - first, spec, mode, infos, self.obs_space, *flags)


class WorkerPool:
    """Worker processes, each hosting some environments of every group.

    Args:
        env_fns: Factories, one per environment; pickled by value.
        spec: Layout of the shared block.
        settings: How the environments are dealt out.

    Attributes:
        workers: The processes.
        rows: The shared block; a group's columns are the workers' between `send_step` and
            `collect`.
        spans: (first, last + 1) environment by worker and group.

    Raises:
        UsageError: More files or shared memory than this process may have.
        WorkerError: A worker died while it built its environments.
        EnvFailures: A factory raised.
    """

    budget: Any = None  # no worker is restarted here
    restarted: Any = None

    def __init__(
        self, env_fns: Sequence[EnvFactory], spec: RowSpec, settings: PoolSettings
    ) -> None:
        refuse_unless_parent(f"num_workers={settings.num_workers}", "Use num_workers=0.")
        refuse_unless_openable(settings.num_workers)
        refuse_unless_shareable(spec.nbytes, spec.num_envs)
        self._context: Any = multiprocessing.get_context(settings.start_method)
        self.env_fns, self.spec, self.settings = env_fns, spec, settings
        self._block = self._context.RawArray("B", spec.nbytes)
        self.rows = SharedBlock.over(memoryview(self._block), spec)
        self.rows.real[:] = True
        self.spans = settings.spans(len(env_fns))[: settings.num_workers]
        permits = settings.max_concurrency
        self.semaphore = self._context.BoundedSemaphore(permits) if permits else None
        self.workers: list[WorkerProcess] = []
        self._answers: dict[int, Any] = {}
        self._at_exit = closed_at_exit(self)
        self._registry = b"" if settings.start_method == "fork" else packed_registry()
        try:
            for index in range(settings.num_workers):
                self.workers.append(self._start(index))
            for group in range(settings.num_groups):
                self.call("make", [()] * settings.num_workers, group)
        except BaseException:
            self.close(None)  # other environments may have started programs
            raise

    def _start(self, index: int) -> WorkerProcess:
        """Start the process of worker `index`; its environments are not built yet."""
        settings, spans = self.settings, self.spans[index]
        work = WorkerSetup(
            [settings.task(span, self.spec) for span in spans],
            cloudpickle.dumps([list(self.env_fns[a:b]) for a, b in spans]),
            self._block,
            settings.shared_obs,
            self.semaphore,
            parent_pid(settings.start_method),
            settings.spin_s,
            self._registry,
        )
        (ours, theirs), forked = new_wire(self._context), settings.start_method == "fork"
        process = self._context.Process(
            target=run_worker,
            args=(theirs, work, [*(w.wire for w in self.workers), ours] if forked else []),
            name=f"Worker<{settings.name}>-{spans[0][0]}..{spans[-1][1] - 1}",
            daemon=settings.daemon,
        )
        try:
            with without_main_module(), signals_blocked():
                process.start()
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        return WorkerProcess(index, spans, process, ours, settings.spin_s)

    # Messages

    def send_step(self, group: int = 0) -> None:
        """Wake every worker for one step of a group; hot path."""
        signal_ = bytes((group,))
        for worker in self.workers:
            try:
                worker.signal(signal_)
            except OSError as error:
                raise worker.exit_error() from error

    def send_call(self, name: str, arguments: Sequence[tuple[Any, ...]], group: int = 0) -> None:
        """Send each worker its arguments of a call; `collect` returns the answers.

        All arguments are pickled before the first is sent: a call is made everywhere or nowhere.
        """
        messages = [self.packed(name, group, part) for part in arguments]
        for worker, message in zip(self.workers, messages, strict=True):
            worker.send(CALL, message)

    @staticmethod
    def packed(name: str, group: int, arguments: tuple[Any, ...]) -> bytes:
        """Return a call, pickled."""
        message: bytes = cloudpickle.dumps((name, group, arguments))
        return message

    def call(self, name: str, arguments: Sequence[tuple[Any, ...]], group: int = 0) -> list[Any]:
        """Send each worker its arguments of a call and return the answers."""
        self.send_call(name, arguments, group)
        return self.collect(None, group)

    def collect(self, timeout: float | None, group: int = 0) -> list[Any]:  # noqa: ARG002
        """Wait for one answer of each worker; hot path.

        Answers that came before a timeout are returned by the next call, so that a late one is
        never taken for the answer to a later message.

        Args:
            timeout: Seconds, or None.
            group: The group whose answers are due next; workers answer in the order of the signals.

        Returns:
            The answer of each worker: None or an object.

        Raises:
            TimeoutError: `timeout` seconds passed.
            WorkerError: A worker died.
            EnvFailures: Environments raised.
        """
        deadline = math.inf if timeout is None else time.monotonic() + timeout
        for worker in self.workers:
            if worker.index not in self._answers:
                self._answers[worker.index] = self._answer_of(worker, deadline, timeout)
        answers = [self._answers[index] for index in range(len(self.workers))]
        self._answers.clear()
        if any(answers):
            failures = [f for a in answers if isinstance(a, EnvFailures) for f in a.failures]
            if failures:
                raise EnvFailures(failures)
        return answers

    def _answer_of(self, worker: WorkerProcess, deadline: float, timeout: float | None) -> Any:
        received = (
            b"" if timeout is not None and timeout < LOOK_INTERVAL_S else worker.next_signal()
        )
        if received == DONE:
            return None
        if not received and not self._waited_for(worker, deadline):
            raise multiprocessing.TimeoutError(f"{worker} has not answered within {timeout:g} s")
        try:
            return worker.receive(received)
        except EnvFailures as failures:
            return failures

    def _waited_for(self, worker: WorkerProcess, deadline: float) -> bool:
        """Wait for a worker's answer; check now and then whether another worker has died.

        The dead one may hold the permit that this one waits for.
        """
        while True:
            remaining_s = max(0.0, deadline - time.monotonic())
            if worker.answered(min(remaining_s, LOOK_INTERVAL_S)):
                return True
            for other in self.workers:
                if not other.process.is_alive():
                    raise other.exit_error()
            if remaining_s <= LOOK_INTERVAL_S:
                return False

    def close(self, timeout: float | None) -> None:
        """Ask the workers to end within `timeout` seconds (None is five), then kill them."""
        polite = CLOSE_TIMEOUT_S if timeout is None else timeout
        if polite:
            for worker in self.workers:
                worker.request_close()
        deadline = time.monotonic() + polite
        for worker in self.workers:
            worker.end(max(0.0, deadline - time.monotonic()))
        self._at_exit.cancel()
