"""An agent whose next call of `learn` goes on in the middle of a training that was saved there."""

from __future__ import annotations

from fastdqn.config import Config
from fastdqn.envs.description import EnvDescription
from fastdqn.envs.seeding import Stream, seeds_of
from fastdqn.envs.tensor.protocol import PureTensorEnv
from fastdqn.execution.modes import is_auto
from fastdqn.foundation.scalars import whole
from fastdqn.foundation.state import PartState
from fastdqn.learner.learner import Learner
from fastdqn.policies.policy import Policy
from fastdqn.replay import ReplayBuffer, Sampler
from fastdqn.replay.functional_ring import FunctionalRing
from fastdqn.training.host.rollout import HostRollout
from fastdqn.training.saved_state import restore_selection
from fastdqn.training.schedules import ReplayRatio
from fastdqn.training.tensor.rollout import TensorRollout
from fastdqn.training.trainer import Trainer
from fastdqn.training.value_range import ValueRange

__all__ = ["GoesOn"]


class GoesOn:
    """Parts of a `fastdqn.agent.learning.Trainable`, and how a training is taken up in the middle.

    Its attributes are those of `Trainable`.
    """

    config: Config
    description: EnvDescription
    learner: Learner
    policy: Policy
    execution_reason: str
    _chosen: str
    _tensor_rollout: TensorRollout | None
    _sampler: Sampler | None
    _rollout: HostRollout | TensorRollout | None
    _trainer: Trainer | None = None  # of the training that runs now
    _middle: PartState | None = None  # of the training that goes on with the next call
    _saved_mode: str | None = None  # in which it ran, where it can go on in it
    _ratio: ReplayRatio
    _value_range: ValueRange
    _rounds: int
    _env_steps: int
    _episodes: int

    @property
    def _own_sampler(self) -> Sampler:
        if self._tensor_rollout is not None:
            return self._tensor_rollout.sampler
        assert self._sampler is not None
        return self._sampler

    @property
    def _ring(self) -> ReplayBuffer | FunctionalRing:
        return self._own_sampler.replay

    def _counts(self) -> tuple[int, int]:
        """Return the env steps and episodes so far, in the middle of a training too."""
        running = self._rollout
        if running is None:
            return self._env_steps, self._episodes
        return running.env_steps, running.episodes

    def _left(self, asked: int | None) -> int | None:
        """Return the env steps of a call that goes on in the middle; None if none does."""
        if self._middle is None:
            return None
        if asked is not None:
            return whole("total_timesteps", asked, way_out="Try 100_000.")
        return max(self._middle.part("trainer").whole("until") - self._env_steps, 0)

    def _begun_at(self) -> int:
        """Return the env steps at which the training began that a call runs or goes on with."""
        middle = self._middle
        return self._env_steps if middle is None else middle.part("trainer").whole("begun_at")

    def _goes_on_as_it_ran(self) -> bool:
        """Run in the mode in which a training in the middle ran; return whether there is one."""
        mode, rollout, learner = self._saved_mode, self._tensor_rollout, self.learner
        if self._middle is None or mode is None:
            return False
        background = is_auto(self.config.execution)
        if rollout is not None:
            rollout.execute_as(mode, background=background)
            learner.execution = mode
        else:
            learner.execute_as(mode, background=background)
            learner.prepare(self._own_sampler, max(self._own_sampler.due, 1))
        return True

    def _taken_up(self, trainer: Trainer) -> Trainer:
        """Return a trainer that goes on in the middle, where a restored training is there."""
        self._trainer, middle = trainer, self._middle
        if middle is None:
            return trainer
        host = isinstance(trainer.rollout, HostRollout) and "rollout" in middle.values
        trainer.restore(middle.part("trainer"), middle.part("rollout") if host else None)
        if trainer.selection is not None and "selection" in middle.values:
            restore_selection(trainer.selection, middle.part("selection"))
        return trainer

    def _end_of(self, rollout: HostRollout | TensorRollout) -> None:
        """Note where a training has ended, and stop what is still being compiled."""
        self._env_steps, self._episodes = rollout.env_steps, rollout.episodes
        self._rollout = self._trainer = self._middle = None
        self.learner.close()

    def next_seeds(self) -> list[int] | None:
        """Return `env_seeds`, or None where the environments go on in the middle of episodes."""
        rollout = self._tensor_rollout
        stays = rollout is None or isinstance(rollout.env, PureTensorEnv)
        if self._middle is not None and "rollout" in self._middle.values and stays:
            return None
        return self.env_seeds()

    def env_seeds(self) -> list[int]:
        """Return seeds for the training environments, new ones at each call."""
        self._rounds += 1
        config = self.config
        return seeds_of(config.seed, Stream.TRAINING_ENVS, config.num_envs, self._rounds - 1)
