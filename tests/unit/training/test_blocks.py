"""Blocks: the ratio is exact wherever the host looks, and most of the work comes in one kind."""

from __future__ import annotations

import math
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastdqn.training.schedules import ReplayRatio
from fastdqn.training.tensor.blocks import Block, next_block, plan

RATIOS = st.one_of(
    st.builds(lambda p, q: p / q, st.integers(0, 16), st.integers(1, 16)),
    st.floats(0, 8),
    st.integers(0, 800).map(lambda hundredths: hundredths / 100),
)


def run(ratio: float, num_envs: int, start: int, until: int) -> Counter[Block]:
    """Take blocks until the end, and check the account after each; return how often each came."""
    account, planned, env_steps = ReplayRatio(ratio, start), plan(ratio, num_envs), 0
    kinds: Counter[Block] = Counter()
    while env_steps < until:
        block = next_block(account, env_steps, num_envs, planned, until=until)
        env_steps += block.total_steps * num_envs
        account.pay(block.total_updates)
        kinds[block] += 1
        assert account.updates == max(0, math.floor(ratio * (env_steps - start)))
    assert env_steps < until + num_envs
    return kinds


@given(RATIOS, st.integers(1, 600), st.integers(0, 5_000), st.integers(1, 20_000))
@settings(max_examples=300, deadline=None)
def test_updates_are_exact_at_every_look(
    ratio: float, num_envs: int, start: int, until: int
) -> None:
    run(ratio, num_envs, start, until)


@pytest.mark.parametrize(
    ("ratio", "num_envs", "steps", "updates", "repeats"),
    [
        (0.1, 10, 1, 1, 4),
        (1 / 64, 64, 1, 1, 4),
        (1 / 3, 4, 3, 4, 1),
        (0.25, 6, 2, 3, 1),
        (1 / 16, 1, 16, 1, 1),
        (1 / 17, 1, 1, 0, 1),
        (0.123, 10, 1, 1, 1),
        (8.0, 512, 1, 4096, 1),
        (0.0, 8, 1, 0, 4),
    ],
)
def test_a_plan_is_the_reduced_fraction(
    ratio: float, num_envs: int, steps: int, updates: int, repeats: int
) -> None:
    assert plan(ratio, num_envs) == Block(steps, updates, repeats)


def test_more_can_be_unrolled() -> None:
    assert plan(0.1, 10, unrolled=16) == Block(1, 1, 16)
    assert plan(1 / 3, 4, unrolled=16) == Block(3, 4, 4)


@pytest.mark.parametrize(("ratio", "num_envs"), [(0.25, 16), (0.1, 10), (1 / 3, 4), (0.7, 9)])
def test_nearly_all_the_work_comes_in_blocks_that_are_worth_compiling(
    ratio: float, num_envs: int
) -> None:
    kinds = run(ratio, num_envs, 1_000, 100_000)
    often = sum(kind.total_updates * count for kind, count in kinds.items() if not kind.uncompiled)
    assert len([kind for kind in kinds if not kind.uncompiled]) <= 2
    assert often > 0.99 * ratio * 99_000 - 10


def test_a_ratio_with_no_small_fraction_needs_two_kinds() -> None:
    kinds = run(0.123, 10, 0, 10_000)
    assert {kind for kind in kinds if not kind.uncompiled} == {Block(1, 1), Block(1, 2)}


def test_a_block_of_many_updates_comes_in_pieces_that_do_the_same() -> None:
    block = Block(2, 37, 3, uncompiled=True)
    pieces = block.pieces()
    assert pieces[:4] == [
        Block(2, 5, uncompiled=True),
        Block(0, 16, uncompiled=True),
        Block(0, 16, uncompiled=True),
        Block(2, 5, uncompiled=True),
    ]
    assert sum(piece.total_steps for piece in pieces) == block.total_steps
    assert sum(piece.total_updates for piece in pieces) == block.total_updates
    assert Block(1, 16, 4).pieces() == [Block(1, 16, 4)]
