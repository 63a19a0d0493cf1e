"""A step recorded once as a CUDA graph and replayed: one launch for everything in it.

A graph holds addresses, not values. The arguments of a captured step are therefore tensors that
the caller keeps and fills in place, and everything else that the step reads or writes must stay
where it is.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["Captured"]

Restore = Callable[[], None]


class Captured:
    """A step as CUDA graphs, one for each variant, all in one memory pool.

    A variant is a set of arguments: its plain values, and the addresses and shapes of its
    tensors. The first call with a variant warms the step up on a side stream (libraries
    allocate, compilers compile, autograd settles), takes back what that changed, records the
    graph and replays it; every later call replays it.

    Graphs share the pool because they never run at the same time: what one keeps in it between
    its own operations, the next may overwrite.

    Args:
        step: Writes its results in place; never waits for the device.
        keep: Copies what `step` changes, given the arguments, and returns what brings it back.
        generators: Those that `step` draws from; each replay goes on where the last one stopped.
        warmups: Runs before a capture.
        cuda: `torch.cuda`, or what stands in for it.

    Attributes:
        captures: Graphs recorded so far.
    """

    def __init__(
        self,
        step: Callable[..., None],
        keep: Callable[..., Restore],
        *,
        generators: Sequence[torch.Generator] = (),
        warmups: int = 3,
        cuda: Any = torch.cuda,
    ) -> None:
        self._step, self._keep = step, keep
        self._generators, self._warmups, self._cuda = tuple(generators), warmups, cuda
        self._graphs: dict[Hashable, Any] = {}
        self._pool: Any = None

    @property
    def captures(self) -> int:
        """Graphs recorded so far."""
        return len(self._graphs)

    def __call__(self, *args: Any) -> None:
        """Replay the graph of these arguments; records it first where it is new."""
        key = tuple(_identity(arg) for arg in args)
        graph = self._graphs.get(key)
        if graph is None:
            self._warm_up(args)
            graph = self._graphs[key] = self._record(args)
        graph.replay()

    def _warm_up(self, args: tuple[Any, ...]) -> None:
        """Run the step a few times aside, and leave no trace of it."""
        restore = self._keep(*args)
        seeds = [generator.get_state() for generator in self._generators]
        stream = self._cuda.Stream()
        stream.wait_stream(self._cuda.current_stream())
        with self._cuda.stream(stream):
            for _ in range(self._warmups):
                self._step(*args)
                restore()  # each time: what was kept need only cover one run
        self._cuda.current_stream().wait_stream(stream)
        for generator, seed in zip(self._generators, seeds, strict=True):
            generator.set_state(seed)

    def _record(self, args: tuple[Any, ...]) -> Any:
        if self._pool is None:
            self._pool = self._cuda.graph_pool_handle()
        graph = self._cuda.CUDAGraph()
        for generator in self._generators:
            graph.register_generator_state(generator)
        with self._cuda.graph(graph, pool=self._pool):
            self._step(*args)
        return graph


def _identity(arg: Any) -> Hashable:
    """Return what tells two arguments of a graph apart."""
    if isinstance(arg, Tensor):
        return arg.data_ptr(), tuple(arg.shape), arg.dtype
    key: Hashable = arg
    return key
