"""Worker processes over one shared block, and the signals between them and their parent.

Where environments form groups that step in turn (double buffering), every worker hosts some of
each group, and serves the signals in the order in which they come.
"""

from __future__ import annotations

import contextlib
import math
import multiprocessing
import time
import weakref
from abc import ABC, abstractmethod
from collections.abc import Sequence
from multiprocessing.util import Finalize
from typing import Any

import cloudpickle
import numpy as np

from fastdqn.envs.specs.registrations import packed_registry
from fastdqn.envs.workers.failures import EnvFailures, raise_failures
from fastdqn.envs.workers.open_episodes import EpisodeLog
from fastdqn.envs.workers.process import (
    LOOK_INTERVAL_S,
    WorkerProcess,
    parent_pid,
    signals_blocked,
    without_main_module,
)
from fastdqn.envs.workers.settings import EnvFactory, PoolSettings
from fastdqn.envs.workers.shared_block import SharedBlock
from fastdqn.envs.workers.supervision import RestartBudget
from fastdqn.envs.workers.system_limits import (
    refuse_unless_openable,
    refuse_unless_parent,
    refuse_unless_shareable,
)
from fastdqn.envs.workers.worker import CALL, DONE, new_wire, run_worker

__all__ = ["Pool", "WorkerPool"]

CLOSE_TIMEOUT_S = 5.0
BEFORE_CHILDREN_ARE_ENDED = 10
"""multiprocessing waits for its children between finalizers of priority 0 and the others; workers
do not leave before they are asked to."""


class Pool(ABC):
    """Environments in groups that step when they are asked to, wherever they are hosted.

    What is sent to a group is collected later, in the order in which it was sent. A pool that is
    not closed before is closed when the interpreter ends.

    Args:
        env_fns: Factories, one per environment.
        settings: How the environments are dealt out and stepped.
        rows: The block.
        budget: Counts restarts.

    Attributes:
        workers: The processes.
        rows: The block; a group's columns are the pool's between `send_step` and `collect`.
        spans: (first, last + 1) environment by share and group.
        budget: The restarts so far; None where failures are raised instead.
        restarted: [N] bool, whose last row is no transition since its environment was restarted.
        episodes: The actions of the open episodes; None where they are not kept.
    """

    def __init__(
        self,
        env_fns: Sequence[EnvFactory],
        settings: PoolSettings,
        rows: SharedBlock,
        budget: RestartBudget | None,
    ) -> None:
        self.env_fns, self.settings, self.rows, self.budget = env_fns, settings, rows, budget
        self.workers: list[WorkerProcess] = []
        self.spans = settings.spans()
        self.restarted = np.zeros(len(env_fns), np.bool_)
        self.episodes = EpisodeLog(settings, rows) if settings.action_range else None
        self._seeds: list[int | None] = [None] * len(env_fns)
        self._at_exit = Finalize(
            None, _close, args=(weakref.ref(self),), exitpriority=BEFORE_CHILDREN_ARE_ENDED
        )

    @property
    def seeds(self) -> list[int | None]:
        """Of the last reset with a seed of each environment; a restart gives other ones. A copy."""
        return list(self._seeds)

    @abstractmethod
    def send_step(self, group: int = 0) -> None:
        """Start one step of a group; hot path.

        Raises:
            WorkerError: A worker has ended, or the budget of restarts is spent.
        """

    @abstractmethod
    def send_call(self, name: str, arguments: Sequence[tuple[Any, ...]], group: int = 0) -> None:
        """Send each share its arguments of a call; `collect` returns the answers."""

    @abstractmethod
    def collect(self, timeout: float | None, group: int = 0) -> list[Any]:
        """Wait for one answer of each share; hot path.

        Answers that came before a timeout are returned by the next call, so that a late one is
        never taken for the answer to a later message.

        Args:
            timeout: Seconds, or None.
            group: The group whose answers are due next; workers answer in the order of the signals.

        Returns:
            The answer of each share: None or an object.

        Raises:
            TimeoutError: `timeout` seconds passed.
            WorkerError: A worker died, or the budget of restarts is spent.
            EnvFailures: Environments raised, and are not restarted.
        """

    def _remember_seeds(self, first: int, seeds: Sequence[int | None]) -> None:
        """Keep the seeds of a reset; None leaves the one before."""
        for env, seed in enumerate(seeds, first):
            self._seeds[env] = self._seeds[env] if seed is None else seed

    @abstractmethod
    def close(self, timeout: float | None) -> None:
        """Close the environments; ask workers to end in `timeout` s (None is 5), then kill them."""
        self._at_exit.cancel()


