"""Writes checkpoints beside a training, which goes on meanwhile.

What is small is copied at once, the ring chunk by chunk between vector steps: first the chunks
that the next vector step may change, then one for each vector step. So the copy is that of one
moment, and takes the memory of two chunks.
"""

from __future__ import annotations

import copy
import errno
import json
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from queue import Empty
from typing import Any

from torch import Tensor

from fastdqn.checkpoint.layout import foreign_entry, remove_stale, rotate
from fastdqn.checkpoint.manifest import Version
from fastdqn.checkpoint.saving import Chunk, Generation, Save, Saved, Snapshot
from fastdqn.checkpoint.staging import Slot, copies_of
from fastdqn.checkpoint.tensor_file import bytes_of
from fastdqn.errors import UsageError
from fastdqn.foundation.state import Chunked, PartState

__all__ = ["CheckpointWriter", "Saved"]

SLOTS = 2
"""Chunks in memory at a time."""
SHARED_WITH = 2
"""Generations back to the checkpoint that a chunk is linked from. A file that is damaged on the
disk damages all checkpoints that share it; so neighbours share none."""
LOOK_AHEAD = 64
"""Vector steps. What they may change is looked up once where they spare all chunks to copy."""

NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
"""Errors of a full disk, on which the chunks that were written are as good as before."""


