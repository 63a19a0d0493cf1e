"""Traces: a step as a list of plain tensor operations, the input of a compiler.

A trace holds no Python of the step and no value of a tensor. It can be sent to another process
whatever module of the user it came from, and its text says whether two steps are equal.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._guards import detect_fake_mode
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx import GraphModule, Node
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from fastdqn.execution.step import in_one_line

__all__ = [
    "COMPILER",
    "CompileError",
    "Source",
    "TensorSpec",
    "Trace",
    "UntraceableError",
    "trace",
]

COMPILER = threading.Lock()
"""Held while a step is traced or compiled in this process beside the training: both replace
functions of PyTorch for that time, and may call CUDA."""


class CompileError(Exception):
    """Nothing was compiled; the message says why in one line."""


class UntraceableError(CompileError):
    """A step is not one fixed list of operations; the message says why."""


class TensorSpec(NamedTuple):
    """What a compiler has to know of a tensor; all of it is plain.

    Attributes:
        shape: Its sizes.
        stride: Its strides, in elements.
        dtype: Its dtype.
        device: Where it lives.
    """

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype
    device: str

    @classmethod
    def of(cls, tensor: Tensor) -> TensorSpec:
        """Describe a tensor."""
        return cls(tuple(tensor.shape), tensor.stride(), tensor.dtype, str(tensor.device))

    def empty(self) -> Tensor:
        """Allocate such a tensor; under a fake mode that takes no memory."""
        return torch.empty_strided(self.shape, self.stride, dtype=self.dtype, device=self.device)


@dataclass(frozen=True)
class Trace:
    """A step as operations.

    Attributes:
        graph: Takes the step's tensors, then `constants`; writes in place, returns nothing.
        specs: Of all of these.
        constants: Tensors that the step reads besides its arguments, e.g. buffers of a module; the
            step's own, so that what is written into them later is read.
    """

    graph: GraphModule
    specs: tuple[TensorSpec, ...]
    constants: tuple[Tensor, ...]


class Source(NamedTuple):
    """The operations of a trace as the text of a function, which pickle sends anywhere.

    A pickled GraphModule does not serve: PyTorch traces it anew when it is loaded. Operations that
    take no tensor (`arange`, `zeros`) run at that moment, and what they return stays in the graph
    as a constant, which cannot be exported and would keep what is written into it.

    Attributes:
        text: Defines `forward(self, *tensors)`.
        modules: Name in the text -> module.
        values: Name in the text -> anything else that pickle takes.
    """

    text: str
    modules: dict[str, str]
    values: dict[str, Any]

    @classmethod
    def of(cls, graph: GraphModule) -> Source:
        """Write a graph without attributes down."""
        code = graph.graph.python_code("self")
        modules, values = {}, {}
        for name, value in code.globals.items():
            if isinstance(value, ModuleType):
                modules[name] = value.__name__
            else:
                values[name] = value
        return cls(code.src, modules, values)

    def function(self) -> Callable[..., object]:
        """Return what does the operations, one after another, on the tensors of the trace."""
        scope = self.values | {name: import_module(path) for name, path in self.modules.items()}
        exec(self.text, scope)  # noqa: S102 - written by PyTorch
        return partial(scope["forward"], None)


# Tracing


def trace(step: Callable[..., object], tensors: Sequence[Tensor]) -> Trace:
    """Record the operations of `step` on tensors of these shapes; nothing is run or written.

    Takes about 0.1 s per hundred operations, and twice that where the step reads constants.

    Args:
        step: Writes its results in place; the same operations for any values in its tensors.
        tensors: Only their shapes, strides, dtypes and devices are read.

    Raises:
        UntraceableError: It is not one fixed list of operations, or its tensors share memory.
    """
    try:
        graph, constants = _traced(step, tensors, [])
        if constants:  # now as inputs: PyTorch would otherwise fold them into its code
            graph, more = _traced(step, tensors, constants)
            if more:
                raise UntraceableError("it reads tensors that are not made by PyTorch's operations")
    except UntraceableError:
        raise
    except Exception as error:
        raise UntraceableError(in_one_line(error)) from error
    constants += _lift(graph)
    everything = (*tensors, *constants)
    _refuse_shared(everything)
    return Trace(graph, tuple(map(TensorSpec.of, everything)), tuple(constants))


def _traced(
    step: Callable[..., object], tensors: Sequence[Tensor], constants: list[Tensor]
) -> tuple[GraphModule, list[Tensor]]:
    """Trace the step; return the graph, and the tensors that it reads besides `constants`."""
    found: list[Tensor] = []

    def flat(*stand_ins: Tensor) -> tuple[()]:
        with _StandIns(zip((*tensors, *constants), stand_ins, strict=True)) as mode:
            step(*stand_ins[: len(tensors)])
        found.extend(mode.found)
        return ()

    return make_fx(flat, tracing_mode="fake")(*tensors, *constants), found


class _StandIns(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Lets operations see stand-ins without values in place of real tensors.

    Args:
        known: Real tensors and their stand-ins.

    Attributes:
        found: Real tensors that were met besides.
    """

    def __init__(self, known: Iterable[tuple[Tensor, Tensor]]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        pairs = list(known)
        self._of = {id(real): stand_in for real, stand_in in pairs}
        mode = detect_fake_mode([stand_in for _, stand_in in pairs])
        assert isinstance(mode, FakeTensorMode)
        self._mode = mode
        self.found: list[Tensor] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.ops.aten.lift_fresh.default:
            return func(*args)  # a number that became a tensor just now
        args, kwargs = tree_map_only(Tensor, self._stand_in, (args, kwargs or {}))
        return func(*args, **kwargs)

    def _stand_in(self, tensor: Tensor) -> Tensor:
        if isinstance(tensor, FakeTensor):
            return tensor
        if id(tensor) not in self._of:
            self.found.append(tensor)
            self._of[id(tensor)] = self._mode.from_tensor(tensor)
        return self._of[id(tensor)]


def _lift(graph: GraphModule) -> list[Tensor]:
    """Turn the constants of the graph into inputs after the others; return them."""
    last = [node for node in graph.graph.nodes if node.op == "placeholder"][-1]
    inputs: dict[str, Node] = {}
    constants: list[Tensor] = []
    for node in list(graph.graph.find_nodes(op="get_attr")):
        if node.target not in inputs:
            with graph.graph.inserting_after(last):
                last = inputs[node.target] = graph.graph.placeholder(f"constant_{len(constants)}")
            constants.append(getattr(graph, node.target))
        node.replace_all_uses_with(inputs[node.target])
        graph.graph.erase_node(node)
    for name in inputs:
        delattr(graph, name)
    graph.meta.clear()
    graph.recompile()
    return constants


def _refuse_shared(tensors: tuple[Tensor, ...]) -> None:
    places = [tensor.untyped_storage().data_ptr() for tensor in tensors if tensor.numel()]
    if len(set(places)) < len(places):
        raise UntraceableError("two tensors of the step share their memory")
