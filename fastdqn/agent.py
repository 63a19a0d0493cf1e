"""DQN: the parts put together behind five calls.

This file is longer than others: what a user calls stands in one place, with its contracts.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from fastdqn.build import (
    build_config,
    build_flat,
    build_fused,
    build_learner,
    build_loop,
    build_sampler,
    refuse_machine,
    refuse_unless_evaluable,
)
from fastdqn.checkpoint import SavedPolicy, load_policy, save_policy
from fastdqn.config import Config, plain
from fastdqn.copying import Whole, copied
from fastdqn.device import resolve_device
from fastdqn.envs.make import EnvDescription
from fastdqn.envs.seeding import Stream, seeds_of
from fastdqn.errors import UsageError
from fastdqn.evaluation import Evaluation, Evaluator
from fastdqn.execution import choose_execution
from fastdqn.fused import FusedRollout
from fastdqn.loop import Loop
from fastdqn.policy import Policy
from fastdqn.precision import float32_products
from fastdqn.prediction import predict
from fastdqn.replay import ReplayBuffer
from fastdqn.rollout import Rollout
from fastdqn.schedules import ReplayRatio
from fastdqn.trial import choose_ways, learning_seconds
from fastdqn.witness import NullWitness, Witness
from fastdqn.worlds import AnyEnv, world_of

__all__ = ["DQN"]

EVALUATION_ENVS = 20
NOT_TRAINED = "not trained yet"


class DQN(Whole):
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

    kept_by = "Use agent.save(path) and DQN.load(path)."

    def __init__(self, env: AnyEnv, *, network: nn.Module | None = None, **settings: Any) -> None:
        masks = settings.get("action_masks", True)
        self._world = world_of(env, settings.get("vectorizer", "grouped"), masks=masks)
        self.description: EnvDescription = self._world.description
        settings = {**settings, **self._world.fixed}
        name = env if isinstance(env, str) else self.description.env_id
        self.config = build_config(name, settings)
        self._build(network)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Return an agent that learns on as this one would, bit for bit.

        Environments that the caller built are shared: let one agent learn in them at a time.
        """
        if self._fused is not None and not self._world.builds:
            memo[id(self._fused.env)] = self._fused.env
        twin = copied(self, memo, shared=("_world", "description"), anew=("_running",))
        twin._running, running = None, self._running
        if running is not None:  # a copy of the middle of a training begins where that is now
            twin._env_steps, twin._episodes = running.env_steps, running.episodes
        return twin

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
        flat = build_flat(config, self.description, network, device, stacklevel=4)
        self.network = flat.module
        self.policy = Policy(flat, seeds_of(config.seed, Stream.EXPLORATION, 1)[0])
        self.learner = build_learner(config, flat)
        self._fused = None if tensors is None else build_fused(config, tensors, flat, self.learner)
        self._sampler = None if self._fused else build_sampler(config, self.description, device)
        self._ratio = ReplayRatio(config.replay_ratio, config.learning_starts)
        self.execution_reason, self._chosen = NOT_TRAINED, self.learner.execution
        self._rounds = self._env_steps = self._episodes = 0
        self._running: Rollout | FusedRollout | None = None

    # The calls

    def learn(self, total_timesteps: int | None = None, *, witness: Witness | None = None) -> Self:
        """Train for a number of env steps more; a later call goes on where this one ends.

        The episodes that are running at the end of a call are cut there.

        Args:
            total_timesteps: Env steps of this call; None is the setting's.
            witness: Is told how it goes; None is nobody.

        Raises:
            UsageError: So few env steps that nothing would be learned.
        """
        with self.trainer(total_timesteps, witness or NullWitness()) as trainer:
            trainer.run(self.env_seeds())
        return self

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

    def evaluate(self, episodes: int = 100, *, seed: int = 0) -> Evaluation:
        """Play greedy episodes in fresh environments; nothing is learned.

        Args:
            episodes: How many, played in up to 20 environments at a time.
            seed: Of the environments; apart from those of the training even if it is the same.

        Raises:
            UsageError: `episodes` is below 1, or the agent cannot build environments.
        """
        with closing(self._new_evaluator(seed, episodes)) as evaluator:
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
        agent = cls(env_id if env is None else env, network=network, **kept)
        saved.copy_into(agent.parameters())
        agent.learner.sync_target()
        agent._env_steps = int(saved.description.get("env_steps", 0))
        if agent._fused is not None:
            agent._fused.earlier_steps = agent._env_steps
        agent._ratio.start += agent._env_steps
        return agent

    # For those who drive the loop or witness it

    @property
    def solved_at(self) -> float | None:
        """Mean return that counts as solved: the environment's own, or else `stop_at_return`."""
        own = self.description.solved_at
        return self.config.stop_at_return if own is None else own

    @contextmanager
    def trainer(
        self, total_timesteps: int | None, witness: Witness, *, started: float | None = None
    ) -> Iterator[Loop]:
        """Build the environments and the loop; close the environments afterwards."""
        config = self.config
        started = time.perf_counter() if started is None else started
        timesteps = config.total_timesteps if total_timesteps is None else total_timesteps
        self._refuse_idle(timesteps)
        self._choose_execution(timesteps)
        with ExitStack() as stack:
            stack.callback(torch.set_num_threads, torch.get_num_threads())
            torch.set_num_threads(config.cpu_threads)
            stack.enter_context(float32_products(config.precision, self.learner.device))
            evaluator = None
            if self._world.builds:
                evaluator = self._new_evaluator(config.seed, config.eval_episodes)
                stack.callback(evaluator.close)
            rollout = self._running = self._fused or self._new_rollout(stack)
            try:
                yield build_loop(
                    config,
                    rollout,
                    self.learner,
                    self._sampler,
                    ratio=self._ratio,
                    until=self._env_steps + timesteps,
                    witness=witness,
                    evaluator=evaluator,
                    started=started,
                )
            finally:
                self._env_steps, self._episodes = rollout.env_steps, rollout.episodes
                self._running = None
                self.learner.close()

    def _new_rollout(self, stack: ExitStack) -> Rollout:
        """Build the environments of a training; the stack closes them."""
        learning = partial(learning_seconds, self.learner, self._sampler)
        source = stack.enter_context(self._world.training(self.config, learning))
        rollout = Rollout(source, self.policy, self.replay)
        rollout.env_steps, rollout.episodes = self._env_steps, self._episodes
        return rollout

    @property
    def replay(self) -> ReplayBuffer:
        """The replay ring; tensor environments have one of their own, on the device."""
        if self._sampler is not None:
            return self._sampler.replay
        raise UsageError("agent.replay", "tensor environments have none", "Do without it.")

    def _refuse_idle(self, timesteps: int) -> None:
        waits = max(self._ratio.start - self._env_steps, 0)
        if timesteps <= waits:
            raise UsageError(
                f"total_timesteps {timesteps}",
                f"learning starts after {waits} env steps, so nothing is learned",
                "Train longer, or lower learning_starts.",
            )

    def _choose_execution(self, timesteps: int) -> None:
        asked, learner = self.config.execution, self.learner
        expected = int(self.config.replay_ratio * timesteps)
        first = self.execution_reason == NOT_TRAINED  # what CUDA measures holds afterwards
        if self._fused is not None:
            mode, self.execution_reason = choose_execution(
                asked, learner.device, expected, fused=True, why_not_native=learner.why_not_native
            )
            self._fused.execute_as(mode, behind=asked == "auto")
            learner.execution = mode
        elif self._sampler is not None and (first or learner.device.type != "cuda"):
            parts = asked, learner, self.policy, self._sampler
            self.execution_reason = choose_ways(*parts, expected_updates=expected)
            self._chosen = learner.execution
        else:  # what was not compiled by the end of the last call is compiled now
            learner.execute_as(self._chosen, behind=asked == "auto")

    def env_seeds(self) -> list[int]:
        """Return seeds for the training environments, new ones at each call."""
        self._rounds += 1
        config = self.config
        return seeds_of(config.seed, Stream.TRAINING_ENVS, config.num_envs, self._rounds - 1)

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

    def _new_evaluator(self, seed: int, episodes: int) -> Evaluator:
        make = partial(self._world.evaluation, self.config, min(EVALUATION_ENVS, episodes))
        return Evaluator(self.policy, make, seed, episodes)
