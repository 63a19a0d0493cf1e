"""What runs a pure step in a mode: the one place where a mode becomes a step.

The plain function is the truth. Everything here wraps it from outside, at one line.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from fastdqn.execution.ahead import AheadOfTime
from fastdqn.execution.compile import CompiledStep
from fastdqn.execution.cuda_graph import Cuda, CudaGraphStep
from fastdqn.execution.in_process import InProcess
from fastdqn.execution.modes import Mode
from fastdqn.execution.step import EagerStep, PlainUntilCompiled, PureStep, Step

__all__ = ["run_step"]


def run_step(
    step: PureStep,
    mode: Mode,
    device: torch.device,
    *,
    snapshot: Callable[..., Callable[[], None]] | None = None,
    plain: Step | None = None,
    by_row: bool = False,
    static: bool = True,
    ahead: bool = False,
    background: bool = False,
    cuda: Cuda = torch.cuda,
) -> Step:
    """Return the step that runs a pure function in a mode.

    Args:
        step: A function of tensors of fixed shapes that writes its results in place.
        mode: From `mode_of`.
        device: Where the tensors live.
        snapshot: Copies what the step changes; see `CudaGraphStep`. Without it no graph is made.
        plain: What runs the step as a graph without a compiler, or None where nothing does yet.
        by_row: The step does the same for each row of its last tensor, one after another.
        static: Its tensors lie at the same addresses at each call with such shapes.
        ahead: On the CPU, compile ahead of time into a library on disk; see `AheadOfTime`.
        background: Start with what needs no compiler, and change when the rest is ready.
        cuda: `torch.cuda`, or a fake of it.
    """
    inner: Step = EagerStep(step)
    if mode.compiles:
        kind = AheadOfTime if ahead and device.type == "cpu" and not mode.graphs else InProcess
        compiler = kind(device, background=background)
        inner = CompiledStep(step, compiler, background=background, by_row=by_row)
    if not mode.graphs or snapshot is None:
        return inner
    options: Any = {"device": device, "cuda": cuda, "copies_inputs": not static}
    graph = CudaGraphStep(inner, snapshot, **options)
    if not (mode.compiles and background):
        return graph
    return PlainUntilCompiled(plain or CudaGraphStep(EagerStep(step), snapshot, **options), graph)
