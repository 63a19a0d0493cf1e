"""A step that runs in one way until another way has been compiled: nobody waits for a compiler."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from fastdqn.execution.trace import COMPILER

__all__ = ["Compilable", "Meanwhile", "Need"]


class Compilable(Protocol):
    """A step that can be compiled before it is called."""

    def has(self, *args: Any) -> bool:
        """Return whether a call with such arguments finds everything compiled."""
        ...

    def later(self, *args: Any) -> Callable[[], Callable[[], None]]:
        """Write down what such arguments need; nothing is run.

        Returns:
            Compiles it, in any thread, and returns what lets calls use it from then on.
        """
        ...


Need = tuple[Compilable, tuple[Any, ...]]
"""A step that is called, and arguments such as those that it is called with."""


class Meanwhile:
    """Two forms of a step: one that runs at once, and one that has to be compiled.

    It moves from one to the other between two calls, for each set of shapes by itself. What has
    to be compiled is written down in the call that first needs it, after the plain form has run,
    and compiled in a thread. If that fails, or the first call of the fast form does, the plain
    form goes on. Of all such steps one is compiled at a time.

    While PyTorch compiles it may set its default generators back to where they were; whoever
    draws beside it needs a generator of their own. The calls come from one thread; everything
    else may be asked from any.

    Args:
        plain: Runs at once.
        fast: Does the same to its arguments within rounding, once what it needs is compiled.
        needs: Lists what a call of `fast` with such arguments needs.
        undone: A call of `fast` that raises has changed nothing, and `plain` may take its place.

    Attributes:
        compile_s: Seconds for which calls had to wait: the writing down, and what the two forms
            count themselves, such as the recording of a graph.
        failure: Why the plain form stays, in one line; None where it does not.
        ready_after_s: Seconds from the first request until the fast form ran; None before.
    """

    def __init__(
        self,
        plain: Callable[..., None],
        fast: Callable[..., None],
        needs: Callable[..., Sequence[Need]],
        *,
        undone: bool = True,
    ) -> None:
        self._plain, self._fast, self._needs = plain, fast, needs
        self._survives: tuple[type[Exception], ...] = (Exception,) if undone else ()
        self._closed = self._waiting = False
        self._first_asked_s = self._written_s = 0.0
        self.failure: str | None = None
        self.ready_after_s: float | None = None

    @property
    def compile_s(self) -> float:
        """Seconds for which calls had to wait."""
        forms = (self._plain, self._fast)
        return self._written_s + sum(getattr(form, "compile_s", 0.0) for form in forms)

    @property
    def ready(self) -> bool:
        """Whether nothing is being compiled."""
        return not self._waiting

    def __call__(self, *args: Any) -> None:
        """Run the step in the fastest form that is there; never waits for a compiler."""
        missing = self._missing(args)
        if missing is not None and not missing:
            self._move(args)
            return
        self._plain(*args)  # before anything is asked for, so that it records undisturbed
        if missing:
            self._ask(missing)

    def close(self) -> None:
        """Ask for nothing any longer, and forget what is not ready; what is there stays."""
        self._closed = True

    def _missing(self, args: tuple[Any, ...]) -> list[Need] | None:
        """Return what the fast form lacks for such arguments; None where it will not run."""
        if self.failure is not None:
            return None
        try:
            return [(step, given) for step, given in self._needs(*args) if not step.has(*given)]
        except Exception as error:  # whatever it is, the plain form runs without
            self.failure = _in_a_line(error)
            return None

    def _move(self, args: tuple[Any, ...]) -> None:
        try:
            self._fast(*args)
        except self._survives as error:
            self.failure = _in_a_line(error)
            self._plain(*args)
            return
        if self.ready_after_s is None:
            now = time.perf_counter()
            self.ready_after_s = now - (self._first_asked_s or now)

    def _ask(self, missing: Sequence[Need]) -> None:
        """Write down what is missing and compile it behind, if it is nobody else's turn."""
        if self._closed or not COMPILER.acquire(blocking=False):
            return
        start = time.perf_counter()
        self._first_asked_s = self._first_asked_s or start
        self._waiting = True
        try:
            written = [step.later(*given) for step, given in missing]
            threading.Thread(target=self._compile, args=(written,), daemon=True).start()
        except Exception as error:  # e.g. a step that looks at a value
            self._end(_in_a_line(error))
        except BaseException:
            self._end()
            raise
        self._written_s += time.perf_counter() - start

    def _compile(self, written: Sequence[Callable[[], Callable[[], None]]]) -> None:
        try:
            made = [compiles() for compiles in written]
        except Exception as error:  # a compiler may fail in any way
            self._end(_in_a_line(error))
            return
        if not self._closed:
            for use in made:
                use()
        self._end()

    def _end(self, failure: str | None = None) -> None:
        self.failure = self.failure or failure
        self._waiting = False
        COMPILER.release()


def _in_a_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
