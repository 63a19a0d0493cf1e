"""DQN: the parts put together behind five calls."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from gymnasium.vector import VectorEnv
from torch import nn

from fastdqn.build import (
    build_intervals,
    build_learner,
    build_network,
    build_replay,
    build_schedule,
)
from fastdqn.checkpoint import SavedPolicy, load_policy, save_policy
from fastdqn.config import Config
from fastdqn.device import resolve_device
from fastdqn.envs.make import EnvDescription, EnvFactory, describe, factory_of
from fastdqn.envs.seeding import Stream, seeds_of
from fastdqn.envs.source import EnvSource, make_source, source_of
from fastdqn.errors import CheckpointError, UsageError
from fastdqn.evaluation import Evaluation, Evaluator
from fastdqn.execution import choose_execution
from fastdqn.networks import FlatNetwork
from fastdqn.policy import Policy
from fastdqn.rollout import Rollout
from fastdqn.schedules import ReplayRatio
from fastdqn.trainer import NullWitness, Trainer, Witness
from fastdqn.transition import storage_dtype

__all__ = ["DQN"]

EVALUATION_ENVS = 20


class DQN:
    """A deep Q-learning agent for one kind of environment.

    Args:
        env: A Gymnasium id, a factory of environments, or a VectorEnv that the caller built
            (trained in as it is, and left for the caller to close).
        network: A module from observations [B, *O] to Q-values [B, A]; None is an MLP of
            `hidden_sizes`.
        settings: Fields of `Config`, e.g. `num_envs=16, double=True`.

    Attributes:
        config: The settings.
        network: The online network.

    Raises:
        UsageError: A setting, the environment or the network cannot be used.
    """

    def __init__(
        self,
        env: str | EnvFactory | VectorEnv[Any, Any, Any],
        *,
        network: nn.Module | None = None,
        **settings: Any,
    ) -> None:
        self._vector: EnvSource | None = None
        self._factory: EnvFactory | None = None
        if isinstance(env, VectorEnv):
            self._vector = source_of(env)
            self.description: EnvDescription = self._vector.description
            settings = {**settings, "num_envs": env.num_envs}
        else:
            self._factory = factory_of(env) if isinstance(env, str) else env
            self.description = describe(self._factory)
        name = env if isinstance(env, str) else self.description.env_id
        self.config = _config(settings, name)
        self._build(network)

    @classmethod
    def from_config(cls, config: Config) -> Self:
        """Build the agent of a whole `Config`."""
        return cls(config.env_id, **{k: v for k, v in vars(config).items() if k != "env_id"})

    def _build(self, network: nn.Module | None) -> None:
        config = self.config
        device = resolve_device(config.device)
        choose_execution(config.execution, device, 0)  # refuses what this device cannot run
        if config.stop_at_return is not None and self._factory is None:
            raise UsageError(
                "stop_at_return with a VectorEnv",
                "evaluation needs fresh environments and knows no way to build them",
                "Pass an environment id or a factory.",
            )
        flat = FlatNetwork(network or build_network(config, self.description), device)
        self.network = flat.module
        self.policy = Policy(flat, seeds_of(config.seed, Stream.EXPLORATION, 1)[0])
        self.replay = build_replay(config, self.description, device)
        self.learner = build_learner(config, flat)
        self._ratio = ReplayRatio(config.replay_ratio, config.learning_starts)
        self.execution_reason = "not trained yet"
        self._rounds = 0
        self._env_steps = 0
        self._episodes = 0

    # The calls

    def learn(self, total_timesteps: int | None = None, *, witness: Witness | None = None) -> Self:
        """Train for a number of env steps more; a later call goes on where this one ends.

        The episodes that are running at the end of a call are cut there.

        Args:
            total_timesteps: Env steps of this call; None is the setting's.
            witness: Is told how it goes; None is nobody.
        """
        with self.trainer(total_timesteps, witness or NullWitness()) as trainer:
            trainer.run(self.env_seeds())
        return self

    def predict(self, obs: npt.ArrayLike) -> npt.NDArray[np.int64]:
        """Return the greedy action of an observation, or the actions of a batch of them.

        Args:
            obs: [*O] or [B, *O].

        Returns:
            Int64 array, () or [B], in the numbers of the environment's action space.

        Raises:
            UsageError: The shape is neither.
        """
        array = np.asarray(obs)
        shape = self.description.obs_shape
        if array.shape not in {shape, (array.shape[:1] + shape)}:
            raise UsageError(
                f"observation of shape {array.shape}", f"the network takes {shape}", "Or a batch."
            )
        dtype = storage_dtype(self.description.obs_dtype)
        batch = torch.as_tensor(array.reshape(-1, *shape), dtype=dtype, device=self.learner.device)
        actions: npt.NDArray[np.int64] = self.policy.greedy(batch).cpu().numpy()
        return (
            actions.reshape(array.shape[: array.ndim - len(shape)]) + self.description.first_action
        )

    def evaluate(self, episodes: int = 100, *, seed: int = 0) -> Evaluation:
        """Play greedy episodes in fresh environments; nothing is learned.

        Args:
            episodes: Rounded up to a multiple of the evaluation's environments, 20 or fewer.
            seed: Of the environments; apart from those of the training even if it is the same.
        """
        evaluator = self._new_evaluator(seed, episodes)
        try:
            return evaluator.full()
        finally:
            evaluator.close()

    def save(self, path: str | Path) -> None:
        """Save the policy in a folder: safetensors and JSON."""
        save_policy(Path(path), self.parameters(), self.describe())

    @classmethod
    def load(
        cls,
        path: str | Path,
        env: str | EnvFactory | VectorEnv[Any, Any, Any] | None = None,
        *,
        network: nn.Module | None = None,
        **settings: Any,
    ) -> Self:
        """Load a policy that `save` or a run wrote.

        Learning on starts from an empty replay, with exploration as it was when saved.

        Args:
            path: The folder of the policy.
            env: Where the agent goes on; None is the saved id.
            network: The module whose parameters were saved, if it was the caller's own.
            settings: Override saved settings.

        Raises:
            CheckpointError: The folder holds no whole policy, or one of another network.
        """
        saved = load_policy(Path(path))
        return cls.from_saved(saved, env, network=network, **settings)

    @classmethod
    def from_saved(
        cls,
        saved: SavedPolicy,
        env: str | EnvFactory | VectorEnv[Any, Any, Any] | None = None,
        *,
        network: nn.Module | None = None,
        **settings: Any,
    ) -> Self:
        """Build an agent around a policy that is already read; see `load`."""
        kept = {**saved.description["config"], **settings}
        kept["hidden_sizes"] = tuple(kept["hidden_sizes"])
        env_id = kept.pop("env_id")
        agent = cls(env if env is not None else env_id, network=network, **kept)
        agent._take(saved)
        return agent

    def _take(self, saved: SavedPolicy) -> None:
        try:
            with torch.no_grad():
                named = dict(self.network.named_parameters())
                for name, tensor in saved.parameters.items():
                    named[name].copy_(tensor)
        except (KeyError, RuntimeError) as error:
            raise CheckpointError(
                f"{saved.folder} holds the parameters of another network: {error}"
            ) from error
        self.learner.sync_target()
        self._env_steps = int(saved.description["env_steps"])
        self._ratio = ReplayRatio(
            self.config.replay_ratio, self._env_steps + self.config.learning_starts
        )

    # For those who drive the loop or witness it

    @property
    def solved_at(self) -> float | None:
        """Mean return that counts as solved: the environment's own, or else `stop_at_return`."""
        own = self.description.solved_at
        return self.config.stop_at_return if own is None else own

    @contextmanager
    def trainer(
        self, total_timesteps: int | None, witness: Witness, *, started: float | None = None
    ) -> Iterator[Trainer]:
        """Build the environments and the loop; close the environments afterwards."""
        config = self.config
        started = time.perf_counter() if started is None else started
        timesteps = total_timesteps or config.total_timesteps
        self._choose_execution(timesteps)
        threads = torch.get_num_threads()
        torch.set_num_threads(config.cpu_threads)
        source = self._vector or self._new_source(config.num_envs)
        evaluator = (
            self._new_evaluator(config.seed, config.eval_episodes) if self._factory else None
        )
        try:
            trainer = self._new_trainer(source, witness, timesteps, evaluator, started)
            try:
                yield trainer
            finally:
                rollout = trainer.rollout
                self._env_steps, self._episodes = rollout.env_steps, rollout.episodes
        finally:
            if source is not self._vector:
                source.close()
            if evaluator is not None:
                evaluator.close()
            torch.set_num_threads(threads)

    def _choose_execution(self, timesteps: int) -> None:
        config, learner = self.config, self.learner
        expected = int(config.replay_ratio * timesteps)
        mode, self.execution_reason = choose_execution(config.execution, learner.device, expected)
        if mode != learner.execution:
            learner.execute_as(mode)

    def env_seeds(self) -> list[int]:
        """Return seeds for the training environments, new ones at each call."""
        self._rounds += 1
        return seeds_of(
            self.config.seed, Stream.TRAINING_ENVS, self.config.num_envs, self._rounds - 1
        )

    def parameters(self) -> dict[str, torch.Tensor]:
        """Return the parameters of the online network by name; views, not copies."""
        return {name: p.detach() for name, p in self.network.named_parameters()}

    def describe(self) -> dict[str, Any]:
        """Return what goes with the parameters on disk: plain JSON values."""
        config = {k: str(v) if isinstance(v, Path) else v for k, v in asdict(self.config).items()}
        return {
            "env_id": self.description.env_id,
            "env_steps": self._env_steps,
            "updates": self._ratio.updates,
            "obs_shape": list(self.description.obs_shape),
            "obs_dtype": self.description.obs_dtype,
            "num_actions": self.description.num_actions,
            "network": type(self.network).__name__,
            "config": {**config, "run_dir": None},
        }

    def _new_source(self, num_envs: int) -> EnvSource:
        if self._factory is None:
            raise UsageError(
                "an agent of a VectorEnv",
                "it cannot build environments",
                "Pass an id or a factory.",
            )
        config = self.config
        return make_source(
            config.vectorizer, self._factory, self.description, num_envs, config.num_workers
        )

    def _new_evaluator(self, seed: int, episodes: int) -> Evaluator:
        num_envs = min(EVALUATION_ENVS, episodes)
        return Evaluator(self.policy, lambda: self._new_source(num_envs), seed, episodes)

    def _new_trainer(
        self,
        source: EnvSource,
        witness: Witness,
        timesteps: int,
        evaluator: Evaluator | None,
        started: float,
    ) -> Trainer:
        config = self.config
        rollout = Rollout(source, self.policy, self.replay)
        rollout.env_steps, rollout.episodes = self._env_steps, self._episodes
        return Trainer(
            rollout,
            self.learner,
            draw=self.replay.draw if config.replay == "uniform" else self.replay.newest,
            batch_size=config.batch_size,
            ratio=self._ratio,
            epsilon=build_schedule(config),
            until=self._env_steps + timesteps,
            intervals=build_intervals(config),
            witness=witness,
            evaluator=evaluator,
            stop_at_return=config.stop_at_return,
            started=started,
        )


def _config(settings: dict[str, Any], env_id: str) -> Config:
    unknown = set(settings) - set(Config.__dataclass_fields__)
    if unknown:
        raise UsageError(
            f"setting {sorted(unknown)[0]}",
            "DQN has no such setting",
            f"Choose among {', '.join(Config.__dataclass_fields__)}.",
        )
    return replace(Config(), env_id=env_id, **settings)
