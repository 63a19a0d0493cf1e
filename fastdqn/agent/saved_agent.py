"""An agent on disk: its policy alone, or its whole training."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, Self, cast

from torch import nn

from fastdqn.agent.arguments import apart
from fastdqn.agent.learning import Trainable
from fastdqn.agent.loading import Restored, restore
from fastdqn.agent.saved_description import saved_policy
from fastdqn.agent.saved_parts import refuse_other_parts
from fastdqn.agent.whole_training import goes_on, training_in
from fastdqn.algorithms.objectives import Objective
from fastdqn.checkpoint.reader import SavedTraining
from fastdqn.checkpoint.saved_policy import ONLINE
from fastdqn.checkpoint.saving import Chunk
from fastdqn.checkpoint.writer import CheckpointWriter
from fastdqn.envs.provider import AnyEnv
from fastdqn.foundation.scalars import refuse_unless_bool
from fastdqn.replay.chunks import RingChunks
from fastdqn.replay.sampler_check import SamplerFactory
from fastdqn.training.checkpoint import SavedPolicy, save_policy

__all__ = ["SavedAgent"]


class SavedAgent(Trainable):
    """Saving and loading; see `DQN`."""

    def save(self, path: str | Path, *, replay: bool = False) -> None:
        """Save the policy in a folder, or the whole training: safetensors and JSON.

        Args:
            path: The folder; a saved policy or training in it is replaced.
            replay: Save everything that the training consists of, with its replay ring, so that
                `DQN.load(path)` learns on as this agent would. Drafts that dead processes left
                beside the folder are removed.

        Raises:
            OSError: The disk is full or the folder cannot be written; what it held stays.
            UsageError: The folder holds something else, or a sampler of the caller's own says in
                its `state` what cannot be saved, or `replay` is no bool.
        """
        refuse_unless_bool("replay", replay, "Pass replay=True to save the whole training.")
        folder, policy = Path(path).absolute(), (self.parameters(), self.describe())
        if not replay:
            save_policy(folder, *policy)
            return
        writer = CheckpointWriter(folder.parent, keep_last=None)
        try:
            writer.begin(folder.name, policy, self.training_state(), self._chunks())
            writer.finish()
        finally:
            writer.close()

    def _chunks(self) -> RingChunks:
        return RingChunks(self._ring, limits={"action": self.description.num_actions})

    def restore_from(self, saved: SavedTraining) -> tuple[RingChunks, dict[int, Chunk]]:
        """Go on from a checkpoint, in an agent with the settings that it was saved with.

        Args:
            saved: The checkpoint, compared with its hashes.

        Returns:
            The ring in chunks, and the files that they were filled from; see
            `CheckpointWriter.resumed`.

        Raises:
            CheckpointError: It holds what cannot be; this agent is not to be used.
        """
        if ONLINE in saved.state.values:
            before = dict(saved.state.part(ONLINE).tensors)
            replace(saved.policy, parameters=before).copy_into(self.parameters())
        chunks, filled = self._chunks(), dict[int, Chunk]()
        if saved.has_replay:
            filled = saved.fill(chunks)
        self.restore_training(saved.state)
        return chunks, filled

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
        training: bool | None = None,
        **settings: Any,
    ) -> Self:
        """Load a policy or a training that `save` or a run wrote.

        A training goes on bit for bit, also in the middle of a call of `learn`, and with the global
        random generators; `agent.inexact` says why where it does not. Of a policy alone, counts and
        epsilon go on; replay, optimizer, learning rate and seeds begin anew.

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
            training: Whether a whole training goes on, or its policy alone. None goes on with one
                that is there, unless it came to its end, or `settings` change its meaning.
            settings: Override saved ones.

        Raises:
            CheckpointError: There is no whole policy, an invalid value, or the parameters of
                another network, or another objective or sampler.
            UsageError: The environment cannot be built, `policy` is no choice, or the saved outputs
                would mean something else.
        """
        objective, settings = apart(objective, settings)
        found = training_in(saved, policy, asked=training)
        read = saved_policy(saved, policy) if found is None else found.policy
        parts = {"objective": objective, "sampler": sampler}
        restored = restore(read, env, settings, parts, own_network=network is not None)
        agent: Self = cast(Any, cls)(
            restored.env, network=network, **{**parts, **restored.settings}
        )
        agent._caller_settings = settings
        return agent._filled(read, restored, found, training)

    def _filled(
        self, read: SavedPolicy, restored: Restored, found: SavedTraining | None, asked: bool | None
    ) -> Self:
        """Return this fresh agent with what was saved in it."""
        refuse_other_parts(restored.saved, self._own_parts(), restored.folder)
        restored.refuse_other_spaces(self.description)
        read.copy_into(self.parameters())
        if found is not None and goes_on(self.config, restored, asked=asked):
            self.restore_from(found)
        else:
            self._go_on_from(restored.saved)
        return self
