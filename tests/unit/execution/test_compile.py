"""A compiled step: when it moves, what the caller waits for, and what may go wrong."""

from __future__ import annotations

import threading
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fastdqn.errors import UsageError
from fastdqn.execution.ahead import AheadOfTime
from fastdqn.execution.compile import CompiledStep
from fastdqn.execution.in_process import InProcess
from fastdqn.execution.trace import COMPILER
from fastdqn.learner.learner import Learner
from fastdqn.networks.mlp import MLP
from fastdqn.replay import ReplayBuffer
from tests.compilers import HeldInductor, Interpreted, PromptCompiler, SlowCompiler, interpreted
from tests.learner_modes import learning_step, run_by
from tests.small_learners import Branches, filled_ring

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


class Adder:
    """A step over a total that counts how often it runs as it is."""

    def __init__(self) -> None:
        self.calls = 0
        self.total, self.factor = torch.zeros(3), torch.tensor(2.0)

    def __call__(self, rows: Tensor) -> None:
        self.calls += not isinstance(rows, torch._subclasses.FakeTensor)
        for row in rows.unbind(0):
            self.total.add_(row).mul_(self.factor)


@pytest.fixture
def loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Interpreted]:
    return interpreted(tmp_path, monkeypatch)


def ahead(step: Any, process: Any, *, background: bool = True, **given: Any) -> CompiledStep:
    compiler = AheadOfTime(CPU, background=background, process=process)
    return CompiledStep(step, compiler, **given)


def inside(
    step: Any, device: torch.device = CPU, *, background: bool = True, **given: Any
) -> CompiledStep:
    return CompiledStep(step, InProcess(device, background=background), **given)


# Ahead, in another process


def test_it_starts_eagerly_and_moves_between_two_calls(loaded: list[Interpreted]) -> None:
    step, never, process = Adder(), Adder(), SlowCompiler()
    moving, rows = ahead(step, process), torch.ones(2, 3)
    assert (moving.ready, moving.ready_after_s) == (True, None)
    for _ in range(3):
        moving(rows)
    assert (step.calls, moving.ready, moving.ready_after_s) == (3, False, None)
    process.finish()
    assert (moving.ready, moving.failure) == (True, None)
    for _ in range(4):
        moving(rows)
    assert (step.calls, loaded[0].calls, len(process.requests)) == (3, 4, 1)
    for _ in range(7):
        never(rows)
    assert torch.equal(step.total, never.total)
    assert moving.ready_after_s is not None
    assert 0 < moving.wait_s < 60  # tracing; the compiler is held


def test_each_shape_moves_by_itself_and_is_asked_for_once(loaded: list[Interpreted]) -> None:
    step, process = Adder(), SlowCompiler()
    moving = ahead(step, process)
    for _ in range(2):
        for count in (2, 1):
            moving(torch.ones(count, 3))
    process.finish()
    assert (moving.ready, moving.has(torch.ones(2, 3)), moving.has(torch.ones(1, 3))) == (
        False,
        True,
        False,
    )
    moving(torch.ones(2, 3))
    moving(torch.ones(1, 3))
    assert (step.calls, [library.calls for library in loaded]) == (5, [1])
    process.finish()
    assert (moving.ready, len(process.requests)) == (True, 2)


def test_rows_that_lie_otherwise_are_another_form(loaded: list[Interpreted]) -> None:
    step, process = Adder(), PromptCompiler()
    moving = ahead(step, process)
    for rows in (torch.ones(3, 3), torch.ones(3, 3).t(), torch.ones(3, 3)):
        moving(rows)
    assert len(process.requests) == len(loaded) == 2


def test_rows_are_traced_once_and_repeated(loaded: list[Interpreted]) -> None:
    step, never, process = Adder(), Adder(), SlowCompiler()
    moving = ahead(step, process, by_row=True)
    for count in (4, 2):
        moving.prepare(torch.ones(count, 3))
        process.finish()
    first, second = process.requests
    assert (first.num_rows, second.num_rows, first.path == second.path) == (4, 2, False)
    assert first.source == second.source
    assert first.specs[0].shape == (4, 3)
    rows = torch.arange(12.0).reshape(4, 3)
    for piece in (rows, rows[:2]):
        moving(piece)
        never(piece)
    assert torch.equal(step.total, never.total)
    assert step.calls == 0


