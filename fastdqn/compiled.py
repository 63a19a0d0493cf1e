"""A step compiled whole, from outside, before its first call."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from torch import Tensor

from fastdqn.compiler import AHEAD, CompileError, Compiles
from fastdqn.errors import UsageError
from fastdqn.tracing import Leaves, UntraceableError, tensors_of, trace
from fastdqn.variants import AheadOfTime, Run

__all__ = ["Compiled"]


class Compiled(AheadOfTime):
    """A step compiled whole, once for each set of shapes of its arguments; the caller waits.

    On the CPU what was compiled is kept on disk, and loading it takes milliseconds; see
    `compile_cache`. Elsewhere, and where no library can be made, this process compiles it.

    Dataclasses, tuples and lists among the arguments keep their tensors, and the step whatever
    else it reads: what changes from call to call is what the tensors hold.

    Args:
        step: What to compile; writes its results in place.
        device: Where its tensors live.
        by_row: The step does the same for each row of its last argument, one row after another.
        compiler: Compiles for the CPU.

    Attributes:
        compile_s: Seconds spent compiling so far, or loading what was compiled before.
        loaded: Variants that were found on disk.
        made: Variants that were compiled ahead.
        fallback: Why this process compiles it, or None.

    Raises:
        UsageError: At a call: the step is not one fixed list of operations.
    """

    def __init__(
        self,
        step: Callable[..., None],
        device: torch.device,
        *,
        by_row: bool = False,
        compiler: Compiles = AHEAD,
    ) -> None:
        super().__init__(step, device, by_row=by_row, compiler=compiler)
        self._inside = _Inside(step, device, by_row=by_row)
        self.fallback = None if device.type == "cpu" else f"{device.type} is compiled inside"
        self._ahead_s = 0.0

    @property
    def compile_s(self) -> float:
        """Seconds spent compiling so far, or loading what was compiled before."""
        return self._ahead_s + self._inside.compile_s

    def __call__(self, *args: Any) -> None:
        """Run the step; compiles first where the shapes are new."""
        if self.fallback is not None:
            self._inside(*args)
            return
        try:
            variant, tensors = self._leaves(args)
            run = self._runs.get(variant) or self._prepare(variant, args)
        except (CompileError, UntraceableError) as error:
            self.fallback = str(error)
            self._inside(*args)
            return
        run(tensors)

    def _prepare(self, variant: Hashable, args: tuple[Any, ...]) -> Run:
        start = time.perf_counter()
        try:
            run = self._runs[variant] = self._variants.find(args).result()
        finally:
            self._ahead_s += time.perf_counter() - start
            self._variants.close()  # of an interrupted wait nobody asks for the end
        return run


class _Inside:
    """A step compiled in this process, once for each set of shapes of its arguments.

    What is compiled is its trace, so that a call asks for nothing again, and how PyTorch follows
    Python does not matter. On the CPU the C++ wrapper is used. Elsewhere a step that goes by row
    is compiled for a single row, however many there are: what a call takes of the host is hidden
    there, by the device's queue or by a graph, and sixteen updates in one function compile for
    minutes.
    """

    def __init__(self, step: Callable[..., None], device: torch.device, *, by_row: bool) -> None:
        self._step, self._cpu = step, device.type == "cpu"
        self._by_row = by_row and not self._cpu
        self._leaves = Leaves()
        self._runs: dict[Hashable, Callable[[Sequence[Tensor]], object]] = {}
        self.compile_s = 0.0

    def __call__(self, *args: Any) -> None:
        if not self._by_row:
            self._call(args)
            return
        *others, rows = args
        for row in rows.split(1):
            self._call((*others, row))

    def _call(self, args: tuple[Any, ...]) -> None:
        try:
            variant, tensors = self._leaves(args)
            run = self._runs.get(variant) or self._compile(variant, args)
        except UntraceableError as error:
            raise UsageError(
                "--execution compile", f"the step cannot be compiled: {error}", "Use eager."
            ) from error
        run(tensors)

    def _compile(
        self, variant: Hashable, args: tuple[Any, ...]
    ) -> Callable[[Sequence[Tensor]], object]:
        from torch import _inductor as inductor  # noqa: PLC0415 - takes 1.5 s to load

        start = time.perf_counter()
        traced = trace(self._step, args)
        inputs: list[Any] = [*tensors_of(args), *traced.held]
        compiled = inductor.compile(traced.graph, inputs, options={"cpp_wrapper": self._cpu})

        def run(tensors: Sequence[Tensor]) -> None:
            compiled(*tensors, *traced.held)

        self._runs[variant] = run
        self.compile_s += time.perf_counter() - start
        return run
