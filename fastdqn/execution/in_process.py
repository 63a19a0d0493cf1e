"""The compiler in this process: at once, or in a thread beside the calls."""

from __future__ import annotations

import atexit
import ctypes
import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor

from fastdqn.execution.step import PureStep
from fastdqn.execution.trace import COMPILER, Trace

__all__ = ["InProcess"]


class InProcess:
    """Compiles in this process: at once, or in a thread, one step at a time.

    PyTorch caches compiled code on disk, in `TORCHINDUCTOR_CACHE_DIR`. While it compiles it may set
    its default generators back to where they were; code that draws at that time needs generators
    of its own.

    Args:
        device: Where tensors live; on the CPU the C++ wrapper is used.
        background: Compile in a thread.
        traces_beside: Trace in that thread, too, for steps that hold no module: tracing replaces
            methods of modules for the whole process.
    """

    repeats_rows = False
    """A form takes a single row."""

    def __init__(
        self, device: torch.device, *, background: bool = False, traces_beside: bool = False
    ) -> None:
        self._cpu, self.background, self._closed = device.type == "cpu", background, False
        self._traces_beside = traces_beside

    def submit(
        self, traced: Callable[[], Trace], tensors: Sequence[Tensor], _num_rows: int
    ) -> Future[PureStep] | None:
        """See `AheadOfTime.submit`; None where it is the turn of another step."""
        future: Future[PureStep] = Future()
        if not self.background:
            future.set_result(self.compile(traced(), tensors))
            return future
        if self._closed or not COMPILER.acquire(blocking=False):
            return None
        try:
            if not self._traces_beside:
                trace = traced()
                traced = lambda: trace  # noqa: E731
            arguments = future, traced, tensors, torch.get_num_threads()
            thread = threading.Thread(target=self._beside, args=arguments, daemon=True)
            atexit.register(_stop, thread)
            thread.start()
        except BaseException:
            COMPILER.release()
            raise
        return future

    def close(self) -> None:
        """Drop what is being compiled."""
        self._closed = True

    def _beside(
        self,
        future: Future[PureStep],
        traced: Callable[[], Trace],
        tensors: Sequence[Tensor],
        num_threads: int,
    ) -> None:
        torch.set_num_threads(num_threads)  # the setting is per thread
        try:
            # Measuring padded shapes would wait for the card while a graph may be recorded there.
            form = self.compile(traced(), tensors, shape_padding=False)
            future.cancel() if self._closed else future.set_result(form)
        except Exception as error:  # a compiler may fail in any way
            future.set_exception(error)
        finally:
            atexit.unregister(_stop)  # one thread compiles at a time
            COMPILER.release()

    def compile(self, traced: Trace, tensors: Sequence[Tensor], **options: bool) -> PureStep:
        """Compile now, for tensors of which nothing is read but how they lie."""
        from torch import _inductor as inductor  # noqa: PLC0415 - takes 1.5 s to load

        place, constants = torch.device(traced.specs[0].device), traced.constants
        inputs: list[Any] = [*tensors, *constants]
        settings: dict[str, Any] = {"cpp_wrapper": self._cpu, **options}
        with _quiet(), torch.cuda.device(place) if place.type == "cuda" else nullcontext():
            compiled = inductor.compile(traced.graph, inputs, options=settings)

        def run(*tensors: Tensor) -> None:
            with torch.no_grad():
                compiled(*tensors, *constants)

        return run


def _stop(thread: threading.Thread) -> None:
    """Stop a thread that compiles: Python aborts if it ends while that is inside PyTorch."""
    raise_in = ctypes.pythonapi.PyThreadState_SetAsyncExc
    raise_in(ctypes.c_ulong(thread.ident or 0), ctypes.py_object(SystemExit))
    thread.join()


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence a warning of PyTorch about tools that compiling for the CPU does not need."""
    logger = logging.getLogger("torch.utils.cpp_extension")
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before
