"""Transfers to the device: what aliases, what is copied, and in which dtypes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from fastdqn.envs.workers.shared_block import RowSpec, SharedBlock
from fastdqn.training.transfer import PackedTransfer, Rows, tensors_over, transfer_to
from fastdqn.transition import STORAGE_DTYPES, storage_dtype

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

CPU = torch.device("cpu")


def _rows(
    num_envs: int = 3, shape: tuple[int, ...] = (2,), dtype: str = "float32", num_masked: int = 0
) -> SharedBlock:
    rows = SharedBlock.allocate(RowSpec(num_envs, shape, dtype, num_masked=num_masked))
    count = rows.action_mask.size
    rows.action_mask[:] = (np.arange(count) % 3 == 0).reshape(num_envs, num_masked)
    rows.final_action_mask[:] = (np.arange(count) % 5 == 0).reshape(num_envs, num_masked)
    rows.obs[:] = (np.arange(rows.obs.size) % 101).reshape(rows.obs.shape)
    rows.final_obs[:] = (np.arange(rows.obs.size) % 89 + 1).reshape(rows.obs.shape)
    rows.reward[:] = np.arange(num_envs) + 0.5
    rows.terminated[:] = np.arange(num_envs) % 2 == 0
    rows.truncated[:] = np.arange(num_envs) % 3 == 0
    return rows


def _present(got: Rows[torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors by name, without the masks where there are none."""
    return {name: tensor for name, tensor in got._asdict().items() if tensor is not None}


def _assert_shows(got: Rows[torch.Tensor], rows: SharedBlock) -> None:
    for name, tensor in _present(got).items():
        assert np.array_equal(tensor.numpy(), getattr(rows, name)), name


@pytest.mark.parametrize("dtype", sorted(STORAGE_DTYPES))
def test_packed_rows_arrive_in_the_dtypes_of_the_device(dtype: str) -> None:
    rows = _rows(dtype=dtype)
    got = PackedTransfer(rows, CPU).load()
    kept = torch.float32 if dtype == "float64" else getattr(torch, dtype)
    assert {name: tensor.dtype for name, tensor in _present(got).items()} == {
        "obs": kept,
        "final_obs": kept,
        "reward": torch.float32,
        "terminated": torch.bool,
        "truncated": torch.bool,
    }
    _assert_shows(got, rows)


@pytest.mark.parametrize(
    ("name", "kept"), [("float64", torch.float32), ("float32", torch.float32),
                       ("uint8", torch.uint8), ("int64", torch.int64), ("bool", torch.bool)]
)  # fmt: skip
def test_the_storage_dtype_is_that_of_the_space_and_only_float64_changes(
    name: str, kept: torch.dtype
) -> None:
    assert storage_dtype(np.dtype(name)) == kept


@pytest.mark.parametrize("shape", [(), (1,), (3,), (5, 7), (2, 3, 5)])
@pytest.mark.parametrize("num_envs", [1, 3, 17])
def test_packed_rows_of_any_size_arrive_whole(num_envs: int, shape: tuple[int, ...]) -> None:
    rows = _rows(num_envs, shape, "uint8")
    _assert_shows(PackedTransfer(rows, CPU).load(), rows)


@pytest.mark.parametrize("num_masked", [1, 3, 17])
@pytest.mark.parametrize("num_envs", [1, 5])
def test_masks_arrive_whole_both_ways_and_as_bool(num_envs: int, num_masked: int) -> None:
    rows = _rows(num_envs, (3,), "uint8", num_masked)
    for got in (tensors_over(rows), PackedTransfer(rows, CPU).load()):
        assert list(_present(got))[-2:] == ["action_mask", "final_action_mask"]
        _assert_shows(got, rows)
        for mask in (got.action_mask, got.final_action_mask):
            assert mask is not None
            assert (mask.dtype, mask.shape) == (torch.bool, (num_envs, num_masked))


def test_without_masks_there_are_no_mask_tensors() -> None:
    for got in (tensors_over(_rows()), PackedTransfer(_rows(), CPU).load()):
        assert (got.action_mask, got.final_action_mask) == (None, None)


def test_shared_masks_alias_the_block() -> None:
    rows = _rows(num_masked=2)
    got = tensors_over(rows)
    rows.action_mask[:] = ~rows.action_mask
    _assert_shows(got, rows)


def test_packed_rows_are_a_copy_until_the_next_load() -> None:
    rows = _rows()
    transfer = PackedTransfer(rows, CPU)
    got = transfer.load()
    before = got.obs.clone()
    rows.obs[:] = -1
    assert torch.equal(got.obs, before)
    again = transfer.load()
    assert (again.obs == -1).all()
    assert again.obs.data_ptr() == got.obs.data_ptr()


@pytest.mark.parametrize(("num_masked", "parts", "nbytes"), [(0, 5, 112), (4, 7, 144)])
def test_packed_rows_go_over_in_one_copy(num_masked: int, parts: int, nbytes: int) -> None:
    """One copy of bytes from the host buffer to the device buffer, whatever the fields.

    2 * 32 + 3 * 16 bytes on boundaries of 16, and 2 * 16 for the masks.
    """
    transfer = PackedTransfer(_rows(num_masked=num_masked), CPU)
    with _Watch() as watch:
        transfer.load()
    *packed, (sent, dtype) = watch.copies
    assert len(packed) == parts
    assert (sent, dtype) == (nbytes, torch.uint8)


def test_no_float64_is_made_on_the_way_to_a_device() -> None:
    rows = _rows(dtype="float64")
    transfer = PackedTransfer(rows, CPU)
    with _Watch() as watch:
        transfer.load()
    assert watch.dtypes
    assert torch.float64 not in watch.dtypes


def test_shared_rows_alias_the_block_and_are_made_once() -> None:
    rows = _rows()
    load = transfer_to(rows, CPU)
    got = load()
    rows.obs[1, 1] = 77
    rows.reward[2] = -3.25
    rows.truncated[:] = True
    _assert_shows(got, rows)
    assert load() is got
    assert got.obs.data_ptr() == rows.obs.ctypes.data


def test_shared_rows_keep_the_dtypes_of_the_block() -> None:
    got = tensors_over(_rows(dtype="float64"))
    assert (got.obs.dtype, got.reward.dtype) == (torch.float64, torch.float64)


def test_the_cpu_shares_and_every_other_device_packs() -> None:
    rows = _rows()
    assert transfer_to(rows, CPU)().obs.data_ptr() == rows.obs.ctypes.data
    assert transfer_to(rows, torch.device("meta"))().obs.is_meta


def test_both_ways_show_the_same_numbers() -> None:
    rows = _rows(5, (3, 2), "float64")
    for got in (tensors_over(rows), PackedTransfer(rows, CPU).load()):
        _assert_shows(got, rows)


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes every copy_ (elements and dtype written) and the dtype of every result."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.copies: list[tuple[int, torch.dtype]] = []
        self.dtypes: set[torch.dtype] = set()

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Sequence[Any], args: Any = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            self.dtypes.add(result.dtype)
        if func is torch.ops.aten.copy_.default:
            self.copies.append((args[0].numel(), args[0].dtype))
        return result
