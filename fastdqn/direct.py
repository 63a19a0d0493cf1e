"""A compiled step without torch.compile's questions at every call: its tensors never move."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch._dynamo import config as dynamo_config
from torch._dynamo import lookup_backend
from torch._inductor import config as inductor_config

from fastdqn.compiled import MANY

__all__ = ["Direct"]


class Direct:
    """A step compiled whole, once for each shape of its last argument, and called directly.

    torch.compile asks before every call whether all that the step reads is still what it was:
    a few dozen questions, as long as a small step itself. Here the answer is a promise of the
    caller: everything but the arguments stays where it is, and arguments that differ from those
    of the first call differ in their memory only.

    Args:
        step: Writes its results in place and returns nothing.
        device: Where its tensors live; on the CPU the C++ wrapper is used.

    Attributes:
        compile_s: Seconds spent compiling so far.
    """

    def __init__(self, step: Callable[..., None], device: torch.device) -> None:
        self._step, self._options = step, {"cpp_wrapper": device.type == "cpu"}
        self._calls: dict[torch.Size, _Call] = {}
        self.compile_s = 0.0

    def __call__(self, *args: torch.Tensor) -> None:
        """Run the step; compiles first where the shape is new."""
        call = self._calls.get(args[-1].shape)
        if call is None:
            self._compile(args)
        else:
            call(args)

    def _compile(self, args: tuple[torch.Tensor, ...]) -> None:
        start, call = time.perf_counter(), _Call()
        compiled = torch.compile(self._step, backend=call.record, fullgraph=True, dynamic=False)
        patched = dynamo_config.patch(trace_autograd_ops=True, recompile_limit=MANY)
        with patched, inductor_config.patch(self._options):
            compiled(*args)
        call.learn_places(args)
        self._calls[args[-1].shape] = call
        self.compile_s += time.perf_counter() - start


class _Call:
    """What torch.compile made of a step, and which of its inputs are the step's arguments."""

    def __init__(self) -> None:
        self._run: Callable[..., Any] | None = None
        self._inputs: list[Any] = []
        self._places: list[tuple[int, int]] = []

    def record(self, graph: torch.fx.GraphModule, examples: list[Any]) -> Callable[..., Any]:
        """Compile a graph as inductor does, and note what it is called with first."""
        run = self._run = lookup_backend("inductor")(graph, examples)

        def first(*inputs: Any) -> Any:
            self._inputs = list(inputs)
            return run(*inputs)

        return first

    def learn_places(self, args: tuple[torch.Tensor, ...]) -> None:
        """Find each argument among the inputs; one that the step does not read has no place."""
        for number, arg in enumerate(args):
            self._places += [(i, number) for i, one in enumerate(self._inputs) if one is arg]

    def __call__(self, args: tuple[torch.Tensor, ...]) -> None:
        for place, number in self._places:
            self._inputs[place] = args[number]
        assert self._run is not None
        self._run(*self._inputs)
