"""Chunks of a ring: which of them the next steps change, and which did not change."""

from __future__ import annotations

import copy
import random
from typing import Any

import pytest
import torch
from torch import Tensor

from fastdqn.errors import CheckpointError
from fastdqn.replay.buffer import ReplayBuffer
from fastdqn.replay.chunks import CHUNK_BYTES, RingChunks
from fastdqn.replay.functional_ring import FunctionalRing
from tests.ring_histories import ACTIONS, History, Sizes, cells_of, same

SEEDS = pytest.mark.parametrize(
    "seeds", [range(8), pytest.param(range(8, 300), marks=pytest.mark.slow)], ids=["few", "many"]
)


def random_sizes(seed: int) -> Sizes:
    """Draw a small ring of either kind, and how it is cut into chunks."""
    rng = random.Random(seed)
    return Sizes(
        capacity=rng.randint(1, 40),
        num_envs=rng.randint(1, 3),
        num_groups=rng.randint(1, 3),
        masked=rng.random() < 0.5,
        on_device=seed % 3 == 0,
        chunk_bytes=rng.choice([1, 100, 300, 1000, 10_000]),
        final_capacity=rng.choice([None, 1, 7]),
    )


def all_chunks(chunks: RingChunks) -> list[dict[str, Tensor]]:
    found = [chunks.chunk(number) for number in range(chunks.num_chunks)]
    return [{name: tensor.clone() for name, tensor in chunk.items()} for chunk in found]


def changed(chunks: RingChunks, before: list[dict[str, Tensor]]) -> set[int]:
    now = all_chunks(chunks)
    return {n for n, (old, new) in enumerate(zip(before, now, strict=True)) if not same(old, new)}


@SEEDS
def test_steps_change_no_other_chunks_than_those_that_are_named(seeds: range) -> None:
    for seed in seeds:
        refuse_changes_elsewhere(random_sizes(seed), seed)


def refuse_changes_elsewhere(sizes: Sizes, seed: int) -> None:
    history, steps = sizes.history(seed), (1, 2, 3, 4, 9)[seed % 5]
    chunks, rng = sizes.chunks(history.ring), history.rng
    for _ in range(rng.integers(0, 3 * history.ring.num_rows)):
        history.step()
    for _ in range(12):
        before, named = all_chunks(chunks), chunks.next_written(steps)
        for _ in range(steps):
            if rng.random() < 0.3:
                history.cut()
            history.step()
        assert changed(chunks, before) <= named
        assert named <= set(range(chunks.num_chunks))


@SEEDS
def test_a_chunk_of_the_same_version_is_the_same(seeds: range) -> None:
    for seed in seeds:
        compare_versions(random_sizes(seed), seed)


def compare_versions(sizes: Sizes, seed: int) -> None:
    history = sizes.history(seed)
    chunks = sizes.chunks(history.ring)
    fresh = all_chunks(sizes.chunks(sizes.ring()))
    seen: list[dict[int, dict[str, Tensor]]] = [{0: each} for each in fresh]
    newest = [0] * chunks.num_chunks
    for _ in range(2 * history.ring.num_rows + 3):
        act = history.cut if history.rng.random() < 0.1 else history.step
        act()
        for number, now in enumerate(all_chunks(chunks)):
            version = chunks.version(number)
            assert version >= newest[number]
            newest[number] = version
            assert same(seen[number].setdefault(version, now), now)


def test_versions_of_most_chunks_stay_while_one_row_after_the_other_is_written() -> None:
    """A version that changes at every look would be right, and nothing would ever be linked."""
    history = Sizes(capacity=400, chunk_bytes=800).history(0)
    chunks = RingChunks(history.ring, chunk_bytes=800)
    numbers = range(chunks.num_chunks)
    for _ in range(50):
        history.step()
    before = [chunks.version(number) for number in numbers]
    history.step()
    moved = [number for number in numbers if chunks.version(number) != before[number]]
    assert len(moved) <= 4
    assert chunks.num_chunks > 20
    assert before.count(0) > 5  # not reached yet


@SEEDS
def test_chunks_taken_over_many_steps_are_the_ring_of_one_moment(seeds: range) -> None:
    for seed in seeds:
        compare_with_a_copy(random_sizes(seed), seed)


