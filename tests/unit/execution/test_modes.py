"""Modes: which one is chosen, and what is refused."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from fastdqn.errors import UsageError
from fastdqn.execution.ahead import AheadOfTime
from fastdqn.execution.compile import CompiledStep, run_step
from fastdqn.execution.cuda_graph import CudaGraphStep
from fastdqn.execution.in_process import InProcess
from fastdqn.execution.modes import (
    EXECUTIONS,
    WORTH_COMPILING_UPDATES,
    choose_execution,
    is_auto,
    may_be_native,
    mode_of,
    refuse_execution,
)
from fastdqn.execution.step import EagerStep, PlainUntilCompiled

CPU, CUDA, MPS = (torch.device(name) for name in ("cpu", "cuda", "mps"))
MANY, FEW = WORTH_COMPILING_UPDATES, WORTH_COMPILING_UPDATES - 1


@pytest.fixture
def compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A PATH on which there is one C++ compiler and nothing else."""
    program = tmp_path / "g++"
    program.write_text("")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    return program


@pytest.fixture
def no_compiler(compiler: Path) -> None:
    compiler.unlink()


@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize(
    ("device", "updates", "mode"),
    [
        (CPU, 0, "eager"),
        (CPU, FEW, "eager"),
        (CPU, MANY, "compile"),
        (MPS, FEW, "eager"),
        (MPS, MANY, "eager"),
    ],
)
def test_auto_compiles_where_the_updates_repay_it(
    device: torch.device, updates: int, mode: str
) -> None:
    chosen, why = choose_execution("auto", device, updates)
    assert chosen == mode
    assert why == "MPS runs it as it is" or "updates" in why or "--device cpu" in why


def nothing() -> None:
    """What stands in the way of the C."""


def test_auto_measures_the_c_against_the_plain_step_where_both_can_run() -> None:
    tried: list[str] = []

    def measure(candidates: Sequence[str]) -> tuple[str, str]:
        tried.extend(candidates)
        return "native", "measured"

    given: Any = {"measure": measure, "why_not_native": nothing}
    assert choose_execution("auto", CPU, MANY, **given) == ("native", "measured")
    assert tried == ["eager", "native"]
    assert choose_execution("auto", CPU, MANY, why_not_native=nothing)[0] == "native"
    assert choose_execution("auto", CPU, 999, **given)[0] == "eager"


def test_auto_tells_why_the_c_cannot_run() -> None:
    for updates, mode in ((FEW, "eager"), (MANY, "compile")):
        chosen, why = choose_execution("auto", CPU, updates, why_not_native=lambda: "a reason")
        assert (chosen, why.partition(";")[0]) == (mode, "not native: a reason")


def test_native_is_refused_elsewhere_than_on_the_cpu_and_on_cuda() -> None:
    for refuse in (refuse_execution, mode_of):
        with pytest.raises(UsageError, match="--execution native on mps: it runs on the CPU and"):
            refuse("native", MPS)
        refuse("native", CPU)
        refuse("native", CUDA)


@pytest.mark.parametrize("updates", [FEW, MANY])
@pytest.mark.parametrize("reason", [None, "a reason"])
@pytest.mark.parametrize("fastest", [0, -1])
def test_on_cuda_auto_measures_what_needs_no_compiler_and_compiles_what_repays_it(
    updates: int, reason: str | None, fastest: int
) -> None:
    tried: list[str] = []

    def measure(candidates: Sequence[str]) -> tuple[str, str]:
        tried.extend(candidates)
        return candidates[fastest], "measured: so much"

    given: Any = {"measure": measure, "why_not_native": lambda: reason}
    mode, message = choose_execution("auto", CUDA, updates, **given)
    assert tried == ["eager", "cudagraph", *([] if reason else ["native"])]
    if reason and updates == MANY and fastest:
        assert mode == "compile+cudagraph"
        assert message == "measured: so much; 20,000 updates repay a compile"
    else:
        assert (mode, message) == (tried[fastest], "measured: so much")


def test_what_was_asked_for_is_not_measured() -> None:
    def measure(candidates: Sequence[str]) -> tuple[str, str]:
        raise AssertionError("a measurement")

    for device in (CPU, MPS):
        choose_execution("auto", device, FEW, measure=measure)
    for way in ("eager", "compile", "cudagraph", "compile+cudagraph"):
        assert choose_execution(way, CUDA, MANY, measure=measure) == (way, "as asked")
    for reason, mode in ((None, "native"), ("a reason", "compile+cudagraph")):
        why_not: Callable[[], str | None] = partial(str, reason) if reason else lambda: None
        chosen, message = choose_execution(
            "auto", CUDA, MANY, tensor_envs=True, why_not_native=why_not
        )
        assert chosen == mode
        assert (reason or "one graph") in message


