"""One checkpoint on its way to the disk, in a thread of its own."""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from torch import Tensor

from fastdqn.checkpoint.disk import Entry, link, sync, write
from fastdqn.checkpoint.layout import (
    OPTIMIZER,
    PARTS,
    REPLAY,
    STATE,
    chunk_file,
    draft_of,
    put_in_place,
)
from fastdqn.checkpoint.manifest import Version, why_too_large, written
from fastdqn.checkpoint.saved_policy import policy_files
from fastdqn.checkpoint.staging import Slot
from fastdqn.checkpoint.tensor_file import contents

__all__ = ["Chunk", "Generation", "Save", "Saved", "Snapshot"]

LEARNER = "learner/"
"""What the names of the learner's tensors begin with."""


@dataclass(frozen=True)
class Saved:
    """A checkpoint that was written.

    Attributes:
        folder: Where it lies.
        written_bytes: Of its files, those that were written now.
        linked_bytes: Those that are shared with an older checkpoint.
        pause_s: Seconds that the training was held back.
        took_s: Seconds from `begin` to the end.
    """

    folder: Path
    written_bytes: int
    linked_bytes: int
    pause_s: float
    took_s: float


@dataclass(frozen=True)
class Chunk:
    """A file of a chunk, as it was written or linked.

    Attributes:
        version: Of the chunk.
        entry: Size and hash.
        state: Of the file on the disk.
    """

    version: Version
    entry: Entry
    state: os.stat_result


@dataclass(frozen=True)
class Generation:
    """The chunks of a checkpoint whose ring this process has gone on writing.

    Attributes:
        folder: Of the checkpoint.
        chunks: By number; those as allocated have no file.
    """

    folder: Path
    chunks: Mapping[int, Chunk]


@dataclass(frozen=True)
class Snapshot:
    """What a checkpoint consists of, beside the chunks that are still to be copied.

    Attributes:
        folder: Where it will lie.
        parameters, description: The policy.
        tensors: Of the parts, on the host.
        values: Of the parts, in JSON.
        versions: Of the chunks; None without a ring.
        linked: Chunks that an older checkpoint holds, by number.
        older: That checkpoint.
    """

    folder: Path
    parameters: Mapping[str, Tensor]
    description: Mapping[str, Any]
    tensors: Mapping[str, Tensor]
    values: str
    versions: Sequence[Version] | None = None
    linked: Mapping[int, Chunk] = field(default_factory=dict)
    older: Path | None = None


class Save:
    """Writes a snapshot; the training hands it the chunks that are not linked.

    Args:
        snapshot: What is written.
        slots: Memory for chunks; filled by the training, emptied here.
        copied: How many chunks the training will hand over.
        rotate: Called with the folder once it is in its place.

    Attributes:
        free: Slots that can be filled; None says that the thread has ended.
        generation: The chunks as they lie on the disk, once it has ended well.
        error: Why it ended otherwise.
    """

    def __init__(
        self,
        snapshot: Snapshot,
        slots: Sequence[Slot],
        copied: int,
        rotate: Callable[[Path], None],
    ) -> None:
        self.free: SimpleQueue[Slot | None] = SimpleQueue()
        for slot in slots:
            self.free.put(slot)
        self.generation: Generation | None = None
        self.error: Exception | None = None
        self.sizes = {"written": 0, "linked": 0}
        self._filled: SimpleQueue[tuple[int, Slot] | None] = SimpleQueue()
        self._snapshot, self._left, self._rotate = snapshot, copied, rotate
        self._draft = draft_of(snapshot.folder)
        self._files: dict[str, Entry] = {}
        self._chunks: dict[int, Chunk] = {}
        self._began, self._took_s = time.perf_counter(), 0.0
        self._done = threading.Event()  # a join that a signal interrupts takes the thread for ended
        threading.Thread(target=self._run, name="checkpoint", daemon=True).start()

    @property
    def ended(self) -> bool:
        """Whether the thread has ended; never waits."""
        return self._done.is_set()

    def hand_over(self, number: int, slot: Slot) -> None:
        """Let a chunk be written."""
        self._filled.put((number, slot))

    def abandon(self) -> None:
        """Give up: chunks that are missing will not come."""
        self._filled.put(None)

    def wait(self) -> None:
        """Wait until the thread has ended."""
        self._done.wait()

    def result(self, pause_s: float) -> Saved:
        """Return what was saved, once the thread has ended.

        Raises:
            OSError: Why nothing was.
        """
        if self.error is not None:
            raise self.error
        sizes, folder = self.sizes, self._snapshot.folder
        return Saved(folder, sizes["written"], sizes["linked"], pause_s, self._took_s)

    def _run(self) -> None:
        try:
            self._save()
            self.generation = Generation(self._snapshot.folder, self._chunks)
        except OSError as error:
            reason = f"the checkpoint was not saved: {error.strerror or error}"
            self.error = OSError(error.errno, reason, str(self._snapshot.folder))
        except Exception as error:  # for the training's thread, which raises it
            self.error = error
        finally:
            shutil.rmtree(self._draft, ignore_errors=True)
            self._took_s = time.perf_counter() - self._began
            self.free.put(None)
            self._done.set()

    def _save(self) -> None:
        draft, snapshot = self._draft, self._snapshot
        snapshot.folder.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir()
        self._write_small_files()
        if snapshot.versions is not None:
            (draft / REPLAY).mkdir()
            self._link_chunks()
            self._write_chunks()
            sync(draft / REPLAY)
        state = written(self._files, snapshot.versions, snapshot.values)
        if too_large := why_too_large(state):
            raise OSError(f"{STATE} {too_large}")
        write(draft / STATE, [memoryview(state)])
        sync(draft)
        put_in_place(draft, snapshot.folder)
        self._rotate(snapshot.folder)

    def _write_small_files(self) -> None:
        snapshot, tensors = self._snapshot, self._snapshot.tensors
        for name, content in policy_files(snapshot.parameters, snapshot.description).items():
            self._write(name, [memoryview(content)])
        learner = {name: each for name, each in tensors.items() if name.startswith(LEARNER)}
        others = {name: each for name, each in tensors.items() if name not in learner}
        self._write(OPTIMIZER, contents(learner))
        self._write(PARTS, contents(others))

    def _link_chunks(self) -> None:
        snapshot = self._snapshot
        for number, chunk in snapshot.linked.items():
            name = chunk_file(number)
            assert snapshot.older is not None
            state = link(snapshot.older / name, self._draft / name, chunk.entry, chunk.state)
            self._files[name] = chunk.entry
            self._chunks[number] = Chunk(chunk.version, chunk.entry, state)
            self.sizes["linked"] += chunk.entry.bytes

    def _write_chunks(self) -> None:
        versions = self._snapshot.versions or ()
        for _ in range(self._left):
            handed = self._filled.get()
            if handed is None:
                raise OSError("the training ended before its replay ring was copied")
            number, slot = handed
            entry = self._write(chunk_file(number), slot.contents())
            self.free.put(slot)
            state = (self._draft / chunk_file(number)).lstat()
            self._chunks[number] = Chunk(versions[number], entry, state)

    def _write(self, name: str, parts: list[memoryview]) -> Entry:
        entry = self._files[name] = write(self._draft / name, parts)
        self.sizes["written"] += entry.bytes
        return entry
