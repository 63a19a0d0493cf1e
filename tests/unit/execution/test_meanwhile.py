"""Two forms of a step: which one runs when, what the caller waits for, and what may go wrong."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from fastdqn.execution.compiled import CompiledInside
from fastdqn.execution.cuda_graph import CudaGraphStep
from fastdqn.execution.meanwhile import Meanwhile
from fastdqn.execution.trace import COMPILER
from tests.compilers import HeldInductor
from tests.fake_cuda import RecordingCuda

CPU = torch.device("cpu")


class Compiling:
    """A step that is compiled when it is told to; it doubles, or adds what else it is given.

    Attributes:
        written: Sizes that were written down.
        compiled: Sizes that may be called.
        asked_in: The thread that compiled last.
    """

    def __init__(self, tape: list[str], problem: str = "", written: str = "") -> None:
        self.go = threading.Event()
        self.written: list[int] = []
        self.compiled: set[int] = set()
        self.asked_in: threading.Thread | None = None
        self._tape, self._problem, self._refuses = tape, problem, written

    def has(self, rows: Tensor) -> bool:
        return len(rows) in self.compiled

    def later(self, rows: Tensor) -> Callable[[], Callable[[], None]]:
        if self._refuses:
            raise ValueError(self._refuses)
        size = len(rows)
        self.written.append(size)

        def compiles() -> Callable[[], None]:
            self.asked_in = threading.current_thread()
            assert self.go.wait(10)
            if self._problem:
                raise RuntimeError(self._problem)
            return lambda: self.compiled.add(size)

        return compiles

    def finish(self) -> None:
        """Let what is compiled now end, and wait for it."""
        self.go.set()
        with COMPILER:
            self.go.clear()

    def __call__(self, rows: Tensor) -> None:
        assert self.has(rows)
        self._tape.append(f"fast {len(rows)}")
        rows.add_(1)


def built(**given: Any) -> tuple[list[str], Compiling, Meanwhile]:
    tape = list[str]()
    inside = Compiling(tape, given.pop("problem", ""), given.pop("written", ""))

    def plain(rows: Tensor) -> None:
        tape.append(f"plain {len(rows)}")
        rows.add_(1)

    fast = given.pop("fast", inside)
    return tape, inside, Meanwhile(plain, fast, lambda rows: [(inside, (rows,))], **given)


def test_it_runs_plain_until_it_is_compiled_and_moves_between_two_calls() -> None:
    tape, inside, step = built()
    rows = torch.zeros(2)
    for _ in range(3):
        step(rows)  # the compiler is held: a call that waited for it would never end
    assert (tape, inside.written) == (["plain 2"] * 3, [2])
    assert (step.ready, step.ready_after_s, step.failure) == (False, None, None)
    inside.finish()
    assert (step.ready, step.ready_after_s) == (True, None)  # no call has come yet
    for _ in range(4):
        step(rows)
    assert tape == ["plain 2"] * 3 + ["fast 2"] * 4
    assert rows.tolist() == [7.0, 7.0]
    assert step.ready_after_s
    assert inside.asked_in is not threading.main_thread()
    message = step.ready_after_s
    step(rows)
    assert step.ready_after_s == message


def test_each_shape_moves_by_itself_and_one_is_compiled_at_a_time() -> None:
    tape, inside, step = built()
    for _ in range(2):
        for size in (2, 1):
            step(torch.zeros(size))
    assert inside.written == [2]
    inside.finish()
    for size in (2, 1, 2):
        step(torch.zeros(size))
    assert inside.written == [2, 1]
    inside.finish()
    step(torch.zeros(1))
    assert tape[4:] == ["fast 2", "plain 1", "fast 2", "fast 1"]


def test_two_steps_take_turns_and_nobody_waits_for_the_turn() -> None:
    (_, first, one), (_, second, other) = built(), built()
    for _ in range(2):
        one(torch.zeros(1))
        other(torch.zeros(1))
    assert (first.written, second.written, other.ready) == ([1], [], True)
    first.finish()
    other(torch.zeros(1))
    assert second.written == [1]
    second.finish()


def test_what_was_compiled_before_runs_from_the_first_call_on() -> None:
    tape, inside, step = built()
    inside.compiled.add(1)
    step(torch.zeros(1))
    assert (tape, inside.written, step.ready_after_s) == (["fast 1"], [], 0.0)


def test_seconds_are_those_of_writing_down_and_of_the_two_forms(clock: Any) -> None:
    class Slow(Compiling):
        def later(self, rows: Tensor) -> Callable[[], Callable[[], None]]:
            clock.now += 0.25
            return super().later(rows)

    class Form:
        compile_s = 0.0

        def __call__(self, rows: Tensor) -> None:
            self.compile_s += 2.0

    inside = Slow([])
    step = Meanwhile(Form(), Form(), lambda rows: [(inside, (rows,))])
    step(torch.zeros(1))
    assert step.compile_s == 2.25
    clock.now += 60  # of the compiler
    inside.finish()
    step(torch.zeros(1))
    assert step.compile_s == 4.25
    assert step.ready_after_s == 60.25


# What may go wrong


def test_a_compiler_that_fails_is_told_in_a_line_and_asked_no_more() -> None:
    tape, inside, step = built(problem="no such luck\nand more")
    step(torch.zeros(2))
    inside.finish()
    for size in (2, 1):
        step(torch.zeros(size))
    assert tape == ["plain 2", "plain 2", "plain 1"]
    assert step.failure == "RuntimeError: no such luck"
    assert (step.ready, step.ready_after_s, inside.written) == (True, None, [2])


def test_a_step_that_cannot_be_written_down_stays_plain_and_gives_its_turn_back() -> None:
    tape, _, step = built(written="it looks at a value")
    step(torch.zeros(2))
    step(torch.zeros(2))
    assert tape == ["plain 2"] * 2
    assert (step.failure, step.ready) == ("ValueError: it looks at a value", True)
    assert not COMPILER.locked()


def test_needs_that_cannot_be_told_leave_it_plain() -> None:
    ran: list[Tensor] = []

    def needs(rows: Tensor) -> list[Any]:
        raise TypeError("not a tensor")

    step = Meanwhile(ran.append, ran.append, needs)
    step(torch.zeros(1))
    assert (len(ran), step.failure) == (1, "TypeError: not a tensor")


def test_a_form_that_cannot_run_leaves_the_call_to_the_plain_one() -> None:
    def refused(rows: Tensor) -> None:
        raise RuntimeError("out of memory")

    tape, inside, step = built(fast=refused)
    inside.compiled.add(1)
    rows = torch.zeros(1)
    step(rows)
    step(rows)
    assert (tape, rows.item()) == (["plain 1"] * 2, 2.0)
    assert (step.failure, step.ready_after_s) == ("RuntimeError: out of memory", None)


def test_a_form_that_may_have_done_half_of_it_is_not_done_again() -> None:
    def broken(rows: Tensor) -> None:
        rows.add_(1)
        raise RuntimeError("halfway")

    tape, inside, step = built(fast=broken, undone=False)
    inside.compiled.add(1)
    rows = torch.zeros(1)
    with pytest.raises(RuntimeError, match="halfway"):
        step(rows)
    assert (tape, rows.item(), step.failure) == ([], 1.0, None)


def test_closed_it_forgets_what_is_not_ready_and_asks_for_nothing() -> None:
    tape, inside, step = built()
    step(torch.zeros(2))
    inside.finish()
    step(torch.zeros(1))
    step.close()
    inside.finish()
    for size in (2, 1, 3):
        step(torch.zeros(size))
    assert tape == ["plain 2", "plain 1", "fast 2", "plain 1", "plain 3"]
    assert (inside.written, step.failure) == ([2, 1], None)


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


def graphs(total: Total, cuda: RecordingCuda) -> tuple[CudaGraphStep, CudaGraphStep, Meanwhile]:
    inside = CompiledInside(total.step, torch.device("cuda"), by_row=True)
    plain = CudaGraphStep(total.step, total.snapshot, cuda=cuda)
    fast = CudaGraphStep(inside, total.snapshot, cuda=cuda)
    return plain, fast, Meanwhile(plain, fast, inside.needs)


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
        assert (plain.captures, fast.captures) == ((2, 0) if call < 3 else (2, 2))
    assert len(inductor.traces) == 1  # of a row, for any number of rows
    assert inductor.calls == 4 * (3 + 1)  # three warm-ups and a recording of each
    assert cuda.replays() == 12
    assert fast.compile_s > 0
    assert step.compile_s > plain.compile_s + fast.compile_s  # and the writing down


@pytest.mark.parametrize("fails_in", ["warm-up", "recording"])
def test_a_move_that_fails_leaves_no_trace(monkeypatch: pytest.MonkeyPatch, fails_in: str) -> None:
    inductor, cuda = HeldInductor(monkeypatch), RecordingCuda()
    total, never = Total(), Total()
    plain, fast, step = graphs(total, cuda)
    rows, calls = torch.ones(2, 3), 0

    def broken(rows: Tensor) -> None:
        nonlocal calls
        calls += 1
        total.step(rows)
        if (calls == 2) if fails_in == "warm-up" else (calls == 4):
            raise RuntimeError("out of memory")

    fast._step = broken
    for _ in range(4):
        step(rows)
        never.step(rows)
        inductor.finish()
        assert torch.equal(total.total, never.total)
    assert (plain.captures, fast.captures) == (1, 0)
    assert step.failure == "RuntimeError: out of memory"


def test_compiling_for_later_neither_reads_nor_writes_nor_counts_as_waiting(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    inductor, total = HeldInductor(monkeypatch), Total()
    inside = CompiledInside(total.step, CPU)
    rows = torch.ones(2, 3)
    compiles = inside.later(rows)
    inductor.go.set()
    use = compiles()
    assert (inside.has(rows), total.total.tolist()) == (False, [0.0] * 3)
    use()
    assert (inside.has(rows), inside.has(rows[:1]), inside.compile_s) == (True, False, 0.0)
    inside(rows)
    assert (total.total.tolist(), inductor.calls) == ([6.0] * 3, 1)


def test_what_inductor_compiled_for_later_does_what_the_step_does() -> None:
    total, never = Total(), Total()
    inside = CompiledInside(total.step, CPU)
    rows = torch.rand(2, 3)
    inside.later(rows)()()
    for _ in range(3):
        inside(rows)
        never.step(rows)
    torch.testing.assert_close(total.total, never.total)
    assert inside.compile_s == 0.0
