"""Two forms of a step: which one runs when, what the caller waits for, and what may go wrong."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from fastdqn.execution.compile import CompiledStep
from fastdqn.execution.cuda_graph import CudaGraphStep
from fastdqn.execution.in_process import InProcess
from fastdqn.execution.step import ComposedStep, EagerStep, PlainUntilCompiled, StepGroup
from tests.compilers import HeldInductor
from tests.fake_cuda import RecordingCuda

CUDA = torch.device("cuda")


class Compiling(EagerStep):
    """A step that is compiled on request, by the number of its rows; it adds 1.

    Attributes:
        asked: Numbers of rows that were asked for, in order.
        there: Those that are compiled.
    """

    def __init__(self, tape: list[str], problem: str = "") -> None:
        self.asked: list[int] = []
        self.there: set[int] = set()
        self._tape, self._problem = tape, problem

    def has(self, *tensors: Tensor) -> bool:
        return len(tensors[0]) in self.there

    def prepare(self, *tensors: Tensor) -> None:
        self._tape.append(f"asked {len(tensors[0])}")
        self.asked.append(len(tensors[0]))
        self.ready = False

    def finish(self) -> None:
        self.ready, self.ready_after_s = True, 3.0
        self.there |= set(self.asked)

    def __call__(self, *tensors: Tensor) -> None:
        assert self.has(*tensors)
        if self._problem:
            raise RuntimeError(self._problem)
        self._tape.append(f"fast {len(tensors[0])}")
        tensors[0].add_(1)


def built(problem: str = "") -> tuple[list[str], Compiling, PlainUntilCompiled]:
    tape = list[str]()
    fast = Compiling(tape, problem)

    def plain(rows: Tensor) -> None:
        tape.append(f"plain {len(rows)}")
        rows.add_(1)

    return tape, fast, PlainUntilCompiled(EagerStep(plain), fast)


def test_it_runs_plain_until_it_is_compiled_and_moves_between_two_calls() -> None:
    tape, fast, step = built()
    rows = torch.zeros(2)
    step(rows)
    assert tape == ["plain 2", "asked 2"]  # the plain form records undisturbed
    assert (step.ready, step.ready_after_s, step.failure) == (False, None, None)
    fast.finish()
    assert (step.ready, step.ready_after_s) == (True, 3.0)
    for _ in range(4):
        step(rows)
    assert tape[2:] == ["fast 2"] * 4
    assert rows.tolist() == [5.0, 5.0]


def test_each_shape_moves_by_itself() -> None:
    tape, fast, step = built()
    step(torch.zeros(2))
    fast.finish()
    for size in (2, 1, 2):
        step(torch.zeros(size))
    fast.finish()
    step(torch.zeros(1))
    assert tape[2:] == ["fast 2", "plain 1", "asked 1", "fast 2", "fast 1"]


def test_a_compile_that_failed_is_reported_and_asked_for_no_more() -> None:
    tape, fast, step = built()
    step(torch.zeros(2))
    fast.failure = "no such luck"
    for size in (2, 1):
        step(torch.zeros(size))
    assert tape == ["plain 2", "asked 2", "plain 2", "plain 1"]
    assert (step.failure, step.ready_after_s) == ("no such luck", None)


def test_a_form_that_cannot_run_leaves_the_call_to_the_plain_one() -> None:
    tape, fast, step = built("out of memory\nand more")
    fast.there.add(1)
    rows = torch.zeros(1)
    step(rows)
    step(rows)
    assert (tape, rows.item()) == (["plain 1"] * 2, 2.0)
    assert (step.failure, step.ready_after_s) == ("RuntimeError: out of memory", None)


def test_seconds_are_those_of_both_forms() -> None:
    _, fast, step = built()
    fast.wait_s, step.plain.wait_s = 0.25, 2.0  # type: ignore[misc]
    assert step.wait_s == 2.25


def test_steps_are_asked_as_one() -> None:
    tape = list[str]()
    steps = [Compiling(tape), Compiling(tape), EagerStep(tape.append)]
    group = StepGroup(steps)
    assert (group.ready, group.ready_after_s, group.failure, group.wait_s) == (True, None, None, 0)
    steps[0].prepare(torch.zeros(1))
    assert (group.ready, group.ready_after_s) == (False, None)
    assert isinstance(steps[0], Compiling)
    steps[0].finish()
    assert (group.ready, group.ready_after_s) == (True, 3.0)
    steps[1].wait_s, steps[2].failure = 2.0, "no such luck"
    assert (group.failure, group.wait_s, group.ready_after_s) == ("no such luck", 2.0, None)


def test_a_composed_step_is_there_when_its_parts_are() -> None:
    tape = list[str]()
    one, other = Compiling(tape), Compiling(tape)
    needs = [(one, (torch.zeros(1),)), (other, (torch.zeros(2),))]
    step = ComposedStep(lambda: tape.append("run"), needs)
    step.prepare()
    one.finish()
    assert not step.has()
    other.finish()
    assert step.has()
    step()
    assert tape == ["asked 1", "asked 2", "run"]


# With graphs


class Total:
    """A step over a total, and what brings that back."""

    def __init__(self) -> None:
        self.total, self.factor = torch.zeros(3), torch.tensor(2.0)

    def step(self, rows: Tensor) -> None:
        for row in rows.unbind(0):
            self.total.add_(row).mul_(self.factor)

    def snapshot(self, rows: Tensor) -> Callable[[], None]:
        kept = self.total.clone()

        def restore() -> None:
            self.total.copy_(kept)

        return restore


def graphs(
    total: Total, cuda: RecordingCuda
) -> tuple[CudaGraphStep, CudaGraphStep, PlainUntilCompiled]:
    compiler = InProcess(CUDA, background=True)
    inside = CompiledStep(total.step, compiler, by_row=True)
    plain = CudaGraphStep(EagerStep(total.step), total.snapshot, cuda=cuda)
    fast = CudaGraphStep(inside, total.snapshot, cuda=cuda)
    return plain, fast, PlainUntilCompiled(plain, fast)


def test_graphs_move_once_for_each_variant_and_leave_no_trace(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    inductor, cuda = HeldInductor(monkeypatch), RecordingCuda()
    total, never = Total(), Total()
    plain, fast, step = graphs(total, cuda)
    batches = torch.arange(9.0).reshape(3, 3), torch.arange(3.0).reshape(1, 3)
    for call in range(6):
        if call == 3:
            inductor.finish()
        for rows in batches:
            step(rows)
            never.step(rows)
            assert torch.equal(total.total, never.total)
        total.total.div_(100)
        never.total.div_(100)
        assert (len(plain._graphs), len(fast._graphs)) == ((2, 0) if call < 3 else (2, 2))
    assert len(inductor.traces) == 1  # of a row, for any number of rows
    assert inductor.calls == 4 * (3 + 1)  # three warm-ups and a recording of each
    assert cuda.replays() == 12
    assert fast.wait_s > 0
    assert step.wait_s == plain.wait_s + fast.wait_s


@pytest.mark.parametrize("fails_in", ["warm-up", "recording"])
def test_a_move_that_fails_leaves_no_trace(monkeypatch: pytest.MonkeyPatch, fails_in: str) -> None:
    HeldInductor(monkeypatch)
    cuda, total, never = RecordingCuda(), Total(), Total()
    plain, fast, step = graphs(total, cuda)
    rows, calls = torch.ones(2, 3), 0

    def broken(rows: Tensor) -> None:
        nonlocal calls
        calls += 1
        total.step(rows)
        if (calls == 2) if fails_in == "warm-up" else (calls == 4):
            raise RuntimeError("out of memory")

    fast._step = EagerStep(broken)
    for _ in range(4):
        step(rows)
        never.step(rows)
        assert torch.equal(total.total, never.total)
    assert (len(plain._graphs), len(fast._graphs)) == (1, 0)
    assert step.failure == "RuntimeError: out of memory"
