"""How a pure step is run fast: the plain function, compiled, or captured in a CUDA graph.

The plain function is the truth. Everything here wraps it from outside, at one line.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from typing import Any

import torch

from fastdqn.errors import UsageError
from fastdqn.execution.background import Background
from fastdqn.execution.compiled import Compiled, CompiledInside
from fastdqn.execution.cuda_graph import CudaGraphStep
from fastdqn.execution.meanwhile import Meanwhile

__all__ = [
    "COMPILING",
    "EXECUTIONS",
    "GRAPHS",
    "WORTH_COMPILING_UPDATES",
    "accelerate",
    "choose_execution",
    "chunks",
    "refuse_execution",
    "refuse_step_execution",
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


def refuse_step_execution(execution: str, device: torch.device) -> None:
    """Refuse ways in which a pure step cannot be run; `auto` is for those who choose.

    Raises:
        UsageError: There is no such way, or not on this device.
    """
    ways = [way for way in EXECUTIONS if way != "auto"]
    if execution not in ways:
        raise UsageError(
            f"--execution {execution}", "a step runs in no such way", f"Choose {', '.join(ways)}."
        )
    if execution in GRAPHS or execution == "native":
        refuse_execution(execution, device)


def chunks(updates: int, sizes: Sequence[int]) -> list[int]:
    """Split a number of updates into calls of a few fixed sizes, largest first."""
    calls: list[int] = []
    for size in sizes:
        count, updates = divmod(updates, size)
        calls += [size] * count
    return calls


def accelerate(
    step: Callable[..., None],
    execution: str,
    device: torch.device,
    snapshot: Callable[..., Callable[[], None]] | None = None,
    cuda: Any = torch.cuda,
    *,
    by_row: bool = False,
    background: bool = False,
) -> Callable[..., None]:
    """Return `step` itself, or a stand-in that does the same to its arguments, but faster.

    Args:
        step: A function of tensors of fixed shapes that writes its results in place.
        execution: One of EXECUTIONS, but not `auto`.
        device: Where the tensors live.
        snapshot: Copies what `step` changes; see `CudaGraphStep`. Graphs need it.
        cuda: `torch.cuda`, or what stands in for it.
        by_row: The step does the same for each row of its last argument, one after another.
        background: Start with what needs no compiler, and move when the rest is ready; see
            `Background` for the CPU and `Meanwhile` for CUDA.

    Raises:
        UsageError: There is no such way.
    """
    if execution in GRAPHS and snapshot is not None:
        plain = CudaGraphStep(step, snapshot, device=device, cuda=cuda)
        if execution not in COMPILING:
            return plain
        inside = CompiledInside(step, device, by_row=by_row)
        fast = CudaGraphStep(inside, snapshot, device=device, cuda=cuda)
        return Meanwhile(plain, fast, inside.needs) if background else fast
    if execution not in {"eager", "compile"}:
        raise UsageError(
            f"--execution {execution}", "a step runs in no such way", "Choose eager or compile."
        )
    if execution == "eager":
        return step
    if background and device.type == "cpu":
        return Background(step, device, by_row=by_row)
    if background and device.type == "cuda":
        inside = CompiledInside(step, device, by_row=by_row)
        return Meanwhile(step, inside, inside.needs, undone=False)
    return Compiled(step, device, by_row=by_row)
