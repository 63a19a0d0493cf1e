"""DQN: the agent, with `predict` and `evaluate`.

`learn` is in `learning`, `save` and `load` are in `persistence`.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import numpy.typing as npt
from torch import nn

from fastdqn.agent.arguments import (
    chosen_in,
    folder_of,
    name_of,
    origin_of,
    refuse_decided,
    refuse_second_id,
    warn_without_effect,
    without_run_directory,
)
from fastdqn.agent.learning import NOT_TRAINED, threads
from fastdqn.agent.persistence import Persistent
from fastdqn.algorithms.objectives import Objective, objective_of
from fastdqn.build import (
    SAMPLERS,
    build_config,
    build_flat,
    build_learner,
    build_sampler,
    build_tensor_rollout,
    refuse_machine,
    refuse_unless_evaluable,
)
from fastdqn.config import Config
from fastdqn.device import resolve_device
from fastdqn.envs.description import EnvDescription
from fastdqn.envs.provider import AnyEnv, env_provider_of
from fastdqn.envs.seeding import Stream, seeds_of
from fastdqn.envs.specs.wrapping import CONFIGURING, with_plain_arguments
from fastdqn.foundation.copying import Whole, copied
from fastdqn.foundation.scalars import whole
from fastdqn.policies.policy import Policy
from fastdqn.policies.predict import predict
from fastdqn.replay.sampler_check import SamplerFactory
from fastdqn.training.evaluation import Evaluation, OnProgress
from fastdqn.training.host.rollout import HostRollout
from fastdqn.training.schedules import ReplayRatio
from fastdqn.training.tensor.rollout import TensorRollout

__all__ = ["DQN"]


class DQN(Persistent, Whole):
    """A deep Q-learning agent for one kind of environment.

    Args:
        env: A Gymnasium id, a factory of environments, or a VectorEnv or tensor environments
            that the caller built (trained in as they are, and left for the caller to close).
        network: A module from observations [B, *O] to Q-values [B, A], or to what the objective
            makes Q-values of; None is an MLP of `hidden_sizes`.
        objective: What an update makes smaller; None is what `double` and `loss` say.
        sampler: Builds what chooses the batches, of the ring and the batch size; None is what
            `replay` says.
        settings: Fields of `Config`, e.g. `num_envs=16, double=True`.

    Attributes:
        config: The settings.
        network: The online network.

    Raises:
        UsageError: A setting, the environment or the network cannot be used.
    """

    kept_by = "Use agent.save(path) and DQN.load(path)."

    def __init__(
        self,
        env: AnyEnv,
        *,
        network: nn.Module | None = None,
        objective: Objective | None = None,
        sampler: SamplerFactory | None = None,
        **settings: Any,
    ) -> None:
        self._caller_settings: Mapping[str, Any] = settings
        refuse_second_id(settings)
        refuse_decided(settings, objective=objective, sampler=sampler)
        settings = with_plain_arguments(settings)
        named = {name: settings.get(name) for name in CONFIGURING}
        self._provider = env_provider_of(
            env,
            settings.get("vectorizer", "grouped"),
            masks=settings.get("action_masks", True),
            expect_masks=settings.get("expect_action_masks", False),
            **named,
        )
        self.description: EnvDescription = self._provider.description
        self._by_id = isinstance(env, str)
        settings = {**settings, **self._provider.fixed}
        name = env if isinstance(env, str) else self.description.env_id
        self.config = build_config(name, settings)
        self.origin = {"environment": origin_of(env, self.description.env_id)}
        parts = {"network": network, "objective": objective, "sampler": sampler}
        self.origin |= {name: name_of(part) for name, part in parts.items() if part is not None}
        warn_without_effect(
            self._caller_settings,
            self._provider.fixed,
            builds=self._provider.builds,
            own_network=network is not None,
        )
        self._run_dir = folder_of(self.config.run_dir)
        self._recorded: Path | None = None  # the folder that the last call of `learn` left
        self._build(network, objective, sampler)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Return an agent that learns on as this one would, bit for bit.

        Environments that the caller built are shared: let one agent learn in them at a time. A run
        directory stays the original's.
        """
        if self._tensor_rollout is not None and not self._provider.builds:
            memo[id(self._tensor_rollout.env)] = self._tensor_rollout.env
        twin = copied(self, memo, shared=("_provider", "description"), anew=("_rollout",))
        twin._rollout, running = None, self._rollout
        twin._run_dir = twin._recorded = None
        twin.config = replace(self.config, run_dir=None)
        twin._caller_settings = without_run_directory(self._caller_settings)
        if running is not None:  # a copy of the middle of a training begins where that is now
            twin._env_steps, twin._episodes = running.env_steps, running.episodes
        return twin

    @classmethod
    def from_config(cls, config: Config) -> Self:
        """Build the agent of a whole `Config`."""
        agent = cls(config.env_id, **{k: v for k, v in vars(config).items() if k != "env_id"})
        agent._caller_settings = chosen_in(config)
        return agent

    def _build(
        self,
        network: nn.Module | None,
        objective: Objective | None,
        sampler: SamplerFactory | None,
    ) -> None:
        config = self.config
        device = resolve_device(config.device)
        tensors = self._provider.tensors(config.num_envs, device)
        refuse_machine(config, device)  # before anything is allocated
        refuse_unless_evaluable(config, builds=self._provider.builds)
        chosen = (config.double, config.loss) if objective is None else (None, None)
        objective = objective_of(objective, *chosen)
        flat = build_flat(config, self.description, network, objective, device, stacklevel=4)
        self.network = flat.module
        self.policy = Policy(flat, seeds_of(config.seed, Stream.EXPLORATION, 1)[0])
        self.learner = build_learner(config, flat, objective)
        make = sampler or SAMPLERS[config.replay]
        self._tensor_rollout = self._sampler = None
        if tensors is not None:
            self._tensor_rollout = build_tensor_rollout(config, tensors, flat, self.learner, make)
        else:
            self._sampler = build_sampler(config, self.description, device, make)
        self._ratio = ReplayRatio(config.replay_ratio, config.learning_starts)
        self.execution_reason, self._chosen = NOT_TRAINED, self.learner.execution
        self._rounds = self._env_steps = self._episodes = 0
        self._rollout: HostRollout | TensorRollout | None = None  # of the training that runs now

    # The calls

    def predict(
        self, obs: npt.ArrayLike, action_mask: npt.ArrayLike | None = None
    ) -> npt.NDArray[Any]:
        """Return the greedy action of an observation [*O], or the actions of a batch [B, *O].

        Args:
            obs: [*O] or [B, *O]: an array, a list or a tensor; read.
            action_mask: [A] or [B, A] bool, what is allowed; None is everything.

        Returns:
            Array, () or [B], in the numbers and the dtype of the environment's action space.

        Raises:
            UsageError: Another shape, or numbers that the space's dtype does not hold.
        """
        return predict(self.policy, self.description, obs, action_mask)

    def evaluate(
        self,
        episodes: int | None = None,
        *,
        seed: int = 0,
        max_steps: int | None = None,
        on_progress: OnProgress | None = None,
    ) -> Evaluation:
        """Play greedy episodes in fresh environments; nothing is learned.

        Args:
            episodes: How many, played in up to 20 environments at a time; None is the setting
                `eval_episodes`.
            seed: Of the environments; those of the training are others even for the same seed.
            max_steps: Env steps after which an episode is cut; 0 is never, None is the setting
                `eval_max_steps`. The result has the number of cut episodes.
            on_progress: Called every few seconds with the episodes done, all episodes and the env
                steps played so far.

        Raises:
            UsageError: `episodes` is below 1, or the agent cannot build environments.
        """
        if episodes is None:
            episodes = self.config.eval_episodes
        episodes = whole("episodes", episodes, least=1, way_out="Try 100.")
        seed = whole("seed", seed, way_out="Try 0.")
        if max_steps is not None:
            max_steps = whole("max_steps", max_steps, way_out="0 is no bound.")
        evaluator = self._new_evaluator(seed, episodes, max_steps)
        evaluator.on_progress = on_progress
        with threads(self.config.cpu_threads), closing(evaluator):
            return evaluator.full()
