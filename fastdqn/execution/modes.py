"""How a pure step is run fast: the plain function, compiled, or captured in a CUDA graph.

The plain function is the truth. Everything here wraps it from outside, at one line.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from fastdqn.errors import UsageError
from fastdqn.execution.ahead import AheadOfTime
from fastdqn.execution.compile import CompiledStep
from fastdqn.execution.cuda_graph import CudaGraphStep
from fastdqn.execution.in_process import InProcess
from fastdqn.execution.step import EagerStep, PlainUntilCompiled, PureStep, Step

__all__ = [
    "EXECUTIONS",
    "WORTH_COMPILING_UPDATES",
    "Mode",
    "choose_execution",
    "chunks",
    "mode_of",
    "refuse_execution",
    "run_step",
    "worth_trying",
]

EXECUTIONS = ("auto", "eager", "native", "compile", "cudagraph", "compile+cudagraph")
GRAPHS = ("cudagraph", "compile+cudagraph")
"""Those that record the step as a CUDA graph, as it is or compiled."""
COMPILING = ("compile", "compile+cudagraph")
"""Those that compile the step."""
WORTH_COMPILING_UPDATES = 20_000
"""A cold compile (20 s on two cores) beside the trainer takes as long as so many small updates."""
WORTH_TRYING_UPDATES = 1_000
"""Fewer are done by the time that anything faster has been looked for."""
SMALL_NETWORK_PARAMETERS = 1_000_000
"""Below this a network's arithmetic takes less than what MPS takes to start it, 25 us each time."""

Measure = Callable[[Sequence[str]], tuple[str, str]]
"""Tries ways to run; returns the fastest, and one clause that tells what was measured."""


def choose_execution(
    asked: str,
    device: torch.device,
    expected_updates: int,
    *,
    fused: bool = False,
    parameters: int = SMALL_NETWORK_PARAMETERS,
    measure: Measure | None = None,
    why_not_native: Callable[[], str | None] = lambda: "nobody has looked",
) -> tuple[str, str]:
    """Turn `auto` into a mode and check the others against the machine.

    Args:
        asked: What the user wants.
        device: Where the tensors live.
        expected_updates: Updates of the whole run.
        fused: Whether environments and updates are one function.
        parameters: Of the network.
        measure: Tries the ways that are worth it; None says only which rule holds.
        why_not_native: Says why the step cannot run in C, or None; may take seconds.

    Returns:
        The mode, and one clause that says why.

    Raises:
        UsageError: The mode is unknown or cannot run on this device.
    """
    refuse_execution(asked, device)
    if asked != "auto":
        return asked, "as asked"
    if device.type == "mps":
        return "eager", _on_mps(parameters)
    if device.type == "cpu":
        return _on_the_cpu(expected_updates, measure, why_not_native)
    if fused:
        why_not = why_not_native()
        mode = "native" if why_not is None else "compile+cudagraph"
        message = "" if why_not is None else f"; not native: {why_not}"
        return mode, f"tensor environments and updates are one graph{message}"
    return _on_cuda(expected_updates, measure, native=why_not_native() is None)


def refuse_execution(asked: str, device: torch.device) -> None:
    """Refuse a mode that does not exist, or cannot run on this device.

    Raises:
        UsageError: Names the mode, the device and the way out.
    """
    if asked not in EXECUTIONS:
        raise UsageError(
            f"--execution {asked}", "there is no such mode", f"Choose {', '.join(EXECUTIONS)}."
        )
    if asked == "compile" and device.type == "cpu" and not _has_compiler():
        raise UsageError(
            "--execution compile",
            "PyTorch compiles for the CPU with a C++ compiler, and none is on the PATH",
            "Install g++ or clang++, or use --execution eager.",
        )
    if asked == "native" and device.type not in {"cpu", "cuda"}:
        raise UsageError(
            f"--execution native on {device}",
            "it runs on the CPU and on CUDA",
            "Use --execution eager, or --device cpu.",
        )
    if asked in GRAPHS and device.type != "cuda":
        raise UsageError(
            f"--execution {asked} on {device}",
            "CUDA graphs need CUDA",
            "Use --execution compile, or --device cuda.",
        )


def worth_trying(*, native: bool) -> list[str]:
    """Return the modes that a run should try on CUDA before it starts, the plainest first.

    None of them waits for PyTorch's compiler.

    Args:
        native: Whether the step can run natively.
    """
    return ["eager", "cudagraph", *(["native"] if native else [])]


