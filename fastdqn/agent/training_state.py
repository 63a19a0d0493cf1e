"""What a training consists of, part by part, and how an agent goes on from it.

The parts are `learner`, `policy`, `ratio`, `agent` and `generators`; with the replay ring `replay`,
`sampler` and, of tensor environments, `rollout`; in the middle of a training `trainer`,
`selection` and, of other environments, `rollout`. The ring's large tensors are not among them, nor
are the parameters of the online network: both are written before the rest is restored.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gymnasium.spaces import Discrete
from torch import Tensor

from fastdqn.agent.going_on import GoesOn
from fastdqn.agent.saved_description import SavedDescription
from fastdqn.agent.saved_execution import execution_values, read_execution, restore_actor
from fastdqn.checkpoint.manifest import refuse_unsavable
from fastdqn.envs.seeding import Stream, seeds_of
from fastdqn.envs.tensor.protocol import PureTensorEnv, membership_of
from fastdqn.foundation.saved_generators import (
    generator_state,
    global_generators,
    restore_generator,
    restore_global_generators,
)
from fastdqn.foundation.state import PartState
from fastdqn.learner.saved_state import learner_state, restore_learner
from fastdqn.replay import Sampler
from fastdqn.replay.saved_ring import restore_ring, ring_state
from fastdqn.training.saved_state import (
    ratio_state,
    restore_ratio,
    restore_value_range,
    selection_state,
    value_range_state,
)
from fastdqn.training.tensor.saved_state import restore_rollout, rollout_state

__all__ = ["NOT_TRAINED", "TrainingState"]

NOT_TRAINED = "not trained yet"

MIDDLE = ("trainer", "selection", "rollout")
"""Parts of a training that goes on in the middle."""


class TrainingState(GoesOn):
    """State of a `fastdqn.agent.learning.Trainable`, between two vector steps or two trainings.

    Attributes:
        inexact: Of a restored training, why it does not go on bit for bit, a clause each; empty
            where it does.
    """

    inexact: tuple[str, ...] = ()

    # Saving

    def replay_tensors(self) -> dict[str, Tensor]:
        """Return the large tensors of the replay ring by name; they are the ring's own."""
        return self._ring.ring.cells()

    def training_state(self, *, replay: bool = True) -> PartState:
        """Return everything that the training consists of, but parameters and `replay_tensors`.

        Between two vector steps of a training that runs, or between two calls of `learn`. Most
        tensors are not copies and change as the training goes on.

        Args:
            replay: Whether the ring is saved, too. Without it the training that goes on from here
                begins new episodes, and learns again when `learning_starts` more env steps are
                in its ring.

        Raises:
            UsageError: A sampler of the caller's own holds what cannot be saved.
        """
        parts = {
            "learner": learner_state(self.learner),
            "policy": PartState().with_parts(
                {"generator": generator_state(self.policy._generator)}
            ),
            "ratio": ratio_state(self._ratio),
            "agent": self._agent_state(),
            "generators": global_generators(),
        }
        if replay:
            sampler = self._own_sampler
            what = f"the sampler {type(sampler).__name__}"
            parts["replay"] = ring_state(self._ring)
            parts["sampler"] = refuse_unsavable(sampler.state(), what)
        if replay and self._tensor_rollout is not None:
            parts["rollout"] = rollout_state(self._tensor_rollout)
        trainer = self._trainer
        if trainer is not None and trainer.begun:
            parts["trainer"] = trainer.state()
            if trainer.selection is not None:
                parts["selection"] = selection_state(trainer.selection)
            running: Any = trainer.rollout
            if replay and self._tensor_rollout is None:
                parts["rollout"] = running.state()
        return PartState.of_parts(parts)

    def _agent_state(self) -> PartState:
        env_steps, episodes = self._counts()
        counts = {"env_steps": env_steps, "episodes": episodes, "rounds": self._rounds}
        how = execution_values(
            self.config.execution, self.learner, self.policy, self.execution_reason
        )
        state = PartState({**counts, **how})
        return state.with_parts({"value_range": value_range_state(self._value_range)})

    # Restoring

    def restore_training(self, state: PartState) -> None:
        """Go on from the state of an agent with the same settings, in place.

        Before, the saved parameters and ring are written into `parameters()` and
        `replay_tensors()`. The global generators of this process are set, too. Where the state is
        that of a training in the middle, the next call of `learn` takes it up there. Devices may
        differ: tensors are copied, random numbers go on from new seeds, and `inexact` says so.

        Raises:
            CheckpointError: Names the part and the value that is missing or cannot be; this agent
                may hold a part of the state and is not to be used.
        """
        agent, inexact = state.part("agent"), list[str]()
        env_steps, episodes = agent.whole("env_steps"), agent.whole("episodes")
        rounds, device = agent.whole("rounds"), agent.text("device")
        earlier = self.learner.earlier_updates
        restore_learner(self.learner, state.part("learner"))
        if self._tensor_rollout is not None and earlier != self.learner.earlier_updates:
            self._tensor_rollout.rebuild()
        restore_generator(self.policy._generator, state.part("policy").part("generator"))
        restore_value_range(self._value_range, agent.part("value_range"))
        self._env_steps, self._episodes, self._rounds = env_steps, episodes, rounds
        restore_ratio(self._ratio, state.part("ratio"), env_steps, self.config.num_envs)
        if device != self.learner.device.type:
            here = self.learner.device.type
            inexact.append(f"random numbers drawn on {device} go on from other seeds on {here}")
        inexact += self._restore_replay(state) if "replay" in state.values else self._refill()
        self._restore_execution(agent)
        there = [name for name in MIDDLE if name in state.values]
        middle = PartState.of_parts({name: state.part(name) for name in there})
        self._middle = middle if "trainer" in there else None
        restore_global_generators(state.part("generators"))
        self.inexact = tuple(inexact)

    def _restore_replay(self, state: PartState) -> list[str]:
        """Restore ring, sampler and tensor environments; return why they go on otherwise."""
        of_env: Any = {"num_actions": self.description.num_actions, "holds": self._holds()}
        restore_ring(self._ring, state.part("replay"), **of_env)
        sampler, rollout = self._own_sampler, self._tensor_rollout
        sampler.restore(state.part("sampler"))
        inexact = []
        kind = type(sampler)
        if kind.state is Sampler.state and not kind.__module__.startswith("fastdqn."):
            inexact.append(
                f"the sampler {kind.__name__} says what it consists of by written() alone; "
                "methods state() and restore() say more"
            )
        if rollout is not None:
            restore_rollout(rollout, state.part("rollout"), self.description.num_actions)
            if rollout.env_steps != self._env_steps:
                found = f"{rollout.env_steps}, and {self._env_steps} of the agent"
                raise state.part("rollout").refusal("env_steps", found)
            if not isinstance(rollout.env, PureTensorEnv):
                inexact.append(f"{rollout.env.env_id} does not come back, and begins new episodes")
        return inexact

    def _refill(self) -> list[str]:
        """Begin with an empty ring after the env steps so far; return what that means."""
        self._ratio.start = self.config.learning_starts
        self._ratio.go_on_from(self._env_steps, self._ratio.updates)
        self._count_on()
        return ["the replay ring was not saved: it is filled anew, by new episodes"]

    def _count_on(self) -> None:
        """Let tensor environments count on, and draws take new seeds."""
        if self._tensor_rollout is not None:
            self._tensor_rollout.earlier_steps = self._env_steps
            self._tensor_rollout.episodes = self._episodes
        if self._sampler is not None:
            self._sampler.reseed(self._seed(Stream.REPLAY))

    def _seed(self, stream: Stream) -> int:
        return seeds_of(self.config.seed, stream, 1, self._rounds)[0]

    def _holds(self) -> Callable[[Tensor], Tensor]:
        """Return a function of frames [B, *O]: which ones the environment may show, [B] bool."""
        space = self.description.obs_space
        if isinstance(space, Discrete):  # its numbers are indices
            return membership_of(space, self.learner.device)
        return _finite

    def _restore_execution(self, state: PartState) -> None:
        asked = self.config.execution
        saved = read_execution(state, asked, self.learner, self._own_sampler)
        self._saved_mode = None
        if saved is not None and saved.reason != NOT_TRAINED:
            self._saved_mode = self._chosen = saved.mode
            self.execution_reason = saved.reason
            restore_actor(self.policy, saved.actor)

    def _go_on_from(self, saved: SavedDescription) -> None:
        """Continue the counts of a saved policy, and nothing else of its training."""
        self._env_steps, self._episodes = saved.env_steps, saved.episodes
        self._rounds = saved.rounds
        self.learner.sync_target()
        self.learner.go_on_from(saved.updates)
        self._ratio.go_on_from(saved.env_steps, saved.updates)
        self._count_on()
        self.policy.reseed(self._seed(Stream.EXPLORATION))


def _finite(frames: Tensor) -> Tensor:
    fine = frames.isfinite()
    return fine.flatten(1).all(1) if fine.ndim > 1 else fine
