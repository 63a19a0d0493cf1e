"""A step compiled whole, from outside, before its first call."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fastdqn.errors import UsageError
from fastdqn.execution.compiler import AHEAD, CompileError, Compiles
from fastdqn.execution.trace import FlatArguments, Trace, UntraceableError, tensors_of, trace
from fastdqn.execution.variants import AheadOfTime, Run

__all__ = ["Compiled", "CompiledInside"]


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
        self._inside = CompiledInside(step, device, by_row=by_row)
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


class CompiledInside:
    """A step compiled in this process, once for each set of shapes of its arguments.

    What is compiled is its trace, so that a call asks for nothing again, and how PyTorch follows
    Python does not matter. On the CPU the C++ wrapper is used. Elsewhere a step that goes by row
    is compiled for a single row, however many there are: what a call takes of the host is hidden
    there, by the device's queue or by a graph, and sixteen updates in one function compile for
    minutes.

    Args:
        step: What to compile; writes its results in place.
        device: Where its tensors live.
        by_row: The step does the same for each row of its last argument, one row after another.

    Attributes:
        compile_s: Seconds for which calls waited for the compiler so far.

    Raises:
        UsageError: At a call: the step is not one fixed list of operations.
    """

    def __init__(
        self, step: Callable[..., None], device: torch.device, *, by_row: bool = False
    ) -> None:
        self._step, self._cpu = step, device.type == "cpu"
        self._by_row = by_row and not self._cpu
        self._leaves = FlatArguments()
        self._runs: dict[Hashable, Run] = {}
        self.compile_s = 0.0

    def __call__(self, *args: Any) -> None:
        """Run the step; compiles first where the shapes are new."""
        if not self._by_row:
            self._call(args)
            return
        *others, rows = args
        for row in rows.split(1):
            self._call((*others, row))

    def has(self, *args: Any) -> bool:
        """Return whether a call with such arguments finds everything compiled."""
        return self._leaves(self._one(args))[0] in self._runs

    def needs(self, *args: Any) -> list[tuple[CompiledInside, tuple[Any, ...]]]:
        """Return what a call with such arguments needs, see `Meanwhile`: this step alone."""
        return [(self, args)]

    def later(self, *args: Any) -> Callable[[], Callable[[], None]]:
        """Write the step down for such arguments; nothing is run.

        Returns:
            Compiles it, in any thread, and returns what lets calls use it from then on.

        Raises:
            UntraceableError: The step is not one fixed list of operations.
        """
        args = self._one(args)
        variant, tensors = self._leaves(args)
        traced = trace(self._step, args)

        def compiles() -> Callable[[], None]:
            # A measurement would wait for the whole card, which may be recording meanwhile.
            run = _by_inductor(traced, tensors, {**self._options, "shape_padding": False})
            return partial(self._runs.__setitem__, variant, run)

        return compiles

    @property
    def _options(self) -> dict[str, Any]:
        return {"cpp_wrapper": self._cpu}

    def _one(self, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """Return what is compiled at a time: of steps that go by row, a single one."""
        return (*args[:-1], args[-1][:1]) if self._by_row else args

    def _call(self, args: tuple[Any, ...]) -> None:
        try:
            variant, tensors = self._leaves(args)
            run = self._runs.get(variant) or self._compile(variant, args)
        except UntraceableError as error:
            raise UsageError(
                "--execution compile", f"the step cannot be compiled: {error}", "Use eager."
            ) from error
        run(tensors)

    def _compile(self, variant: Hashable, args: tuple[Any, ...]) -> Run:
        start = time.perf_counter()
        traced = trace(self._step, args)
        run = self._runs[variant] = _by_inductor(traced, list(tensors_of(args)), self._options)
        self.compile_s += time.perf_counter() - start
        return run


def _by_inductor(traced: Trace, tensors: Sequence[Tensor], options: dict[str, Any]) -> Run:
    """Compile for tensors of which nothing is read but how they lie."""
    from torch import _inductor as inductor  # noqa: PLC0415 - takes 1.5 s to load

    place = tensors[0].device
    with torch.cuda.device(place) if place.type == "cuda" else nullcontext():
        compiled = inductor.compile(traced.graph, [*tensors, *traced.held], options=options)

    def run(tensors: Sequence[Tensor]) -> None:
        compiled(*tensors, *traced.held)

    return run