def test_a_prepared_step_has_not_run(loaded: list[Interpreted]) -> None:
    step, process = Adder(), SlowCompiler()
    moving, rows = ahead(step, process), torch.ones(2, 3)
    moving.prepare(rows)
    moving.prepare(rows)
    assert (step.calls, step.total.tolist(), moving.ready) == (0, [0.0] * 3, False)
    process.finish()
    moving(rows)
    assert (step.calls, loaded[0].calls, len(process.requests)) == (0, 1, 1)


def test_a_second_start_finds_what_the_first_one_left(loaded: list[Interpreted]) -> None:
    process = SlowCompiler()
    first = ahead(Adder(), process)
    rows = torch.ones(2, 3)
    first(rows)
    process.finish()
    step, second_process = Adder(), SlowCompiler()
    second = ahead(step, second_process)
    second(rows)
    assert (step.calls, second.ready, second_process.requests) == (0, True, [])
    for moving, numbers in ((first, (0, 1)), (second, (1, 0))):
        assert isinstance(moving.compiler, AheadOfTime)
        assert (moving.compiler.loaded, moving.compiler.made) == numbers
    assert step.total.tolist() == [6.0] * 3


def test_a_failure_leaves_it_eager_and_is_reported_in_one_line(loaded: list[Interpreted]) -> None:
    step, process = Adder(), SlowCompiler()
    moving, rows = ahead(step, process), torch.ones(2, 3)
    moving(rows)
    process.finish("no space left")
    assert (moving.ready, moving.failure, moving.ready_after_s) == (True, "no space left", None)
    moving(rows)
    moving(torch.ones(1, 3))
    assert (step.calls, len(process.requests), loaded) == (3, 1, [])


def test_a_step_that_cannot_be_traced_stays_eager() -> None:
    def step(x: Tensor) -> None:
        if x.sum() > 0:
            x.add_(1)

    process, x = SlowCompiler(), torch.ones(3)
    for moving in (ahead(step, process), inside(step)):
        x.fill_(1.0)
        moving(x)
        moving(x)
        assert x.tolist() == [3.0] * 3
        assert "data-dependent" in (moving.failure or "")
    assert process.requests == []
    assert not COMPILER.locked()


def test_a_run_that_ends_before_it_is_ready_asks_no_longer(loaded: list[Interpreted]) -> None:
    step, process = Adder(), SlowCompiler()
    moving, rows = ahead(step, process), torch.ones(2, 3)
    moving(rows)
    moving.close()
    assert (process.waiting, moving.ready, moving.failure) == ({}, True, None)
    moving(rows)
    moving.close()
    assert (step.calls, len(process.requests)) == (2, 1)


def test_it_becomes_ready_in_whatever_thread(loaded: list[Interpreted]) -> None:
    step, process = Adder(), SlowCompiler()
    moving, rows = ahead(step, process), torch.ones(1, 3, dtype=torch.float64)
    moving(rows)
    thread = threading.Thread(target=process.finish)
    thread.start()
    calls = 1
    while thread.is_alive() or not loaded or not loaded[0].calls:
        step.total.zero_()
        moving(rows)
        assert step.total.tolist() == [2.0] * 3
        calls += 1
    thread.join()
    assert step.calls + loaded[0].calls == calls


@pytest.mark.parametrize(("module", "updates"), [(lambda: MLP((4,), 2, (8,)), 200), (Branches, 40)])
def test_many_updates_have_no_seam(module: Any, updates: int, loaded: list[Interpreted]) -> None:
    replay = filled_ring()

    def learner() -> Learner:
        torch.manual_seed(0)
        return Learner(module(), learning_rate=1e-3)

    eager, moving, process = learner(), learner(), SlowCompiler()
    run_by(moving, "eager", partial(ahead, process=process, by_row=True))
    moving.execute_as("eager")
    index = torch.randint(64, (updates, 8))
    for start in range(0, updates, 10):
        if start == updates // 2:
            while process.waiting:
                process.finish()
        moving.learn(replay, index[start : start + 10])
        eager.learn(replay, index[start : start + 10])
    assert learning_step(moving).ready
    assert sum(library.calls for library in loaded) == updates * 3 // 20
    for mine, theirs in zip(moving.state.written()[:-1], eager.state.written()[:-1], strict=True):
        assert torch.equal(mine, theirs)


