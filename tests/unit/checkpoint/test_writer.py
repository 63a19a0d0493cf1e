"""Checkpoints beside a training: of one moment, bounded, linked, rotated, never in its way."""

from __future__ import annotations

import errno
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from fastdqn.checkpoint import disk, layout, saving, staging
from fastdqn.checkpoint import writer as writer_file
from fastdqn.checkpoint.reader import newest_training
from fastdqn.checkpoint.tensor_file import contents
from fastdqn.checkpoint.writer import CheckpointWriter, Saved
from fastdqn.errors import UsageError
from tests.checkpoints import Training, files_of, names, newest
from tests.ring_histories import Sizes, cells_of, same


@pytest.fixture(autouse=True)
def no_waits_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


# One moment


@pytest.mark.parametrize(
    "sizes",
    [
        Sizes(),
        Sizes(num_groups=2, masked=True),
        Sizes(on_device=True),
        Sizes(num_groups=3, final_capacity=7, chunk_bytes=1),
    ],
    ids=["plain", "groups", "tensors", "small"],
)
def test_what_is_read_is_the_moment_of_begin(sizes: Sizes, tmp_path: Path) -> None:
    training = Training(tmp_path, sizes)
    for steps in (5, 3, 40, 11):
        training.go_on(steps)
        training.begin()
        training.history.cut()  # as a reset would, before the next vector step
        training.go_on(steps)
        training.writer.finish()
        training.refuse_other(newest(tmp_path))


def test_the_small_tensors_and_values_are_those_of_begin(tmp_path: Path) -> None:
    training = Training(tmp_path)
    state, policy = training.state(), training.policy()
    training.writer.begin(training.name, policy, state, None)
    for tensor in (*state.tensors.values(), *policy[0].values()):
        tensor.zero_()
    state.values["other"]["list"].append(7)
    policy[1]["config"].clear()
    training.writer.finish()
    training.refuse_other(newest(tmp_path))


def test_blocks_of_several_vector_steps_are_named_before_they_run(tmp_path: Path) -> None:
    sizes = Sizes(on_device=True, chunk_bytes=400)
    training = Training(tmp_path, sizes)
    training.go_on(30)
    training.begin()
    for _ in range(5):
        training.writer.advance(6)
        for _ in range(6):
            training.history.step()
    training.writer.finish()
    training.refuse_other(newest(tmp_path))


def test_a_ring_is_left_out_where_it_is_not_wanted(tmp_path: Path) -> None:
    training = Training(tmp_path)
    training.save(5, replay=False)
    saved = newest(tmp_path)
    assert not saved.has_replay
    assert not (saved.folder / "replay").exists()
    training.refuse_other(saved)


# Not in the way


def before_writing(monkeypatch: pytest.MonkeyPatch, start: str, act: Callable[[], object]) -> None:
    """Let the writing thread act before each file whose name starts so."""
    right = disk.write

    def write(path: Path, parts: Any) -> Any:
        if path.name.startswith(start):
            act()
        return right(path, parts)

    monkeypatch.setattr(saving, "write", write)


