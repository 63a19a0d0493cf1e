"""A step that runs as it is until its compiled form is ready: nobody waits for a compiler."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable
from concurrent.futures import CancelledError, Future
from functools import partial
from typing import Any

import torch

from fastdqn.execution.compiler import BACKGROUND, CompileError, Compiles
from fastdqn.execution.trace import UntraceableError
from fastdqn.execution.variants import AheadOfTime, Run

__all__ = ["STATES", "Background"]

STATES = ("eager", "compiling", "compiled", "failed")


class Background(AheadOfTime):
    """A step that starts eagerly and is compiled meanwhile, in a process beside this one.

    It moves from one to the other between two calls, for each set of shapes by itself. The
    numbers before and after differ by rounding only, but the moment depends on the machine; what
    is on disk already (see `compile_cache`) is compiled from the first call on. If compiling
    fails, the step stays eager.

    Dataclasses, tuples and lists among the arguments keep their tensors, and the step whatever
    else it reads: what changes from call to call is what the tensors hold. The calls come from
    one thread; everything else may be asked from any.

    Args:
        step: What to compile; writes its results in place.
        device: Where its tensors live.
        by_row: The step does the same for each row of its last argument, one row after another.
        compiler: Compiles.

    Attributes:
        compile_s: Seconds for which calls had to wait: the writing down of the step, and the
            loading of what is on disk.
        failure: Why the step stays eager, in one line; None where it does not.
        ready_after_s: Seconds from the first request until everything asked for was there;
            None while something is missing.
    """

    def __init__(
        self,
        step: Callable[..., None],
        device: torch.device,
        *,
        by_row: bool = False,
        compiler: Compiles = BACKGROUND,
    ) -> None:
        super().__init__(step, device, by_row=by_row, compiler=compiler)
        self._step = step
        self._asked: dict[Hashable, Future[Run]] = {}
        self._first_asked_s = self._last_ready_s = 0.0
        self.compile_s = 0.0
        self.failure: str | None = None

    def __call__(self, *args: Any) -> None:
        """Run the step in the fastest way that is there; never waits for a compiler."""
        if self.failure is not None:
            self._step(*args)
            return
        try:
            variant, tensors = self._leaves(args)
            run = self._runs.get(variant) or self._ask(variant, args)
        except UntraceableError as error:
            self.failure = str(error)
            run = None
        if run is None:
            self._step(*args)
        else:
            run(tensors)

    def prepare(self, *args: Any) -> None:
        """Ask for the step on such arguments before the first call with them; runs nothing."""
        try:
            variant = self._leaves(args)[0]
            self._ask(variant, args)
        except UntraceableError as error:
            self.failure = str(error)

    def _ask(self, variant: Hashable, args: tuple[Any, ...]) -> Run | None:
        """Ask for a variant, once; return it if it is on disk."""
        if variant in self._asked:
            return None
        start = time.perf_counter()
        self._first_asked_s = self._first_asked_s or start
        found = self._asked[variant] = self._variants.find(args)
        found.add_done_callback(partial(self._take, variant))
        self.compile_s += time.perf_counter() - start
        return self._runs.get(variant)

    def _take(self, variant: Hashable, found: Future[Run]) -> None:
        """Keep what was compiled for the next call; may come from another thread."""
        try:
            run = found.result()
        except CancelledError:
            return
        except CompileError as error:
            self.failure = str(error)
            return
        self._last_ready_s = time.perf_counter()
        self._runs[variant] = run

    @property
    def state(self) -> str:
        """What happens now: one of `STATES`.

        `eager` before the first call and after `close`, `failed` where the step stays eager.
        """
        if self.failure is not None:
            return "failed"
        if not self._asked:
            return "eager"
        if self.ready:
            return "compiled"
        return "compiling" if any(not f.done() for f in self._asked.values()) else "eager"

    @property
    def ready(self) -> bool:
        """Whether everything that was asked for so far runs compiled."""
        return bool(self._asked) and len(self._runs) == len(self._asked)

    @property
    def ready_after_s(self) -> float | None:
        """Seconds from the first request until everything asked for was there, or None."""
        return self._last_ready_s - self._first_asked_s if self.ready else None

    def close(self) -> None:
        """Ask for nothing any longer; what is there stays, and the rest runs eagerly."""
        self._variants.close()