def test_what_is_written_into_a_ring_later_is_learned_from(loaded: list[Interpreted]) -> None:
    """The library gets the tensors themselves, also where the ring was exchanged."""
    torch.manual_seed(0)
    learners = [Learner(MLP((4,), 2, (8,))) for _ in range(2)]
    learners[1].state.online.copy_(learners[0].state.online)
    learners[1].sync_target()
    process = SlowCompiler()
    run_by(learners[0], "eager", partial(ahead, process=process, by_row=True))
    learners[0].execute_as("eager")
    replays = [filled_ring(), ReplayBuffer(64, 2, (4,))]
    for replay in replays:
        no = torch.zeros(2, dtype=torch.bool)
        replay.write(torch.ones(2, dtype=torch.int64), torch.ones(2), no, no, torch.ones(2, 4))
        index = torch.zeros(4, 8, dtype=torch.int64)
        for _ in range(2):
            for learner in learners:
                learner.learn(replay, index)
            if process.waiting:
                process.finish()
            replay.ring.reward.add_(1.0)
    assert torch.equal(learners[0].state.online, learners[1].state.online)
    assert all(step.ready and not step.failure for step in learners[0].compiling)
    assert sum(library.calls for library in loaded) == 3  # the second ring's library was on disk


def test_calls_that_wait_are_compiled_from_the_first_on(loaded: list[Interpreted]) -> None:
    step, process = Adder(), PromptCompiler()
    waiting = ahead(step, process, background=False)
    for _ in range(2):
        for count in (2, 1):
            waiting(torch.ones(count, 3))
    assert (step.calls, [library.calls for library in loaded]) == (0, [2, 2])
    assert isinstance(waiting.compiler, AheadOfTime)
    assert (waiting.compiler.loaded, waiting.compiler.made, waiting.compiler.fallback) == (
        0,
        2,
        None,
    )
    assert (waiting.ready, waiting.ready_after_s) == (True, None)
    again = ahead(step, process, background=False)
    again(torch.ones(2, 3))
    assert isinstance(again.compiler, AheadOfTime)
    assert (again.compiler.loaded, again.compiler.made, len(process.requests)) == (1, 0, 2)
    assert again.wait_s > 0


# In this process


@pytest.mark.parametrize("by_row", [pytest.param(False, marks=pytest.mark.slow), True])
def test_where_no_library_can_be_made_this_process_compiles(by_row: bool) -> None:
    step, never = Adder(), Adder()
    waiting = ahead(step, PromptCompiler("no space left"), background=False, by_row=by_row)
    for factor in (2.0, 10.0):
        step.factor.fill_(factor)
        never.factor.fill_(factor)
        for rows in (torch.ones(2, 3), torch.rand(2, 3)):
            waiting(rows)
            never(rows)
    assert isinstance(waiting.compiler, AheadOfTime)
    assert waiting.compiler.fallback == "no space left"
    torch.testing.assert_close(step.total, never.total)
    assert step.calls == 0
    assert waiting.wait_s > 0


def test_a_thread_compiles_beside_the_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    inductor, step, never = HeldInductor(monkeypatch), Adder(), Adder()
    moving, rows = inside(step), torch.rand(2, 3)
    for _ in range(3):
        moving(rows)  # the compiler is held: a call that waited for it would never return
    assert (step.calls, moving.ready, moving.ready_after_s) == (3, False, None)
    inductor.finish()
    assert moving.ready
    assert moving.ready_after_s
    for _ in range(2):
        moving(rows)
    for _ in range(5):
        never(rows)
    assert torch.equal(step.total, never.total)
    assert (step.calls, inductor.calls, len(inductor.traces)) == (3, 2, 1)


