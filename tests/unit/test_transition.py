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


def test_a_mask_goes_along_in_a_tensordict_and_is_absent_where_there_is_none() -> None:
    batch = random_batch(size=5, masked=True)
    data = batch.to_tensordict()
    assert tuple(data.keys()) == (*FIELDS, "next_action_mask")
    assert Transitions.from_tensordict(data).next_action_mask is data["next_action_mask"]
    assert data["next_action_mask"] is batch.next_action_mask
    assert len(batch.tensors()) == 7
    without = random_batch(size=5)
    assert len(without.tensors()) == 6
    assert Transitions.from_tensordict(without.to_tensordict()).next_action_mask is None


def test_the_tensors_are_the_fields_in_their_order() -> None:
    batch = random_batch(masked=True)
    names = [field.name for field in dataclasses.fields(batch)]
    assert names == [*FIELDS, "next_action_mask"]
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
