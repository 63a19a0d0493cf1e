"""The compiler's process: what it makes, and that it leaves with whoever wanted it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from functools import partial
from pathlib import Path

import pytest
import torch
from torch._dynamo.utils import counters

from fastdqn.execution.ahead import AheadOfTime, load_library
from fastdqn.execution.compile import CompiledStep
from fastdqn.execution.compiler import Compiler, Numerics, Request
from fastdqn.execution.step import PureStep
from fastdqn.execution.trace import CompileError, Source, TensorSpec
from fastdqn.learner.learner import Learner
from tests.learner_modes import learning_step, run_by
from tests.small_learners import Branches, filled_ring

CPU = torch.device("cpu")
PATIENCE_S = 100.0
"""Longest that anything here may take on a crowded machine."""
BUSY = """
import subprocess, time
child = subprocess.Popen(["sleep", "1000"])
time.sleep(1000)
"""
"""Starts something, and never answers."""


def wait_until(done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def gone(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    return not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] == "Z"


def request(folder: Path) -> Request:
    """Return one that nobody can fulfil."""
    spec = TensorSpec.of(torch.zeros(1))
    return Request(
        Source("no Python", {}, {}), (spec,), 0, 0, Numerics.current(), folder / "none.pt2"
    )


def loaded() -> None:
    """Stand for the loading of what was compiled."""


class Counted(Compiler):
    """Counts the processes that it has started."""

    starts = 0

    def _start(self) -> subprocess.Popen[bytes]:
        self.starts += 1
        return super()._start()


def pid_of(compiler: Compiler) -> int | None:
    process = compiler._process
    return None if process is None else process.pid


def end(compiler: Compiler) -> None:
    with compiler._changed:
        compiler._end()


def beside(process: Compiler, step: PureStep) -> CompiledStep:
    compiler = AheadOfTime(CPU, background=True, process=process)
    return CompiledStep(step, compiler, by_row=True)


def learner(*, moving: Compiler | None = None) -> Learner:
    torch.manual_seed(0)
    built = Learner(Branches(), learning_rate=1e-3)
    if moving is not None:
        run_by(built, "eager", partial(beside, moving))
        built.execute_as("eager")
    return built


@pytest.fixture
def libraries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder for libraries; what PyTorch knows of this machine stays where it is."""
    monkeypatch.setattr("fastdqn.execution.ahead.cache_dir", lambda: str(tmp_path))
    return tmp_path


@pytest.fixture
def compiler() -> Iterator[Counted]:
    made = Counted(linger_s=0.5)
    yield made
    end(made)
    assert pid_of(made) is None


@pytest.fixture
def busy() -> Iterator[Compiler]:
    made = Compiler(command=("-c", BUSY))
    yield made
    end(made)


def _started(compiler: Compiler, folder: Path) -> tuple[int, Future[None], list[int]]:
    """Ask for something; return the process, the future, and what the process has started."""
    future = compiler.submit(request(folder), loaded)
    pid = pid_of(compiler)
    assert pid is not None
    children = Path(f"/proc/{pid}/task/{pid}/children")
    wait_until(lambda: gone(pid) or bool(children.read_text()))
    return pid, future, [int(child) for child in children.read_text().split()]


# What it makes


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_real_run_moves_without_a_seam_and_the_next_one_starts_compiled(
    libraries: Path, compiler: Counted
) -> None:
    traced_before, replay, index = (
        dict(counters["stats"]),
        filled_ring(),
        torch.randint(64, (200, 8)),
    )
    eager, moving = learner(), learner(moving=compiler)
    eager.learn(replay, index)
    moving.learn(replay, index[:100])
    step = learning_step(moving)
    assert (step.ready, _libraries(step)) == (False, (0, 0))
    pid = pid_of(compiler)
    wait_until(lambda: step.ready)
    assert (step.failure, _libraries(step)) == (None, (0, 1))
    moving.learn(replay, index[100:])
    for name in ("online", "target"):
        mine, theirs = getattr(moving.state, name), getattr(eager.state, name)
        torch.testing.assert_close(mine, theirs, rtol=2e-4, atol=1e-6)
        assert not torch.equal(mine, theirs)  # the second half was really compiled
    assert int(moving.state.updates) == 200
    assert dict(counters["stats"]) == traced_before
    assert pid is not None
    wait_until(lambda: gone(pid))  # nothing left to do
    assert compiler.starts == 1

    again = learner(moving=compiler)
    twin = learner(moving=compiler)
    for other in (again, twin):
        other.learn(replay, index)
        step = learning_step(other)
        assert (step.ready, _libraries(step)) == (True, (1, 0))
    assert torch.equal(again.state.online, twin.state.online)
    assert compiler.starts == 1
    _assert_found_by_another_process(libraries)


