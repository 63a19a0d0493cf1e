"""A pool whose caller takes a share: it steps environments of its own while the workers step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastdqn.envs.workers.failures import EnvFailures
from fastdqn.envs.workers.local_pool import LocalPool
from fastdqn.envs.workers.pool import PoolSettings, WorkerPool
from fastdqn.envs.workers.shared_block import RowSpec
from fastdqn.envs.workers.supervised_pool import SupervisedPool
from fastdqn.envs.workers.supervision import Supervision
from fastdqn.envs.workers.task import EnvFactory

__all__ = ["AssistedPool"]


class AssistedPool:
    """A pool of workers and the caller's own environments, behind one interface.

    The caller's part of a message is done when it is collected, after the workers were woken;
    nothing interrupts it. An environment there that ends its process ends the caller.

    Args:
        env_fns: Factories, one per environment.
        spec: Layout of the shared block.
        settings: How the environments are dealt out.
        supervision: Deadlines and limits of restarts; None raises failures instead.

    Attributes:
        workers: The processes.
        rows: The shared block.
        spans: (first, last + 1) environment by share and group; the caller's comes last.
        budget: The restarts so far, or None without supervision.
        restarted: [N] bool, whose last row is no transition; None without supervision.
    """

    def __init__(
        self,
        env_fns: Sequence[EnvFactory],
        spec: RowSpec,
        settings: PoolSettings,
        supervision: Supervision | None = None,
    ) -> None:
        self._pool = (
            SupervisedPool(env_fns, spec, settings, supervision)
            if supervision
            else WorkerPool(env_fns, spec, settings)
        )
        try:
            self._own = LocalPool(env_fns, spec, settings, supervision, beside=self._pool)
        except BaseException:
            self._pool.close(None)
            raise
        self.workers, self.rows = self._pool.workers, self._pool.rows
        self.spans = [*self._pool.spans, *self._own.spans]
        self.budget, self.restarted = self._pool.budget, self._pool.restarted
        self._answers: dict[int, Any] = {}

    def send_step(self, group: int = 0) -> None:
        """Wake the workers for one step of a group; the caller's own step when it collects."""
        self._pool.send_step(group)
        self._own.send_step(group)

    def send_call(self, name: str, arguments: Sequence[tuple[Any, ...]], group: int = 0) -> None:
        """Send each worker its arguments, and keep the caller's."""
        self._pool.send_call(name, arguments[:-1], group)
        self._own.send_call(name, arguments[-1:], group)

    def call(self, name: str, arguments: Sequence[tuple[Any, ...]], group: int = 0) -> list[Any]:
        """Make a call everywhere and return all results."""
        self.send_call(name, arguments, group)
        return self.collect(None, group)

    def collect(self, timeout: float | None, group: int = 0) -> list[Any]:
        """Do the caller's part, then wait for the workers; see `WorkerPool.collect`."""
        if group not in self._answers:
            self._answers[group] = self._do_own(group)
        failures: list[Any] = []
        answers: list[Any] = []
        try:
            answers = self._pool.collect(timeout, group)
        except EnvFailures as error:
            failures = error.failures
        own = self._answers.pop(group)
        if isinstance(own, EnvFailures):
            failures = [*failures, *own.failures]
        if failures:
            raise EnvFailures(failures)
        return [*answers, *own]

    def _do_own(self, group: int) -> Any:
        try:
            return self._own.collect(None, group)
        except EnvFailures as error:
            return error

    def close(self, timeout: float | None) -> None:
        """End the workers, and close the caller's environments."""
        self._pool.close(timeout)
        self._own.close(timeout)