def test_mps_tells_that_the_cpu_is_likely_faster_for_a_small_network() -> None:
    assert "--device cpu" in choose_execution("auto", MPS, MANY, parameters=17_000)[1]
    assert "--device cpu" not in choose_execution("auto", MPS, MANY, parameters=10**7)[1]


@pytest.mark.usefixtures("no_compiler")
def test_without_a_compiler_auto_is_eager_on_the_cpu_and_says_why() -> None:
    assert choose_execution("auto", CPU, MANY) == (
        "eager",
        "not native: not looked up; no C++ compiler on the PATH",
    )
    assert choose_execution("auto", CUDA, MANY)[0] == "cudagraph"


@pytest.mark.usefixtures("no_compiler")
def test_without_a_compiler_compiling_for_the_cpu_is_refused() -> None:
    with pytest.raises(UsageError, match=r"--execution compile: .*Install g\+\+"):
        choose_execution("compile", CPU, MANY)
    assert choose_execution("compile", CUDA, 0) == ("compile", "as asked")


@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize("device", [CPU, CUDA, MPS])
@pytest.mark.parametrize("updates", [0, MANY])
def test_eager_and_compile_are_taken_as_asked(device: torch.device, updates: int) -> None:
    for mode in ("eager", "compile"):
        assert choose_execution(mode, device, updates) == (mode, "as asked")


@pytest.mark.parametrize("device", [CPU, MPS])
@pytest.mark.parametrize("way", ["cudagraph", "compile+cudagraph"])
def test_graphs_are_refused_where_there_is_no_cuda(device: torch.device, way: str) -> None:
    wanted = rf"--execution {re.escape(way)} on {device}: .*--execution compile"
    for refuse in (refuse_execution, mode_of):
        with pytest.raises(UsageError, match=wanted):
            refuse(way, device)
        refuse(way, CUDA)
    with pytest.raises(UsageError, match="Choose eager, native, compile"):
        mode_of("auto", device)


@pytest.mark.parametrize("asked", ["", "fast", "Eager"])
def test_an_unknown_mode_is_refused_with_the_list(asked: str) -> None:
    with pytest.raises(UsageError, match=r"Choose auto, eager, native, compile, cudagraph"):
        choose_execution(asked, CPU, MANY)


def snapshot(*_: torch.Tensor) -> Callable[[], None]:
    return lambda: None


@pytest.mark.parametrize(
    ("execution", "device", "facts"),
    [
        ("eager", CPU, (False, False, False, "eager")),
        ("native", CPU, (True, False, False, "native")),
        ("native", CUDA, (True, False, True, "native")),
        ("compile", CPU, (False, True, False, "eager")),
        ("cudagraph", CUDA, (False, False, True, "cudagraph")),
        ("compile+cudagraph", CUDA, (False, True, True, "cudagraph")),
    ],
)
def test_a_mode_is_what_its_name_says(
    execution: str, device: torch.device, facts: tuple[Any, ...]
) -> None:
    mode = mode_of(execution, device)
    assert (mode.native, mode.compiles, mode.graphs, mode.plain) == facts
    assert mode.name == execution
    assert mode.eager == (execution == "eager")


def test_only_auto_and_native_may_need_the_c() -> None:
    assert [name for name in EXECUTIONS if may_be_native(name)] == ["auto", "native"]
    assert [name for name in EXECUTIONS if is_auto(name)] == ["auto"]


def test_a_step_runs_as_its_mode_says() -> None:
    def run(execution: str, device: torch.device, **given: Any) -> Any:
        mode = mode_of(execution, device)
        return run_step(lambda: None, mode, device, snapshot=snapshot, **given)

    for execution, device in (("eager", CPU), ("native", CPU)):
        assert isinstance(run(execution, device), EagerStep)
    for execution in ("cudagraph", "native", "compile+cudagraph"):
        assert isinstance(run(execution, CUDA), CudaGraphStep)
    moving = run("compile+cudagraph", CUDA, background=True)
    assert isinstance(moving, PlainUntilCompiled)
    assert isinstance(moving.plain, CudaGraphStep)
    assert isinstance(moving.fast, CudaGraphStep)
    plain = run("cudagraph", CUDA)
    assert run("compile+cudagraph", CUDA, background=True, plain=plain).plain is plain
    for device, kind in ((CPU, AheadOfTime), (CUDA, InProcess)):
        for background in (False, True):
            step = run("compile", device, background=background)
            assert isinstance(step, CompiledStep)
            assert isinstance(step.compiler, kind)
    no_graph = run_step(lambda: None, mode_of("cudagraph", CUDA), CUDA)
    assert isinstance(no_graph, EagerStep)  # without what takes a warm-up back
