"""No workers: the caller's own process hosts the environments.

For one core, and for environments whose steps cost less than waking a process.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np

from fastdqn.envs.workers.at_exit import closed_at_exit
from fastdqn.envs.workers.failures import EnvFailures, Failure
from fastdqn.envs.workers.hosted_envs import HostedEnvs
from fastdqn.envs.workers.pool import PoolSettings
from fastdqn.envs.workers.shared_block import RowSpec, SharedBlock
from fastdqn.envs.workers.supervision import (
    RestartBudget,
    Supervision,
    failure_line,
    fresh_seeds,
    mark_unreal,
    seeds_text,
)
from fastdqn.envs.workers.task import EnvFactory

__all__ = ["LocalPool"]


class LocalPool:
    """The interface of a `WorkerPool` without workers; `collect` does the work of a message.

    Under supervision an environment that raises is rebuilt; one that hangs stops the caller, and
    one that ends the process ends the caller.

    Args:
        env_fns: Factories, one per environment.
        spec: Layout of the rows.
        settings: How the environments are dealt out; the caller's share is hosted here.
        supervision: Limits of restarts; None raises failures instead.
        beside: The pool of the workers, whose rows, permit, budget and `restarted` are shared; None
            without workers.

    Attributes:
        workers: Empty.
        rows: The rows, in private memory.
        spans: (first, last + 1) environment by group, as of a single worker.
        budget: The restarts so far, or None without supervision.
        restarted: [N] bool, whose last row is no transition since the environment was rebuilt.

    Raises:
        EnvFailures: A factory raised.
    """

    def __init__(
        self,
        env_fns: Sequence[EnvFactory],
        spec: RowSpec,
        settings: PoolSettings,
        supervision: Supervision | None = None,
        beside: Any = None,
    ) -> None:
        self.budget = RestartBudget(supervision) if supervision else None
        self.restarted = np.zeros(len(env_fns), np.bool_)
        if beside is None:
            self.rows, semaphore = SharedBlock.allocate(spec), None
        else:
            self.rows, semaphore = beside.rows, beside.semaphore
        if beside is not None and supervision:
            self.budget, self.restarted = beside.budget, beside.restarted
        self.spans = settings.spans(len(env_fns))[-1:]
        self.workers: list[Any] = []
        self._pending: deque[tuple[str, tuple[Any, ...], int]] = deque()
        self._in_a_row = [(0, -1)] * len(env_fns)
        self._steps = [0] * settings.num_groups
        self._seeds: list[int | None] = [None] * len(env_fns)
        self.hosts = [
            HostedEnvs(
                settings.task(span, spec),
                env_fns[slice(*span)],
                self.rows,
                settings.shared_obs,
                semaphore,
            )
            for span in self.spans[0]
        ]
        self._at_exit = closed_at_exit(self)
        try:
            for group in range(len(self.hosts)):
                self.call("make", [()], group)
        except BaseException:
            self.close(None)
            raise

    def send_step(self, group: int = 0) -> None:
        """Request one step of a group; `collect` makes it."""
        self._pending.append(("step", (), group))

    def send_call(self, name: str, arguments: Sequence[tuple[Any, ...]], group: int = 0) -> None:
        """Request a call; `collect` makes it."""
        if name == "reset":
            first = self.spans[0][group][0]
            for env, seed in enumerate(arguments[0][0], first):
                self._seeds[env] = self._seeds[env] if seed is None else seed
        self._pending.append((name, arguments[0], group))

    def call(self, name: str, arguments: Sequence[tuple[Any, ...]], group: int = 0) -> list[Any]:
        """Make a call and return what it returns, in a list."""
        self.send_call(name, arguments, group)
        return self.collect(None, group)

    def collect(self, timeout: float | None, group: int = 0) -> list[Any]:  # noqa: ARG002
        """Do the oldest request; nothing interrupts it, so there is no timeout.

        Raises:
            EnvFailures: Environments raised, unsupervised or where no restart would help.
            WorkerError: The budget of restarts is spent.
        """
        name, arguments, asked_group = self._pending.popleft()
        host = self.hosts[asked_group]
        if name == "step":
            self._steps[asked_group] += 1
            self._mark_real(*self.spans[0][asked_group])
        try:
            return [getattr(host, name)(*arguments)]
        except EnvFailures as error:
            if self.budget is None or name not in {"step", "reset"}:
                raise
            options = arguments[1] if name == "reset" else None
            return [self._rebuild(asked_group, error, self.budget, options)]

    def _mark_real(self, start: int, stop: int) -> None:
        """Let the rows of rebuilt environments count as transitions again."""
        if self.restarted[start:stop].any():
            self.rows.real[start:stop] |= self.restarted[start:stop]
            self.restarted[start:stop] = False

    def _rebuild(
        self,
        group: int,
        error: EnvFailures,
        budget: RestartBudget,
        options: dict[str, Any] | None,
    ) -> Any:
        """Rebuild environments that raised and reset them with fresh seeds.

        Returns:
            The results of the other environments, and of the resets.

        Raises:
            WorkerError: The budget of restarts is spent.
            EnvFailures: What environments returned cannot be used, however often they restart.
        """
        infos = error.message[0] if error.message else {}
        first, stop = self.spans[0][group]
        while True:
            if final := error.final():
                raise final
            for failure in error.failures:
                self._cut(failure, self._steps[group], budget)
            failed = [failure.env for failure in error.failures]
            chosen = [env in failed for env in range(first, stop)]
            try:
                fresh, travelled = self.hosts[group].reset(self._seeds[first:stop], options, chosen)
            except EnvFailures as again:
                infos, error = {**infos, **(again.message[0] if again.message else {})}, again
            else:
                return {**infos, **fresh}, travelled

    def _cut(self, failure: Failure, step: int, budget: RestartBudget) -> None:
        """End the episode of an environment that raised; its row is no transition."""
        env = failure.env
        in_a_row, last = self._in_a_row[env]
        in_a_row = in_a_row + 1 if step - last <= 1 else 1
        self._in_a_row[env] = in_a_row, step
        seed = self._seeds[env]
        message = (
            f"{failure_line([failure])}; in vector step {step}, {seeds_text([seed])}\n{failure}"
        )
        time.sleep(budget.spend(message, in_a_row))
        self._seeds[env] = fresh_seeds([seed], budget.count)[0]
        mark_unreal(self.rows, env, env + 1)
        self.restarted[env] = True

    def close(self, timeout: float | None) -> None:  # noqa: ARG002
        """Close the environments."""
        self._pending.clear()
        for host in self.hosts:
            host.close()
        self._at_exit.cancel()
