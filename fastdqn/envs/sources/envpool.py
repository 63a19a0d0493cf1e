"""EnvPool as a source of experience: environments written in C++, stepped by its own threads.

EnvPool resets an ended episode with the next step, and reports an episode's end and whether its
time was up: here that becomes rows that are real or not, and terminated apart from truncated.
"""

from __future__ import annotations

import difflib
import importlib
import warnings
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from gymnasium.spaces import Box

from fastdqn.device import available_cores
from fastdqn.envs.description import EnvDescription, describe_spaces
from fastdqn.envs.sources.new_episode import NewEpisode
from fastdqn.envs.workers.shared_block import RowSpec, SharedBlock
from fastdqn.errors import UsageError

__all__ = ["EnvPoolSource", "describe_envpool"]

NO_LIMIT = 2**31 - 1
"""EnvPool's largest episode length, which means no limit; also the largest seed."""
_quiet = partial(warnings.catch_warnings, action="ignore")
"""Suppresses EnvPool's warnings about its own bounds and imports; Gymnasium's logger warns of every
Box whose float64 bounds become float32."""


class EnvPoolSource:
    """N environments of an EnvPool, whose results are copied into private rows.

    `send` returns at once and EnvPool's threads step while the caller learns. A step that only
    reset an environment is a row that is not real, as in Gymnasium's NEXT_STEP mode.

    EnvPool calls an episode that ends by itself in the last step of its time a truncation. To
    distinguish the two, the pool gets one step more than the environment's limit, and the limit
    is applied here: after a truncation come two rows that are not real.

    Seeds are fixed when a pool is built, one per environment, so `reset` builds a new pool. An
    environment's seed alone decides its episodes, whatever its place and the number of threads:
    the same seeds and actions give the same transitions. They are not the transitions that
    Gymnasium's environment of the same name gives for that seed.

    Args:
        env_id: EnvPool's id.
        num_envs: Environments, N.
        num_threads: Threads that step; None is one per core, at most one per environment.
        time_limit: Env steps after which an episode is truncated; None is the environment's.

    Attributes:
        num_workers: The threads.

    Raises:
        UsageError: As `describe_envpool`, or a number below 1.
    """

    resets_within_step = False
    num_groups = 1
    num_restarts = 0
    restarts: Sequence[str] = ()

    def __init__(
        self,
        env_id: str,
        num_envs: int,
        num_threads: int | None = None,
        time_limit: int | None = None,
    ) -> None:
        self.description = describe_envpool(env_id)
        for flag, value in (("--num-envs", num_envs), ("--num-workers", num_threads)):
            if value is not None and value < 1:
                raise UsageError(f"{flag} {value}", "it must be at least 1", f"Raise {flag}.")
        self.num_envs = num_envs
        self.num_workers = min(num_threads or available_cores(), num_envs)
        described = self.description
        self.time_limit = min(time_limit or described.max_episode_steps or NO_LIMIT, NO_LIMIT)
        spec = RowSpec(num_envs, described.obs_shape, described.obs_dtype)
        self.rows = SharedBlock.allocate(spec)
        self._pool: Any = None
        self._returns = np.zeros(num_envs)
        self._lengths = np.zeros(num_envs, np.int64)
        self._elapsed = np.zeros(num_envs, np.int64)
        self._alive = np.ones(num_envs, np.bool_)
        """[N] bool, whether the next step will be real."""

    def reset(self, seeds: Sequence[int]) -> None:
        """Build a new pool and start new episodes everywhere; fills `rows.obs`.

        Args:
            seeds: One per environment, in [0, 2^31).

        Raises:
            UsageError: Another number of seeds, or one that EnvPool does not take.
        """
        seeds = [int(seed) for seed in seeds]
        _refuse_seeds(seeds, self.num_envs)
        self.close()
        with _quiet():
            self._pool = _envpool().make_gymnasium(
                self.description.env_id,
                num_envs=self.num_envs,
                num_threads=self.num_workers,
                seed=seeds,
                max_episode_steps=min(self.time_limit + 1, NO_LIMIT),
            )
            obs, info = self._pool.reset()
        self.rows.obs[info["env_id"]] = obs.reshape(self.rows.obs.shape)
        self.rows.clear()
        self._returns[:] = 0.0
        self._lengths[:] = 0
        self._alive[:] = True

    def rows_of(self, group: int) -> SharedBlock:  # noqa: ARG002
        """Return the rows: there is one group."""
        return self.rows

    def send(self, actions: npt.NDArray[np.int64], group: int = 0) -> None:  # noqa: ARG002
        """Hand the actions to EnvPool's threads; returns at once.

        Raises:
            RuntimeError: Before the first `reset` or after `close`.
        """
        self._running().send(actions + self.description.first_action)

    def recv(self, group: int = 0) -> None:  # noqa: ARG002
        """Wait for all environments and copy their step into the rows.

        Raises:
            RuntimeError: Before the first `reset` or after `close`.
        """
        obs, reward, terminated, truncated, info = self._running().recv()
        rows, places = self.rows, info["env_id"]  # EnvPool need not answer in order
        rows.obs[places] = obs.reshape(rows.obs.shape)
        rows.reward[places] = reward
        rows.terminated[places] = terminated
        rows.truncated[places] = truncated
        self._elapsed[places] = info["elapsed_step"]
        rows.real[:] = self._alive
        self._count_episodes()

    def begin_anew(self, envs: npt.NDArray[np.int64]) -> NewEpisode:
        """Count the returns of some environments anew; EnvPool's episodes go on."""
        self._returns[envs] = 0.0
        return NewEpisode.NEVER

    def _count_episodes(self) -> None:
        """Count real rows only, cut episodes at the time limit, and sum their rewards."""
        rows = self.rows
        rows.reward[~rows.real] = 0.0
        self._returns += rows.reward
        self._lengths += rows.real
        np.logical_or(rows.truncated, self._lengths >= self.time_limit, out=rows.truncated)
        np.logical_and(rows.terminated, rows.real, out=rows.terminated)
        np.logical_and(rows.truncated, rows.real, out=rows.truncated)
        ended = rows.terminated | rows.truncated
        rows.episode_return[ended] = self._returns[ended]
        rows.episode_length[ended] = self._lengths[ended]
        self._returns[ended] = 0.0
        self._lengths[ended] = 0
        reset = self._elapsed == 0
        self._alive[:] = reset | (rows.real & ~ended)

    def _running(self) -> Any:
        if self._pool is None:
            raise RuntimeError("no step without a reset before it, and none after close")
        return self._pool

    def close(self) -> None:
        """End EnvPool's threads and free its memory; a step under way is dropped."""
        if self._pool is not None:
            self._pool.close()
        self._pool = None  # the threads end with the last reference


