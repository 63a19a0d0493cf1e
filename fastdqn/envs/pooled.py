"""A vector whose environments a pool hosts: groups step by signals, calls go to all of them."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import Any

import numpy as np
import numpy.typing as npt
from gymnasium import logger
from gymnasium.error import AlreadyPendingCallError, NoAsyncCallError
from gymnasium.vector import AsyncVectorEnv
from gymnasium.vector.async_vector_env import AsyncState

from fastdqn.envs.sharing import refuse_shared_by_processes
from fastdqn.envs.vector_data import reader_of
from fastdqn.envs.workers.failures import EnvFailures, raise_failures
from fastdqn.envs.workers.local_pool import AssistedPool, LocalPool
from fastdqn.envs.workers.open_episodes import EpisodeLog
from fastdqn.envs.workers.origins import Origins
from fastdqn.envs.workers.pool import Pool, WorkerPool
from fastdqn.envs.workers.settings import EnvFactory, PoolSettings
from fastdqn.envs.workers.shared_block import SharedBlock
from fastdqn.envs.workers.supervised_pool import SupervisedPool
from fastdqn.envs.workers.supervision import RestartBudget, Supervision

__all__ = ["PooledVectorEnv"]


class PooledVectorEnv(AsyncVectorEnv):
    """What a `GroupedVectorEnv` and its pool say to each other, and the state of a pending call.

    Args:
        env_fns: Factories, one per environment.
        settings: How they are dealt out and stepped.
        supervision: Deadlines and limits of restarts; None raises failures instead.

    Attributes:
        rows: The shared block as numpy views; valid between `recv` and the next `send`.
    """

    def __init__(
        self,
        env_fns: Sequence[EnvFactory],
        settings: PoolSettings,
        supervision: Supervision | None,
    ) -> None:
        self.env_fns, self.num_envs = env_fns, len(env_fns)
        self.num_workers, self.num_groups = settings.num_workers, settings.num_groups
        if settings.num_workers:
            refuse_shared_by_processes(env_fns, settings.spans())
        try:
            self._pool = _new_pool(env_fns, settings, supervision)
        except EnvFailures as error:
            error.raise_last()
        self.rows: SharedBlock = self._pool.rows
        self._groups = [
            self.rows.columns(group[0][0], group[-1][1])
            for group in zip(*self._pool.spans, strict=True)
        ]
        self._read = reader_of(settings, self.rows)
        self._episodes = self._pool.episodes
        self._state = AsyncState.DEFAULT
        self._collected: list[list[Any]] = []  # answers to a pending call, by group

    @property
    def processes(self) -> list[Any]:  # type: ignore[override]
        """The worker processes."""
        return [worker.process for worker in self._pool.workers]

    @property
    def parent_pipes(self) -> list[Any]:  # type: ignore[override]
        """The parent's ends of the connections to the workers."""
        return [worker.wire.messages for worker in self._pool.workers]

    @property
    def observations(self) -> Any:
        """The current observations; not a copy."""
        return self._read(())

    # Steps of a group

    def send(self, actions: npt.NDArray[Any], group: int = 0) -> None:
        """Hot path of `step_async`: no checks; the group's rows are the workers' until `recv`.

        Args:
            actions: [M, *A] of the group's environments, in the dtype of the action space; copied.
            group: Which group steps; groups are received in the order in which they were sent.
        """
        np.copyto(self._groups[group].action, actions)
        if self._episodes is not None:
            self._episodes.append(group)
        try:
            self._pool.send_step(group)
        except EnvFailures as error:
            error.raise_last()
        self._state = AsyncState.WAITING_STEP

    def recv(self, timeout: float | None = None, group: int = 0) -> list[Any]:
        """Hot path of `step_wait`: wait until the group's rows hold the step; builds no info.

        Returns:
            What each worker sent beside the block: None, or infos and observations.

        Raises:
            multiprocessing.TimeoutError: `timeout` seconds passed; the call may be repeated.
            KeyboardInterrupt: Ctrl-C came; the call may be repeated.
            WorkerError: A worker died.
            Exception: An exception of an environment, with its traceback as the cause.
        """
        try:
            answers = self._pool.collect(timeout, group)
        except multiprocessing.TimeoutError:
            raise  # still pending, as after Ctrl-C
        except Exception as error:
            self._state = AsyncState.DEFAULT
            if isinstance(error, EnvFailures):
                error.raise_last()
            raise
        self._state = AsyncState.DEFAULT
        return answers

    def rows_of(self, group: int) -> SharedBlock:
        """Return the columns of the block that belong to a group."""
        return self._groups[group]

    # Open episodes

    @property
    def episode_log(self) -> EpisodeLog | None:
        """What is kept of the open episodes, or None."""
        return self._episodes

    @property
    def last_seeds(self) -> list[int | None]:
        """Of the last reset with a seed of each environment; a restart gives other ones."""
        return self._pool.seeds

    def reset_from(self, origins: Origins, seeds: Sequence[int | None]) -> None:
        """Reset all environments so that those with an origin begin the episode that began there.

        Args:
            origins: [N, 8] see `fastdqn.envs.workers.origins`.
            seeds: Of the others; of those with an origin, that of the last reset with a seed.
        """
        self._expect_idle("reset_async")
        self._send_call(
            "reset", lambda a, b: (list(seeds[a:b]), None, [True] * (b - a), origins[a:b])
        )
        self._answers(None)
        self.rows.clear()

    # Calls to all

    def _send_call(self, name: str, part: Callable[[int, int], tuple[Any, ...]]) -> None:
        """Send a call to every worker and group, each with its own part of the arguments."""
        for group, spans in enumerate(zip(*self._pool.spans, strict=True)):
            try:
                self._pool.send_call(name, [part(a, b) for a, b in spans], group)
            except EnvFailures as error:
                error.raise_last()

    def _answers_to(self, state: AsyncState, timeout: float | None) -> list[Any]:
        """Return the answers to a call that is pending."""
        self._assert_is_running()
        if self._state is not state:
            raise NoAsyncCallError(
                f"Calling `{state.value}_wait` without any prior call to `{state.value}_async`.",
                state.value,
            )
        return self._answers(timeout)

    def _answers(self, timeout: float | None) -> list[Any]:
        """Return the answers of all groups and workers, in the order of the environments.

        What has come before a timeout or Ctrl-C is kept for the next call.
        """
        try:
            while len(self._collected) < self.num_groups:
                self._collected.append(self._collect(timeout, len(self._collected)))
        except multiprocessing.TimeoutError as error:  # the call is still pending
            raise multiprocessing.TimeoutError(
                f"The call to `{self._state.value}_wait` has timed out after {timeout} second(s). "
                f"Of the workers, {error}."
            ) from None
        except Exception:
            self._take_collected()
            raise
        answers = self._take_collected()
        try:
            raise_failures(answers)
        except EnvFailures as error:
            error.log()
            error.raise_last()
        return answers

    def _collect(self, timeout: float | None, group: int) -> list[Any]:
        """Return the answers of a group, or its failures: those of all groups are raised as one."""
        try:
            return self._pool.collect(timeout, group)
        except EnvFailures as error:
            return [error]

    def _take_collected(self) -> list[Any]:
        """Return what was collected; no call is pending then."""
        self._state = AsyncState.DEFAULT
        answers, self._collected = [part for group in self._collected for part in group], []
        return answers

    def _received(self, answers: list[Any]) -> tuple[Any, dict[str, Any]]:
        """Return the observations, copied if the caller wants copies, and the infos, batched."""
        infos: dict[str, Any] = {}
        pickled: list[Any] = []
        for message, observations in filter(None, answers):
            for index, info in message.items():
                infos = self._add_info(infos, info, index)
            pickled += observations or []
        seen = self._read(pickled)
        if self.copy:
            seen = seen.copy() if isinstance(seen, np.ndarray) else deepcopy(seen)
        return seen, infos

    # Restarts

    @property
    def supervised(self) -> bool:
        """Whether workers that fail are restarted."""
        return self._pool.budget is not None

    @property
    def num_restarts(self) -> int:
        """Restarts of workers so far."""
        budget = self._pool.budget
        return budget.count if budget else 0

    @property
    def restarts(self) -> Sequence[str]:
        """Why workers were restarted, in order; the newest thousand."""
        budget = self._pool.budget
        return list(budget.restarts) if budget else []

    # States

    def _expect_idle(self, call: str) -> None:
        self._assert_is_running()
        if self._state is not AsyncState.DEFAULT:
            raise AlreadyPendingCallError(
                f"Calling `{call}` while waiting for a pending call to "
                f"`{self._state.value}` to complete.",
                str(self._state.value),
            )

    def __del__(self) -> None:
        """Close what the caller did not, politely: environments may have started programs."""
        if not getattr(self, "closed", True) and hasattr(self, "_state"):
            self.close(quiet=True)

    def close_extras(
        self, timeout: float | None = None, terminate: bool = False, *, quiet: bool = False
    ) -> None:
        """End the workers.

        Args:
            timeout: Seconds until workers are killed; None is five.
            terminate: Kill them at once.
            quiet: Do not warn of a call that is still pending.
        """
        pending = self._state
        self._pool.close(0.0 if terminate else timeout)
        if pending is not AsyncState.DEFAULT and not quiet:
            logger.warn(
                f"Calling `close` while waiting for a pending call to `{pending.value}` to "
                "complete."
            )


def _new_pool(
    env_fns: Sequence[EnvFactory], settings: PoolSettings, supervision: Supervision | None
) -> Pool:
    if not settings.num_workers:
        budget = RestartBudget(supervision) if supervision else None
        return LocalPool(env_fns, settings, budget)
    pool = (
        SupervisedPool(env_fns, settings, supervision)
        if supervision
        else WorkerPool(env_fns, settings)
    )
    return AssistedPool(pool) if settings.caller_envs else pool
