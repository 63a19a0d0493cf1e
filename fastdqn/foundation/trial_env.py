"""Trial environments without side effects in this process.

Random generators, those of the spaces, and the data of the environments' classes are restored, so
that a caller who seeds a generator, counts instances or samples a space sees no trial.
"""

from __future__ import annotations

import ast
import contextlib
import copy
import itertools
import operator
import os
import random
import signal
import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Space

__all__ = ["close_quietly", "generators_restored", "trial_env", "with_parts"]

CONTAINERS = (list, dict, set, deque)
DATA = (
    *(int, float, complex, str, bytes, type(None), tuple, frozenset, *CONTAINERS, itertools.count),
    *(np.generic, np.ndarray, np.random.Generator, np.random.RandomState, random.Random),
    *(Space, gym.Env),
)
"""Types that count, remember or draw; other values of a class may refer to things outside."""
MISSING: Any = object()
LARGE_BYTES = 2**20
"""Elements of an array that is taken for a table and not copied."""
Undo = Callable[[], object]


@contextmanager
def trial_env(factory: Callable[[], gym.Env[Any, Any]]) -> Iterator[gym.Env[Any, Any]]:
    """Build an environment for a trial, close it, and undo its side effects.

    Side effects outside of this process cannot be undone.

    Args:
        factory: Builds it.
    """
    with generators_restored() as stack:
        for kind in _env_classes():
            stack.callback(_undo_class(kind))
        stack.callback(
            signal.pthread_sigmask, signal.SIG_SETMASK, signal.pthread_sigmask(signal.SIG_BLOCK, ())
        )
        with contextlib.suppress(OSError):  # the folder does not exist
            stack.callback(os.chdir, Path.cwd())
        env = factory()
        stack.callback(close_quietly, env)
        for name in ("action_space", "observation_space"):
            for space in with_parts(getattr(env, name, None)):
                stack.callback(_undo_space(space))
        yield env


def close_quietly(env: Any) -> None:
    """Close an environment, whatever that raises, and even if it has no `close`."""
    with contextlib.suppress(Exception):
        env.close()


def generators_restored() -> contextlib.ExitStack:
    """Restore the global generators on exit: of `random`, NumPy and, if it is loaded, PyTorch."""
    stack = contextlib.ExitStack()
    stack.callback(random.setstate, random.getstate())
    stack.callback(np.random.set_state, np.random.get_state())
    torch: Any = sys.modules.get("torch")  # workers must not load it
    if hasattr(torch, "get_rng_state"):  # not while another thread is loading it
        stack.callback(torch.set_rng_state, torch.get_rng_state())
        if torch.cuda.is_initialized():
            stack.callback(torch.cuda.set_rng_state_all, torch.cuda.get_rng_state_all())
        if torch.backends.mps.is_available():
            stack.callback(torch.mps.set_rng_state, torch.mps.get_rng_state())
    return stack


# Spaces


def with_parts(space: Any) -> Iterator[Space[Any]]:
    """Return a space and all spaces within it."""
    if not isinstance(space, Space):
        return
    yield space
    for value in vars(space).values():
        parts = value.values() if isinstance(value, Mapping) else value
        if isinstance(parts, Space):
            parts = [parts]
        if isinstance(value, Mapping | list | tuple | Space):
            for part in parts:
                yield from with_parts(part)


def _undo_space(space: Space[Any]) -> Undo:
    generator = space._np_random
    rewind = list(_undo(generator))

    def restore() -> None:
        space._np_random = generator
        for undo in rewind:
            undo()

    return restore


# Classes


def _env_classes() -> set[type]:
    """Return all classes of environments that do not come with Gymnasium, and their mixins."""
    found: set[type] = set()
    waiting = gym.Env.__subclasses__()
    while waiting:
        kind = waiting.pop()
        waiting += kind.__subclasses__()
        found.update(kind.__mro__)
    return {kind for kind in found if kind.__module__.partition(".")[0] not in NO_DATA}


NO_DATA = {"gymnasium", "builtins", "typing", "abc"}
"""Packages whose classes hold nothing that a trial could change."""


def _undo_class(kind: type) -> Undo:
    """Return a function that restores the data of a class, e.g. a counter of instances.

    A class that got new data of another type, e.g. a connection that its instances share, is left
    alone: its other data may refer to that.
    """
    before = _data_of(kind)
    rewind = [undo for value in before.values() for undo in _undo(value)]
    counts = {k: repr(value) for k, value in before.items() if isinstance(value, itertools.count)}

    def restore() -> None:
        now = _data_of(kind)
        changed = [
            name
            for name in {**now, **before}
            if now.get(name, MISSING) is not before.get(name, MISSING)
        ]
        if not all(isinstance(now.get(name), DATA) for name in changed):
            return
        for name in changed:
            if name in before:
                setattr(kind, name, before[name])
            else:
                delattr(kind, name)
        for undo in rewind:
            undo()
        for name, shown in counts.items():  # a counter shows its state, and cannot be set back
            if repr(before[name]) != shown:
                start = ast.literal_eval(f"({shown.removeprefix('count(').removesuffix(')')},)")
                setattr(kind, name, itertools.count(*start))

    return restore


def _data_of(kind: type) -> dict[str, Any]:
    return {name: value for name, value in vars(kind).items() if name[:2] != "__"}


# Values that change in place


def _undo(value: Any, depth: int = 4) -> Iterator[Undo]:
    """Yield functions that restore a generator, or a container `depth` levels deep, in place."""
    if isinstance(value, random.Random):
        yield partial(value.setstate, value.getstate())
    elif isinstance(value, np.random.RandomState):
        yield partial(value.set_state, value.get_state(legacy=False))
    elif isinstance(value, np.random.Generator):
        random_bits = value.bit_generator
        yield partial(setattr, random_bits, "state", random_bits.state)
    elif isinstance(value, np.ndarray) and value.nbytes < LARGE_BYTES and value.flags.writeable:
        yield partial(np.copyto, value, value.copy())
    elif isinstance(value, Space):
        yield from map(_undo_space, with_parts(value))
    elif isinstance(value, CONTAINERS) and depth:
        content = copy.copy(value)
        yield partial(_refill, value, content)
        for part in content.values() if isinstance(content, dict) else content:
            yield from _undo(part, depth - 1)


def _refill(container: Any, content: Any) -> None:
    """Restore the content of a container in place, where it has changed."""
    now, before = (
        list(itertools.chain.from_iterable(c.items()) if isinstance(c, dict) else c)
        for c in (container, content)
    )
    if len(now) == len(before) and all(map(operator.is_, now, before)):
        return
    container.clear()
    (container.extend if isinstance(container, list | deque) else container.update)(content)
