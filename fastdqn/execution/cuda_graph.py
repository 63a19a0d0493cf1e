"""A step recorded once as a CUDA graph and replayed: one launch for everything in it.

A graph holds addresses, not values. Its arguments are therefore static inputs: tensors that the
caller fills in place, or copies that are made here of tensors that lie elsewhere at each call. All
else that the step reads or writes must never move.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from fastdqn.execution.step import Step, StepGroup
from fastdqn.execution.trace import COMPILER

__all__ = ["Cuda", "CudaGraphStep", "Pool"]

Restore = Callable[[], None]
Cuda = Any
"""`torch.cuda`, or a fake of it; a module, and so without a type."""
Graph = Any
"""What `torch.cuda.CUDAGraph` makes."""
Arguments = Sequence[Any]
"""Tensors, and None for one that is missing, which steps need not know."""
Pool = Callable[[], object]
"""Returns the handle of memory that graphs share, always the same."""

WARMUPS = 3
"""Runs before a recording."""
CAPTURE_ERRORS = "thread_local"
"""Which unsafe calls to CUDA a recording forbids: those of its own thread. Another thread may
compile, and load what it compiled."""


class CudaGraphStep(StepGroup):
    """A step as CUDA graphs, one for each variant, all in one memory pool.

    A variant is a set of addresses and shapes of tensors. The first call with one warms the step
    up on a side stream (libraries allocate, compilers compile, autograd settles), restores what
    that changed, records the graph and replays it; every later call replays it. A first call
    that fails has changed nothing; one that fails while another thread compiles runs unrecorded.

    Graphs share the pool because they never run at the same time: the next one may overwrite the
    intermediate results of the last.

    Args:
        step: Writes its results in place; never waits for the device. What it has to compile is
            compiled at the first call, unless it says that it is not there yet.
        snapshot: Copies what `step` changes, called with the arguments; returns what restores it.
        device: Where the tensors live; None is the current CUDA device.
        copies_inputs: Copy the tensors into static inputs, for callers whose tensors lie elsewhere
            at each call; the step writes nothing into them.
        pool: What it shares with other steps that never run at the same time; None is its own.
        cuda: `torch.cuda`, or a fake of it.
    """

    def __init__(
        self,
        step: Step,
        snapshot: Callable[..., Restore],
        *,
        device: torch.device | None = None,
        copies_inputs: bool = False,
        pool: Pool | None = None,
        cuda: Cuda = torch.cuda,
    ) -> None:
        super().__init__([step])
        self._step, self._snapshot, self._cuda = step, snapshot, cuda
        self._device, self._copies_inputs = device, copies_inputs
        self._inputs: dict[Hashable, Tensor] = {}
        self._graphs: dict[Hashable, Graph] = {}
        self._pool = pool or cache(cuda.graph_pool_handle)
        self._recording_s = 0.0

    @property
    def wait_s(self) -> float:
        """Seconds for which calls waited: for the step, for warming it up and for recording it."""
        return self._recording_s + super().wait_s

    def has(self, *tensors: Tensor) -> bool:
        """Return whether all that a recording with such tensors needs is compiled."""
        return self._step.has(*self._static_inputs(tensors))

    def prepare(self, *tensors: Tensor) -> None:
        """Ask for what a recording with such tensors needs."""
        self._step.prepare(*self._static_inputs(tensors))

    def __call__(self, *arguments: Tensor | None) -> None:
        """Replay the graph of these tensors; records it first where it is new."""
        tensors = self._static_inputs(arguments)
        if self._copies_inputs:
            for place, tensor in zip(tensors, arguments, strict=True):
                place.copy_(tensor)
        key = tuple([_identity(tensor) for tensor in tensors])
        graph = self._graphs.get(key) or self._new_graph(key, tensors)
        if graph is None:
            self._step(*tensors)
        else:
            graph.replay()

    def _static_inputs(self, tensors: Arguments) -> Arguments:
        """Return the tensors that the graph of such tensors reads."""
        if not self._copies_inputs:
            return tensors
        return [self._input(number, tensor) for number, tensor in enumerate(tensors)]

    def _input(self, number: int, tensor: Tensor) -> Tensor:
        key = number, tensor.shape, tensor.dtype
        place = self._inputs.get(key)
        if place is None:
            contiguous = torch.contiguous_format
            place = self._inputs[key] = torch.empty_like(tensor, memory_format=contiguous)
        return place

    def _new_graph(self, key: Hashable, args: Arguments) -> Graph:
        """Record the graph of these arguments.

        Returns:
            The graph; None where a recording failed while another thread compiled: then the step
            runs unrecorded, and the next call tries again.
        """
        compiling = COMPILER.locked()
        try:
            graph = self._graphs[key] = self._capture(args)
        except RuntimeError:
            if not (compiling or COMPILER.locked()):
                raise
            return None
        return graph

    def _capture(self, args: Arguments) -> Graph:
        start, waited_s = time.perf_counter(), self._step.wait_s
        with self._cuda.device(self._device):  # None changes nothing
            self._warm_up(args)
            graph = self._record(args)
        self._recording_s += time.perf_counter() - start - (self._step.wait_s - waited_s)
        return graph

    def _warm_up(self, args: Arguments) -> None:
        """Run the step a few times on a side stream, and restore what it changed."""
        restore = self._snapshot(*args)
        stream = self._cuda.Stream()
        stream.wait_stream(self._cuda.current_stream())
        try:
            with self._cuda.stream(stream):
                for _ in range(WARMUPS):
                    self._rehearse(args, restore)
        finally:
            self._cuda.current_stream().wait_stream(stream)

    def _rehearse(self, args: Arguments, restore: Restore) -> None:
        try:
            self._step(*args)
        finally:
            restore()  # each time: the snapshot covers a single run

    def _record(self, args: Arguments) -> Graph:
        pool, graph = self._pool(), self._cuda.CUDAGraph()
        stream = self._cuda.current_stream()
        try:
            with self._cuda.graph(graph, pool=pool, capture_error_mode=CAPTURE_ERRORS):
                self._step(*args)
        except BaseException:
            self._cuda.set_stream(stream)  # a capture that fails leaves its own one current
            raise
        return graph


def _identity(tensor: Tensor | None) -> Hashable:
    return tensor if tensor is None else (tensor.data_ptr(), tensor.shape, tensor.dtype)