def _close(pool_ref: weakref.ref[Pool]) -> None:
    pool = pool_ref()
    if pool is not None:
        with contextlib.suppress(Exception):  # a thread of the caller may still be using it
            pool.close(None)


class WorkerPool(Pool):
    """Worker processes, each hosting some environments of every group; factories are pickled.

    Raises:
        UsageError: More files or shared memory than this process may have.
        WorkerError: A worker died while it built its environments.
        EnvFailures: A factory raised.
    """

    def __init__(
        self,
        env_fns: Sequence[EnvFactory],
        settings: PoolSettings,
        budget: RestartBudget | None = None,
    ) -> None:
        spec, num_workers = settings.spec, settings.num_workers
        refuse_unless_parent(f"num_workers={num_workers}", "Use num_workers=0.")
        refuse_unless_openable(num_workers)
        refuse_unless_shareable(spec.nbytes, spec.num_envs)
        self._context: Any = multiprocessing.get_context(settings.start_method)
        self._block = self._context.RawArray("B", spec.nbytes)
        super().__init__(env_fns, settings, SharedBlock.over(memoryview(self._block), spec), budget)
        self.rows.real[:] = True
        self.spans = self.spans[:num_workers]
        permits = settings.max_concurrency
        self.semaphore = self._context.BoundedSemaphore(permits) if permits else None
        self._answers: dict[int, Any] = {}
        self._registry = b"" if settings.start_method == "fork" else packed_registry()
        try:
            for index in range(num_workers):
                self.workers.append(self._start(index))
            patience_s = budget.supervision.deadline_s if budget else None
            for group in range(settings.num_groups):
                WorkerPool.send_call(self, "make", [()] * num_workers, group)
                WorkerPool.collect(self, patience_s, group)
        except BaseException:
            self.close(None)  # other environments may have started programs
            raise

    def _start(self, index: int) -> WorkerProcess:
        """Start the process of worker `index`; its environments are not built yet."""
        settings, spans = self.settings, self.spans[index]
        env_fns = cloudpickle.dumps([list(self.env_fns[a:b]) for a, b in spans])
        (ours, theirs), forked = new_wire(self._context), settings.start_method == "fork"
        process = self._context.Process(
            target=run_worker,
            args=(theirs, [*(w.wire for w in self.workers), ours] if forked else []),
            kwargs={
                "settings": settings,
                "spans": spans,
                "env_fns": env_fns,
                "block": self._block,
                "semaphore": self.semaphore,
                "parent_pid": parent_pid(settings.start_method),
                "registry": self._registry,
            },
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
        if self.budget:
            ours.limit(self.budget.supervision.deadline_s)
        return WorkerProcess(index, spans, process, ours, settings.spin_s)

    # Messages

    def send_step(self, group: int = 0) -> None:
        """Wake every worker for one step of a group."""
        signal_ = bytes((group,))
        for worker in self.workers:
            try:
                worker.signal(signal_)
            except OSError as error:
                raise worker.exit_error() from error

    def send_call(self, name: str, arguments: Sequence[tuple[Any, ...]], group: int = 0) -> None:
        """Send each worker its arguments of a call.

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

    def collect(self, timeout: float | None, group: int = 0) -> list[Any]:  # noqa: ARG002
        """Wait for one answer of each worker; see `Pool.collect`."""
        deadline = math.inf if timeout is None else time.monotonic() + timeout
        for worker in self.workers:
            if worker.index not in self._answers:
                self._answers[worker.index] = self._answer_of(worker, deadline, timeout)
        answers = [self._answers[index] for index in range(len(self.workers))]
        self._answers.clear()
        if any(answers):
            raise_failures(answers)
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
        """End the workers."""
        polite = CLOSE_TIMEOUT_S if timeout is None else timeout
        if polite:
            for worker in self.workers:
                worker.request_close()
        deadline = time.monotonic() + polite
        for worker in self.workers:
            worker.end(max(0.0, deadline - time.monotonic()))
        super().close(timeout)
