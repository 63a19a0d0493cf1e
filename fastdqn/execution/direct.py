"""A compiled step that is called directly: no question before a call, since its tensors never move.

`torch.compile` asks before every call whether all that a step reads is still what it was: a few
dozen questions, longer than a small step itself. Here the answer is a promise of the caller.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from fastdqn.execution.trace import UntraceableError, trace

__all__ = ["Direct"]


class Direct:
    """A step compiled whole, once for each shape of its last argument, and called directly.

    Everything but the arguments stays where it is, and arguments that differ from those of the
    first call differ in their memory only.

    Args:
        step: Writes its results in place and returns nothing.
        device: Where its tensors live; on the CPU the C++ wrapper is used.
        background: Compile in a thread, and run the step as it is meanwhile; if False, calls wait.

    Attributes:
        compile_s: Seconds for which calls had to wait.
        failure: Why the step runs as it is, in one line; None where it is compiled, or will be.
        ready_after_s: Seconds from the first request to the last compiled form; None before.
    """

    def __init__(
        self, step: Callable[..., None], device: torch.device, *, background: bool = False
    ) -> None:
        self._step, self._background = step, background
        self._options = {"cpp_wrapper": device.type == "cpu"}
        self._calls: dict[torch.Size, Callable[..., None]] = {}
        self._asked: set[torch.Size] = set()
        self._since = 0.0
        self.compile_s = 0.0
        self.failure: str | None = None
        self.ready_after_s: float | None = None

    def __call__(self, *args: Tensor) -> None:
        """Run the step; asks for its compiled form first where the shape is new."""
        shape = args[-1].shape
        if shape not in self._calls and shape not in self._asked:
            self._ask(shape, args)
        self._calls.get(shape, self._step)(*args)

    def _ask(self, shape: torch.Size, args: tuple[Tensor, ...]) -> None:
        start = time.perf_counter()
        self._since = self._since or start
        self._asked.add(shape)
        if self._background:
            given = (shape, args, torch.get_num_threads())
            threading.Thread(target=self._compile, args=given, daemon=True).start()
            return
        self._compile(shape, args, torch.get_num_threads())
        self.compile_s += time.perf_counter() - start

    def _compile(self, shape: torch.Size, args: tuple[Tensor, ...], threads: int) -> None:
        """Compile for these arguments; their numbers are neither read nor written."""
        torch.set_num_threads(threads)  # a new thread has its own idea of it
        try:
            self._calls[shape] = _compiled(self._step, args, self._options)
        except UntraceableError as error:
            self.failure = str(error)
        except Exception as error:  # a compiler may fail in any way, and the step runs without
            self.failure = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
        self.ready_after_s = time.perf_counter() - self._since


def _compiled(
    step: Callable[..., None], args: tuple[Tensor, ...], options: dict[str, Any]
) -> Callable[..., None]:
    with _no_word_about_cuda():
        from torch._inductor import config as inductor_config  # noqa: PLC0415 - seconds to load
        from torch._inductor.compile_fx import compile_fx  # noqa: PLC0415

        traced = trace(step, args)
        held = traced.held
        with inductor_config.patch(options):
            run: Any = compile_fx(traced.graph, [*args, *held])

    def call(*args: Tensor) -> None:
        with torch.no_grad():
            run(*args, *held)

    return call


@contextmanager
def _no_word_about_cuda() -> Iterator[None]:
    """Let PyTorch not warn on the terminal that it misses what a compile for the CPU needs not."""
    logger = logging.getLogger("torch.utils.cpp_extension")
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before
