"""Saves an agent's policy, and builds an agent from a saved one."""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Mapping
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, Self

import torch
from gymnasium.vector import VectorEnv
from torch import nn

from fastdqn.agent.arguments import decided_by, fitting, name_of
from fastdqn.agent.learning import Trainable
from fastdqn.agent.loading import Restored, restore
from fastdqn.agent.saved_description import SavedDescription, write_description
from fastdqn.algorithms.objectives import Objective
from fastdqn.envs.provider import AnyEnv
from fastdqn.envs.seeding import Stream, seeds_of
from fastdqn.envs.tensor import TensorEnv
from fastdqn.errors import CheckpointError
from fastdqn.replay.sampler_check import SamplerFactory
from fastdqn.training.checkpoint import SavedPolicy, load_policy, save_policy

__all__ = ["Persistent"]


class Persistent(Trainable):
    """The saving and loading of an agent.

    Attributes:
        network: The online network.
    """

    network: nn.Module
    _by_id: bool
    """Whether the environment was passed by its id."""

    @abstractmethod
    def __init__(
        self,
        env: AnyEnv,
        *,
        network: nn.Module | None = None,
        objective: Objective | None = None,
        sampler: SamplerFactory | None = None,
        **settings: Any,
    ) -> None: ...

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
        objective: Objective | None = None,
        sampler: SamplerFactory | None = None,
        **settings: Any,
    ) -> Self:
        """Load a policy that `save` or a run wrote.

        Counts go on where they were: env steps, episodes, updates, and with them schedules and
        periods. Learning restarts with an empty replay, new seeds, an optimizer whose moments are
        zero and a target that equals the online network.

        Args:
            saved: The folder of the policy or of the run, or what `load_policy` returned.
            env: The environment of the agent; None takes the saved one, if the file holds it:
                an id that is registered, plain arguments, Gymnasium's own wrappers. The saved id
                keeps the saved arguments and wrappers, unless `env_kwargs` or `wrapper` is given:
                one that cannot be applied again is refused (name it as `wrapper`, or `()` for
                none); a UserWarning says that the file does not hold them.
            network: The module whose parameters were saved, if it was the caller's own.
            objective: That of the training, if it was the caller's own.
            sampler: Likewise; None draws as `replay` says, with a UserWarning.
            settings: Override saved settings.

        Raises:
            CheckpointError: The folder holds no whole policy, an invalid value, or the
                parameters of another network, or was trained with another objective or sampler.
            UsageError: The environment cannot be built from the file: pass it as `env`.
        """
        policy = saved if isinstance(saved, SavedPolicy) else load_policy(Path(saved))
        restored = restore(policy, env, settings, own_network=network is not None)
        _refuse_missing(objective, restored)
        named = fitting(
            restored.settings,
            settings,
            builds=not isinstance(restored.env, VectorEnv | TensorEnv),
            own_network=network is not None,
            others=decided_by(objective=objective, sampler=sampler),
        )
        agent = cls(restored.env, network=network, objective=objective, sampler=sampler, **named)
        agent._caller_settings = settings
        _refuse_other_parts(restored, agent._own_parts())
        restored.refuse_other_spaces(agent.description)
        policy.copy_into(agent.parameters())
        agent._go_on_from(restored.saved)
        return agent

    def _go_on_from(self, saved: SavedDescription) -> None:
        """Continue the counts of a saved training."""
        self._env_steps, self._episodes = saved.env_steps, saved.episodes
        self._rounds = saved.rounds
        self.learner.sync_target()
        self.learner.go_on_from(saved.updates)
        self._ratio.go_on_from(saved.env_steps, saved.updates)
        if self._tensor_rollout is not None:
            self._tensor_rollout.earlier_steps, self._tensor_rollout.episodes = (
                saved.env_steps,
                saved.episodes,
            )
        seed = partial(seeds_of, self.config.seed, count=1, round_=saved.rounds)
        self.policy.reseed(seed(Stream.EXPLORATION)[0])
        if self._sampler is not None:
            self._sampler.reseed(seed(Stream.REPLAY)[0])

    def parameters(self) -> dict[str, torch.Tensor]:
        """Return the parameters and buffers of the online network by name; views, not copies."""
        named = chain(self.network.named_parameters(), self.network.named_buffers())
        return {name: tensor.detach() for name, tensor in named}

    def _own_parts(self) -> dict[str, str]:
        """Return the classes of the caller's own objective and sampler, by these names."""
        rollout = self._tensor_rollout
        sampler = self._sampler if rollout is None else rollout.sampler
        parts = {"objective": self.learner.objective, "sampler": sampler}
        return {part: name_of(type(own)) for part, own in parts.items() if part in self.origin}

    def describe(self) -> dict[str, Any]:
        """Return the description that is saved with them: plain JSON values."""
        running = self._rollout
        done = (self._env_steps, self._episodes)
        env_steps, episodes = done if running is None else (running.env_steps, running.episodes)
        return write_description(
            self.config,
            self.description,
            type(self.network).__name__,
            parts=self._own_parts(),
            by_id=self._by_id,
            env_steps=env_steps,
            episodes=episodes,
            updates=self._ratio.updates,
            rounds=self._rounds,
        )


def _refuse_other_parts(restored: Restored, passed: Mapping[str, str]) -> None:
    """Refuse an objective or a sampler of another class than the saved one; modules may move."""
    for part in ("objective", "sampler"):
        was, found = getattr(restored.saved, part), passed.get(part)
        trained = f"{restored.folder} was trained with the {part} {was}"
        way_out = f"pass it, DQN.load(folder, {part}=...)"
        if was is not None and found is None:
            message = f"{trained}, and learning goes on without: {way_out}"
            warnings.warn(message, UserWarning, stacklevel=3)
        elif was is not None and was.rpartition(".")[2] != str(found).rpartition(".")[2]:
            raise CheckpointError(f"{trained}, and this is {found}: {way_out}")


def _refuse_missing(objective: Objective | None, restored: Restored) -> None:
    """Refuse no objective for a policy that learned by one of the caller's, which no file holds."""
    if objective is None and restored.saved.objective is not None:
        raise CheckpointError(
            f"{restored.folder} was trained with an objective of the caller's own, "
            f"{restored.saved.objective}: pass it, DQN.load(folder, objective=...)"
        )
