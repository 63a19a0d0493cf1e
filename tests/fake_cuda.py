"""A stand-in for `torch.cuda` whose graphs are recorded from what PyTorch really does on the CPU.

While a graph is recorded every operation is noted with the tensors that it read and wrote; a
replay does the same operations on the same tensors again. As on a card, Python does not run at a
replay, what it computed then is frozen, fresh results keep their memory, and capturing itself
changes nothing: what was written meanwhile is taken back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

WAITING = {"aten._local_scalar_dense", "aten.nonzero", "aten.masked_select", "aten.equal"}
"""Operations that CUDA refuses to capture: the host waits for what they find."""


class FakeStream:
    def __init__(self, name: str, tape: list[str]) -> None:
        self.name, self._tape = name, tape

    def wait_stream(self, other: FakeStream) -> None:
        self._tape.append(f"{self.name} waits for {other.name}")


class Recording(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes operations, and what the tensors held that they wrote to."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.work: list[Callable[[], None]] = []
        self.before: list[tuple[Tensor, Tensor]] = []
        self._fresh: set[int] = set()
        self._kept: set[tuple[Any, ...]] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        name = ".".join(func.name().replace("::", ".").split(".")[:2])
        if name in WAITING:
            raise RuntimeError(f"operation not permitted when stream is capturing: {name}")
        for argument, value in zip(func._schema.arguments, args, strict=False):
            if argument.alias_info is not None and argument.alias_info.is_write:
                self._keep(value)
        results = func(*args, **kwargs)
        written = func._schema.returns and any(
            r.alias_info is not None and r.alias_info.is_write for r in func._schema.returns
        )
        self.work.append(_again(func, args, kwargs, None if written else results))
        return results

    def _keep(self, tensor: Tensor) -> None:
        place = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
        if place not in self._kept:
            self._kept.add(place)
            self.before.append((tensor, tensor.detach().clone()))


def _again(func: Any, args: Any, kwargs: Any, results: Any) -> Callable[[], None]:
    def work() -> None:
        again = func(*args, **kwargs)
        for old, new in zip(flat(results), flat(again), strict=False):
            if old.data_ptr() != new.data_ptr():
                old.copy_(new)

    return work


def flat(values: Any) -> list[Tensor]:
    """Return the tensors of nested sequences."""
    if isinstance(values, Tensor):
        return [values]
    if isinstance(values, Sequence) and not isinstance(values, str):
        return [tensor for value in values for tensor in flat(value)]
    return []


class Graph:
    def __init__(self, tape: list[str]) -> None:
        self._tape, self.work = tape, list[Callable[[], None]]()

    def replay(self) -> None:
        self._tape.append("replay")
        with torch.no_grad():
            for work in self.work:
                work()


class FakeStreams:
    """The part of `torch.cuda` without graphs; writes what happens on a tape."""

    def __init__(self) -> None:
        self.tape: list[str] = []
        self._main = FakeStream("main", self.tape)

    def device(self, device: torch.device | None) -> Any:
        return nullcontext()

    def Stream(self) -> FakeStream:
        return FakeStream("side", self.tape)

    def current_stream(self) -> FakeStream:
        return self._main

    def set_stream(self, stream: FakeStream) -> None:
        self.tape.append(f"{stream.name} is current again")

    @contextmanager
    def stream(self, stream: FakeStream) -> Iterator[None]:
        self.tape.append(f"on {stream.name}")
        yield
        self.tape.append(f"off {stream.name}")

    def graph_pool_handle(self) -> str:
        self.tape.append("new pool")
        return f"pool {self.tape.count('new pool')}"


class RecordingCuda(FakeStreams):
    """Its graphs record what PyTorch does while they are recorded."""

    def CUDAGraph(self) -> Graph:
        return Graph(self.tape)

    @contextmanager
    def graph(self, graph: Graph, *, pool: str, capture_error_mode: str) -> Iterator[None]:
        assert capture_error_mode == "thread_local"
        self.tape.append(f"capture in {pool}")
        recording = Recording()
        try:
            with recording:
                yield
        finally:
            with torch.no_grad():
                for tensor, value in reversed(recording.before):
                    tensor.copy_(value)
        graph.work = recording.work

    def replays(self) -> int:
        return self.tape.count("replay")

    def captures(self) -> int:
        return sum(line.startswith("capture in") for line in self.tape)
