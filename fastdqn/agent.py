"""DQN: the parts put together behind five calls."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from itertools import chain
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from fastdqn.build import (
    build_config,
    build_fused,
    build_learner,
    build_network,
    build_sampler,
    refuse_machine,
    refuse_unless_evaluable,
)
from fastdqn.checkpoint import SavedPolicy, load_policy, save_policy
from fastdqn.config import Config, plain
from fastdqn.device import resolve_device
from fastdqn.envs.make import EnvDescription
from fastdqn.envs.seeding import Stream, seeds_of
from fastdqn.evaluation import Evaluation, Tell
from fastdqn.given import folder_of, name_of, refuse_second_id, without_effect
from fastdqn.learning import NOT_TRAINED, Trainable, threads
from fastdqn.networks import FlatNetwork
from fastdqn.policy import Policy
from fastdqn.prediction import predict
from fastdqn.schedules import ReplayRatio
from fastdqn.worlds import AnyEnv, world_of

__all__ = ["DQN"]


class DQN(Trainable):
    """A deep Q-learning agent for one kind of environment.

    Args:
        env: A Gymnasium id, a factory of environments, or a VectorEnv or tensor environments
            that the caller built (trained in as they are, and left for the caller to close).
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
        env: AnyEnv,
        *,
        network: nn.Module | None = None,
        _given: Mapping[str, Any] | None = None,
        **settings: Any,
    ) -> None:
        self._given = settings if _given is None else _given  # by the caller, and not by a file
        refuse_second_id(self._given)
        masks = settings.get("action_masks", True)
        self._world = world_of(env, settings.get("vectorizer", "grouped"), masks=masks)
        self.description: EnvDescription = self._world.description
        settings = {**settings, **self._world.fixed}
        name = env if isinstance(env, str) else self.description.env_id
        self.config = build_config(name, settings)
        self.origin = {"environment": name_of(env)}
        if network is not None:
            self.origin["network"] = name_of(network)
        self.unused = without_effect(
            self._given,
            self._world.fixed,
            builds=self._world.builds,
            own_network=network is not None,
        )
        self._run_dir = folder_of(self.config.run_dir)
        self._recorded: Path | None = None  # the folder that the last call of `learn` left
        self._build(network)

    @classmethod
    def from_config(cls, config: Config) -> Self:
        """Build the agent of a whole `Config`."""
        return cls(config.env_id, **{k: v for k, v in vars(config).items() if k != "env_id"})

    def _build(self, network: nn.Module | None) -> None:
        config = self.config
        device = resolve_device(config.device)
        tensors = self._world.tensors(config.num_envs, device)
        refuse_machine(config, device)  # before anything is allocated
        refuse_unless_evaluable(config, builds=self._world.builds)
        flat = FlatNetwork(network or build_network(config, self.description), device)
        self.network = flat.module
        self.policy = Policy(flat, seeds_of(config.seed, Stream.EXPLORATION, 1)[0])
        self.learner = build_learner(config, flat)
        self._fused = None if tensors is None else build_fused(config, tensors, flat, self.learner)
        self._sampler = None if self._fused else build_sampler(config, self.description, device)
        self._ratio = ReplayRatio(config.replay_ratio, config.learning_starts)
        self.execution_reason, self._chosen = NOT_TRAINED, self.learner.execution
        self._rounds = self._env_steps = self._episodes = 0

    # The calls

    def predict(
        self, obs: npt.ArrayLike, action_mask: npt.ArrayLike | None = None
    ) -> npt.NDArray[np.int64]:
        """Return the greedy action of an observation [*O], or the actions of a batch [B, *O].

        Args:
            obs: [*O] or [B, *O].
            action_mask: [A] or [B, A] bool, what is allowed; None is everything.

        Returns:
            Int64 array, () or [B], in the numbers of the environment's action space.
        """
        return predict(self.policy, self.description, obs, action_mask)

    def evaluate(
        self,
        episodes: int | None = None,
        *,
        seed: int = 0,
        max_steps: int | None = None,
        tell: Tell | None = None,
    ) -> Evaluation:
        """Play greedy episodes in fresh environments; nothing is learned.

        Args:
            episodes: How many, played in up to 20 environments at a time; None is the setting
                `eval_episodes`.
            seed: Of the environments; apart from those of the training even if it is the same.
            max_steps: Env steps after which an episode is cut; 0 is never, None is the setting
                `eval_max_steps`. The result says how many were.
            tell: Is told every few seconds how far it has come: episodes done, episodes, env
                steps played; None is nobody.

        Raises:
            UsageError: `episodes` is below 1, or the agent cannot build environments.
        """
        episodes = self.config.eval_episodes if episodes is None else episodes
        evaluator = self._new_evaluator(seed, episodes, max_steps)
        evaluator.tell = tell
        with threads(self.config.cpu_threads), closing(evaluator):
            return evaluator.full()

    def save(self, path: str | Path) -> None:
        """Save the policy in a folder: safetensors and JSON."""
        save_policy(Path(path), self.parameters(), self.describe())

    @classmethod
    def load(
        cls,
        saved: str | Path | SavedPolicy,
        env: AnyEnv | None = None,
        *,
        network: nn.Module | None = None,
        **settings: Any,
    ) -> Self:
        """Load a policy that `save` or a run wrote.

        Learning on starts from an empty replay, with exploration as it was when saved.

        Args:
            saved: The folder of the policy or of the run, or what `load_policy` made of it.
            env: Where the agent goes on; None is the saved id.
            network: The module whose parameters were saved, if it was the caller's own.
            settings: Override saved settings.

        Raises:
            CheckpointError: The folder holds no whole policy, or one of another network.
        """
        if not isinstance(saved, SavedPolicy):
            saved = load_policy(Path(saved))
        kept = {**saved.config, **settings}
        env_id = kept.pop("env_id")
        agent = cls(env_id if env is None else env, network=network, _given=settings, **kept)
        saved.copy_into(agent.parameters())
        agent.learner.sync_target()
        agent._env_steps = int(saved.description.get("env_steps", 0))
        if agent._fused is not None:
            agent._fused.earlier_steps = agent._env_steps
        agent._ratio.start += agent._env_steps
        return agent

    # For those who look inside

    def parameters(self) -> dict[str, torch.Tensor]:
        """Return the parameters and buffers of the online network by name; views, not copies."""
        named = chain(self.network.named_parameters(), self.network.named_buffers())
        return {name: tensor.detach() for name, tensor in named}

    def describe(self) -> dict[str, Any]:
        """Return what goes with the parameters on disk: plain JSON values."""
        return {
            "env_id": self.description.env_id,
            "env_steps": self._env_steps,
            "updates": self._ratio.updates,
            "obs_shape": list(self.description.obs_shape),
            "obs_dtype": self.description.obs_dtype,
            "num_actions": self.description.num_actions,
            "network": type(self.network).__name__,
            "config": {**plain(self.config), "run_dir": None},
        }
