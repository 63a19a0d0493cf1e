"""DQN: the agent, and its calls."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import numpy.typing as npt
from torch import nn

from fastdqn.agent.arguments import (
    apart,
    arguments_of,
    chosen_in,
    folder_of,
    origin_of,
    refuse_decided,
    refuse_unevaluated,
    refuse_unwritten,
    warn_without_effect,
    without_run_directory,
)
from fastdqn.agent.saved_agent import SavedAgent
from fastdqn.algorithms.objectives import Objective
from fastdqn.build import build_config
from fastdqn.config import Config
from fastdqn.device import threads
from fastdqn.envs.description import EnvDescription
from fastdqn.envs.provider import AnyEnv, env_provider_of
from fastdqn.envs.specs.plain_values import CONFIGURING, with_plain_arguments
from fastdqn.foundation.copying import Whole, copied
from fastdqn.foundation.scalars import whole
from fastdqn.policies.predict import predict
from fastdqn.replay.sampler_check import SamplerFactory
from fastdqn.training.callbacks import Callback, refuse_callback
from fastdqn.training.evaluation import Evaluation, OnProgress

__all__ = ["DQN"]


class DQN(SavedAgent, Whole):
    """A deep Q-learning agent for one kind of environment.

    Args:
        env: A Gymnasium id, a factory of environments, or a VectorEnv or tensor environments
            that the caller built (trained in as they are, and left for the caller to close).
        network: A module from observations [B, *O] to Q-values [B, A], or to what the objective
            makes Q-values of; None is an MLP of `hidden_sizes`, with as many outputs as the
            objective reads, or an IQN.
        objective: What an update makes smaller: a name, as in `Config`, or your own `Objective`.
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
        objective: Objective | str | None = None,
        sampler: SamplerFactory | None = None,
        **settings: Any,
    ) -> None:
        objective, settings = apart(objective, settings)
        self._caller_settings: Mapping[str, Any] = settings
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
        if network is not None:
            settings |= dict.fromkeys(("noisy", "dueling"), False)  # whatever is said of the MLP
        name = env if isinstance(env, str) else self.description.env_id
        self.config = build_config(name, settings)
        parts = {"network": network, "objective": objective, "sampler": sampler}
        self.origin = origin_of(env, self.description.env_id, **parts)
        warn_without_effect(
            self._caller_settings,
            self._provider.fixed,
            builds=self._provider.builds,
            own_network=network is not None,
        )
        refuse_unevaluated(settings, self.config, builds=self._provider.builds)
        self._run_dir = self.config.run_dir
        self._recorded: Path | None = None  # the folder that the last call of `learn` left
        self._unsaved_best: Any = None  # the best policy of that call, if a full disk refused it
        self._build(network, objective, sampler)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Return an agent that learns on as this one would, bit for bit.

        Environments that the caller built are shared: let one agent learn in them at a time. A run
        directory stays the original's.
        """
        if self._tensor_rollout is not None and not self._provider.builds:
            memo[id(self._tensor_rollout.env)] = self._tensor_rollout.env
        twin = copied(
            self, memo, shared=("_provider", "description"), anew=("_rollout", "_trainer")
        )
        twin._rollout = twin._trainer = None
        twin._env_steps, twin._episodes = self._counts()  # in the middle of a training, too
        twin._run_dir = twin._recorded = twin._unsaved_best = None
        twin.config = replace(self.config, run_dir=None)
        twin._caller_settings = without_run_directory(self._caller_settings)
        return twin

    @classmethod
    def from_config(cls, config: Config) -> Self:
        """Build the agent of a whole `Config`."""
        agent = cls(config.env_id, **arguments_of(config))
        agent._caller_settings = chosen_in(config)
        return agent

    def learn(
        self,
        total_timesteps: int | None = None,
        *,
        run_dir: str | Path | None = None,
        callback: Callback | None = None,
    ) -> Self:
        """Train for a number of env steps; a later call goes on where this one ends.

        Episodes that run at the end of a call are cut there. With a run directory the call writes
        the files of `fastdqn train`, also if it ends by an error, a Ctrl-C or a SIGTERM: the first
        of these ends it after a vector step, with a checkpoint, where the caller has no handlers of
        its own. It prints its progress unless the setting `quiet` is on; a later call continues the
        files.

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
        self._timesteps(total_timesteps)  # refuses too few before anything is written
        self._run_dir = folder_of(run_dir) or self._run_dir
        if self._run_dir is not None:
            return self._learn_in(self._run_dir, total_timesteps, callback)
        refuse_unwritten(self._caller_settings, self.config, has_callback=callback is not None)
        with self.trainer(total_timesteps, Callback() if callback is None else callback) as trainer:
            trainer.run(self.next_seeds())
        return self

    def _learn_in(
        self, run_dir: Path, total_timesteps: int | None, callback: Callback | None
    ) -> Self:
        from fastdqn.agent.recorded_run import (  # noqa: PLC0415 - loaded only where a folder is written
            learn_recorded,
        )

        goes_on = self._recorded == run_dir.resolve()
        of_call: Any = {"callback": callback, "goes_on": goes_on, "unsaved": self._unsaved_best}
        outcome = learn_recorded(self, run_dir, total_timesteps, **of_call)
        self._recorded, self._unsaved_best = run_dir.resolve(), outcome.unsaved
        if outcome.error is not None:
            raise outcome.error
        return self

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
            seed: Of the environments; those of a training with the same seed, and of the evaluation
                at its end, are others.
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
        evaluator = self._new_evaluator(seed, episodes, max_steps=max_steps)
        evaluator.on_progress = on_progress
        with threads(self.config.cpu_threads), closing(evaluator):
            return evaluator.full()
