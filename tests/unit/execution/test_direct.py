"""Steps that are called directly: what they do, and what is asked while they are compiled."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from fastdqn.execution import direct
from fastdqn.execution.direct import Direct

CPU = torch.device("cpu")


def counting() -> tuple[Callable[[Tensor, Tensor], None], Tensor]:
    """Return a step that adds its arguments to a tensor that it holds."""
    held = torch.zeros(3)

    def step(one: Tensor, other: Tensor) -> None:
        held.add_(one * 2 + other.sum())

    return step, held


def test_it_does_what_the_step_does_with_whatever_memory_it_is_given() -> None:
    step, held = counting()
    fast = Direct(step, CPU)
    rows, others = torch.arange(12.0).reshape(4, 3), torch.arange(8.0).reshape(4, 2)
    for row, other in zip(rows, others, strict=True):
        fast(row, other)
    assert held.tolist() == (rows.sum(0) * 2 + others.sum()).tolist()
    assert fast.failure is None
    assert fast.compile_s > 0
    spent = fast.compile_s
    fast(rows[1], others[2])
    assert fast.compile_s == spent


def test_compiling_neither_reads_nor_writes() -> None:
    step, held = counting()
    Direct(step, CPU)._compile(torch.Size([3]), (torch.ones(3), torch.ones(3)), 1)
    assert held.tolist() == [0.0, 0.0, 0.0]


def test_a_step_is_compiled_once_for_each_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    step, held = counting()
    shapes: list[torch.Size] = []

    def compiled(step: Callable[..., None], args: tuple[Tensor, ...], _: object) -> object:
        shapes.append(args[-1].shape)
        return step

    monkeypatch.setattr(direct, "_compiled", compiled)
    fast = Direct(step, CPU)
    for size in (1, 2, 1, 2, 2):
        fast(torch.ones(3), torch.ones(size))
    assert shapes == [torch.Size([1]), torch.Size([2])]
    assert held.tolist() == [2.0 * 5 + 8] * 3


def test_meanwhile_the_step_runs_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    step, held = counting()
    go, calls = threading.Event(), list[str]()

    def compiled(step: Callable[..., None], *_: object) -> Callable[..., None]:
        assert go.wait(10)

        def run(*args: Tensor) -> None:
            calls.append("compiled")
            step(*args)

        return run

    monkeypatch.setattr(direct, "_compiled", compiled)
    fast = Direct(step, CPU, background=True)
    start = time.perf_counter()
    for _ in range(3):
        fast(torch.ones(3), torch.ones(1))
    assert time.perf_counter() - start < 5
    assert (held.tolist(), calls, fast.ready_after_s) == ([9.0] * 3, [], None)
    go.set()
    while fast.ready_after_s is None:
        time.sleep(0.001)
    fast(torch.ones(3), torch.ones(1))
    assert (held.tolist(), calls) == ([12.0] * 3, ["compiled"])
    assert fast.compile_s == 0.0


@pytest.mark.parametrize("background", [False, True])
def test_a_compiler_that_fails_costs_the_speed_alone(
    monkeypatch: pytest.MonkeyPatch, background: bool
) -> None:
    step, held = counting()

    def compiled(*_: object) -> None:
        raise RuntimeError("no such luck\nand more")

    monkeypatch.setattr(direct, "_compiled", compiled)
    fast = Direct(step, CPU, background=background)
    fast(torch.ones(3), torch.ones(1))
    while fast.ready_after_s is None:
        time.sleep(0.001)
    fast(torch.ones(3), torch.ones(1))
    assert held.tolist() == [6.0] * 3
    assert fast.failure == "RuntimeError: no such luck"


def test_a_step_that_cannot_be_written_down_stays_as_it_is() -> None:
    held = torch.zeros(1)

    def step(one: Tensor) -> None:
        held.add_(1.0 if one.sum().item() > 0 else 2.0)

    fast = Direct(step, CPU)
    fast(torch.ones(1))
    fast(-torch.ones(1))
    assert held.item() == 3.0
    assert fast.failure