def compare_with_a_copy(sizes: Sizes, seed: int) -> None:
    history = sizes.history(seed)
    chunks = sizes.chunks(history.ring)
    for _ in range(history.rng.integers(0, 3 * history.ring.num_rows)):
        history.step()
    twin, taken = copy.deepcopy(history.ring), dict[int, dict[str, Tensor]]()
    while len(taken) < chunks.num_chunks:
        left = set(range(chunks.num_chunks)) - taken.keys()
        for number in (chunks.next_written(1) & left) or {max(left)}:
            taken[number] = {name: each.clone() for name, each in chunks.chunk(number).items()}
        history.step()
    other = sizes.chunks(again := sizes.ring())
    for number, tensors in taken.items():
        other.refuse(number, tensors)
        other.load(number, tensors)
    assert same(cells_of(again), cells_of(twin))


@SEEDS
def test_the_chunks_of_a_name_in_turn_are_the_tensor_of_the_ring(seeds: range) -> None:
    for seed in seeds:
        compare_joined(random_sizes(seed), seed)


def compare_joined(sizes: Sizes, seed: int) -> None:
    history = sizes.history(seed)
    history.step()
    chunks = all_chunks(sizes.chunks(history.ring))
    joined = {
        name: torch.cat([chunk[name] for chunk in chunks if name in chunk])
        for name in history.ring.ring.cells()
    }
    assert same(joined, cells_of(history.ring))


@pytest.mark.parametrize("on_device", [False, True])
def test_a_chunk_as_allocated_is_put_back(on_device: bool) -> None:
    sizes = Sizes(on_device=on_device, masked=not on_device)
    history = sizes.history(0)
    chunks = sizes.chunks(history.ring)
    for _ in range(30):
        history.step()
    for number in range(chunks.num_chunks):
        chunks.load(number, None)
    assert same(cells_of(history.ring), cells_of(sizes.ring()))


@pytest.mark.parametrize("on_device", [False, True])
def test_a_ring_that_was_never_written_is_of_version_0(on_device: bool) -> None:
    sizes = Sizes(on_device=on_device)
    chunks = sizes.chunks(sizes.ring())
    reached = chunks.next_written(1)
    numbers = set(range(chunks.num_chunks))
    assert all(chunks.version(number) == 0 for number in numbers - reached)


def test_chunks_take_about_the_bytes_that_they_may() -> None:
    ring = ReplayBuffer(5_000, 8, (84, 84), torch.uint8)
    chunks = RingChunks(ring)
    views = [chunks.chunk(number) for number in range(chunks.num_chunks)]
    sizes = [sum(t.numel() * t.element_size() for t in view.values()) for view in views]
    assert max(sizes) <= CHUNK_BYTES
    assert sizes[0] > 0.9 * CHUNK_BYTES
    assert sum(sizes) == sum(t.numel() * t.element_size() for t in ring.ring.cells().values())


def test_counts_of_the_device_are_those_of_the_host() -> None:
    ring = FunctionalRing(20, 2, (2,))
    history = History(ring, Sizes().history(0).rng)
    history.step()
    history.step()
    assert ring.counts() == (2, 4)


WRONG: dict[str, tuple[str, Any, str]] = {
    "a next observation before the ring": ("next_index", lambda t: t - 10**6, "next_index"),
    "a next observation behind it": ("next_index", lambda t: t + 10**12, "next_index"),
    "an action that there is not": ("action", lambda t: t + ACTIONS, r"action .* \[0, 3\)"),
    "a negative action": ("action", lambda t: t - 1, "action"),
    "another dtype": ("action", lambda t: t.int(), "torch.int32, not"),
    "another shape": ("frames", lambda t: t[:, :1], "frames is"),
}


@pytest.mark.parametrize("name", WRONG)
def test_tensors_that_cannot_be_a_chunk_are_refused(name: str) -> None:
    chunks = Sizes().chunks(Sizes().history(0).ring)
    tensors = all_chunks(chunks)[0]
    chunks.refuse(0, tensors)
    which, change, words = WRONG[name]
    with pytest.raises(CheckpointError, match=words):
        chunks.refuse(0, {**tensors, which: change(tensors[which])})


def test_a_chunk_with_other_names_is_refused() -> None:
    chunks = Sizes().chunks(Sizes().history(0).ring)
    tensors = all_chunks(chunks)[0]
    del tensors["reward"]
    with pytest.raises(CheckpointError, match="chunk 0 of the replay ring holds"):
        chunks.refuse(0, tensors)
