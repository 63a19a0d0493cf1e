"""The checkpoints of a run: its whole training between two vector steps, or its policy alone."""

from __future__ import annotations

import errno
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fastdqn.checkpoint.layout import rotate
from fastdqn.checkpoint.saved_policy import ONLINE
from fastdqn.checkpoint.saving import Chunk
from fastdqn.checkpoint.writer import CheckpointWriter, Saved
from fastdqn.errors import FastDQNError, UsageError
from fastdqn.foundation.policy_folders import CHECKPOINTS
from fastdqn.foundation.state import Chunked, PartState
from fastdqn.training.checkpoint import save_policy
from fastdqn.training.saving import Saving

if TYPE_CHECKING:
    from fastdqn.training.trainer import Trainer

__all__ = ["Lent", "RunCheckpoints"]


@dataclass(frozen=True)
class Lent:
    """What an agent says of itself.

    Attributes:
        parameters: Returns the tensors of its policy, by name.
        describe: Returns their description, plain JSON values.
        state: Returns its whole training; raises a FastDQNError where it cannot be saved. None
            saves policies alone.
        chunks: Returns its replay ring, or None where that is not saved.
    """

    parameters: Callable[[], Mapping[str, Tensor]]
    describe: Callable[[], dict[str, Any]]
    state: Callable[[], PartState] | None = None
    chunks: Callable[[], Chunked | None] = lambda: None


class RunCheckpoints(Saving):
    """Makes checkpoints while the training goes on, and the last one at its end.

    Args:
        run_dir: The run's folder.
        lent: The agent.
        keep_last: How many are kept.

    Attributes:
        failure: Why checkpoints hold policies alone, or None.
    """

    def __init__(self, run_dir: Path, lent: Lent, *, keep_last: int) -> None:
        self._folder, self._lent, self._keep_last = run_dir / CHECKPOINTS, lent, keep_last
        self._writer = CheckpointWriter(self._folder, keep_last=keep_last)
        self.advance = self._writer.advance  # type: ignore[method-assign]
        self._kept: tuple[PartState, dict[str, Tensor]] | None = None
        self._saved_at = -1
        self.failure: str | None = None

    def resumed(self, folder: Path, filled: Mapping[int, Chunk], chunks: Chunked) -> None:
        """Share unchanged chunks with the checkpoint from which the ring was filled."""
        self._writer.resumed(folder, filled, chunks)

    def begin(self, trainer: Trainer) -> None:
        """Begin a checkpoint between two vector steps; it is written beside the next ones.

        Raises:
            OSError: It holds the policy alone, and cannot be written.
        """
        state = self._state()
        if state is None:
            self._save_policy(trainer)
            rotate(self._folder / _name(trainer), self._keep_last)
        else:
            self._begin(trainer, state)

    def keep(self, trainer: Trainer) -> None:  # noqa: ARG002
        """Copy the training at the end of its loop, before its last updates."""
        state = self._state()
        if state is not None:
            tensors = _copied(state.tensors)
            self._kept = replace(state, tensors=tensors), _copied(self._lent.parameters())

    def save_last(self, trainer: Trainer) -> None:
        """Write the last checkpoint, and wait for it; a second call has nothing to do.

        Where an error ended the run within a vector step, it holds the policy alone, beside the
        older ones, from which the training can go on.

        Raises:
            OSError: It cannot be written.
        """
        if self._saved_at == trainer.rollout.env_steps:
            return
        if self._kept is None:
            self._save_policy(trainer)
        else:
            self._save_kept(trainer, *self._kept)
        self._saved_at = trainer.rollout.env_steps

    def _save_kept(self, trainer: Trainer, state: PartState, before: dict[str, Tensor]) -> None:
        now = self._lent.parameters()
        if any(not torch.equal(before[name], now[name]) for name in before):
            online = {f"{ONLINE}/{name}": tensor for name, tensor in before.items()}
            values, tensors = {**state.values, ONLINE: {}}, {**state.tensors, **online}
            state = replace(state, values=values, tensors=tensors)
        with suppress(OSError):  # of one that is still being written, and older
            self._writer.finish()
        try:
            self._begin(trainer, state)
            self._writer.finish()
        except OSError:
            with suppress(OSError):  # it is much smaller
                self._save_policy(trainer)
            raise

    def poll(self) -> list[Saved | OSError]:
        """Return what has been written since the last call, or why it was not; never waits."""
        return self._writer.poll()

    def abandon(self) -> None:
        """Stop writing, and forget what was kept: the next save is one of the policy alone."""
        self._kept = None
        self._writer.close()

    def close(self) -> None:
        """Stop writing; what is not whole is removed."""
        self._writer.close()

    def _begin(self, trainer: Trainer, state: PartState) -> None:
        policy = self._lent.parameters(), self._description(trainer)
        try:
            self._writer.begin(_name(trainer), policy, state, self._lent.chunks())
        except UsageError as error:  # something of the caller's own lies there
            raise OSError(errno.EEXIST, error.reason, error.got) from error

    def _state(self) -> PartState | None:
        if self._lent.state is None or self.failure is not None:
            return None
        try:
            return self._lent.state()
        except FastDQNError as error:
            self.failure = str(error)
            return None

    def _description(self, trainer: Trainer) -> dict[str, Any]:
        rollout = trainer.rollout
        counts = {"env_steps": rollout.env_steps, "episodes": rollout.episodes}
        return {**self._lent.describe(), **counts}

    def _save_policy(self, trainer: Trainer) -> None:
        folder = self._folder / _name(trainer)
        if not folder.exists():
            save_policy(folder, self._lent.parameters(), self._description(trainer))


def _name(trainer: Trainer) -> str:
    return f"step-{trainer.rollout.env_steps:012d}"


def _copied(named: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in named.items()}
