"""How a pure step is run fast: the plain function, compiled, or captured in a CUDA graph.

The plain function is the truth. Everything here wraps it from outside, at one line.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable

import torch

from fastdqn.compiled import Compiled
from fastdqn.errors import UsageError

__all__ = ["EXECUTIONS", "accelerate", "choose_execution", "refuse_block_execution"]

EXECUTIONS = ("auto", "eager", "native", "compile", "cudagraph")
BLOCK_EXECUTIONS = ("eager", "native", "compile", "cudagraph")
WORTH_COMPILING_UPDATES = 20_000
"""A cold compile (20 s on two cores) takes as long as compiling 35,000 small updates saves, a warm
one (3 s) as long as 5,000."""


def choose_execution(
    asked: str, device: torch.device, expected_updates: int, *, graphs: bool = False
) -> tuple[str, str]:
    """Turn `auto` into a mode and check the others against the machine.

    Args:
        asked: What the user wants.
        device: Where the tensors live.
        expected_updates: Updates of the whole run.
        graphs: Whether what runs can be captured in a CUDA graph.

    Returns:
        The mode, and one clause that says why.

    Raises:
        UsageError: The mode is unknown or cannot run on this device.
    """
    if asked in {"eager", "native"}:
        return asked, "as asked"
    if asked == "compile":
        if device.type == "cpu" and not _has_compiler():
            raise UsageError(
                "--execution compile",
                "PyTorch compiles for the CPU with a C++ compiler, and none is on the PATH",
                "Install g++ or clang++, or use --execution eager.",
            )
        return asked, "as asked"
    if asked == "auto":
        if graphs and device.type == "cuda":
            return "cudagraph", "tensor environments and updates are one graph"
        return _automatic(device, expected_updates)
    if asked == "cudagraph":
        if graphs and device.type == "cuda":
            return asked, "as asked"
        raise UsageError(
            f"--execution cudagraph on {device}",
            "this version captures tensor environments on CUDA only",
            "Use --execution compile, or --vectorizer tensor on a CUDA device.",
        )
    raise UsageError(
        f"--execution {asked}", "there is no such mode", f"Choose {', '.join(EXECUTIONS)}."
    )


def _automatic(device: torch.device, expected_updates: int) -> tuple[str, str]:
    if device.type == "mps":
        return "eager", "MPS runs it as it is"
    if expected_updates < WORTH_COMPILING_UPDATES:
        return "eager", f"{expected_updates:,} updates are done sooner than a compile"
    if device.type == "cpu" and not _has_compiler():
        return "eager", "no C++ compiler on the PATH"
    return "compile", f"{expected_updates:,} updates repay a compile"


def _has_compiler() -> bool:
    return any(shutil.which(name) for name in ("g++", "c++", "clang++"))


def refuse_block_execution(execution: str, device: torch.device) -> None:
    """Refuse ways in which a block of tensor environments and updates cannot run.

    Raises:
        UsageError: There is no such way, or not on this device.
    """
    if execution not in BLOCK_EXECUTIONS:
        raise UsageError(
            f"--execution {execution}",
            "no block runs so",
            f"Choose {', '.join(BLOCK_EXECUTIONS)}.",
        )
    if execution == "cudagraph" and device.type != "cuda":
        raise UsageError(
            f"--execution cudagraph on {device}",
            "CUDA graphs need CUDA",
            "Use --execution compile.",
        )


def accelerate(
    step: Callable[..., None], execution: str, device: torch.device
) -> Callable[..., None]:
    """Return `step` itself, or a compiled stand-in that does the same to its arguments.

    Args:
        step: A function of tensors of fixed shapes that writes its results in place.
        execution: `eager` or `compile`.
        device: Where the tensors live.

    Raises:
        UsageError: The mode is neither.
    """
    if execution not in {"eager", "compile"}:
        raise UsageError(
            f"--execution {execution}", "a step runs in no such way", "Choose eager or compile."
        )
    return Compiled(step, device) if execution == "compile" else step