class SlowDisk:
    """Holds the writing thread back before each chunk until it is let go."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.go, self.waiting = threading.Event(), threading.Event()
        before_writing(monkeypatch, "chunk", self._wait)

    def _wait(self) -> None:
        self.waiting.set()
        self.go.wait()


def test_a_slow_disk_holds_no_step_back_that_writes_other_chunks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = Training(tmp_path, Sizes(capacity=400, chunk_bytes=2_000))
    training.go_on(150)
    slow = SlowDisk(monkeypatch)
    training.begin()
    slow.waiting.wait()
    training.go_on(5)  # would hang if it waited
    assert training.writer.poll() == []
    slow.go.set()
    training.writer.finish()
    training.refuse_other(newest(tmp_path))


def test_a_ring_about_to_overwrite_a_chunk_waits_for_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = Training(tmp_path, Sizes(chunk_bytes=1))
    training.go_on(50)
    slow = SlowDisk(monkeypatch)
    threading.Timer(0.1, slow.go.set).start()
    training.begin()
    training.go_on(50)
    training.writer.finish()
    training.refuse_other(newest(tmp_path))


@pytest.mark.parametrize("on_device", [False, True])
@pytest.mark.parametrize("rows", [300, 305, 337, 361, 420, 499, 530])
def test_a_slow_disk_costs_a_look_at_the_ring_in_many_steps(
    rows: int, on_device: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = Sizes(capacity=3_200, chunk_bytes=30_000, on_device=on_device)
    training, looks = Training(tmp_path, sizes), list[int]()
    rows_each, right = training.chunks._rows_each, training.chunks.next_written
    assert rows_each > 150
    training.go_on(rows)
    slow = SlowDisk(monkeypatch)
    training.begin()
    slow.waiting.wait()

    def next_written(steps: int) -> set[int]:
        looks.append(steps)
        return right(steps)

    monkeypatch.setattr(training.chunks, "next_written", next_written)
    left = rows_each - rows % rows_each
    training.go_on(min(left - 3, 60))
    assert left < 130 or len(looks) <= 1
    copy = training.writer._copy

    def copy_and_let_go(number: int, *, wait: bool = True) -> None:
        if wait:  # the ring is about to overwrite it
            slow.go.set()
        copy(number, wait=wait)

    monkeypatch.setattr(training.writer, "_copy", copy_and_let_go)
    training.go_on(900)
    assert slow.go.is_set()
    training.writer.finish()
    training.refuse_other(newest(tmp_path))


@pytest.mark.timeout(30)
def test_a_signal_within_the_wait_for_the_disk_loses_nothing_but_the_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python takes a thread for ended whose join was interrupted."""
    training, go = Training(tmp_path), threading.Event()

    def interrupt() -> None:
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
        go.wait()

    before_writing(monkeypatch, "state.json", interrupt)
    training.go_on(5)
    training.begin()
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            training.writer.finish()
    finally:
        signal.signal(signal.SIGINT, handler)
    assert training.writer.poll() == []  # it is still being written
    go.set()
    training.writer.close()
    training.refuse_other(newest(tmp_path))


