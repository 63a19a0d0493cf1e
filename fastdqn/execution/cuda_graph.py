"""A step recorded once as a CUDA graph and replayed: one launch for everything in it.

A graph holds addresses, not values. The arguments of a captured step are therefore tensors that
the caller keeps and fills in place, and everything else that the step reads or writes must stay
where it is. `StaticInputs` is for callers whose tensors lie elsewhere each time.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor

from fastdqn.execution.trace import COMPILER

__all__ = ["CudaGraphStep", "StaticInputs"]

Restore = Callable[[], None]

CAPTURE_ERRORS = "thread_local"
"""Which calls to CUDA a recording forbids: those of its own thread. Another one may compile, and
load what it compiled."""


class CudaGraphStep:
    """A step as CUDA graphs, one for each variant, all in one memory pool.

    A variant is a set of arguments: its plain values, and the addresses and shapes of its
    tensors, also of those in lists and dataclasses. The first call with a variant warms the step
    up on a side stream (libraries allocate, compilers compile, autograd settles), takes back what
    that changed, records the graph and replays it; every later call replays it. A first call
    that fails has changed nothing; one that fails while another thread compiles is made as it is.

    Graphs share the pool because they never run at the same time: what one keeps in it between
    its own operations, the next may overwrite.

    Args:
        step: Writes its results in place; never waits for the device.
        snapshot: Copies what `step` changes, given the arguments, and returns what brings it back.
        generators: Those that `step` draws from; each replay goes on where the last one stopped.
        warmups: Runs before a capture.
        device: Where the tensors live; None is the current CUDA device.
        cuda: `torch.cuda`, or what stands in for it.

    Attributes:
        captures: Graphs recorded so far.
        compile_s: Seconds spent on warming up and recording, what `step` compiles included.
    """

    def __init__(
        self,
        step: Callable[..., None],
        snapshot: Callable[..., Restore],
        *,
        generators: Sequence[torch.Generator] = (),
        warmups: int = 3,
        device: torch.device | None = None,
        cuda: Any = torch.cuda,
    ) -> None:
        self._step, self._keep = step, snapshot
        self._generators, self._warmups, self._cuda = tuple(generators), warmups, cuda
        self._device = device
        self._graphs: dict[Hashable, Any] = {}
        self._pool: Any = None
        self.compile_s = 0.0

    @property
    def captures(self) -> int:
        """Graphs recorded so far."""
        return len(self._graphs)

    def __call__(self, *args: Any) -> None:
        """Replay the graph of these arguments; records it first where it is new."""
        key = tuple(_identity(arg) for arg in args)
        graph = self._graphs.get(key) or self._new_graph(key, args)
        if graph is None:
            self._step(*args)
        else:
            graph.replay()

    def _new_graph(self, key: Hashable, args: tuple[Any, ...]) -> Any:
        """Record the graph of these arguments.

        Returns:
            The graph; None where somebody compiles meanwhile, which a recording may not survive:
            then the step runs as it is, and the next call tries again.
        """
        compiling = COMPILER.locked()
        try:
            graph = self._graphs[key] = self._capture(args)
        except RuntimeError:
            if not (compiling or COMPILER.locked()):
                raise
            return None
        return graph

    def _capture(self, args: tuple[Any, ...]) -> Any:
        start = time.perf_counter()
        with self._cuda.device(self._device):  # None changes nothing
            self._warm_up(args)
            graph = self._record(args)
        self.compile_s += time.perf_counter() - start
        return graph

    def _warm_up(self, args: tuple[Any, ...]) -> None:
        """Run the step a few times aside, and leave no trace of it."""
        restore = self._keep(*args)
        seeds = [generator.get_state() for generator in self._generators]
        stream = self._cuda.Stream()
        stream.wait_stream(self._cuda.current_stream())
        try:
            with self._cuda.stream(stream):
                for _ in range(self._warmups):
                    self._rehearse(args, restore)
        finally:
            self._cuda.current_stream().wait_stream(stream)
            for generator, seed in zip(self._generators, seeds, strict=True):
                generator.set_state(seed)

    def _rehearse(self, args: tuple[Any, ...], restore: Restore) -> None:
        try:
            self._step(*args)
        finally:
            restore()  # each time: what was kept need only cover one run

    def _record(self, args: tuple[Any, ...]) -> Any:
        if self._pool is None:
            self._pool = self._cuda.graph_pool_handle()
        graph = self._cuda.CUDAGraph()
        for generator in self._generators:
            graph.register_generator_state(generator)
        stream = self._cuda.current_stream()
        try:
            with self._cuda.graph(graph, pool=self._pool, capture_error_mode=CAPTURE_ERRORS):
                self._step(*args)
        except BaseException:
            self._cuda.set_stream(stream)  # a capture that fails leaves its own one current
            raise
        return graph


class StaticInputs:
    """A captured step for tensors that lie elsewhere at each call.

    They are copied, queued and not waited for, into memory of its own, which the graphs read.
    Dataclasses of tensors go through as they are: they must stay where they lie.

    Args:
        step: What is fed; writes nothing into the tensors that it is given by themselves.
    """

    def __init__(self, step: CudaGraphStep) -> None:
        self.step = step
        self._places: dict[Hashable, Tensor] = {}

    @property
    def compile_s(self) -> float:
        """Seconds that the step spent on capturing so far."""
        return self.step.compile_s

    def __call__(self, *args: Any) -> None:
        """Copy the tensors among the arguments to their places and run the step on these."""
        self.step(*(self._placed(number, arg) for number, arg in enumerate(args)))

    def _placed(self, number: int, arg: Any) -> Any:
        if not isinstance(arg, Tensor):
            return arg
        key = number, arg.shape, arg.dtype
        place = self._places.get(key)
        if place is None:
            place = self._places[key] = torch.empty_like(arg, memory_format=torch.contiguous_format)
        return place.copy_(arg)


def _identity(arg: Any) -> Hashable:
    """Return what tells two arguments of a graph apart."""
    if isinstance(arg, Tensor):
        return arg.data_ptr(), tuple(arg.shape), arg.dtype
    if isinstance(arg, list | tuple):
        return tuple(_identity(part) for part in arg)
    if is_dataclass(arg):
        return type(arg), *(_identity(getattr(arg, field.name)) for field in fields(arg))
    key: Hashable = arg
    return key