def _libraries(step: CompiledStep) -> tuple[int, int]:
    """Return how many libraries were found, and how many were made."""
    assert isinstance(step.compiler, AheadOfTime)
    return step.compiler.loaded, step.compiler.made


def _assert_found_by_another_process(libraries: Path) -> None:
    code = (
        "from tests.faults import test_compiler as t; import torch;"
        f"t.torch.set_num_threads({torch.get_num_threads()});"
        f"import fastdqn.execution.ahead as c; c.cache_dir = lambda: {str(libraries)!r};"
        "l = t.learner(moving=t.Compiler());"
        "r = t.filled_ring(); l.learn(r, torch.zeros(4, 8, dtype=torch.int64));"
        "s = t.learning_step(l); print(s.compiler.loaded, s.ready_after_s is not None)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["1", "True"], done.stderr


def test_a_broken_library_is_deleted_and_missed(tmp_path: Path) -> None:
    broken = tmp_path / "broken.pt2"
    assert load_library(broken, CPU) is None
    broken.write_bytes(b"PK no library")
    assert load_library(broken, CPU) is None
    assert not broken.exists()


def test_what_cannot_be_compiled_is_told_in_one_line(tmp_path: Path, compiler: Compiler) -> None:
    with pytest.raises(CompileError, match=r"^SyntaxError: [^\n]+$"):
        compiler.submit(request(tmp_path), loaded).result(PATIENCE_S)
    assert list(tmp_path.iterdir()) == []


def test_no_python_to_start_is_a_failure_not_a_crash(
    tmp_path: Path, compiler: Compiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    with pytest.raises(CompileError, match="no compiler could be started"):
        compiler.submit(request(tmp_path), loaded).result(0)


# How it ends


def test_a_killed_compiler_leaves_the_step_eager_and_nothing_behind(
    libraries: Path, busy: Compiler
) -> None:
    moving, replay = learner(moving=busy), filled_ring()
    moving.learn(replay, torch.zeros(4, 8, dtype=torch.int64))
    pid, _, started = _started(busy, libraries)
    os.kill(pid, signal.SIGKILL)
    step = learning_step(moving)
    wait_until(lambda: step.failure is not None)
    assert step.failure == "the compiler ended with SIGKILL (often out of memory)"
    moving.learn(replay, torch.zeros(4, 8, dtype=torch.int64))
    assert int(moving.state.updates) == 8
    assert len(started) == 1
    wait_until(lambda: gone(started[0]))
    assert pid_of(busy) is None


def test_a_compiler_that_ends_by_itself_says_how(tmp_path: Path) -> None:
    compiler = Counted(command=("-c", "import sys; sys.exit(7)"))
    for starts in (1, 2):
        with pytest.raises(CompileError, match="exit code 7"):
            compiler.submit(request(tmp_path), loaded).result(PATIENCE_S)
        assert compiler.starts == starts


def test_whoever_asks_no_longer_ends_it_with_all_it_started(tmp_path: Path, busy: Compiler) -> None:
    pid, future, started = _started(busy, tmp_path)
    other = busy.submit(request(tmp_path), loaded)
    busy.withdraw(other)
    assert pid_of(busy) == pid
    assert not gone(pid)
    busy.withdraw(future)
    assert pid_of(busy) is None
    assert future.cancelled()
    assert other.cancelled()
    wait_until(lambda: all(map(gone, (pid, *started))))


@pytest.mark.slow
def test_it_dies_with_its_parent_and_says_nothing(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from tests.faults import test_compiler as t;"
        "c = t.Compiler(linger_s=1000); f = c.submit(t.request(Path(sys.argv[1])), t.loaded);"
        "f.exception(); print(t.pid_of(c), flush=True); time.sleep(1000)"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert parent.stdout is not None
    said = parent.stdout.readline()
    assert said.strip().isdigit(), said
    pid = int(said)
    assert not gone(pid)
    parent.kill()
    assert parent.communicate()[0] == ""
    wait_until(lambda: gone(pid))
