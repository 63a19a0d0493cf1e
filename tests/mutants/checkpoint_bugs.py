"""Bugs of checkpoints: what is checked, copied, linked and removed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fastdqn.checkpoint import disk, layout, manifest, reader, saving, tensor_file, writer
from fastdqn.checkpoint.disk import Entry
from fastdqn.checkpoint.layout import steps
from fastdqn.checkpoint.writer import CheckpointWriter
from fastdqn.replay import chunks
from fastdqn.replay.chunks import RingChunks
from tests.mutants.planted import Planted, exchange

__all__ = ["PLANTED"]

WRITER = "tests/unit/checkpoint/test_writer.py::test_"
READER = "tests/unit/checkpoint/test_reader.py::test_"
CHUNKS = "tests/unit/replay/test_chunks.py::test_"
FORGED = "tests/property/test_forged_checkpoints.py::test_"
FLIPPED = (
    "tests/faults/test_checkpoint_faults.py"
    "::test_every_flipped_byte_and_truncation_is_found_and_an_older_one_loads[50]"
)

PLANTED = Planted()
turns_red = PLANTED.turns_red


@turns_red(FLIPPED, FORGED + "what_state_json_cannot_say_is_refused[another hash]")
def the_hash_of_a_file_not_compared() -> None:
    def sizes_alone(folder: Path, told: manifest.Manifest) -> None:
        for name, entry in told.files.items():
            with disk.opened(folder, name, entry.bytes):
                pass

    exchange(reader, "_refuse_changed", sizes_alone)


@turns_red(FORGED + "what_state_json_cannot_say_is_refused[another size]")
def the_size_of_a_file_not_compared() -> None:
    right = disk.opened
    exchange(reader, "opened", lambda folder, name, size=None: right(folder, name))


@turns_red(
    FORGED + "what_state_json_cannot_say_is_refused[a file above]",
    FORGED + "what_state_json_cannot_say_is_refused[a device]",
)
def a_file_outside_of_the_checkpoint_accepted() -> None:
    def anything(files: Mapping[str, Entry], versions: Sequence[Any] | None) -> None:
        del files, versions

    exchange(manifest, "_refuse_other_files", anything)


@turns_red(FORGED + "what_is_no_file_is_not_read[link-optimizer.safetensors]")
def a_link_followed() -> None:
    exchange(Path, "is_symlink", lambda path: False)
    exchange(os, "O_NOFOLLOW", 0)


@turns_red(FORGED + "headers_that_do_not_describe_their_file_are_refused[overlap]")
def tensors_that_overlap_accepted() -> None:
    exchange(tensor_file.TensorFile, "_refuse_gaps", lambda self: None)


@turns_red(FORGED + "chunks_that_would_be_read_beyond_the_ring_are_refused")
def places_beyond_the_ring_accepted() -> None:
    exchange(chunks, "_within", lambda numbers, limit: True)


@turns_red(
    WRITER + "what_is_read_is_the_moment_of_begin",
    WRITER + "a_ring_about_to_overwrite_a_chunk_waits_for_the_disk",
)
def a_chunk_copied_after_the_head_passed() -> None:
    exchange(RingChunks, "next_written", lambda self, vector_steps: {0})


@turns_red(WRITER + "a_slow_disk_costs_a_look_at_the_ring_in_many_steps[337-False]")
def a_look_at_the_ring_that_counts_for_too_many_steps() -> None:
    right = CheckpointWriter._urgent

    def urgent(self: Any, vector_steps: int) -> list[int]:
        looks = self._spared_steps < vector_steps
        found = right(self, vector_steps)
        self._spared_steps += 30 * (looks and self._spared_steps > 0)
        return found

    exchange(CheckpointWriter, "_urgent", urgent)


@turns_red(CHUNKS + "steps_change_no_other_chunks_than_those_that_are_named[few]")
def a_cut_that_changes_no_chunk() -> None:
    right = chunks._touched

    def from_the_head(first: int, stop: int, size: int, each: int) -> set[int]:
        return right(min(first + 1, stop - 1), stop, size, each)

    exchange(chunks, "_touched", from_the_head)


@turns_red(
    CHUNKS + "a_chunk_of_the_same_version_is_the_same[few]",
    WRITER + "unchanged_chunks_are_linked_and_neighbours_share_none",
)
def a_changed_chunk_linked() -> None:
    exchange(RingChunks, "version", lambda self, number: 1)
    exchange(writer, "_versions", lambda ring: [1] * ring.num_chunks)


@turns_red(WRITER + "a_chunk_that_was_damaged_is_not_linked_and_then_written_again")
def a_damaged_chunk_linked() -> None:
    exchange(disk, "_identity", lambda state: ())


@turns_red(WRITER + "unchanged_chunks_are_linked_and_neighbours_share_none", FLIPPED)
def neighbours_that_share_chunks() -> None:
    exchange(writer, "SHARED_WITH", 1)


@turns_red(
    WRITER + "rotation_spares_what_was_just_written_beside_later_ones",
    WRITER + "the_newest_are_kept_and_the_best_policy_is_no_part_of_it",
)
def a_rotation_that_deletes_the_newest() -> None:
    def rotate(newest: Path, keep_last: int) -> None:
        for folder in steps(newest.parent)[keep_last:]:
            shutil.rmtree(folder)

    exchange(writer, "rotate", rotate)


@turns_red(WRITER + "the_newest_are_kept_and_the_best_policy_is_no_part_of_it")
def a_rotation_of_checkpoints_that_deletes_the_best_policy() -> None:
    right = layout.rotate

    def rotate(newest: Path, keep_last: int) -> None:
        right(newest, keep_last)
        shutil.rmtree(newest.with_name("best"))

    exchange(writer, "rotate", rotate)


@turns_red(READER + "a_draft_of_a_live_process_stays")
def a_draft_of_a_live_process_removed() -> None:
    exchange(layout, "_is_alive", lambda pid, draft: False)


@turns_red(READER + "a_draft_older_than_the_process_of_its_number_is_removed")
def a_number_that_another_process_took_over() -> None:
    exchange(layout, "_started_s", lambda pid: None)


@turns_red(WRITER + "the_small_tensors_and_values_are_those_of_begin")
def small_tensors_not_copied() -> None:
    exchange(writer, "copies_of", dict)


@turns_red(WRITER + "a_disk_that_returns_something_else_is_an_error")
def a_file_not_read_back() -> None:
    exchange(disk, "_compare", lambda path, parts, size: None)


@turns_red(READER + "nothing_is_written_where_one_chunk_is_refused")
def a_ring_half_filled() -> None:
    def fill(self: reader.SavedTraining, ring: RingChunks) -> None:
        for number in range(ring.num_chunks):
            ring.load(number, None)
        right(self, ring)

    right = reader.SavedTraining.fill
    exchange(reader.SavedTraining, "fill", fill)


@turns_red(WRITER + "blocks_of_several_vector_steps_are_named_before_they_run")
def blocks_taken_for_single_vector_steps() -> None:
    right = CheckpointWriter.advance
    exchange(CheckpointWriter, "advance", lambda self, vector_steps=1: right(self))


@turns_red(WRITER + "files_folders_and_the_parent_are_written_through_before_and_after")
def a_folder_not_written_through() -> None:
    exchange(saving, "sync", lambda path: None)
