"""No workers: the caller's own process hosts the environments.

For one core, and for environments whose steps cost less than waking a process.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from typing import Any

from fastdqn.envs.host import EnvFactory, EnvFailures, Failure, Host
from fastdqn.envs.pool import PoolSettings
from fastdqn.envs.rows import Rows, RowSpec
from fastdqn.envs.supervision import RestartBudget, Supervision, branch_of, silence

__all__ = ["LocalPool"]


class LocalPool:
    """Answers as a `WorkerPool` does; the work of a message is done when it is collected.

    Under supervision an environment that raises is built anew; one that hangs, or ends the
    process, takes the caller along.

    Args:
        env_fns: Factories, one per environment.
        spec: Layout of the rows.
        settings: How the environments are dealt out; all of a group to one host.
        supervision: How much patience environments deserve; None raises.

    Attributes:
        workers: None at all.
        rows: The rows, in private memory.
        spans: (first, last + 1) environment by group, of the one worker that there is not.
        budget: The restarts so far, or None without supervision.

    Raises:
        EnvFailures: A factory raised.
    """

    def __init__(
        self,
        env_fns: Sequence[EnvFactory],
        spec: RowSpec,
        settings: PoolSettings,
        supervision: Supervision | None = None,
    ) -> None:
        self.budget = RestartBudget(supervision) if supervision else None
        self.rows = Rows.allocate(spec)
        self.spans = settings.spans(len(env_fns))
        self.workers: list[Any] = []
        self._pending: deque[tuple[str, tuple[Any, ...], int]] = deque()
        self._silent: list[int] = []
        self._in_a_row = 0
        self._seeds: list[int | None] = [None] * len(env_fns)
        self.hosts = [
            Host(settings.task(span, spec), env_fns[slice(*span)], self.rows, settings.shared_obs)
            for span in self.spans[0]
        ]
        try:
            for group in range(len(self.hosts)):
                self.ask("make", [()], group)
        except BaseException:
            self.close(None)
            raise

    def send_step(self, group: int = 0) -> None:
        """Ask for one step of a group."""
        self._pending.append(("step", (), group))

    def tell(self, name: str, arguments: Sequence[tuple[Any, ...]], group: int = 0) -> None:
        """Ask for a call; `collect` makes it."""
        if name == "reset":
            self._seeds[slice(*self.spans[0][group])] = arguments[0][0]
        self._pending.append((name, arguments[0], group))

    def ask(self, name: str, arguments: Sequence[tuple[Any, ...]], group: int = 0) -> list[Any]:
        """Make a call and return what it returns, in a list."""
        self.tell(name, arguments, group)
        return self.collect(None, group)

    def collect(self, timeout: float | None, group: int = 0) -> list[Any]:  # noqa: ARG002
        """Do what was asked first; nothing interrupts it, so there is no timeout.

        Raises:
            EnvFailures: Environments raised, and nobody supervises.
            WorkerError: The budget of restarts is spent.
        """
        name, arguments, asked_group = self._pending.popleft()
        host = self.hosts[asked_group]
        while self._silent:
            self.rows.real[self._silent.pop()] = True
        try:
            answer = getattr(host, name)(*arguments)
        except EnvFailures as error:
            if self.budget is None or name not in {"step", "reset"}:
                raise
            self._rebuild(host, error.failures)
            return [None]
        self._in_a_row = 0
        return [answer]

    def _rebuild(self, host: Host, failures: Sequence[Failure]) -> None:
        """Build environments that raised anew and reset them with fresh seeds."""
        assert self.budget is not None
        while failures:
            self._in_a_row += 1
            mask = [False] * host.task.num_envs
            for failure in failures:
                told = f"environment {failure.env} failed, its seed {self._seeds[failure.env]}"
                time.sleep(self.budget.spend(f"{told}\n{failure}", self._in_a_row))
                silence(self.rows, failure.env, failure.env + 1)
                self._silent.append(failure.env)
                mask[failure.env - host.task.first_env] = True
            first, stop = host.task.first_env, host.task.first_env + host.task.num_envs
            self._seeds[first:stop] = branch_of(self._seeds[first:stop], self.budget.count)
            try:
                host.reset(self._seeds[first:stop], None, mask)
                failures = []
            except EnvFailures as error:
                failures = error.failures

    def close(self, timeout: float | None) -> None:  # noqa: ARG002
        """Close the environments."""
        self._pending.clear()
        for host in self.hosts:
            host.close()
