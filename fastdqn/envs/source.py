"""Sources of experience: whatever steps environments, seen by the rollout as rows.

A source fills `rows` with true transitions. What differs between vector environments and
between Gymnasium's three autoreset modes ends here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv

from fastdqn.envs.grouped import GroupedVectorEnv
from fastdqn.envs.make import EnvDescription, EnvFactory, describe_spaces
from fastdqn.envs.pool import without_main_module
from fastdqn.envs.rows import Rows, RowSpec
from fastdqn.errors import UsageError

__all__ = ["VECTORIZERS", "EnvSource", "GroupedSource", "VectorSource", "make_source", "source_of"]

VECTORIZERS = ("grouped", "async", "sync")
REPLY_DEADLINE_S = 120.0


class EnvSource(Protocol):
    """N environments that take actions and fill rows.

    `send` starts a step and `recv` ends it. Between `recv` and the next `send` the rows belong
    to the caller; in between they belong to the source.
    """

    rows: Rows
    num_envs: int
    num_workers: int
    description: EnvDescription
    resets_within_step: bool
    """Whether an ended episode's last observation lies in `rows.final_obs`, its successor's
    first one already in `rows.obs`; if not, the last one comes as an ordinary `rows.obs`."""

    def reset(self, seeds: Sequence[int]) -> None:
        """Start new episodes everywhere; fills `rows.obs`."""

    def send(self, actions: npt.NDArray[np.int64]) -> None:
        """Start a step with actions [N] int64, counted from 0."""

    def recv(self) -> None:
        """Wait for the step and fill the rows."""

    def close(self) -> None:
        """End processes and free memory."""


class GroupedSource:
    """A GroupedVectorEnv in SAME_STEP mode: its shared block is the rows, nothing is copied.

    Args:
        envs: The vector; `close` closes it.
        description: Its environments.
    """

    resets_within_step = True

    def __init__(self, envs: GroupedVectorEnv, description: EnvDescription) -> None:
        self.envs = envs
        self.rows = envs.rows
        self.num_envs = envs.num_envs
        self.num_workers = envs.num_workers
        self.description = description

    def reset(self, seeds: Sequence[int]) -> None:
        """Start new episodes everywhere; fills `rows.obs`."""
        self.envs.reset_async(seed=list(seeds))
        self.envs.reset_wait(REPLY_DEADLINE_S)
        self.rows.clear()

    def send(self, actions: npt.NDArray[np.int64]) -> None:
        """Wake the workers; returns at once."""
        self.envs.send(actions + self.description.first_action)

    def recv(self) -> None:
        """Wait for all workers.

        Raises:
            TimeoutError: A worker was silent for two minutes.
        """
        self.envs.recv(REPLY_DEADLINE_S)

    def close(self) -> None:
        """End the workers."""
        self.envs.close()


class VectorSource:
    """Any Gymnasium VectorEnv in any autoreset mode; its results are copied into private rows.

    Of Gymnasium's own vectors, SAME_STEP is only for environments that return a new array at
    each step: one that overwrites its array spoils `final_obs` before anybody sees it.

    Args:
        envs: The vector; `close` closes it.
        description: Its environments.

    Raises:
        UsageError: The vector does not say its autoreset mode.
    """

    def __init__(self, envs: VectorEnv[Any, Any, Any], description: EnvDescription) -> None:
        self.envs = envs
        self.num_envs = envs.num_envs
        self.num_workers = _num_workers(envs)
        self.description = description
        spec = RowSpec.of_spaces(
            self.num_envs, envs.single_observation_space, envs.single_action_space
        )
        self.rows = Rows.allocate(spec)
        self._mode = _autoreset_mode(envs)
        self.resets_within_step = self._mode is not AutoresetMode.NEXT_STEP
        self._returns = np.zeros(self.num_envs)
        self._lengths = np.zeros(self.num_envs, np.int64)
        self._ended = np.zeros(self.num_envs, np.bool_)
        self._pending: npt.NDArray[np.int64] | None = None

    def reset(self, seeds: Sequence[int]) -> None:
        """Start new episodes everywhere; fills `rows.obs`."""
        envs: Any = self.envs  # vectors that are one program take one seed for all
        one_by_one = isinstance(envs.unwrapped, AsyncVectorEnv | SyncVectorEnv)
        self.rows.obs[:], _ = envs.reset(seed=list(seeds) if one_by_one else seeds[0])
        self.rows.clear()
        self._ended[:] = False
        self._returns[:] = 0.0
        self._lengths[:] = 0

    def send(self, actions: npt.NDArray[np.int64]) -> None:
        """Start the step where the vector can (AsyncVectorEnv), or keep it for `recv`."""
        self._pending = actions + self.description.first_action
        if isinstance(self.envs, AsyncVectorEnv):
            self.envs.step_async(self._pending)

    def recv(self) -> None:
        """Finish the step and copy it into the rows."""
        if isinstance(self.envs, AsyncVectorEnv):
            result = self.envs.step_wait()
        else:
            result = self.envs.step(self._pending)
        rows, (obs, reward, terminated, truncated, infos) = self.rows, result
        _refuse_reward_shape(np.shape(reward), self.num_envs)
        if not self.resets_within_step:
            np.logical_not(self._ended, out=rows.real)
        rows.reward[:], rows.terminated[:], rows.truncated[:] = reward, terminated, truncated
        np.logical_or(rows.terminated, rows.truncated, out=self._ended)
        self._count_episodes()
        self._place_observations(obs, infos)

    def _count_episodes(self) -> None:
        rows = self.rows
        self._returns += rows.reward * rows.real
        self._lengths += rows.real
        rows.episode_return[self._ended] = self._returns[self._ended]
        rows.episode_length[self._ended] = self._lengths[self._ended]
        self._returns[self._ended] = 0.0
        self._lengths[self._ended] = 0

    def _place_observations(self, obs: Any, infos: dict[str, Any]) -> None:
        """Fill `obs` and, for episodes that ended within the step, `final_obs`."""
        self.rows.obs[:] = obs
        if not (self.resets_within_step and self._ended.any()):
            return
        if self._mode is AutoresetMode.SAME_STEP:
            for index in np.flatnonzero(self._ended):
                self.rows.final_obs[index] = infos["final_obs"][index]
            return
        self.rows.final_obs[self._ended] = self.rows.obs[self._ended]
        mask = {"reset_mask": self._ended.copy()}
        fresh, _ = self.envs.reset(options=mask)
        self.rows.obs[self._ended] = fresh[self._ended]

    def close(self) -> None:
        """Close the vector environment."""
        self.envs.close()


def make_source(
    vectorizer: str,
    factory: EnvFactory,
    description: EnvDescription,
    num_envs: int,
    num_workers: int | None = None,
) -> EnvSource:
    """Build `num_envs` environments behind the chosen kind of vector.

    Args:
        vectorizer: `grouped` (ours), `async` or `sync` (Gymnasium's own); same transitions.
        factory: Builds one environment.
        description: What `describe(factory)` returned.
        num_envs: Environments, N.
        num_workers: Processes of `grouped`; None is one per core.
    """
    factories = [factory] * num_envs
    if vectorizer == "grouped":
        envs = GroupedVectorEnv(
            factories,
            autoreset_mode=AutoresetMode.SAME_STEP,
            num_workers=num_workers,
            send_infos=False,
        )
        return GroupedSource(envs, description)
    with without_main_module():
        kinds: dict[str, Callable[..., VectorEnv[Any, Any, Any]]] = {
            "async": partial(AsyncVectorEnv, context="spawn"),
            "sync": SyncVectorEnv,
        }
        # Gymnasium's SAME_STEP hands over the last observation after the reset, which an
        # environment that reuses its array has overwritten by then.
        mode = AutoresetMode.DISABLED
        return VectorSource(kinds[vectorizer](factories, autoreset_mode=mode), description)


def source_of(envs: VectorEnv[Any, Any, Any]) -> EnvSource:
    """Make a source of a vector environment that the caller built and goes on owning.

    Raises:
        UsageError: Its spaces do not suit DQN, or it does not say its autoreset mode.
    """
    env_id = envs.spec.id if envs.spec else type(envs).__name__
    threshold = envs.spec.reward_threshold if envs.spec else None
    description = describe_spaces(
        env_id, envs.single_observation_space, envs.single_action_space, threshold
    )
    if isinstance(envs, GroupedVectorEnv) and envs.autoreset_mode is AutoresetMode.SAME_STEP:
        return GroupedSource(envs, description)
    return VectorSource(envs, description)


def _num_workers(envs: VectorEnv[Any, Any, Any]) -> int:
    unwrapped = envs.unwrapped
    if isinstance(unwrapped, GroupedVectorEnv):
        return unwrapped.num_workers
    return unwrapped.num_envs if isinstance(unwrapped, AsyncVectorEnv) else 0


def _refuse_reward_shape(shape: tuple[int, ...], num_envs: int) -> None:
    if shape != (num_envs,):
        raise UsageError(
            f"rewards of shape {shape} from {num_envs} environments",
            "each must be a scalar",
            "Return float(reward[0]) from the environment's step.",
        )


def _autoreset_mode(envs: VectorEnv[Any, Any, Any]) -> AutoresetMode:
    mode = envs.metadata.get("autoreset_mode")
    try:
        return AutoresetMode(mode)
    except ValueError:
        raise UsageError(
            f"{type(envs).__name__} with autoreset_mode {mode!r}",
            "without it nobody can tell reset rows from transitions",
            'Set envs.metadata["autoreset_mode"] to a gymnasium.vector.AutoresetMode.',
        ) from None
