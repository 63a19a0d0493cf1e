"""Execution modes: their names and what they mean, which of them a machine allows, and `auto`.

Names are compared here alone; others read the facts of a `Mode`. Loads no PyTorch.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from fastdqn.errors import UsageError

if TYPE_CHECKING:
    import torch

__all__ = [
    "EXECUTIONS",
    "WORTH_COMPILING_UPDATES",
    "Mode",
    "choose_execution",
    "chunks",
    "is_auto",
    "may_be_native",
    "mode_of",
    "refuse_execution",
    "worth_trying",
]


@dataclass(frozen=True, slots=True)
class Mode:
    """What a mode means for a step.

    Attributes:
        name: As in `--execution`.
        native: C or CUDA C does what it can of the step.
        compiles: PyTorch compiles the step.
        graphs: The step is recorded as a CUDA graph, as it is or compiled.
    """

    name: str
    native: bool = False
    compiles: bool = False
    graphs: bool = False

    @property
    def eager(self) -> bool:
        """Whether the step runs as it is."""
        return not (self.native or self.compiles or self.graphs)

    @property
    def plain(self) -> str:
        """The name of the mode that does the same without PyTorch's compiler."""
        if self.native:
            return self.name
        return "cudagraph" if self.graphs else "eager"


MODES = {
    mode.name: mode
    for mode in (
        Mode("eager"),
        Mode("native", native=True),
        Mode("compile", compiles=True),
        Mode("cudagraph", graphs=True),
        Mode("compile+cudagraph", compiles=True, graphs=True),
    )
}
EXECUTIONS = ("auto", *MODES)
WORTH_COMPILING_UPDATES = 20_000
"""A cold compile (20 s on two cores) beside the trainer takes as long as so many small updates."""
WORTH_TRYING_UPDATES = 1_000
"""Fewer take less time than a measurement."""
SMALL_NETWORK_PARAMETERS = 1_000_000
"""Below this a network's arithmetic takes less than what MPS takes to start it, 25 us each time."""

Measure = Callable[[Sequence[str]], tuple[str, str]]
"""Times modes; returns the fastest, and one clause that says what was measured."""


def choose_execution(
    asked: str,
    device: torch.device,
    expected_updates: int,
    *,
    tensor_envs: bool = False,
    parameters: int = SMALL_NETWORK_PARAMETERS,
    measure: Measure | None = None,
    why_not_native: Callable[[], str | None] = lambda: "not looked up",
) -> tuple[str, str]:
    """Turn `auto` into a mode and check the others against the machine.

    Args:
        asked: What the user wants.
        device: Where the tensors live.
        expected_updates: Updates of the whole run.
        tensor_envs: Whether environments and updates are one function.
        parameters: Of the network.
        measure: Times the modes that are worth it; None only applies the rules.
        why_not_native: Says why the step cannot run in C, or None; may take seconds.

    Returns:
        The mode, and one clause that says why.

    Raises:
        UsageError: The mode is unknown or cannot run on this device.
    """
    refuse_execution(asked, device)
    if not is_auto(asked):
        return asked, "as asked"
    if device.type == "mps":
        small = parameters < SMALL_NETWORK_PARAMETERS
        hint = "; --device cpu is likely faster for so small a network" if small else ""
        return "eager", f"MPS runs it as it is{hint}"
    if device.type == "cpu":
        return _on_the_cpu(expected_updates, measure, why_not_native)
    if tensor_envs:
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
    flag, mode = f"--execution {asked}", MODES.get(asked)
    if asked not in EXECUTIONS:
        raise UsageError(flag, "there is no such mode", f"Choose {', '.join(EXECUTIONS)}.")
    if mode is None:
        return
    if mode.native and device.type not in {"cpu", "cuda"}:
        way_out = "Use --execution eager, or --device cpu."
        raise UsageError(f"{flag} on {device}", "it runs on the CPU and on CUDA", way_out)
    if mode.graphs and device.type != "cuda":
        way_out = "Use --execution compile, or --device cuda."
        raise UsageError(f"{flag} on {device}", "CUDA graphs need CUDA", way_out)
    if mode.compiles and device.type == "cpu" and not _has_compiler():
        raise UsageError(
            flag,
            "PyTorch compiles for the CPU with a C++ compiler, and none is on the PATH",
            "Install g++ or clang++, or use --execution eager.",
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
    if MODES[mode].graphs and not native and expected_updates >= WORTH_COMPILING_UPDATES:
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


def _has_compiler() -> bool:
    return any(shutil.which(name) for name in ("g++", "c++", "clang++"))


def mode_of(execution: str, device: torch.device) -> Mode:
    """Return what a mode means on a device; `auto` has to be resolved before.

    Raises:
        UsageError: There is no such mode, or not on this device.
    """
    mode = MODES.get(execution)
    if mode is None:
        way_out = f"Choose {', '.join(MODES)}."
        raise UsageError(f"--execution {execution}", "a step has no such mode", way_out)
    if mode.native or mode.graphs:
        refuse_execution(execution, device)
    return replace(mode, graphs=mode.graphs or (mode.native and device.type == "cuda"))


def is_auto(asked: str) -> bool:
    """Return whether the mode is left to the run; then no call ever waits for a compiler."""
    return asked == "auto"


def may_be_native(asked: str) -> bool:
    """Return whether the C may be needed."""
    return is_auto(asked) or MODES[asked].native


def chunks(updates: int, sizes: Sequence[int]) -> list[int]:
    """Split a number of updates into calls of a few fixed sizes, largest first."""
    calls: list[int] = []
    for size in sizes:
        count, updates = divmod(updates, size)
        calls += [size] * count
    return calls