class CheckpointWriter:
    """Writes the checkpoints of a run, one at a time.

    Args:
        checkpoints: Their folder; what dead processes left there is removed.
        keep_last: Checkpoints to keep; None keeps all. `best` is never removed.

    Raises:
        UsageError: `keep_last` is below 1.
    """

    def __init__(self, checkpoints: Path, *, keep_last: int | None = 3) -> None:
        if keep_last is not None and keep_last < 1:
            reason = "the newest checkpoint must stay"
            raise UsageError(f"--keep-last {keep_last}", reason, "Keep 1 at least.")
        self._folder, self._keep_last = checkpoints.absolute(), keep_last
        self._save: Save | None = None
        self._chunks: Chunked | None = None
        self._to_copy: list[int] = []
        self._copying = False
        self._spared_steps = 0  # vector steps from now on that change no chunk to copy
        self._slots: list[Slot] = []
        self._generations: list[Generation] = []
        self._of: Chunked | None = None  # whose chunks the generations hold
        self._ended: list[Saved | OSError] = []
        self._pause_s = 0.0
        remove_stale(self._folder)

    def begin(
        self,
        folder_name: str,
        policy: tuple[Mapping[str, Tensor], dict[str, Any]],
        state: PartState,
        chunks: Chunked | None,
    ) -> None:
        """Begin to write a checkpoint of this moment, between two vector steps.

        Copies all small tensors and the chunks that the next vector step may change. Where the
        checkpoint before is still being written, this one is left out, and `poll` says so.

        Args:
            folder_name: Of the checkpoint, e.g. `step-000000010000`; one of that name is replaced.
            policy: Parameters of the online network by name, and the policy's description.
            state: Of all parts, as `PartState.of_parts` joins them.
            chunks: Of the ring; None leaves it out. Pass the same object for every checkpoint of a
                ring: chunks are reused only where it says that they did not change.

        Raises:
            UsageError: The folder holds something else than a checkpoint.
        """
        began, folder = time.perf_counter(), self._folder / folder_name
        if folder.exists() and (foreign := foreign_entry(folder)) is not None:
            reason = f"it holds {foreign}, which is no part of a checkpoint"
            raise UsageError(f"save to {folder}", reason, "Choose another folder.")
        if self._save is not None and not self._save.ended:
            reason = "the checkpoint was left out, since the one before is still being written"
            self._ended.append(OSError(errno.EBUSY, reason, str(folder)))
            return
        self._collect()
        self._chunks = chunks
        snapshot = self._snapshot(folder, policy, state)
        self._make_slots(chunks)
        self._save = Save(snapshot, self._slots, len(self._to_copy), self._rotate)
        self._copying, self._spared_steps = bool(self._to_copy), 0
        self._pause_s = time.perf_counter() - began
        self.advance()

    def advance(self, vector_steps: int = 1) -> None:
        """Copy what the next vector steps may change, or else one more chunk. Hot path.

        It waits for the disk only where the ring is about to overwrite a chunk that must be copied
        first, and both chunks before are not written yet.

        Args:
            vector_steps: Rows of the ring that are written before the next call.
        """
        if self._copying:
            self._advance(vector_steps)

    def finish(self) -> Saved | None:
        """Copy what is left and wait until all is written; at the end of a run.

        Returns:
            What was saved; None if nothing was pending.

        Raises:
            OSError: It could not be written.
        """
        save = self._save
        if save is None:
            return None
        while self._copying:
            self._copy(self._to_copy[0])
        save.wait()
        self._keep_generation()
        self._save = None
        return save.result(self._pause_s)

    def poll(self) -> list[Saved | OSError]:
        """Return what has ended since the last call; never waits."""
        if self._save is not None and self._save.ended:
            self._collect()
        ended, self._ended = self._ended, []
        return ended

    def resumed(self, folder: Path, chunks: Mapping[int, Chunk], of: Chunked) -> None:
        """Let chunks be shared with the checkpoint that the ring was just filled from."""
        self._generations, self._of = [Generation(folder, chunks)], of

    def close(self) -> None:
        """Let a checkpoint whose chunks are all copied be written; give up another one."""
        if self._save is not None:
            if self._copying:
                self._save.abandon()
                self._copying = False
            self._save.wait()
            self._collect()
        self._slots, self._chunks = [], None

    # Copying

    def _advance(self, vector_steps: int) -> None:
        began = time.perf_counter()
        urgent = self._urgent(vector_steps)
        for number in urgent:
            if self._copying:  # a thread that has ended early says so once
                self._copy(number)
        if self._copying and not urgent:
            self._copy(self._to_copy[0], wait=False)
        self._pause_s += time.perf_counter() - began

    def _urgent(self, vector_steps: int) -> list[int]:
        """Return the chunks to copy that the next vector steps may change."""
        if self._spared_steps >= vector_steps:
            self._spared_steps -= vector_steps
            return []
        assert self._chunks is not None
        ahead = max(LOOK_AHEAD, vector_steps)
        if self._chunks.next_written(ahead).isdisjoint(self._to_copy):
            self._spared_steps = ahead - vector_steps
            return []
        self._spared_steps = 0
        return sorted(self._chunks.next_written(vector_steps).intersection(self._to_copy))

    def _copy(self, number: int, *, wait: bool = True) -> None:
        """Copy a chunk into memory that is free, or wait for it."""
        assert self._save is not None
        assert self._chunks is not None
        try:
            slot = self._save.free.get(block=wait)
        except Empty:
            return
        if slot is None:  # the thread has ended early: nothing is copied any more
            self._copying = False
            return
        slot.fill(self._chunks.chunk(number))
        self._save.hand_over(number, slot)
        self._to_copy.remove(number)
        self._copying = bool(self._to_copy)

    def _make_slots(self, chunks: Chunked | None) -> None:
        """Allocate memory for two chunks, once."""
        if chunks is not None and (not self._slots or chunks is not self._of):
            sizes = [sum(map(bytes_of, chunks.chunk(n).values())) for n in range(chunks.num_chunks)]
            device = next(iter(chunks.chunk(0).values())).device
            self._slots = [Slot(max(sizes), device) for _ in range(SLOTS)]
            self._generations = self._generations if chunks is self._of else []
        self._of = chunks if chunks is not None else self._of

    # What belongs to a checkpoint

    def _snapshot(
        self, folder: Path, policy: tuple[Mapping[str, Tensor], dict[str, Any]], state: PartState
    ) -> Snapshot:
        """Copy what is small, and decide which chunks are copied and which are linked."""
        versions, linked, older = None, dict[int, Chunk](), None
        self._to_copy = []
        if self._chunks is not None:
            versions = _versions(self._chunks)
            older, linked = self._unchanged(folder, versions)
            self._to_copy = self._order(
                [n for n, each in enumerate(versions) if each != 0 and n not in linked]
            )
        parameters, description = policy
        return Snapshot(
            folder,
            copies_of(parameters),
            copy.deepcopy(description),
            copies_of(state.tensors),
            json.dumps(state.values, allow_nan=False, separators=(",", ":")),
            versions,
            linked,
            older,
        )

    def _order(self, numbers: list[int]) -> list[int]:
        """Return chunks as the ring will overwrite them, but for its final observations."""
        assert self._chunks is not None
        head = min(self._chunks.next_written(1))
        return sorted(numbers, key=lambda number: (number < head, number))

    def _unchanged(
        self, folder: Path, versions: list[Version]
    ) -> tuple[Path | None, dict[int, Chunk]]:
        """Return the older checkpoint that chunks are shared with, and those chunks."""
        back = 1 if self._keep_last == 1 else SHARED_WITH
        if self._chunks is not self._of or len(self._generations) < back:
            return None, {}
        older = self._generations[-back]
        if older.folder == folder or not older.folder.is_dir():
            return None, {}
        chunks = {
            number: chunk
            for number, chunk in older.chunks.items()
            if versions[number] is not None and versions[number] == chunk.version
        }
        return older.folder, chunks

    def _rotate(self, newest: Path) -> None:
        if self._keep_last is not None:
            with suppress(OSError):
                rotate(newest, self._keep_last)

    # What has ended

    def _collect(self) -> None:
        """Note the end of a save for `poll`."""
        save, self._save = self._save, None
        if save is None:
            return
        self._copying = False
        self._keep_generation(save)
        try:
            self._ended.append(save.result(self._pause_s))
        except OSError as error:
            self._ended.append(error)

    def _keep_generation(self, save: Save | None = None) -> None:
        save = save or self._save
        assert save is not None
        if save.generation is None:
            if getattr(save.error, "errno", None) not in NO_ROOM:
                self._generations = []  # what was shared may be gone: all is written again
            return
        kept = [each for each in self._generations if each.folder != save.generation.folder]
        self._generations = [*kept, save.generation][-SHARED_WITH:]


def _versions(chunks: Chunked) -> list[Version]:
    """Return the versions of all chunks; None of those that may change without a new one."""
    may_change = chunks.next_written(1)
    return [None if n in may_change else chunks.version(n) for n in range(chunks.num_chunks)]
