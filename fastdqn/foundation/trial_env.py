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
    with generators_restored(), _classes_restored(), _process_restored():
        env = factory()
        try:
            with _spaces_restored(env):
                yield env
        finally:
            close_quietly(env)


def close_quietly(env: Any) -> None:
    """Close an environment, whatever that raises, and even if it has no `close`."""
    with contextlib.suppress(Exception):
        env.close()


@contextmanager
def generators_restored() -> Iterator[None]:
    """Restore the global generators: of `random`, NumPy and, if it is loaded, PyTorch."""
    undo: list[Undo] = [
        partial(random.setstate, random.getstate()),
        partial(np.random.set_state, np.random.get_state()),
    ]
    torch: Any = sys.modules.get("torch")  # workers must not load it
    if hasattr(torch, "get_rng_state"):  # not while another thread is loading it
        undo.append(partial(torch.set_rng_state, torch.get_rng_state()))
        if torch.cuda.is_initialized():
            undo.append(partial(torch.cuda.set_rng_state_all, torch.cuda.get_rng_state_all()))
        if torch.backends.mps.is_available():
            undo.append(partial(torch.mps.set_rng_state, torch.mps.get_rng_state()))
    try:
        yield
    finally:
        for restore in undo:
            restore()


@contextmanager
def _process_restored() -> Iterator[None]:
    """Restore the current folder and the blocked signals."""
    blocked, folder = signal.pthread_sigmask(signal.SIG_BLOCK, ()), ""
    with contextlib.suppress(OSError):  # the folder does not exist
        folder = str(Path.cwd())
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        if folder:
            os.chdir(folder)


# Spaces


@contextmanager
def _spaces_restored(env: Any) -> Iterator[None]:
    """Restore the generators of an environment's spaces to their state after its constructor."""
    undo = [
        _undo_space(space)
        for name in ("action_space", "observation_space")
        for space in with_parts(getattr(env, name, None))
    ]
    try:
        yield
    finally:
        for restore in undo:
            restore()


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


@contextmanager
def _classes_restored() -> Iterator[None]:
    """Restore the data of the environments' classes, e.g. a counter of instances.

    A class that got new data of another type, e.g. a connection that its instances share, is left
    alone: its other data may refer to that.
    """
    before = [_Data(kind) for kind in _env_classes()]
    try:
        yield
    finally:
        for data in before:
            data.restore()


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


class _Data:
    """The data of a class.

    Args:
        kind: The class.
    """

    def __init__(self, kind: type) -> None:
        self._kind = kind
        self._values = self._now()
        self._undo = [undo for value in self._values.values() for undo in _undo(value)]
        self._counts = {
            name: repr(value)
            for name, value in self._values.items()
            if isinstance(value, itertools.count)
        }

    def _now(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self._kind).items() if name[:2] != "__"}

    def restore(self) -> None:
        """Restore it, unless it may refer to something that stays."""
        now, before = self._now(), self._values
        changed = [
            name
            for name in {**now, **before}
            if now.get(name, MISSING) is not before.get(name, MISSING)
        ]
        if not all(isinstance(now.get(name), DATA) for name in changed):
            return
        for name in changed:
            if name in before:
                setattr(self._kind, name, before[name])
            else:
                delattr(self._kind, name)
        for undo in self._undo:
            undo()
        for name, shown in self._counts.items():
            if (
                repr(before[name]) != shown
            ):  # such a counter shows its state, and cannot be set back
                start = ast.literal_eval(f"({shown.removeprefix('count(').removesuffix(')')},)")
                setattr(self._kind, name, itertools.count(*start))


# Values that change in place


def _undo(value: Any, depth: int = 4) -> Iterator[Undo]:
    """Return a function that restores a generator or the content of a container in place.

    Args:
        value: Any value; None is returned for others.
        depth: How many levels of containers are restored.
    """
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
    now, before = list(_items(container)), list(_items(content))
    if len(now) == len(before) and all(map(operator.is_, now, before)):
        return
    container.clear()
    (container.extend if isinstance(container, list | deque) else container.update)(content)


def _items(container: Any) -> Iterator[Any]:
    """Return the items of a container, keys and values in turn."""
    if isinstance(container, dict):
        for pair in container.items():
            yield from pair
    else:
        yield from container
