"""Eager until it is compiled: when it moves, what the caller waits for, and what may go wrong."""

from __future__ import annotations

import threading
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fastdqn.execution.background import STATES, Background
from fastdqn.execution.compiled import Compiled
from fastdqn.learner.learner import Learner
from fastdqn.networks.mlp import MLP
from fastdqn.replay import ReplayBuffer
from tests.compilers import Interpreted, PromptCompiler, SlowCompiler, interpreted
from tests.learner_modes import learning_step, run_by
from tests.small_learners import Branches, filled_ring

CPU = torch.device("cpu")


class Adder:
    """A step that counts how often it runs as it is."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, total: Tensor, rows: Tensor) -> None:
        self.calls += not isinstance(total, torch._subclasses.FakeTensor)
        for row in rows.unbind(0):
            total.add_(row).mul_(2)


@pytest.fixture
def loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Interpreted]:
    return interpreted(tmp_path, monkeypatch)


def build(**given: Any) -> tuple[Adder, SlowCompiler, Background]:
    step, compiler = Adder(), SlowCompiler()
    return step, compiler, Background(step, CPU, compiler=compiler, **given)


def test_it_starts_eagerly_and_moves_between_two_calls(loaded: list[Interpreted]) -> None:
    step, compiler, background = build()
    total, rows = torch.zeros(3), torch.ones(2, 3)
    assert (background.state, background.ready) == ("eager", False)
    for _ in range(3):
        background(total, rows)
    assert (step.calls, background.state, background.ready) == (3, "compiling", False)
    assert background.ready_after_s is None
    compiler.finish()
    assert (background.state, background.ready, background.failure) == ("compiled", True, None)
    for _ in range(4):
        background(total, rows)
    assert (step.calls, loaded[0].calls, len(compiler.requests)) == (3, 4, 1)
    eager = torch.zeros(3)
    for _ in range(7):
        step(eager, rows)
    assert torch.equal(total, eager)
    assert background.ready_after_s is not None
    assert 0 < background.compile_s < 5
    assert background.state in STATES


def test_each_shape_moves_by_itself_and_is_asked_for_once(loaded: list[Interpreted]) -> None:
    step, compiler, background = build()
    total = torch.zeros(3)
    for _ in range(2):
        for count in (2, 1):
            background(total, torch.ones(count, 3))
    compiler.finish()
    assert (background.state, len(compiler.requests)) == ("compiling", 2)
    background(total, torch.ones(2, 3))
    background(total, torch.ones(1, 3))
    assert (step.calls, [library.calls for library in loaded]) == (5, [1])
    compiler.finish()
    assert background.state == "compiled"


def test_rows_are_traced_once_and_repeated(loaded: list[Interpreted]) -> None:
    step, compiler, background = build(by_row=True)
    total, eager = torch.zeros(3), torch.zeros(3)
    for count in (4, 2):
        background.prepare(total, torch.ones(count, 3))
        compiler.finish()
    first, second = compiler.requests
    assert (first.num_rows, second.num_rows, first.path == second.path) == (4, 2, False)
    assert first.graph == second.graph
    assert first.specs[1].shape == (4, 3)
    rows = torch.arange(12.0).reshape(4, 3)
    for piece in (rows, rows[:2]):
        background(total, piece)
        step(eager, piece)
    assert torch.equal(total, eager)
    assert step.calls == 2  # those of the test itself


def test_a_prepared_step_has_not_run(loaded: list[Interpreted]) -> None:
    step, compiler, background = build()
    total, rows = torch.zeros(3), torch.ones(2, 3)
    background.prepare(total, rows)
    assert (step.calls, total.tolist(), background.state) == (0, [0.0] * 3, "compiling")
    compiler.finish()
    background(total, rows)
    assert (step.calls, loaded[0].calls) == (0, 1)


def test_a_second_start_finds_what_the_first_one_left(loaded: list[Interpreted]) -> None:
    _, compiler, first = build()
    rows = torch.ones(2, 3)
    first(torch.zeros(3), rows)
    compiler.finish()
    step, second_compiler, second = build()
    total = torch.zeros(3)
    second(total, rows)
    assert (step.calls, second.state, second.loaded, second.made) == (0, "compiled", 1, 0)
    assert (first.loaded, first.made) == (0, 1)
    assert second_compiler.requests == []
    assert total.tolist() == [6.0] * 3


def test_a_failure_leaves_it_eager_and_is_told_in_one_line(loaded: list[Interpreted]) -> None:
    step, compiler, background = build()
    total, rows = torch.zeros(3), torch.ones(2, 3)
    background(total, rows)
    compiler.finish("no space left")
    assert (background.state, background.failure) == ("failed", "no space left")
    background(total, rows)
    background(total, torch.ones(1, 3))
    assert (step.calls, len(compiler.requests), loaded) == (3, 1, [])


def test_a_step_that_cannot_be_written_down_stays_eager() -> None:
    def step(x: Tensor) -> None:
        if x.sum() > 0:
            x.add_(1)

    compiler, x = SlowCompiler(), torch.ones(3)
    background = Background(step, CPU, compiler=compiler)
    background(x)
    background(x)
    assert x.tolist() == [3.0] * 3
    assert background.state == "failed"
    assert "data-dependent" in (background.failure or "")
    assert compiler.requests == []


def test_a_run_that_ends_before_it_is_ready_asks_no_longer(loaded: list[Interpreted]) -> None:
    step, compiler, background = build()
    total, rows = torch.zeros(3), torch.ones(2, 3)
    background(total, rows)
    background.close()
    assert (compiler.waiting, background.state, background.failure) == ({}, "eager", None)
    background(total, rows)
    background.close()
    assert (step.calls, len(compiler.requests)) == (2, 1)


def test_it_becomes_ready_in_whatever_thread(loaded: list[Interpreted]) -> None:
    step, compiler, background = build()
    total, rows = torch.zeros(3, dtype=torch.float64), torch.ones(1, 3, dtype=torch.float64)
    background(total, rows)
    thread = threading.Thread(target=compiler.finish)
    thread.start()
    calls = 1
    while thread.is_alive() or not loaded or not loaded[0].calls:
        background(total.zero_(), rows)
        assert total.tolist() == [2.0] * 3
        calls += 1
    thread.join()
    assert step.calls + loaded[0].calls == calls


@pytest.mark.parametrize("module", [lambda: MLP((4,), 2, (8,)), Branches])
def test_two_hundred_updates_have_no_seam(module: Any, loaded: list[Interpreted]) -> None:
    """Here the compiled half is the trace, so that not even rounding differs."""
    replay = filled_ring()

    def learner() -> Learner:
        torch.manual_seed(0)
        return Learner(module(), learning_rate=1e-3)

    eager, moving, compiler = learner(), learner(), SlowCompiler()
    run_by(moving, "eager", partial(Background, device=CPU, by_row=True, compiler=compiler))
    moving.execute_as("eager")
    index = torch.randint(64, (200, 8))
    for start in range(0, 200, 10):
        if start == 100:
            while compiler.waiting:
                compiler.finish()
        moving.learn(replay, index[start : start + 10])
        eager.learn(replay, index[start : start + 10])
    assert learning_step(moving).ready
    assert sum(library.calls for library in loaded) == 30
    for mine, theirs in zip(_tensors(moving), _tensors(eager), strict=True):
        assert torch.equal(mine, theirs)


def _tensors(learner: Learner) -> list[Tensor]:
    state = learner.state
    return [state.online, state.target, *state.slots, state.updates, state.skipped]


def test_what_is_written_into_a_ring_later_is_learned_from(loaded: list[Interpreted]) -> None:
    """The library gets the tensors themselves, also where the ring was exchanged."""
    torch.manual_seed(0)
    learners = [Learner(MLP((4,), 2, (8,))) for _ in range(2)]
    learners[1].state.online.copy_(learners[0].state.online)
    learners[1].sync_target()
    compiler = SlowCompiler()
    run_by(learners[0], "eager", partial(Background, device=CPU, by_row=True, compiler=compiler))
    learners[0].execute_as("eager")
    replays = [filled_ring(), ReplayBuffer(64, 2, (4,))]
    for replay in replays:
        no = torch.zeros(2, dtype=torch.bool)
        replay.write(torch.ones(2, dtype=torch.int64), torch.ones(2), no, no, torch.ones(2, 4))
        index = torch.zeros(4, 8, dtype=torch.int64)
        for _ in range(2):
            for learner in learners:
                learner.learn(replay, index)
            if compiler.waiting:
                compiler.finish()
            replay.ring.reward.add_(1.0)
    assert torch.equal(learners[0].state.online, learners[1].state.online)
    background: Any
    for background in learners[0]._steps.learning:
        assert background.ready


def test_what_the_step_holds_is_read_and_written_where_it_is(loaded: list[Interpreted]) -> None:
    factor, total = torch.tensor(2.0), torch.zeros(3)

    def step(x: Tensor) -> None:
        total.add_(x * factor)

    compiler = SlowCompiler()
    background = Background(step, CPU, compiler=compiler)
    background.prepare(torch.ones(3))
    compiler.finish()
    for value in (2.0, 5.0):
        factor.fill_(value)
        background(torch.ones(3))
    assert total.tolist() == [7.0] * 3
    assert loaded[0].calls == 2


# Compiled, who waits


def test_compiled_is_compiled_from_its_first_call(loaded: list[Interpreted]) -> None:
    step, compiler = Adder(), PromptCompiler()
    compiled, total = Compiled(step, CPU, compiler=compiler), torch.zeros(3)
    for _ in range(2):
        for count in (2, 1):
            compiled(total, torch.ones(count, 3))
    assert (step.calls, [library.calls for library in loaded]) == (0, [2, 2])
    assert (compiled.loaded, compiled.made, compiled.fallback) == (0, 2, None)
    again = Compiled(step, CPU, compiler=compiler)
    again(total, torch.ones(2, 3))
    assert (again.loaded, again.made, len(compiler.requests)) == (1, 0, 2)
    assert again.compile_s > 0


def test_where_no_library_can_be_made_compiled_compiles_inside(loaded: list[Interpreted]) -> None:
    ran: list[Tensor] = []
    for problem in ("no space left", ""):
        compiled = Compiled(Adder(), CPU, compiler=PromptCompiler(problem))
        compiled._inside = lambda *args: ran.append(args[0])  # type: ignore[assignment]
        compiled(torch.zeros(3), torch.ones(2, 3))
        assert compiled.fallback == (problem or None)
    assert len(ran) == 1
