"""What an agent consists of, and how it trains: its loop, environments, execution mode."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import chain
from typing import Any

from torch import Tensor, nn

from fastdqn.agent.arguments import name_of
from fastdqn.agent.memory_parts import EVALUATION_ENVS
from fastdqn.agent.network import build_flat, objective_for
from fastdqn.agent.preflight import Training, fitted
from fastdqn.agent.training_state import NOT_TRAINED, TrainingState
from fastdqn.algorithms.objectives import Objective
from fastdqn.build import (
    build_intervals,
    build_ladder,
    build_learner,
    build_learning_rate,
    build_loop,
    build_sampler,
    build_schedule,
    build_tensor_rollout,
    refuse_impossible,
    sampler_factory,
)
from fastdqn.config import Config, plain
from fastdqn.device import resolve_device, threads
from fastdqn.envs.description import EnvDescription
from fastdqn.envs.provider import EnvProvider
from fastdqn.envs.seeding import Stream, seeds_of
from fastdqn.envs.specs.plain_values import to_plain
from fastdqn.errors import UsageError
from fastdqn.execution.modes import choose_execution, is_auto
from fastdqn.foundation.scalars import whole
from fastdqn.learner.settings import float32_products
from fastdqn.policies.policy import Policy
from fastdqn.replay import ReplayBuffer
from fastdqn.replay.sampler_check import SamplerFactory
from fastdqn.training.autotune import learning_seconds, tune
from fastdqn.training.callbacks import Callback
from fastdqn.training.evaluation import Evaluator, step_limit
from fastdqn.training.events import BestPolicy
from fastdqn.training.host.rollout import HostRollout
from fastdqn.training.schedules import ReplayRatio
from fastdqn.training.tensor.rollout import TensorRollout
from fastdqn.training.trainer import Trainer
from fastdqn.training.value_range import value_range_of

__all__ = ["NOT_TRAINED", "Trainable"]


class Trainable(TrainingState):
    """The parts of an agent, and how they train; its calls are those of `DQN`.

    Attributes:
        config: The settings.
        network: The online network.
        description: One environment.
        learner: Rows to weights.
        policy: Observations to actions.
        execution_reason: Why the learner runs in its execution mode.
        origin: Names of the caller's environment, network and other parts, for config.json.
    """

    config: Config
    description: EnvDescription
    origin: dict[str, str]
    memory_line: str
    _caller_settings: Mapping[str, Any]
    _provider: EnvProvider
    _by_id: bool
    """Whether the environment was passed by its id."""

    def _build(
        self,
        network: nn.Module | None,
        objective: Objective | None,
        sampler: SamplerFactory | None,
    ) -> None:
        config = self.config
        device = resolve_device(config.device)
        tensors = self._provider.tensors(config.num_envs, device)
        refuse_impossible(config, device, builds=self._provider.builds)  # before any allocation
        objective = objective_for(config, objective)
        kinds = tensors is not None, self._provider.builds, sampler is not None
        training = Training(config, self.description, network, objective, device, *kinds)
        self.config, self.memory_line = fitted(training)
        config = self.config
        flat = build_flat(config, self.description, network, objective, device, stacklevel=4)
        self.network = flat.module
        self.policy = Policy(flat, seeds_of(config.seed, Stream.EXPLORATION, 1)[0])
        self.learner = build_learner(config, flat, objective)
        make = sampler or sampler_factory(config)
        self._tensor_rollout = self._sampler = None
        if tensors is not None:
            self._tensor_rollout = build_tensor_rollout(config, tensors, self.learner, make)
        else:
            self._sampler = build_sampler(config, self.description, device, make)
        self._value_range = value_range_of(objective, config.gamma)
        self._ratio = ReplayRatio(config.replay_ratio, config.learning_starts)
        self.execution_reason, self._chosen = NOT_TRAINED, self.learner.execution
        self._rounds = self._env_steps = self._episodes = 0
        self._rollout: HostRollout | TensorRollout | None = None  # of the training that runs now

    def parameters(self) -> dict[str, Tensor]:
        """Return the parameters and buffers of the online network by name; views, not copies."""
        named = chain(self.network.named_parameters(), self.network.named_buffers())
        return {name: tensor.detach() for name, tensor in named}

    def describe(self) -> dict[str, Any]:
        """Return what is saved with them, plain JSON values; see `SavedDescription`."""
        config, env, (env_steps, episodes) = self.config, self.description, self._counts()
        return {
            "env_id": env.env_id,
            **({} if self._by_id else {"env": dict(env.construction)}),
            **self._own_parts(),
            "env_steps": env_steps,
            "episodes": episodes,
            "updates": self._ratio.updates,
            "rounds": self._rounds,
            "obs_shape": list(env.obs_shape),
            "obs_dtype": env.obs_dtype,
            "num_actions": env.num_actions,
            "network": type(self.network).__name__,
            "config": {**plain(config), "run_dir": None, "env_kwargs": to_plain(config.env_kwargs)},
        }

    def _own_parts(self) -> dict[str, str]:
        """Return the classes of the caller's own objective and sampler, by these names."""
        parts = {"objective": self.learner.objective, "sampler": self._own_sampler}
        return {part: name_of(type(own)) for part, own in parts.items() if part in self.origin}

    @contextmanager
    def trainer(
        self,
        total_timesteps: int | None,
        callback: Callback,
        *,
        started: float | None = None,
        recorded: bool = False,
        best: BestPolicy | None = None,
    ) -> Iterator[Trainer]:
        """Build the environments and the loop; close the environments afterwards.

        A `recorded` training is evaluated now and then; another one if evaluations were asked for.
        """
        config = self.config
        started = time.perf_counter() if started is None else started
        timesteps, asked = self._timesteps(total_timesteps), self._asks_for_evaluations
        self._choose_execution(timesteps)
        with ExitStack() as stack:
            stack.enter_context(threads(config.cpu_threads))
            stack.enter_context(float32_products(config.precision, self.learner.device))
            evaluator = None
            if self._provider.builds:
                evaluator = self._new_evaluator(config.seed, config.eval_episodes, self._rounds)
                stack.callback(evaluator.close)
            self._rollout = rollout = self._tensor_rollout or self._new_rollout(stack)
            until, made = self._env_steps + timesteps, self._ratio.updates
            self._own_sampler.expect(made, made + self._ratio.due(until))
            try:
                trainer = build_loop(
                    rollout,
                    self.learner,
                    self._sampler,
                    ratio=self._ratio,
                    epsilon=build_schedule(config),
                    learning_rate=build_learning_rate(config, until - self._begun_at()),
                    until=until,
                    intervals=build_intervals(config, evaluates=recorded or asked),
                    callback=callback,
                    evaluator=evaluator,
                    must_evaluate=asked,
                    evaluated_at_end=recorded,
                    best=best,
                    stop_at_return=config.stop_at_return,
                    value_range=self._value_range,
                    on_nonfinite=config.on_nonfinite,
                    started=started,
                )
                yield self._taken_up(trainer)
            finally:
                self._end_of(rollout)

    @property
    def _asks_for_evaluations(self) -> bool:
        config, named = self.config, "eval_interval" in self._caller_settings
        return config.stop_at_return is not None or (named and config.eval_interval > 0)

    def _new_rollout(self, stack: ExitStack) -> HostRollout:
        """Build the environments of a training; the stack closes them."""
        config, learning = self.config, partial(learning_seconds, self.learner, self._sampler)
        source = stack.enter_context(self._provider.training(config, learning))
        options = build_ladder(config, self.learner.device), config.on_nonfinite
        rollout = HostRollout(source, self.policy, self.replay, *options)
        rollout.env_steps, rollout.episodes = self._env_steps, self._episodes
        rollout.restore_limit_s = config.restore_limit_s
        return rollout

    def _timesteps(self, asked: int | None) -> int:
        """Return the env steps of a call, or refuse so few that nothing would be learned."""
        timesteps = self.config.total_timesteps
        if (left := self._left(asked)) is not None:
            return left
        if asked is not None:
            timesteps = whole("total_timesteps", asked, way_out="Try 100_000.")
        waits = max(self._ratio.start - self._env_steps, 0)
        if timesteps <= waits:
            raise UsageError(
                f"total_timesteps {timesteps}",
                f"learning starts after {waits} env steps, so nothing is learned",
                "Train longer, or lower learning_starts.",
            )
        return timesteps

    def _choose_execution(self, timesteps: int) -> None:
        asked, learner = self.config.execution, self.learner
        expected = int(self.config.replay_ratio * timesteps)
        first = self.execution_reason == NOT_TRAINED  # what CUDA measures holds afterwards
        if self._goes_on_as_it_ran():
            return
        if self._tensor_rollout is not None:
            mode, self.execution_reason = choose_execution(
                asked,
                learner.device,
                expected,
                tensor_envs=True,
                why_not_native=partial(learner.why_not_native, self._tensor_rollout.sampler),
            )
            self._tensor_rollout.execute_as(mode, background=is_auto(asked))
            learner.execution = mode
        elif self._sampler is not None and (first or learner.device.type != "cuda"):
            parts = asked, learner, self.policy, self._sampler
            self.execution_reason = tune(*parts, expected_updates=expected)
            self._chosen = learner.execution
        else:  # steps that were not compiled by the end of the last call are compiled now
            learner.execute_as(self._chosen, background=is_auto(asked))
            if self._sampler is not None:
                learner.prepare(self._sampler, max(self._sampler.due, 1))

    @property
    def solved_at(self) -> float | None:
        """Mean return that counts as solved: the environment's own, or else `stop_at_return`."""
        own = self.description.solved_at
        return self.config.stop_at_return if own is None else own

    @property
    def replay(self) -> ReplayBuffer:
        """The replay ring; tensor environments have one of their own, on the device."""
        if self._sampler is not None:
            return self._sampler.buffer
        raise UsageError("agent.replay", "tensor environments have none", "Do without it.")

    def _new_evaluator(
        self, seed: int, episodes: int, call: int = 0, *, max_steps: int | None = None
    ) -> Evaluator:
        make = partial(self._provider.evaluation, self.config, min(EVALUATION_ENVS, episodes))
        asked = self.config.eval_max_steps if max_steps is None else max_steps
        limit = step_limit(asked, self.description.max_episode_steps)
        return Evaluator(self.policy, make, seed, episodes, limit, call, self.config.on_nonfinite)
