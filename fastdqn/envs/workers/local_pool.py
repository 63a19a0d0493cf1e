"""Pools whose environments, or some of them, are hosted by the caller's own process.

For one core, for environments whose steps cost less than waking a process, and for a caller that
would only wait while the workers step.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from typing import Any

from fastdqn.envs.workers.failures import EnvFailures, Failure, raise_failures
from fastdqn.envs.workers.hosted_envs import HostedEnvs
from fastdqn.envs.workers.pool import Pool, WorkerPool
from fastdqn.envs.workers.settings import EnvFactory, PoolSettings
from fastdqn.envs.workers.shared_block import SharedBlock
from fastdqn.envs.workers.supervision import (
    RestartBudget,
    failure_text,
    fresh_seeds,
    mark_unreal,
    with_circumstances,
)

__all__ = ["AssistedPool", "LocalPool"]


class LocalPool(Pool):
    """The last share of the environments, in this process; `collect` does what was sent.

    With a budget an environment that raises is rebuilt; one that hangs stops the caller, and
    one that ends the process ends the caller.

    Args:
        env_fns, settings, budget: See `Pool`.
        beside: The pool that hosts the other shares; None where there is no other.

    Raises:
        EnvFailures: A factory raised.
    """

    def __init__(
        self,
        env_fns: Sequence[EnvFactory],
        settings: PoolSettings,
        budget: RestartBudget | None = None,
        beside: WorkerPool | None = None,
    ) -> None:
        rows = beside.rows if beside else SharedBlock.allocate(settings.spec)
        super().__init__(env_fns, settings, rows, budget)
        if beside:
            self.workers, self.restarted = beside.workers, beside.restarted
            self.episodes, self._seeds = beside.episodes, beside._seeds
        self._pending: deque[tuple[str, tuple[Any, ...], int]] = deque()
        self._in_a_row = [(0, -1)] * len(env_fns)
        self._steps = [0] * settings.num_groups
        permit = beside and beside.semaphore
        self.hosts = [
            HostedEnvs(settings, span, env_fns[slice(*span)], rows, permit)
            for span in self.spans[-1]
        ]
        try:
            for host in self.hosts:
                host.make()
        except BaseException:
            self.close(None)
            raise

    def send_step(self, group: int = 0) -> None:
        """Request one step of a group; `collect` makes it."""
        self._pending.append(("step", (), group))

    def send_call(self, name: str, arguments: Sequence[tuple[Any, ...]], group: int = 0) -> None:
        """Request a call; `collect` makes it."""
        if name == "reset":
            self._remember_seeds(self.hosts[group].first_env, arguments[-1][0])
        self._pending.append((name, arguments[-1], group))

    def collect(self, timeout: float | None, group: int = 0) -> list[Any]:  # noqa: ARG002
        """Do the oldest request; Ctrl-C alone interrupts it, so there is no timeout.

        What was interrupted is done by the next call: a step goes on with the environment in which
        it was interrupted, which is stepped again.
        """
        name, arguments, asked_group = self._pending[0]
        try:
            answer = self._answer_to(name, arguments, asked_group)
        except Exception:
            self._pending.popleft()
            raise
        self._pending.popleft()
        return [answer]

    def _answer_to(self, name: str, arguments: tuple[Any, ...], group: int) -> Any:
        """Do what was requested of a group; within the budget, rebuild what raises."""
        if name == "rebuild":
            return self._rebuild(group, *arguments)
        if name == "step":
            self._steps[group] += 1
            self._mark_real(*self.spans[-1][group])
        try:
            return getattr(self.hosts[group], name)(*arguments)
        except EnvFailures as error:
            if self.budget is None or name not in {"step", "reset"}:
                raise
            options = arguments[1] if name == "reset" else None
            rest = error, self.budget, options
            self._pending[0] = "rebuild", rest, group  # what is left to do, if Ctrl-C comes
            return self._rebuild(group, *rest)

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
        """Rebuild environments that raised; return what the others returned, and the resets."""
        infos = error.message[0] if error.message else {}
        first, stop = self.spans[-1][group]
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
        trouble = with_circumstances(failure_text([failure]), step, [self._seeds[env]])
        time.sleep(budget.spend(trouble, in_a_row))
        self._seeds[env] = fresh_seeds([self._seeds[env]], budget.count)[0]
        mark_unreal(self.rows, env, env + 1)
        self.restarted[env] = True

    def close(self, timeout: float | None) -> None:
        """Close the environments."""
        self._pending.clear()
        for host in self.hosts:
            host.close()
        super().close(timeout)


class AssistedPool(LocalPool):
    """A pool of workers whose caller hosts the last share, and steps it while the workers step.

    The caller's part of a message is done when it is collected, after the workers were woken;
    nothing interrupts it. An environment there that ends its process ends the caller.

    Args:
        pool: The workers; `close` closes them.
    """

    def __init__(self, pool: WorkerPool) -> None:
        self.pool = pool
        self._done: dict[int, list[Any]] = {}
        try:
            super().__init__(pool.env_fns, pool.settings, pool.budget, beside=pool)
        except BaseException:
            pool.close(None)
            raise

    def send_step(self, group: int = 0) -> None:
        """Wake the workers for one step of a group; the caller's own step when it collects."""
        self.pool.send_step(group)
        self._pending.append(("step", (), group))

    def send_call(self, name: str, arguments: Sequence[tuple[Any, ...]], group: int = 0) -> None:
        """Send each worker its arguments, and keep the caller's."""
        self.pool.send_call(name, arguments[:-1], group)
        super().send_call(name, arguments, group)

    def collect(self, timeout: float | None, group: int = 0) -> list[Any]:
        """Do the caller's part, then wait for the workers; see `Pool.collect`."""
        if group not in self._done:
            try:
                self._done[group] = super().collect(None, group)
            except EnvFailures as error:
                self._done[group] = [error]
        try:
            answers = self.pool.collect(timeout, group)
        except EnvFailures as error:
            answers = [error]
        answers += self._done.pop(group)
        if any(answers):
            raise_failures(answers)
        return answers

    def close(self, timeout: float | None) -> None:
        """End the workers, and close the caller's environments."""
        self.pool.close(timeout)
        super().close(timeout)
