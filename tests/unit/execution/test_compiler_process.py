"""What the compiler's process exports: the operations of the trace, in each call anew."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from fastdqn.execution import compiler_process
from fastdqn.execution.compiler import Numerics, Request
from fastdqn.execution.trace import Source, TensorSpec, trace


def step(total: Tensor, rows: Tensor) -> None:
    """Use what operations make that take no tensor; one of it is written in place."""
    fresh = torch.zeros(3)
    fresh.add_(rows.sum(0)).mul_(torch.arange(3) + 1.0)
    fresh += torch.where(rows[0] > 0, fresh, 1.0)
    total.add_(torch.where(fresh.isnan(), float("-inf"), fresh))


@pytest.mark.parametrize("num_rows", [0, 2])
def test_what_operations_make_without_a_tensor_is_made_in_each_call(num_rows: int) -> None:
    rows, mine, theirs = torch.tensor([[1.0, -2.0, 3.0], [0.5, 4.0, -1.0]]), *torch.zeros(2, 3)
    traced = trace(step, (mine, rows[:1] if num_rows else rows))
    specs = TensorSpec.of(mine), TensorSpec.of(rows), *traced.specs[2:]
    source = pickle.loads(pickle.dumps(Source.of(traced.graph)))  # noqa: S301
    request = Request(source, specs, num_rows, 1, Numerics.current(), Path("none"))
    with FakeTensorMode():
        inputs = tuple(spec.empty() for spec in specs)
    program = torch.export.export(compiler_process._Step(request), inputs)
    assert not program.constants
    exported = program.module()
    for _ in range(2):
        exported(mine, rows, *traced.constants)
        for given in torch.split(rows, 1) if num_rows else [rows]:
            step(theirs, given)
        assert torch.equal(mine, theirs)
