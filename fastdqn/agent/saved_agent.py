"""An agent on disk: its policy alone, or its whole training."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, Self

from torch import nn

from fastdqn.agent.arguments import apart
from fastdqn.agent.learning import Trainable
from fastdqn.agent.loading import restore
from fastdqn.agent.saved_description import saved_policy
from fastdqn.agent.saved_parts import refuse_other_parts
from fastdqn.algorithms.objectives import Objective
from fastdqn.envs.provider import AnyEnv
from fastdqn.replay.sampler_check import SamplerFactory
from fastdqn.training.checkpoint import SavedPolicy, save_policy

__all__ = ["SavedAgent"]


class SavedAgent(Trainable):
    """Saving and loading; see `DQN`."""

    def save(self, path: str | Path) -> None:
        """Save the policy in a folder: safetensors and JSON."""
        save_policy(Path(path), self.parameters(), self.describe())

    @classmethod
    def load(
        cls,
        saved: str | Path | SavedPolicy,
        env: AnyEnv | None = None,
        *,
        policy: Literal["best", "last"] = "last",
        network: nn.Module | None = None,
        objective: Objective | str | None = None,
        sampler: SamplerFactory | None = None,
        **settings: Any,
    ) -> Self:
        """Load a policy that `save` or a run wrote.

        Counts, and epsilon, go on. Learning restarts with an empty replay, new seeds, no moments of
        the optimizer, a learning rate at its start and a target network like the online one.

        Args:
            saved: Folder of the policy or run, or what `load_policy` returned.
            env: The environment of the agent; None takes the saved one, if the file holds it: an
                id that is registered, plain arguments, Gymnasium's own wrappers. The saved id keeps
                these, unless `env_kwargs` or `wrapper` is given: one that cannot be applied again
                is refused (name it as `wrapper`, or `()` for none); a UserWarning says that the
                file does not hold them.
            policy: Of a run's folder: `last`, or `best`, by full evaluations while it was trained.
            network: The module whose parameters were saved, if the caller's own.
            objective: The caller's own of the training; dqn and munchausen may take turns.
            sampler: Likewise; None draws as `replay` says, with a UserWarning.
            settings: Override saved ones.

        Raises:
            CheckpointError: There is no whole policy, an invalid value, or the parameters of
                another network, or another objective or sampler.
            UsageError: The environment cannot be built, `policy` is no choice, or the saved outputs
                would mean something else.
        """
        objective, settings = apart(objective, settings)
        read = saved_policy(saved, policy)
        parts = {"objective": objective, "sampler": sampler}
        restored = restore(read, env, settings, parts, own_network=network is not None)
        built: Any = cls
        agent: Self = built(restored.env, network=network, **{**parts, **restored.settings})
        agent._caller_settings = settings
        refuse_other_parts(restored.saved, agent._own_parts(), restored.folder)
        restored.refuse_other_spaces(agent.description)
        read.copy_into(agent.parameters())
        agent._go_on_from(restored.saved)
        return agent