@pytest.mark.timeout(30)
def test_no_step_waits_for_a_thread_that_a_full_disk_has_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both pieces of memory are with the thread, and the next step changes two chunks."""
    training, full = Training(tmp_path, Sizes(capacity=400, chunk_bytes=2_000)), threading.Event()

    def refuse() -> None:
        full.wait()
        raise OSError(errno.ENOSPC, "no room")

    before_writing(monkeypatch, "chunk", refuse)
    training.go_on(150)
    training.begin()
    training.go_on(2)
    writer = training.writer
    assert writer._save is not None
    assert len(writer._to_copy) >= 2
    assert writer._save.free.empty()
    monkeypatch.setattr(training.chunks, "next_written", lambda steps: set(writer._to_copy[:2]))
    writer._spared_steps = 0
    full.set()
    writer._save.wait()
    writer.advance()
    with pytest.raises(OSError, match="not saved"):
        writer.finish()


def test_at_most_two_chunks_are_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    training, made = Training(tmp_path), list[int]()
    right = staging.Slot

    def slot(size: int, *rest: Any) -> Any:
        made.append(size)
        return right(size, *rest)

    monkeypatch.setattr(writer_file, "Slot", slot)
    for _ in range(3):
        training.save(7)
    assert len(made) == 2
    assert max(made) <= training.sizes.chunk_bytes


def test_a_step_copies_at_most_one_chunk_that_it_does_not_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = Training(tmp_path, Sizes(capacity=400, chunk_bytes=2_000))
    training.go_on(150)
    counts, right = list[int](), training.chunks.chunk

    def chunk(number: int) -> Any:
        counts.append(number)
        return right(number)

    monkeypatch.setattr(training.chunks, "chunk", chunk)
    training.begin()
    for _ in range(30):
        counts.clear()
        named = training.chunks.next_written(1)
        training.go_on(1)
        assert len(set(counts) - named) <= 1
    training.writer.finish()


def test_a_checkpoint_that_comes_too_early_is_left_out_and_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = Training(tmp_path)
    training.go_on(5)
    slow = SlowDisk(monkeypatch)
    training.begin()
    training.step += 1
    training.begin()
    (left_out,) = training.writer.poll()
    assert isinstance(left_out, OSError)
    assert left_out.errno == errno.EBUSY
    assert left_out.filename.endswith("step-000000000006")
    slow.go.set()
    saved = training.writer.finish()
    assert saved is not None
    assert names(tmp_path / "checkpoints") == ["step-000000000005"]


def test_what_has_ended_is_returned_once(tmp_path: Path) -> None:
    training = Training(tmp_path)
    assert training.writer.poll() == []
    assert training.writer.finish() is None
    training.begin(replay=False)
    assert training.writer._save is not None
    training.writer._save.wait()
    (saved,) = training.writer.poll()
    assert isinstance(saved, Saved)
    assert saved.written_bytes > 0
    assert saved.took_s > 0
    assert training.writer.poll() == []
    assert training.writer.finish() is None


def test_closing_gives_up_a_ring_that_is_not_copied_and_leaves_nothing(tmp_path: Path) -> None:
    training = Training(tmp_path, Sizes(chunk_bytes=1))
    training.go_on(30)
    training.begin()
    training.writer.close()
    (error,) = training.writer.poll()
    assert isinstance(error, OSError)
    assert "ended before its replay ring was copied" in str(error)
    assert names(tmp_path / "checkpoints") == []


def test_closing_lets_a_checkpoint_be_written_whose_ring_is_copied(tmp_path: Path) -> None:
    training = Training(tmp_path)
    training.begin(replay=False)
    training.writer.close()
    assert names(tmp_path / "checkpoints") == [training.name]


def test_what_is_no_error_of_the_disk_is_raised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def break_down(*args: Any) -> Any:
        raise RuntimeError("a bug")

    training = Training(tmp_path)
    monkeypatch.setattr(saving, "policy_files", break_down)
    training.begin()
    with pytest.raises(RuntimeError, match="a bug"):
        training.writer.finish()


# Links


def shared(left: Path, right: Path) -> set[str]:
    """Return the files that two checkpoints share."""
    there = {path.stat().st_ino for path in files_of(right)}
    return {path.name for path in files_of(left) if path.stat().st_ino in there}


def test_unchanged_chunks_are_linked_and_neighbours_share_none(tmp_path: Path) -> None:
    training = Training(tmp_path, Sizes(capacity=400))
    training.go_on(20)
    for _ in range(6):
        training.save(10)
        training.refuse_other(newest(tmp_path))
    first, second, third = (tmp_path / "checkpoints" / n for n in names(tmp_path / "checkpoints"))
    assert len(shared(first, third)) >= 5
    assert shared(first, second) == shared(second, third) == set()


def test_with_one_checkpoint_chunks_are_linked_from_the_one_before(tmp_path: Path) -> None:
    training = Training(tmp_path, Sizes(capacity=400), keep_last=1)
    training.save(100)
    training.go_on(3)
    training.begin()
    saved = training.writer.finish()
    assert saved is not None
    assert saved.linked_bytes > saved.written_bytes
    assert names(tmp_path / "checkpoints") == [training.name]
    training.refuse_other(newest(tmp_path))


def test_chunks_that_were_never_written_have_no_file(tmp_path: Path) -> None:
    training = Training(tmp_path, Sizes(capacity=4000))
    training.save(10)
    folder = newest(tmp_path).folder
    assert len(files_of(folder / "replay")) < training.chunks.num_chunks / 10
    training.refuse_other(newest(tmp_path))


def test_where_links_are_refused_chunks_are_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(os, "link", refuse)
    training = Training(tmp_path, Sizes(capacity=400))
    for _ in range(4):
        training.save(10)
        training.refuse_other(newest(tmp_path))
    folders = [tmp_path / "checkpoints" / name for name in names(tmp_path / "checkpoints")]
    assert shared(folders[0], folders[2]) == set()


def test_a_chunk_that_was_damaged_is_not_linked_and_then_written_again(tmp_path: Path) -> None:
    training = Training(tmp_path, Sizes(capacity=400))
    training.save(20)
    first = newest(tmp_path).folder
    training.save(5)
    chunk = files_of(first / "replay")[0]
    content = chunk.read_bytes()
    chunk.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    training.go_on(5)
    training.begin()
    with pytest.raises(OSError, match="changed since"):
        training.writer.finish()
    training.save(5)
    training.refuse_other(newest(tmp_path))


@pytest.mark.parametrize("become", ["shorter", "a link", "a folder"])
def test_a_chunk_that_became_something_else_costs_one_checkpoint(
    become: str, tmp_path: Path
) -> None:
    training = Training(tmp_path, Sizes(capacity=400))
    training.save(20)
    chunk = files_of(newest(tmp_path).folder / "replay")[0]
    training.save(5)
    if become == "shorter":
        os.truncate(chunk, 10)
    else:
        chunk.rename(tmp_path / "elsewhere")
        chunk.symlink_to(tmp_path / "elsewhere") if become == "a link" else chunk.mkdir()
    training.go_on(5)
    training.begin()
    with pytest.raises(OSError, match="not saved"):
        training.writer.finish()
    training.save(5)
    training.refuse_other(newest(tmp_path))


def test_an_older_checkpoint_that_was_removed_costs_one_checkpoint_at_most(tmp_path: Path) -> None:
    training = Training(tmp_path, Sizes(capacity=400))
    for _ in range(2):
        training.save(10)
    for path in files_of(training.writer._generations[0].folder):
        path.unlink()
    training.go_on(5)
    training.begin()
    with pytest.raises(OSError, match="not saved"):
        training.writer.finish()
    training.save(5)
    training.refuse_other(newest(tmp_path))


def test_a_resumed_training_links_what_it_was_filled_from(tmp_path: Path) -> None:
    training = Training(tmp_path, Sizes(capacity=400))
    training.save(100)
    saved = newest(tmp_path)
    again = Training(tmp_path, training.sizes)
    again.history, again.step = training.history, training.step  # which goes on from there
    again.chunks = again.sizes.chunks(again.history.ring)
    filled = saved.fill(again.sizes.chunks(again.sizes.ring()))
    again.writer.resumed(saved.folder, filled, again.chunks)
    again.save(5)
    again.save(5)
    assert len(shared(saved.folder, newest(tmp_path).folder)) > 5
    again.refuse_other(newest(tmp_path))


def test_another_ring_shares_nothing(tmp_path: Path) -> None:
    training = Training(tmp_path, Sizes(capacity=400))
    training.save(50)
    training.save(5)
    other = Training(tmp_path, training.sizes, seed=1, step=training.step)
    other.history.step()
    training.history, training.chunks = other.history, other.chunks
    for _ in range(50):
        training.history.step()
    for _ in range(3):
        training.save(1)
        training.refuse_other(newest(tmp_path))


# Rotation


def test_the_newest_are_kept_and_the_best_policy_is_no_part_of_it(tmp_path: Path) -> None:
    checkpoints = tmp_path / "checkpoints"
    for name in ("best", "notes", ".tmp-notes"):
        (checkpoints / name).mkdir(parents=True)
    training = Training(tmp_path, keep_last=2)
    for _ in range(5):
        training.save(10)
    kept = [f"step-{step:012d}" for step in (46, 58)]
    assert names(checkpoints) == sorted([".tmp-notes", "best", "notes", *kept])


def test_rotation_spares_what_was_just_written_beside_later_ones(tmp_path: Path) -> None:
    """A run that goes on from an older checkpoint, since newer ones are damaged."""
    training = Training(tmp_path, keep_last=2)
    for step in (900, 901, 902):
        (tmp_path / "checkpoints" / f"step-{step:012d}").mkdir(parents=True)
    training.save(10)
    training.refuse_other(newest(tmp_path, skipped=3))
    training.save(10)
    training.save(10)
    assert len(names(tmp_path / "checkpoints")) == 5


def test_all_are_kept_where_that_is_asked_for(tmp_path: Path) -> None:
    training = Training(tmp_path, keep_last=None)
    for _ in range(5):
        training.save(3, replay=False)
    assert len(names(tmp_path / "checkpoints")) == 5


def test_keeping_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--keep-last 0"):
        CheckpointWriter(tmp_path, keep_last=0)


def test_a_checkpoint_of_the_same_name_is_replaced(tmp_path: Path) -> None:
    training = Training(tmp_path)
    training.go_on(5)
    for _ in range(3):
        training.begin()
        training.writer.finish()
    assert names(tmp_path / "checkpoints") == [training.name]
    training.refuse_other(newest(tmp_path))


def test_a_folder_of_something_else_is_not_replaced(tmp_path: Path) -> None:
    training = Training(tmp_path)
    (tmp_path / "checkpoints" / training.name).mkdir(parents=True)
    (tmp_path / "checkpoints" / training.name / "thesis.txt").write_text("mine")
    with pytest.raises(UsageError, match=r"thesis\.txt, which is no part"):
        training.begin()


# The disk


def test_a_disk_that_returns_something_else_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = os.write

    def flip(descriptor: int, content: memoryview) -> int:
        return right(descriptor, bytes([content[0] ^ 1]) + bytes(content[1:]))

    training = Training(tmp_path)
    monkeypatch.setattr(os, "write", flip)
    training.begin()
    with pytest.raises(OSError, match="does not return what was written"):
        training.writer.finish()
    assert names(tmp_path / "checkpoints") == []


def test_writes_that_take_a_part_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = os.write
    monkeypatch.setattr(os, "write", lambda to, content: right(to, content[:7]))
    training = Training(tmp_path)
    training.save(5)
    training.refuse_other(newest(tmp_path))


def test_files_folders_and_the_parent_are_written_through_before_and_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tape: list[str] = []

    def sync(descriptor: int) -> None:
        name = Path(f"/proc/self/fd/{descriptor}").readlink().name
        tape.append(name.rpartition("-")[0] or name)

    right = layout.put_in_place

    def put_in_place(draft: Path, folder: Path) -> None:
        tape.append("here")
        right(draft, folder)

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(saving, "put_in_place", put_in_place)
    training = Training(tmp_path, Sizes(capacity=10, chunk_bytes=10_000))
    training.begin()
    training.writer.finish()
    before, after = tape[: tape.index("here")], tape[tape.index("here") + 1 :]
    assert before == [
        *("model.safetensors", "policy.json", "optimizer.safetensors", "state.safetensors"),
        *("chunk", "chunk", "replay", "state.json", ".tmp-step-000000000000"),
    ]
    assert after == ["checkpoints"]


def test_a_moment_is_the_same_twice(tmp_path: Path) -> None:
    """The comparison of these tests can fail."""
    training = Training(tmp_path)
    training.save(30)
    other = training.sizes.ring()
    newest_training(tmp_path).fill(training.sizes.chunks(other))
    assert not same(cells_of(other), cells_of(training.history.ring))
    assert disk.BLOCK_BYTES >= 2**16


@pytest.mark.parametrize("count", [0, 1])
def test_tensors_of_one_number_whose_stride_is_0_are_written(count: int) -> None:
    tensor = torch.full((1,), 7, dtype=torch.int32).expand(3)[:count]
    header, *rest = contents({"a": tensor})
    assert b"".join(rest) == b"\7\0\0\0" * count
    assert b"I32" in bytes(header)
