"""Which way a step is run: what is chosen, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fastdqn.errors import UsageError
from fastdqn.execution import WORTH_COMPILING_UPDATES, accelerate, choose_execution

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
        (CUDA, FEW, "eager"),
        (CUDA, MANY, "compile"),
        (MPS, FEW, "eager"),
        (MPS, MANY, "eager"),
    ],
)
def test_auto_compiles_where_the_updates_repay_it(
    device: torch.device, updates: int, mode: str
) -> None:
    chosen, why = choose_execution("auto", device, updates)
    assert chosen == mode
    assert why == "MPS runs it as it is" or f"{updates:,} updates" in why


@pytest.mark.usefixtures("no_compiler")
def test_without_a_compiler_auto_is_eager_on_the_cpu_and_says_why() -> None:
    assert choose_execution("auto", CPU, MANY) == ("eager", "no C++ compiler on the PATH")
    assert choose_execution("auto", CUDA, MANY)[0] == "compile"


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


@pytest.mark.parametrize("device", [CPU, CUDA])
def test_cuda_graphs_are_refused_with_what_to_use_instead(device: torch.device) -> None:
    with pytest.raises(UsageError, match=rf"cudagraph on {device}: .*--execution compile"):
        choose_execution("cudagraph", device, MANY)


@pytest.mark.parametrize("asked", ["", "fast", "Eager"])
def test_an_unknown_mode_is_refused_with_the_list(asked: str) -> None:
    with pytest.raises(UsageError, match="Choose auto, eager, compile, cudagraph"):
        choose_execution(asked, CPU, MANY)


def test_eager_runs_the_very_function() -> None:
    def step() -> None:
        raise AssertionError("never called")

    assert accelerate(step, "eager", CPU) is step
    assert accelerate(step, "compile", CPU) is not step
