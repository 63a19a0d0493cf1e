"""Trial environments that leave no trace in the process that looks at them.

A caller who seeds a generator, counts instances or samples a space goes on as if there had been no
trial: random numbers, the generators of the spaces and the data of the environments' classes are
put back.
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

__all__ = ["close_quietly", "generators_kept", "trial_env", "with_parts"]

CONTAINERS = (list, dict, set, deque)
DATA = (
    *(int, float, complex, str, bytes, type(None), tuple, frozenset, *CONTAINERS, itertools.count),
    *(np.generic, np.ndarray, np.random.Generator, np.random.RandomState, random.Random),
    *(Space, gym.Env),
)
"""What counts, remembers or draws; other values of a class may stand for something outside."""
MISSING: Any = object()
LARGE_BYTES = 2**20
"""An array of this size is a table, which costs too much to be kept."""
Undo = Callable[[], object]


@contextmanager
def trial_env(factory: Callable[[], gym.Env[Any, Any]]) -> Iterator[gym.Env[Any, Any]]:
    """Build an environment to look at and to step, close it, and leave no trace of it.

    What an environment does to the world outside of its process stays done.

    Args:
        factory: Builds it.
    """
    with generators_kept(), _classes_kept(), _process_kept():
        env = factory()
        try:
            with _spaces_kept(env):
                yield env
        finally:
            close_quietly(env)


def close_quietly(env: Any) -> None:
    """Close an environment, whatever that raises, and even if there is nothing to call."""
    with contextlib.suppress(Exception):
        env.close()


@contextmanager
def generators_kept() -> Iterator[None]:
    """Put the global generators back: of `random`, NumPy and, if it is loaded, PyTorch."""
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
        for put_back in undo:
            put_back()


@contextmanager
def _process_kept() -> Iterator[None]:
    """Put the current folder and the signals that are blocked back."""
    blocked, folder = signal.pthread_sigmask(signal.SIG_BLOCK, ()), ""
    with contextlib.suppress(OSError):  # a folder that is gone
        folder = str(Path.cwd())
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        if folder:
            os.chdir(folder)


# Spaces


@contextmanager
def _spaces_kept(env: Any) -> Iterator[None]:
    """Put the generators of an environment's spaces back to what its constructor made of them."""
    undo = [
        _undo_space(space)
        for name in ("action_space", "observation_space")
        for space in with_parts(getattr(env, name, None))
    ]
    try:
        yield
    finally:
        for put_back in undo:
            put_back()


def with_parts(space: Any) -> Iterator[Space[Any]]:
    """Return a space and all spaces that it is made of."""
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

    def put_back() -> None:
        space._np_random = generator
        for undo in rewind:
            undo()

    return put_back


# Classes


@contextmanager
def _classes_kept() -> Iterator[None]:
    """Put the data of the environments' classes back, e.g. a counter of instances.

    A class that took up something that is no plain data, e.g. a connection that its instances
    share, is left alone: its other data may speak of that.
    """
    before = [_Data(kind) for kind in _env_classes()]
    try:
        yield
    finally:
        for data in before:
            data.put_back()


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
"""Where classes are from that hold nothing a trial could change."""


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

    def put_back(self) -> None:
        """Put it back, unless it may speak of something that is there to stay."""
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
            if repr(before[name]) != shown:  # such a counter says where it is, and cannot go back
                start = ast.literal_eval(f"({shown.removeprefix('count(').removesuffix(')')},)")
                setattr(self._kind, name, itertools.count(*start))


# Values that change in place


def _undo(value: Any, depth: int = 4) -> Iterator[Undo]:
    """Return what puts the state of a generator or the content of a container back in place.

    Args:
        value: Anything; nothing is returned for what is neither.
        depth: How many containers within containers are looked at.
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
    """Give a container its former content, in place, where it has changed."""
    now, before = list(_items(container)), list(_items(content))
    if len(now) == len(before) and all(map(operator.is_, now, before)):
        return
    container.clear()
    (container.extend if isinstance(container, list | deque) else container.update)(content)


def _items(container: Any) -> Iterator[Any]:
    """Return what a container holds, keys and values in turn."""
    if isinstance(container, dict):
        for pair in container.items():
            yield from pair
    else:
        yield from container