def _on_cuda(expected_updates: int, measure: Measure | None, *, native: bool) -> tuple[str, str]:
    if measure is None:
        return "native" if native else "cudagraph", "a run measures before it starts"
    mode, message = measure(worth_trying(native=native))
    if mode == "cudagraph" and not native and expected_updates >= WORTH_COMPILING_UPDATES:
        return "compile+cudagraph", f"{message}; {expected_updates:,} updates repay a compile"
    return mode, message


def _on_the_cpu(
    expected_updates: int, measure: Measure | None, why_not_native: Callable[[], str | None]
) -> tuple[str, str]:
    if expected_updates < WORTH_TRYING_UPDATES:
        return "eager", f"{expected_updates:,} updates are done sooner than a trial"
    why_not = why_not_native()
    if why_not is None:
        return measure(["eager", "native"]) if measure else ("native", "the network is an MLP")
    if expected_updates < WORTH_COMPILING_UPDATES:
        return "eager", f"not native: {why_not}; too few updates to repay a compile"
    if not _has_compiler():
        return "eager", f"not native: {why_not}; no C++ compiler on the PATH"
    return "compile", f"not native: {why_not}; {expected_updates:,} updates repay a compile"


def _on_mps(parameters: int) -> str:
    if parameters < SMALL_NETWORK_PARAMETERS:
        return "MPS runs it as it is; --device cpu is likely faster for so small a network"
    return "MPS runs it as it is"


def _has_compiler() -> bool:
    return any(shutil.which(name) for name in ("g++", "c++", "clang++"))


@dataclass(frozen=True, slots=True)
class Mode:
    """What a mode means for a step on some device.

    Attributes:
        name: One of EXECUTIONS, but not `auto`.
        native: C or CUDA C does what it can of the step.
        compiles: PyTorch compiles the step.
        graphs: The step is recorded as a CUDA graph, as it is or compiled.
        plain: The mode that does the same without PyTorch's compiler.
    """

    name: str
    native: bool
    compiles: bool
    graphs: bool
    plain: str


def mode_of(execution: str, device: torch.device) -> Mode:
    """Return what a mode means on a device; `auto` is for those who choose.

    Raises:
        UsageError: There is no such mode, or not on this device.
    """
    names = [name for name in EXECUTIONS if name != "auto"]
    if execution not in names:
        raise UsageError(
            f"--execution {execution}", "a step runs in no such way", f"Choose {', '.join(names)}."
        )
    native, graphs = execution == "native", execution in GRAPHS
    if graphs or native:
        refuse_execution(execution, device)
    graphs = graphs or (native and device.type == "cuda")
    plain = execution if native else "cudagraph" if graphs else "eager"
    return Mode(execution, native, execution in COMPILING, graphs, plain)


def chunks(updates: int, sizes: Sequence[int]) -> list[int]:
    """Split a number of updates into calls of a few fixed sizes, largest first."""
    calls: list[int] = []
    for size in sizes:
        count, updates = divmod(updates, size)
        calls += [size] * count
    return calls


def run_step(
    step: PureStep,
    mode: Mode,
    device: torch.device,
    *,
    snapshot: Callable[..., Callable[[], None]] | None = None,
    plain: Step | None = None,
    by_row: bool = False,
    kept: bool = True,
    ahead: bool = False,
    background: bool = False,
    cuda: Any = torch.cuda,
) -> Step:
    """Return what runs a pure step in a mode.

    Args:
        step: A function of tensors of fixed shapes that writes its results in place.
        mode: From `mode_of`.
        device: Where the tensors live.
        snapshot: Copies what the step changes; see `CudaGraphStep`. Without it no graph is made.
        plain: What runs the step as a graph without a compiler, or None where nothing does yet.
        by_row: The step does the same for each row of its last tensor, one after another.
        kept: Its tensors lie at one place at each call with such shapes.
        ahead: On the CPU, compile ahead and keep the library; see `AheadOfTime`.
        background: Start with what needs no compiler, and move when the rest is ready.
        cuda: `torch.cuda`, or what stands in for it.
    """
    inner: Step = EagerStep(step)
    if mode.compiles:
        kind = AheadOfTime if ahead and device.type == "cpu" and not mode.graphs else InProcess
        compiler = kind(device, background=background)
        inner = CompiledStep(step, compiler, background=background, by_row=by_row)
    if not mode.graphs or snapshot is None:
        return inner
    given: Any = {"device": device, "cuda": cuda, "static": not kept}
    graph = CudaGraphStep(inner, snapshot, **given)
    if not (mode.compiles and background):
        return graph
    return PlainUntilCompiled(plain or CudaGraphStep(EagerStep(step), snapshot, **given), graph)
