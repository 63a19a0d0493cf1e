"""How an agent trains: `learn`, with a run directory or without."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from fastdqn.agent.arguments import folder_of, refuse_unwritten
from fastdqn.build import build_loop
from fastdqn.config import Config
from fastdqn.envs.description import EnvDescription
from fastdqn.envs.provider import EnvProvider
from fastdqn.envs.seeding import Stream, seeds_of
from fastdqn.errors import UsageError
from fastdqn.execution.modes import choose_execution, is_auto
from fastdqn.foundation.scalars import whole
from fastdqn.learner.learner import Learner
from fastdqn.learner.precision import float32_products
from fastdqn.policies.policy import Policy
from fastdqn.replay import ReplayBuffer, Sampler
from fastdqn.reporting.run_directory import make_run_dir
from fastdqn.training.autotune import learning_seconds, tune
from fastdqn.training.callbacks import Callback, refuse_callback
from fastdqn.training.evaluation import Evaluator, step_limit
from fastdqn.training.host.rollout import HostRollout
from fastdqn.training.schedules import ReplayRatio
from fastdqn.training.signals import exit_on_sigterm
from fastdqn.training.tensor.rollout import TensorRollout
from fastdqn.training.trainer import Trainer

__all__ = ["NOT_TRAINED", "Trainable", "threads"]

EVALUATION_ENVS = 20
NOT_TRAINED = "not trained yet"


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Give PyTorch's CPU operations so many threads within this context."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class Trainable(ABC):
    """The half of an agent that trains; the other half builds the parts, acts and saves.

    Attributes:
        config: The settings.
        description: One environment.
        learner: Rows to weights.
        policy: Observations to actions.
        execution_reason: Why the learner runs in its execution mode.
        origin: Names of the caller's environment, network and other parts, for config.json.
    """

    config: Config
    description: EnvDescription
    learner: Learner
    policy: Policy
    execution_reason: str
    origin: dict[str, str]
    _caller_settings: Mapping[str, Any]
    _provider: EnvProvider
    _tensor_rollout: TensorRollout | None
    _sampler: Sampler | None
    _ratio: ReplayRatio
    _chosen: str
    _rounds: int
    _env_steps: int
    _episodes: int
    _rollout: HostRollout | TensorRollout | None
    """Of the running training."""
    _run_dir: Path | None
    _recorded: Path | None
    """The folder that the last call of `learn` left."""

    @abstractmethod
    def parameters(self) -> dict[str, Tensor]:
        """Return the parameters and buffers of the online network by name."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Return the description that is saved with them: plain JSON values."""

    def learn(
        self,
        total_timesteps: int | None = None,
        *,
        run_dir: str | Path | None = None,
        callback: Callback | None = None,
    ) -> Self:
        """Train for a number of env steps; a later call goes on where this one ends.

        Episodes that run at the end of a call are cut there. With a run directory the call writes
        the files of `fastdqn train`, also if it ends by an error, a Ctrl-C, or, in the main thread,
        a SIGTERM that no other handler takes. It prints its progress unless the setting `quiet` is
        on; a later call continues the files.

        Args:
            total_timesteps: Env steps of this call; None takes the setting.
            run_dir: The folder; None takes that of the last call, else the setting, else none.
            callback: Called with reports, episodes, evaluations, checkpoints and restarts; see
                `fastdqn.training.callbacks.Callback`. None ignores them.

        Raises:
            UsageError: So few env steps that nothing would be learned, a folder that holds
                another run, settings of a run directory without one, or a callback that is no
                Callback or has a method that begins with `on_` and is none of its.
        """
        if callback is not None:
            refuse_callback(callback)
        self._refuse_idle(self._timesteps(total_timesteps))
        self._run_dir = folder_of(run_dir) or self._run_dir
        if self._run_dir is not None:
            return self._learn_in(self._run_dir, total_timesteps, callback)
        refuse_unwritten(self._caller_settings, self.config, has_callback=callback is not None)
        with self.trainer(total_timesteps, Callback() if callback is None else callback) as trainer:
            trainer.run(self.env_seeds())
        return self

    def _learn_in(
        self, run_dir: Path, total_timesteps: int | None, callback: Callback | None
    ) -> Self:
        from fastdqn.reporting.recorded_run import (  # noqa: PLC0415 - loaded only where a folder is written
            refuse_missing_tensorboard,
            train_recorded,
        )

        started, silent = time.perf_counter(), self.config.quiet
        refuse_missing_tensorboard(self.config)
        goes_on = self._recorded == run_dir.resolve()
        make_run_dir(replace(self.config, run_dir=run_dir), goes_on=goes_on)
        self._recorded = run_dir.resolve()
        with exit_on_sigterm():
            outcome = train_recorded(
                self, run_dir, total_timesteps, started=started, callback=callback, silent=silent
            )
        if outcome.error is not None:
            raise outcome.error
        return self

    @contextmanager
    def trainer(
        self, total_timesteps: int | None, callback: Callback, *, started: float | None = None
    ) -> Iterator[Trainer]:
        """Build the environments and the loop; close the environments afterwards."""
        config = self.config
        started = time.perf_counter() if started is None else started
        timesteps = self._timesteps(total_timesteps)
        self._refuse_idle(timesteps)
        self._choose_execution(timesteps)
        with ExitStack() as stack:
            stack.enter_context(threads(config.cpu_threads))
            stack.enter_context(float32_products(config.precision, self.learner.device))
            evaluator = None
            if self._provider.builds:
                evaluator = self._new_evaluator(config.seed, config.eval_episodes)
                stack.callback(evaluator.close)
            self._rollout = rollout = self._tensor_rollout or self._new_rollout(stack)
            try:
                yield build_loop(
                    config,
                    rollout,
                    self.learner,
                    self._sampler,
                    ratio=self._ratio,
                    until=self._env_steps + timesteps,
                    callback=callback,
                    evaluator=evaluator,
                    started=started,
                )
            finally:
                self._env_steps, self._episodes = rollout.env_steps, rollout.episodes
                self._rollout = None
                self.learner.close()

    def _new_rollout(self, stack: ExitStack) -> HostRollout:
        """Build the environments of a training; the stack closes them."""
        learning = partial(learning_seconds, self.learner, self._sampler)
        source = stack.enter_context(self._provider.training(self.config, learning))
        rollout = HostRollout(source, self.policy, self.replay)
        rollout.env_steps, rollout.episodes = self._env_steps, self._episodes
        return rollout

    def _timesteps(self, asked: int | None) -> int:
        if asked is None:
            return self.config.total_timesteps
        return whole("total_timesteps", asked, way_out="Try 100_000.")

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

    def env_seeds(self) -> list[int]:
        """Return seeds for the training environments, new ones at each call."""
        self._rounds += 1
        config = self.config
        return seeds_of(config.seed, Stream.TRAINING_ENVS, config.num_envs, self._rounds - 1)

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

    def _new_evaluator(self, seed: int, episodes: int, max_steps: int | None = None) -> Evaluator:
        make = partial(self._provider.evaluation, self.config, min(EVALUATION_ENVS, episodes))
        asked = self.config.eval_max_steps if max_steps is None else max_steps
        limit = step_limit(asked, self.description.max_episode_steps)
        return Evaluator(self.policy, make, seed, episodes, max_steps=limit)
