"""The shared block: its layout, its dtypes, and the views laid over it."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import pytest
from gymnasium.spaces import (
    Box,
    Dict,
    Discrete,
    Graph,
    MultiBinary,
    MultiDiscrete,
    Space,
    Text,
    Tuple,
)
from hypothesis import given
from hypothesis import strategies as st

from fastdqn.envs.workers.shared_block import CACHE_LINE_BYTES, RowSpec, SharedBlock
from fastdqn.errors import UsageError

FIELDS = {
    "obs": ((4, 3), "uint8"),
    "final_obs": ((4, 3), "uint8"),
    "action": ((4,), "int64"),
    "reward": ((4,), "float64"),
    "terminated": ((4,), "bool"),
    "truncated": ((4,), "bool"),
    "real": ((4,), "bool"),
    "resting": ((4,), "bool"),
    "restarting": ((4,), "bool"),
    "episode_return": ((4,), "float64"),
    "episode_length": ((4,), "int64"),
    "action_mask": ((4, 2), "bool"),
    "final_action_mask": ((4, 2), "bool"),
    "origin": ((4, 8), "uint64"),
    "steps_sent": ((4, 1), "int64"),
}


def test_every_array_has_the_shape_and_dtype_that_the_table_says() -> None:
    rows = SharedBlock.allocate(RowSpec(4, (3,), "uint8", num_masked=2, num_origin=8))
    got = {f.name: getattr(rows, f.name) for f in fields(rows)}
    assert {name: (array.shape, array.dtype.name) for name, array in got.items()} == FIELDS


@pytest.mark.parametrize(
    ("space", "shape", "dtype"),
    [
        (Box(0, 255, (8, 8), np.uint8), (8, 8), "uint8"),
        (Box(-1, 1, (3,), np.float64), (3,), "float64"),
        (Box(-1, 1, (3,), np.float32), (3,), "float32"),
        (Box(-1, 1, (), np.float32), (), "float32"),
        (Discrete(7), (), "int64"),
        (MultiBinary(5), (5,), "int8"),
        (MultiDiscrete([2, 3]), (2,), "int64"),
    ],
)
def test_observations_and_actions_keep_the_shape_and_dtype_of_their_space(
    space: Space[object], shape: tuple[int, ...], dtype: str
) -> None:
    spec = RowSpec.of_spaces(2, space, space)
    assert (spec.obs_shape, spec.obs_dtype) == (shape, dtype)
    assert (spec.action_shape, spec.action_dtype) == (shape, dtype)
    rows = SharedBlock.allocate(spec)
    assert rows.obs.shape == rows.final_obs.shape == rows.action.shape == (2, *shape)
    assert rows.obs.dtype == rows.final_obs.dtype == rows.action.dtype == np.dtype(dtype)


@pytest.mark.parametrize(
    "space",
    [
        Dict({"a": Discrete(2)}),
        Tuple([Discrete(2)]),
        Text(4),
        Graph(Box(0, 1, (1,), np.float32), None),
    ],
    ids=lambda space: type(space).__name__,
)
@pytest.mark.parametrize("role", ["observation", "action"])
def test_a_space_without_one_fixed_array_is_refused_by_name(
    space: Space[object], role: str
) -> None:
    spaces = (Discrete(2), space) if role == "action" else (space, Discrete(2))
    with pytest.raises(UsageError, match=f"^{role} space {type(space).__name__}.*Wrap"):
        RowSpec.of_spaces(2, *spaces)


@given(
    num_envs=st.integers(1, 70),
    shape=st.lists(st.integers(1, 9), max_size=3),
    dtype=st.sampled_from(["uint8", "float32", "float64", "int16", "bool"]),
)
def test_no_two_arrays_share_a_byte_or_a_cache_line(
    num_envs: int, shape: list[int], dtype: str
) -> None:
    spec = RowSpec(num_envs, tuple(shape), dtype)
    block = bytearray(spec.nbytes)
    rows = SharedBlock.over(block, spec)
    base = np.frombuffer(block, np.uint8).ctypes.data
    end = 0
    for field in fields(rows):
        array = getattr(rows, field.name)
        start = array.ctypes.data - base
        assert start % CACHE_LINE_BYTES == 0
        assert start >= end
        end = start + array.nbytes
    assert end <= spec.nbytes


def test_views_over_one_buffer_see_each_others_writes() -> None:
    spec = RowSpec(3, (2,), "float32")
    block = bytearray(spec.nbytes)
    ours, theirs = SharedBlock.over(block, spec), SharedBlock.over(block, spec)
    theirs.obs[1] = [7, 8]
    theirs.truncated[2] = True
    assert ours.obs.tolist() == [[0, 0], [7, 8], [0, 0]]
    assert ours.truncated.tolist() == [False, False, True]
    assert not ours.final_obs.any()


def test_columns_are_views_of_these_environments_only() -> None:
    rows = SharedBlock.allocate(RowSpec(5, (2,), "float32"))
    part = rows.columns(1, 3)
    part.obs[:] = 9
    part.episode_length[:] = 4
    part.action[:] = 6
    assert rows.obs[:, 0].tolist() == [0, 9, 9, 0, 0]
    assert rows.episode_length.tolist() == [0, 4, 4, 0, 0]
    assert rows.action.tolist() == [0, 6, 6, 0, 0]


def test_allocated_rows_are_zero_and_real() -> None:
    rows = SharedBlock.allocate(RowSpec(3, (2,), "float32"))
    assert rows.real.all()
    others = [getattr(rows, f.name) for f in fields(rows) if f.name != "real"]
    assert not any(array.any() for array in others)


def test_a_buffer_that_is_too_small_is_refused() -> None:
    spec = RowSpec(3, (2,), "float32")
    with pytest.raises(ValueError, match="buffer"):
        SharedBlock.over(bytearray(spec.nbytes - CACHE_LINE_BYTES), spec)