def describe_envpool(env_id: str) -> EnvDescription:
    """Describe an environment of EnvPool without building it.

    `solved_at` is EnvPool's reward threshold, or else Gymnasium's for the same id.

    Raises:
        UsageError: EnvPool is not installed, does not have the id or cannot build it, several
            players share it, or DQN cannot train on its spaces.
    """
    spec = _spec_of(env_id)
    players = int(getattr(spec.config, "max_num_players", 1))
    if players != 1:
        raise UsageError(
            f"--env-id {env_id}", f"{players} players share it, DQN is one", _way_out(env_id, [])
        )
    with _quiet():
        obs, action = spec.gymnasium_observation_space, spec.gymnasium_action_space
    solved_at = getattr(spec.config, "reward_threshold", None)
    if solved_at is None and env_id in gym.registry:
        solved_at = gym.registry[env_id].reward_threshold
    solved_at = None if solved_at is None else float(solved_at)
    described = describe_spaces(env_id, _unbounded(obs), action, solved_at)
    limit = int(spec.config.max_episode_steps)
    return replace(described, max_episode_steps=limit if limit < NO_LIMIT else None)


def _unbounded(space: gym.Space[Any]) -> gym.Space[Any]:
    """Return bounds that EnvPool writes as C++'s smallest or largest float as infinite."""
    if not isinstance(space, Box) or space.dtype is None or space.dtype.kind != "f":
        return space
    extremes = np.finfo(space.dtype)
    low = np.where(space.low == extremes.tiny, -np.inf, space.low)
    high = np.where(space.high == extremes.max, np.inf, space.high)
    return Box(low.astype(space.dtype), high.astype(space.dtype), space.shape, space.dtype.type)


def _spec_of(env_id: str) -> Any:
    envpool = _envpool()
    known: list[str] = envpool.list_all_envs()
    if env_id not in known:
        raise UsageError(
            f"--env-id {env_id}", "EnvPool does not have this id", _way_out(env_id, known)
        )
    try:
        with _quiet():
            return envpool.make_spec(env_id)
    except Exception as error:  # a missing system library or file of that environment
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UsageError(
            f"--env-id {env_id}",
            f"EnvPool cannot build it ({type(error).__name__}: {reason})",
            _way_out(env_id, []),
        ) from error


def _envpool() -> Any:
    """Import EnvPool, which is an extra and takes a second."""
    try:
        with _quiet():
            return importlib.import_module("envpool")
    except ModuleNotFoundError as error:
        if error.name != "envpool":
            raise
        raise UsageError(
            "--vectorizer envpool",
            "EnvPool is not installed",
            "Run pip install 'fastdqn[envpool]', or use --vectorizer grouped.",
        ) from None


def _way_out(env_id: str, known: list[str]) -> str:
    by_lower = {name.lower(): name for name in known}
    close = [by_lower[m] for m in difflib.get_close_matches(env_id.lower(), by_lower, 4, 0.7)]
    question = f"Did you mean {', '.join(close)}? " if close else ""
    return f"{question}--vectorizer grouped takes every environment of Gymnasium."


def _refuse_seeds(seeds: Sequence[int], num_envs: int) -> None:
    if len(seeds) != num_envs:
        raise UsageError(
            f"{len(seeds)} seeds for {num_envs} environments",
            "each environment has one of its own",
            "Draw them with fastdqn.envs.seeding.seeds_of.",
        )
    for seed in seeds:
        if not 0 <= seed <= NO_LIMIT:
            raise UsageError(
                f"environment seed {seed}",
                "EnvPool takes 0 to 2^31 - 1",
                "Draw it with fastdqn.envs.seeding.seeds_of.",
            )