@pytest.mark.parametrize("beside", [False, True])
def test_a_step_is_traced_in_the_call_or_beside_it(
    beside: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    inductor, threads = HeldInductor(monkeypatch), set[bool]()

    def step(x: Tensor) -> None:
        if isinstance(x, torch._subclasses.FakeTensor):
            threads.add(threading.current_thread() is threading.main_thread())
        x.add_(1)

    compiler = InProcess(CPU, background=True, traces_beside=beside)
    moving, x = CompiledStep(step, compiler), torch.zeros(3)
    moving(x)
    inductor.finish()
    moving(x)
    assert (x.tolist(), inductor.calls, threads) == ([2.0] * 3, 1, {not beside})


def test_one_step_is_compiled_at_a_time_and_no_call_waits_for_its_turn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    inductor = HeldInductor(monkeypatch)
    one, other = inside(Adder()), inside(Adder())
    for _ in range(2):
        one(torch.ones(1, 3))
        other(torch.ones(1, 3))
    assert (len(inductor.traces), one.ready, other.ready) == (1, False, True)
    inductor.finish()
    other(torch.ones(1, 3))
    assert (len(inductor.traces), other.ready) == (2, False)
    inductor.finish()
    assert other.has(torch.ones(1, 3))


def test_a_thread_whose_compile_fails_costs_the_speed_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    inductor, step = HeldInductor(monkeypatch), Adder()
    moving = inside(step)
    moving(torch.ones(2, 3))
    inductor.finish("no such luck\nand more")
    for size in (2, 1):
        moving(torch.ones(size, 3))
    assert (step.calls, moving.failure) == (3, "RuntimeError: no such luck")
    assert (moving.ready, moving.ready_after_s, len(inductor.traces)) == (True, None, 1)


def test_closed_it_forgets_what_a_thread_compiles_and_asks_for_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    inductor, step = HeldInductor(monkeypatch), Adder()
    moving = inside(step)
    moving(torch.ones(2, 3))
    inductor.finish()
    moving(torch.ones(1, 3))
    moving.close()
    inductor.finish()
    for size in (2, 1, 3):
        moving(torch.ones(size, 3))
    assert (step.calls, inductor.calls, len(inductor.traces)) == (4, 1, 2)
    assert moving.failure is None


def test_on_a_card_one_row_is_compiled_for_any_number_of_rows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    inductor, step, never = HeldInductor(monkeypatch), Adder(), Adder()
    inductor.go.set()
    waiting = inside(step, CUDA, background=False, by_row=True)
    for size in (3, 1, 16):
        rows = torch.rand(size, 3)
        waiting(rows)
        never(rows)
    assert torch.equal(step.total, never.total)
    assert (len(inductor.traces), inductor.calls, step.calls) == (1, 20, 0)


@pytest.mark.parametrize("optional", [False, True])
def test_a_step_that_looks_at_values_is_refused_by_name_or_stays_as_it_is(optional: bool) -> None:
    def step(x: Tensor) -> None:
        if float(x.sum()) > 0:
            x.zero_()

    waiting, x = inside(step, background=False, optional=optional), torch.ones(3)
    if optional:
        waiting(x)
        assert x.tolist() == [0.0] * 3
        assert waiting.failure
        return
    with pytest.raises(UsageError, match="--execution compile: the step cannot be compiled"):
        waiting(x)


def test_a_bound_step_moves_too_and_reads_its_own_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    inductor, step = HeldInductor(monkeypatch), Adder()
    moving, rows = inside(step), [torch.ones(1, 3), torch.full((1, 3), 10.0)]
    calls = [moving.bound(row) for row in rows]
    assert step.calls == 0
    for _ in range(2):
        for call in calls:
            step.total.zero_()
            call()
            assert step.total[0].item() in {2.0, 20.0}
        inductor.finish()
    assert step.total.tolist() == [20.0] * 3
    assert (step.calls, inductor.calls, len(inductor.traces)) == (2, 2, 1)
    rows[1].fill_(1.0)
    calls[1]()
    assert step.total.tolist() == [42.0] * 3
