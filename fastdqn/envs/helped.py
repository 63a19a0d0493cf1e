"""A pool whose caller takes a share: it steps environments of its own while the workers step."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

from fastdqn.envs.failures import EnvFailures
from fastdqn.envs.host import Host
from fastdqn.envs.pool import PoolSettings, WorkerPool
from fastdqn.envs.rows import RowSpec
from fastdqn.envs.task import EnvFactory

__all__ = ["HelpedPool"]


class HelpedPool(WorkerPool):
    """A `WorkerPool` whose last share of environments lives in the caller's process.

    Its part of a message is done when it is collected, after the workers were woken; nothing
    interrupts it. An environment there that ends the process takes the caller along.

    Args:
        env_fns: Factories, one per environment.
        spec: Layout of the shared block.
        settings: How the environments are dealt out, the caller's share included.
    """

    def __init__(
        self, env_fns: Sequence[EnvFactory], spec: RowSpec, settings: PoolSettings
    ) -> None:
        self._hosts: list[Host] = []
        self._pending: deque[tuple[str, tuple[Any, ...], int]] = deque()
        self._own: dict[int, Any] = {}
        super().__init__(env_fns, spec, settings)

    def _populate(self) -> None:
        settings = self.settings
        self._hosts = [
            Host(
                settings.task(span, self.spec),
                self.env_fns[slice(*span)],
                self.rows,
                settings.shared_obs,
                self._semaphore,
            )
            for span in self.spans[-1]
        ]
        for index in range(settings.num_workers - 1):
            self.workers.append(self._start(index))

    def send_step(self, group: int = 0) -> None:
        """Wake the workers for one step of a group, and note the caller's own."""
        super().send_step(group)
        self._pending.append(("step", (), group))

    def tell(self, name: str, arguments: Sequence[tuple[Any, ...]], group: int = 0) -> None:
        """Send each worker its own arguments, and note the caller's."""
        super().tell(name, arguments[:-1], group)
        self._pending.append((name, arguments[-1], group))

    def collect(self, timeout: float | None, group: int = 0) -> list[Any]:
        """Do the caller's part, then wait for the workers; see `WorkerPool.collect`."""
        if group not in self._own:
            self._own[group] = self._do_own()
        failures: list[Any] = []
        answers: list[Any] = []
        try:
            answers = super().collect(timeout, group)
        except EnvFailures as error:
            failures = error.failures
        own = self._own.pop(group)
        if isinstance(own, EnvFailures):
            failures = [*failures, *own.failures]
        if failures:
            raise EnvFailures(failures)
        return [*answers, own]

    def _do_own(self) -> Any:
        """Do what was asked first of the caller's environments."""
        name, arguments, group = self._pending.popleft()
        try:
            return getattr(self._hosts[group], name)(*arguments)
        except EnvFailures as error:
            return error

    def close(self, timeout: float | None) -> None:
        """End the workers, and close the caller's environments."""
        self._pending.clear()
        super().close(timeout)
        for host in self._hosts:
            host.close()
