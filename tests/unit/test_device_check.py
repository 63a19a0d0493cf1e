"""The check of a device against the CPU: what it passes, and that it sees a wrong operation."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from fastdqn.device import OPERATIONS, Operation, check_device
from fastdqn.errors import UsageError

CPU = torch.device("cpu")
SPOILED = {
    "argmax": "argmax",
    "gather": "gather",
    "indexing": "__getitem__",
    "index_copy_": "index_copy_",
    "lerp_": "lerp_",
    "remainder_ on int64": "remainder_",
    "erfinv": "erfinv",
    "cos": "cos",
    "layer_norm": "layer_norm",
    "logsumexp": "logsumexp",
    "log_softmax": "log_softmax",
}
"""Name in the message -> the operation that is spoiled."""


class WrongOnce(TorchFunctionMode):
    """Returns a wrong number from the first call of an operation, which is the device's."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name, self.calls = name, 0

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if getattr(func, "__name__", "") == self.name:
            self.calls += 1
            if self.calls == 1:
                return result + (torch.arange(result.numel()) == 1).view_as(result)
        return result


def test_the_cpu_passes() -> None:
    check_device(CPU)


def test_every_operation_can_be_seen_to_be_wrong() -> None:
    assert set(SPOILED) == set(OPERATIONS)
    for name, operation in SPOILED.items():
        wanted = rf"--device cpu: {name} gives \[.*\] there and \[.*\] on the CPU .*--device cpu"
        with WrongOnce(operation) as wrong, pytest.raises(UsageError, match=wanted):
            check_device(CPU)
        assert wrong.calls


def test_the_numbers_are_worth_comparing() -> None:
    """Ties, negative values and numbers beyond 32 bits are among them."""
    found = {name: operation(CPU) for name, operation in OPERATIONS.items()}
    assert found["argmax"].tolist() == [1, 0, 3, 2]
    assert found["remainder_ on int64"].tolist() == [
        number % 1_000_003 for number in (2**61 + 12_345, 2**40 + 7, 2**32 + 1, 99)
    ]
    assert len({tuple(value.flatten().tolist()) for value in found.values()}) == len(found)


def test_a_small_difference_of_rounding_passes() -> None:
    def rounded(device: torch.device) -> Tensor:
        rounded.calls += 1  # type: ignore[attr-defined]
        return torch.tensor([1.0 + 1e-7 * (rounded.calls % 2)])  # type: ignore[attr-defined]

    rounded.calls = 0  # type: ignore[attr-defined]
    check_device(CPU, {"rounded": rounded})


def test_formulas_of_a_card_may_differ_by_more_and_wrong_ones_are_seen() -> None:
    def moved(by: float) -> Operation:
        calls = iter((by, 0.0))
        return lambda _: torch.tensor([-0.5]) + next(calls)

    check_device(CPU, {"cos": moved(1e-4)})
    for name, by in (("cos", 1e-2), ("lerp_", 1e-4), ("log_softmax", float("nan"))):
        with pytest.raises(UsageError, match=f"{name} gives"):
            check_device(CPU, {name: moved(by)})
