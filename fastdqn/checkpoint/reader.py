"""Finds the newest checkpoint that is whole, and reads it as data.

Sizes and hashes of all files are compared before anything is used; tensors are allocated once the
file's own header describes it to the last byte.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastdqn.checkpoint.disk import digest, opened, read_into
from fastdqn.checkpoint.layout import DESCRIPTION, OPTIMIZER, PARTS, STATE, steps
from fastdqn.checkpoint.manifest import MAX_STATE_BYTES, Manifest, parsed
from fastdqn.checkpoint.saved_policy import SavedPolicy, most_bytes, read_policy
from fastdqn.checkpoint.saving import Chunk
from fastdqn.checkpoint.tensor_file import TensorFile, bytes_of
from fastdqn.errors import CheckpointError
from fastdqn.foundation.policy_folders import CHECKPOINTS, kept
from fastdqn.foundation.saved_files import read_regular
from fastdqn.foundation.state import Chunked, PartState

__all__ = ["SavedTraining", "newest_training", "read_training"]


@dataclass(frozen=True)
class SavedTraining:
    """A checkpoint whose files were all compared with their sizes and hashes.

    Attributes:
        folder: Where it lies.
        policy: Parameters and description.
        state: Of all parts.
        skipped: Why newer checkpoints could not be read.
    """

    folder: Path
    policy: SavedPolicy
    state: PartState
    _manifest: Manifest
    skipped: tuple[str, ...] = ()

    @property
    def config(self) -> dict[str, Any]:
        """The settings, unchecked; see `saved_description`."""
        found = self.policy.description.get("config")
        return found if isinstance(found, dict) else {}

    @property
    def packages(self) -> Mapping[str, str]:
        """Versions of the packages that wrote it, by name."""
        return self._manifest.packages

    @property
    def has_replay(self) -> bool:
        """Whether it holds the ring."""
        return self._manifest.versions is not None

    def fill(self, chunks: Chunked) -> dict[int, Chunk]:
        """Copy the ring in, chunk by chunk; all chunks are checked before the first is copied.

        Takes the memory of one chunk.

        Args:
            chunks: Of a ring of the same sizes; written.

        Returns:
            What `CheckpointWriter.resumed` takes, so that unchanged chunks are not written again.

        Raises:
            CheckpointError: It has no ring, or that of another one; nothing is written. Or a file
                was changed meanwhile.
        """
        versions = self._manifest.versions
        if versions is None:
            raise CheckpointError(f"{self.folder} holds no replay ring")
        if len(versions) != chunks.num_chunks:
            raise CheckpointError(
                f"{self.folder} holds a replay ring of {len(versions)} chunks, and this one has "
                f"{chunks.num_chunks}: it was saved with other sizes"
            )
        numbers = range(chunks.num_chunks)
        size = max(sum(map(bytes_of, chunks.chunk(n).values())) for n in numbers)
        memory = torch.empty(size, dtype=torch.uint8)
        for number in self._manifest.chunk_files:
            chunks.refuse(number, self._chunk(number, chunks, memory)[0])
        found = {}
        for number in numbers:
            if number not in self._manifest.chunk_files:
                chunks.load(number, None)
                continue
            tensors, state = self._chunk(number, chunks, memory)
            chunks.refuse(number, tensors)
            chunks.load(number, tensors)
            name = self._manifest.chunk_files[number]
            found[number] = Chunk(versions[number], self._manifest.files[name], state)
        return found

    def _chunk(
        self, number: int, chunks: Chunked, memory: Tensor
    ) -> tuple[dict[str, Tensor], os.stat_result]:
        """Read a chunk into memory, once it is known to be as large as that of the ring."""
        name = self._manifest.chunk_files[number]
        entry, wanted = self._manifest.files[name], chunks.chunk(number)
        try:
            with opened(self.folder, name, entry.bytes) as descriptor:
                where = f"{self.folder / name}"
                if digest(descriptor) != entry.sha256:
                    raise CheckpointError(f"{where} was changed since it was compared")
                os.lseek(descriptor, 0, os.SEEK_SET)
                file = TensorFile(partial(read_into, descriptor), entry.bytes, where)
                if file.data_bytes != sum(map(bytes_of, wanted.values())):
                    raise CheckpointError(f"{where} is a chunk of a ring of other sizes")
                return file.read(memory), os.fstat(descriptor)
        except OSError as error:
            raise CheckpointError(f"{self.folder / name} cannot be read: {error}") from error


def newest_training(run_or_checkpoint: Path) -> SavedTraining:
    """Read the newest checkpoint of a run that is whole, or the one that is named.

    Nothing is written or removed: a process of another machine may be writing there.

    Args:
        run_or_checkpoint: Folder of a run, its `checkpoints`, or of one checkpoint.

    Raises:
        CheckpointError: There is none; the message says what is wrong with each.
    """
    path = run_or_checkpoint.absolute()
    checkpoints = path / CHECKPOINTS if (path / CHECKPOINTS).is_dir() else path
    if checkpoints == path and not steps(path):
        return read_training(kept(path))
    reasons: list[str] = []
    for folder in reversed(steps(checkpoints)):
        try:
            return replace(read_training(folder), skipped=tuple(reasons))
        except CheckpointError as error:
            reasons.append(str(error))
    detail = "; ".join(reasons) or f"there is no {CHECKPOINTS}/step-*"
    raise CheckpointError(f"{path} holds no training that can go on: {detail}")


def read_training(folder: Path) -> SavedTraining:
    """Read one checkpoint: compare all its files, then read all but the ring.

    Raises:
        CheckpointError: A file is missing, damaged or of another schema, or the folder holds a
            policy alone.
    """
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is no folder")
    _refuse_policy_alone(folder)
    try:
        manifest = parsed(read_regular(folder / STATE, MAX_STATE_BYTES))
        _refuse_changed(folder, manifest)
        tensors = {**_tensors(folder, OPTIMIZER), **_tensors(folder, PARTS)}
    except OSError as error:
        raise CheckpointError(f"{folder} cannot be read: {error}") from error
    except CheckpointError as error:
        named = str(folder) in str(error)
        raise CheckpointError(f"{'' if named else f'{folder / STATE}: '}{error}") from error
    state = PartState(manifest.values, tensors, str(folder))
    return SavedTraining(folder, read_policy(folder), state, manifest)


def _refuse_policy_alone(folder: Path) -> None:
    if (folder / DESCRIPTION).is_file() and not (folder / STATE).exists():
        raise CheckpointError(
            f"{folder} holds a policy and no state of a training: it was saved by "
            "`agent.save(path)`, by a run that was aborted by a second signal or whose disk was "
            "full, or by a version before checkpoints could be resumed. "
            "`DQN.load(path)` loads the policy; its training starts anew from there"
        )


def _refuse_changed(folder: Path, manifest: Manifest) -> None:
    """Compare the sizes of all files, then their hashes."""
    for name, entry in manifest.files.items():
        with opened(folder, name, entry.bytes):
            pass
    for name, entry in manifest.files.items():
        with opened(folder, name, entry.bytes) as descriptor:
            if digest(descriptor) != entry.sha256:
                raise CheckpointError(
                    f"{folder / name} is damaged: its sha256 is not the saved one"
                )


def _tensors(folder: Path, name: str) -> dict[str, Tensor]:
    """Read a file of small tensors whole."""
    with opened(folder, name) as descriptor:
        size, most = os.fstat(descriptor).st_size, most_bytes()
        if size > most:
            raise OSError(f"{name} takes {size:,} bytes, more than {most:,}")
        return TensorFile(partial(read_into, descriptor), size, f"{folder / name}").read()
