"""The newest checkpoint that is whole is read, and what is skipped is named."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tracemalloc
from typing import TYPE_CHECKING, Any

import pytest
import torch

from fastdqn.checkpoint import layout
from fastdqn.checkpoint.layout import steps
from fastdqn.checkpoint.reader import newest_training
from fastdqn.errors import CheckpointError
from fastdqn.replay.buffer import ReplayBuffer
from fastdqn.replay.chunks import RingChunks
from fastdqn.training.checkpoint import load_policy, save_policy
from tests.checkpoints import Training, copied_to, names, newest, rehashed, unshared
from tests.ring_histories import Sizes, cells_of, same

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(autouse=True)
def no_waits_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


def run_of(path: Path, checkpoints: int = 3) -> Training:
    training = Training(path)
    for _ in range(checkpoints):
        training.save(10)
    return training


# Which one


def test_a_run_its_checkpoints_and_one_checkpoint_can_be_named(tmp_path: Path) -> None:
    training = run_of(tmp_path)
    newest_one, oldest = (steps(tmp_path / "checkpoints")[place] for place in (-1, 0))
    assert newest_training(tmp_path).folder == newest_one
    assert newest_training(tmp_path / "checkpoints").folder == newest_one
    training.refuse_other(newest_training(oldest))


def test_newer_ones_that_are_damaged_are_skipped_and_named(tmp_path: Path) -> None:
    training = run_of(tmp_path)
    oldest, middle, last = steps(tmp_path / "checkpoints")
    (last / "state.safetensors").unlink()
    (middle / "policy.json").write_text("{}")
    saved = newest(tmp_path, skipped=2)
    assert saved.folder == oldest
    assert str(last) in saved.skipped[0]
    assert "state.safetensors" in saved.skipped[0]
    assert f"{middle}" in saved.skipped[1]
    assert "policy.json takes 2 bytes, not" in saved.skipped[1]
    training.refuse_other(saved)


def test_a_run_without_any_says_what_is_wrong_with_each(tmp_path: Path) -> None:
    run_of(tmp_path, 2)
    for folder in steps(tmp_path / "checkpoints"):
        (folder / "state.json").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"state.json: its first line.*state.json: its first"):
        newest_training(tmp_path)
    with pytest.raises(CheckpointError, match="nowhere is no folder"):
        newest_training(tmp_path / "nowhere")
    (tmp_path / "else").mkdir()
    with pytest.raises(CheckpointError, match=r"cannot be read: .*state\.json"):
        newest_training(tmp_path / "else")


def test_an_empty_run_says_that_there_is_none(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(CheckpointError, match=r"there is no checkpoints/step-\*"):
        newest_training(tmp_path)


def test_a_policy_alone_is_no_training_and_the_message_says_so(tmp_path: Path) -> None:
    training = run_of(tmp_path, 1)
    save_policy(tmp_path / "checkpoints" / "step-000000000900", *training.policy())
    saved = newest(tmp_path, skipped=1)
    assert "holds a policy and no state of a training" in saved.skipped[0]
    with pytest.raises(CheckpointError, match="its training starts anew from there"):
        newest_training(tmp_path / "checkpoints" / "step-000000000900")


def test_a_checkpoint_is_a_saved_policy_too(tmp_path: Path) -> None:
    training = run_of(tmp_path)
    policy = load_policy(tmp_path)
    assert policy.folder == newest(tmp_path).folder
    assert same(policy.parameters, newest(tmp_path).policy.parameters)
    assert policy.description["env_steps"] == training.step - 2


def test_foreign_entries_are_left_alone(tmp_path: Path) -> None:
    training = run_of(tmp_path, 1)
    checkpoints = tmp_path / "checkpoints"
    for name in ("step-1", "step-0000000000001", "other", ".tmp-notes", ".tmp-mine-1x", "best"):
        (checkpoints / name).mkdir()
    (checkpoints / "step-000000000901").write_text("a file")
    (checkpoints / "step-000000000902").symlink_to(newest(tmp_path).folder)
    (checkpoints / f".tmp-file-{dead_pid()}").write_text("a file")
    before = names(checkpoints)
    training.refuse_other(newest(tmp_path))
    assert names(checkpoints) == before


def test_a_replacement_that_a_crash_interrupted_is_found(tmp_path: Path) -> None:
    training = run_of(tmp_path, 2)
    last = newest(tmp_path).folder
    aside = last.with_name(f".replaced-{last.name}")
    last.rename(aside)
    saved = newest(tmp_path)
    assert saved.folder == aside
    aside.rename(last)
    copied_to(last, aside)
    training.refuse_other(newest(tmp_path))
    assert not aside.exists()  # its successor is there


# Drafts of dead processes


def dead_pid() -> int:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    return child.pid


def draft(tmp_path: Path, pid: int, changed_s: float | None = None) -> Path:
    folder = tmp_path / "checkpoints" / f".tmp-step-000000000001-{pid}"
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"half")
    if changed_s is not None:
        os.utime(folder, (changed_s, changed_s))
    return folder


def test_drafts_of_dead_processes_are_removed_by_the_next_one_that_writes(tmp_path: Path) -> None:
    gone = [draft(tmp_path, pid) for pid in (dead_pid(), 9_999_999_999, 4_194_305)]
    run_of(tmp_path, 1)
    assert not any(folder.exists() for folder in gone)


def test_reading_removes_nothing(tmp_path: Path) -> None:
    """On another machine, or in a container, the number of a living process says nothing."""
    run_of(tmp_path, 1)
    kept = draft(tmp_path, dead_pid())
    newest(tmp_path)
    assert kept.exists()


def test_a_folder_of_the_callers_own_is_no_draft_whatever_its_name(tmp_path: Path) -> None:
    """As beside the folder that `agent.save` writes."""
    own = tmp_path / "checkpoints" / ".tmp-backup-20240101"
    own.mkdir(parents=True)
    (own / "thesis.txt").write_text("mine")
    run_of(tmp_path, 1)
    assert (own / "thesis.txt").read_text() == "mine"


@pytest.mark.parametrize("mine", [True, False])
def test_a_draft_of_a_live_process_stays(mine: bool, tmp_path: Path) -> None:
    kept = draft(tmp_path, os.getpid() if mine else os.getppid())
    run_of(tmp_path, 1)
    newest(tmp_path)
    assert kept.exists()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="it reads /proc")
def test_a_draft_older_than_the_process_of_its_number_is_removed(tmp_path: Path) -> None:
    """In a container every trainer may have the number 1."""
    old = draft(tmp_path, os.getpid(), changed_s=1_000_000_000.0)
    run_of(tmp_path, 1)
    assert not old.exists()


def test_where_the_start_of_a_process_is_unknown_its_draft_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layout, "_started_s", lambda pid: None)
    kept = draft(tmp_path, os.getpid(), changed_s=1_000_000_000.0)
    run_of(tmp_path, 1)
    assert kept.exists()


# The ring


def test_a_ring_of_other_sizes_is_refused_and_not_written(tmp_path: Path) -> None:
    saved = newest((run_of(tmp_path)).run)
    for sizes in (
        Sizes(capacity=80),
        Sizes(capacity=44),
        Sizes(masked=True),
        Sizes(on_device=True),
    ):
        ring = sizes.ring()
        before = cells_of(ring)
        with pytest.raises(CheckpointError, match=r"other sizes|chunks|shape|frames"):
            saved.fill(sizes.chunks(ring))
        assert same(cells_of(ring), before)


def test_nothing_is_written_where_one_chunk_is_refused(tmp_path: Path) -> None:
    training = run_of(tmp_path)
    saved, ring = newest(tmp_path), training.sizes.history(1).ring
    before = cells_of(ring)
    strict = RingChunks(ring, limits={"action": 1}, chunk_bytes=training.sizes.chunk_bytes)
    with pytest.raises(CheckpointError, match=r"its action holds a number outside \[0, 1\)"):
        saved.fill(strict)
    assert same(cells_of(ring), before)


def test_a_ring_that_is_not_there_is_refused(tmp_path: Path) -> None:
    training = Training(tmp_path)
    training.save(5, replay=False)
    with pytest.raises(CheckpointError, match="holds no replay ring"):
        newest(tmp_path).fill(training.chunks)


def test_a_chunk_that_changes_after_it_was_compared_is_refused(tmp_path: Path) -> None:
    training = run_of(tmp_path)
    saved = newest(tmp_path)
    chunk = saved.folder / "replay" / "chunk-00000.safetensors"
    content = bytearray(chunk.read_bytes())
    content[-20] ^= 1
    chunk.write_bytes(content)
    with pytest.raises(CheckpointError, match="changed since it was compared"):
        saved.fill(training.sizes.chunks(training.sizes.ring()))


def test_a_used_ring_is_filled_wholly(tmp_path: Path) -> None:
    training = Training(tmp_path, Sizes(capacity=400))
    training.save(10)
    other = training.sizes.history(1)
    for _ in range(300):
        other.step()
    newest(tmp_path).fill(training.sizes.chunks(other.ring))
    (moment,) = training.moments.values()
    assert same(cells_of(other.ring), cells_of(moment))


def test_loading_takes_the_memory_of_a_chunk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ring = ReplayBuffer(20_000, 4, (50,))
    training = Training(tmp_path)
    training.chunks = RingChunks(ring, chunk_bytes=100_000)
    ring.begin(torch.rand(4, 50))
    flags = torch.zeros(4, dtype=torch.bool)
    for _ in range(1_500):
        ring.write(
            torch.zeros(4, dtype=torch.int64), torch.rand(4), flags, flags, torch.rand(4, 50)
        )
    training.writer.begin(training.name, training.policy(), training.state(), training.chunks)
    training.writer.finish()
    allocated, right = list[int](), torch.empty

    def empty(size: int, **more: Any) -> torch.Tensor:
        allocated.append(size)
        return right(size, **more)

    monkeypatch.setattr(torch, "empty", empty)
    tracemalloc.start()
    newest(tmp_path).fill(training.chunks)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(names(newest(tmp_path).folder / "replay")) >= 12
    assert sum(allocated) < 100_000 + 1_000  # one chunk, and the small tensors
    assert peak < 2_500_000  # two blocks of 1 MiB


# Other schemas and processes


CHANGED = {
    "schema": (3, "its schema is 3, not 2. A newer fastdqn may read it"),
    "rank": (1, "of process 1 of 1"),
    "world_size": (4, "of process 0 of 4"),
}


@pytest.mark.parametrize("name", CHANGED)
def test_checkpoints_of_later_versions_are_refused_in_words(name: str, tmp_path: Path) -> None:
    run_of(tmp_path, 1)
    folder = unshared(newest(tmp_path).folder)
    value, words = CHANGED[name]
    rehashed(folder, lambda told: told.update({name: value}))
    with pytest.raises(CheckpointError, match=words):
        newest_training(folder)


def test_what_was_rehashed_without_a_change_is_read(tmp_path: Path) -> None:
    """So that the refusals of hostile checkpoints are not those of wrong hashes."""
    training = run_of(tmp_path, 1)
    folder = unshared(newest(tmp_path).folder)
    rehashed(folder)
    training.refuse_other(newest(tmp_path))
    shutil.rmtree(folder)
