"""The schema of a transition."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from tensordict import TensorDict

from fastdqn.transition import STORAGE_DTYPES, Transitions, storage_dtype
from tests.small_learners import random_batch

FIELDS = ("obs", "action", "reward", "next_obs", "terminated", "truncated")
OPTIONAL = (
    ("next_action_mask", torch.bool),
    ("discount", torch.float32),
    ("weight", torch.float32),
    ("action_mask", torch.bool),
)


@pytest.mark.parametrize(
    ("dtype", "stored"),
    [
        (np.float64, torch.float32),
        (np.float32, torch.float32),
        (np.float16, torch.float16),
        (np.uint8, torch.uint8),
        (np.int8, torch.int8),
        (np.int16, torch.int16),
        (np.int32, torch.int32),
        (np.int64, torch.int64),
        (np.bool_, torch.bool),
    ],
)
def test_observations_are_stored_in_the_dtype_of_their_space(
    dtype: type[np.generic], stored: torch.dtype
) -> None:
    assert storage_dtype(dtype) is stored
    assert storage_dtype(np.dtype(dtype).name) is stored
    held = torch.from_numpy(np.zeros(1, dtype)).to(stored)
    assert held.dtype.itemsize <= np.dtype(dtype).itemsize


def test_only_double_precision_changes() -> None:
    changed = {name for name, stored in STORAGE_DTYPES.items() if str(stored) != f"torch.{name}"}
    assert changed == {"float64"}


@pytest.mark.parametrize("dtype", ["uint16", "uint32", "uint64", "U5", "O", "complex64"])
def test_dtypes_that_no_tensor_holds_are_refused(dtype: str) -> None:
    with pytest.raises(KeyError):
        storage_dtype(dtype)


def test_a_tensordict_and_back_is_the_same_memory() -> None:
    batch = random_batch(size=5)
    data = batch.to_tensordict()
    assert isinstance(data, TensorDict)
    assert data.batch_size == (5,)
    assert set(data.keys()) == set(FIELDS)
    again = Transitions.from_tensordict(data)
    for name in FIELDS:
        assert getattr(again, name).data_ptr() == getattr(batch, name).data_ptr()
        assert torch.equal(data[name], getattr(batch, name))


def test_what_a_batch_may_lack_goes_along_in_a_tensordict_where_it_is_there() -> None:
    for present in (OPTIONAL[:1], OPTIONAL[1:2], OPTIONAL[1:], OPTIONAL):
        given = {name: torch.ones(5, dtype=dtype) for name, dtype in present}
        batch = dataclasses.replace(random_batch(size=5), **given)
        data = batch.to_tensordict()
        assert tuple(data.keys()) == (*FIELDS, *given)
        again = Transitions.from_tensordict(data)
        for name, _ in OPTIONAL:
            assert getattr(again, name) is getattr(batch, name) is given.get(name)


def test_the_tensors_are_the_fields_in_their_order() -> None:
    batch = random_batch(masked=True)
    names = [field.name for field in dataclasses.fields(batch)]
    assert names == [*FIELDS, *(name for name, _ in OPTIONAL)]
    for name, tensor in zip(names, batch.tensors(), strict=True):
        assert tensor is getattr(batch, name)


@pytest.mark.parametrize("missing", FIELDS)
def test_a_missing_field_is_named(missing: str) -> None:
    data = random_batch().to_tensordict().exclude(missing)
    with pytest.raises(KeyError, match=missing):
        Transitions.from_tensordict(data)


def test_fields_cannot_be_exchanged_afterwards() -> None:
    batch = random_batch()
    with pytest.raises(dataclasses.FrozenInstanceError):
        batch.reward = torch.zeros(8)  # type: ignore[misc]
