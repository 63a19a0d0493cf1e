"""Sends the ids that the caller's process has registered with Gymnasium to worker processes.

An import registers environments in its own process only. A worker that unpickles a factory, such as
`lambda: gym.make("Bird-v0")`, has not imported the module that registers the id.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import cloudpickle
import gymnasium as gym
from gymnasium.envs.registration import EnvSpec, load_env_creator

from fastdqn.envs.workers.settings import EnvFactory

__all__ = ["RegisteringFactory", "explained", "importable", "packed_registry", "register"]

LARGEST_BYTES = 2**24
"""A creator with more pickled bytes is sent only with the factories that use it."""


class PickledCreator:
    """A class or function that makes environments, and is not unpickled before it is called.

    Unpickling may import a module that most workers do not need. ValueError if it is too large to
    be sent to every worker.
    """

    def __init__(self, creator: Callable[..., Any]) -> None:
        self._packed: bytes = cloudpickle.dumps(creator)
        if len(self._packed) > LARGEST_BYTES:
            raise ValueError(f"it takes {len(self._packed) / 2**20:,.0f} MiB")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Build an environment."""
        return pickle.loads(self._packed)(*args, **kwargs)  # noqa: S301 - packed by the parent

    @property
    def metadata(self) -> Any:
        """The creator's metadata, which Gymnasium reads; AttributeError if it has none."""
        return pickle.loads(self._packed).metadata  # noqa: S301 - as above


class RegisteringFactory:
    """A factory for Gymnasium's own workers: it registers its caller's ids, then builds."""

    def __init__(self, factory: EnvFactory, packed: bytes) -> None:
        self._factory, self._packed, self._home = factory, packed, os.getpid()

    def __call__(self) -> gym.Env[Any, Any]:
        """Build an environment; in a worker, let a signal to the process group close it first."""
        if os.getpid() == self._home:
            return self._factory()
        # by default the process would end without closing it
        signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
        register(self._packed)
        try:
            return self._factory()
        except gym.error.UnregisteredEnv as error:
            raise explained(error) from None


def importable(spec: EnvSpec) -> EnvSpec:
    """Replace an entry point in the caller's script, which workers do not run, by the object."""
    if isinstance(spec.entry_point, str) and spec.entry_point.startswith("__main__:"):
        creator: Any = load_env_creator(spec.entry_point)
        return replace(spec, entry_point=creator)
    return spec


# Sending


def packed_registry() -> bytes:
    """Return all ids that are registered here, to be registered elsewhere.

    A few hundred of them take a millisecond or two. What cannot be pickled is left out.
    """
    specs: dict[str, bytes] = {}
    left_out: dict[str, str] = {}
    for env_id, spec in list(gym.registry.items()):
        try:
            specs[env_id] = _packed(spec)
        except Exception as error:  # pickling may raise any exception
            left_out[env_id] = f"{type(error).__name__}: {error}"
    return pickle.dumps((specs, left_out))


def _packed(spec: EnvSpec) -> bytes:
    spec = importable(spec)
    if not isinstance(spec.vector_entry_point, str | None):
        spec = replace(spec, vector_entry_point=None)  # workers build single environments
    if callable(spec.entry_point):
        spec = replace(spec, entry_point=PickledCreator(spec.entry_point))
    elif not spec.additional_wrappers and _is_simple(spec.kwargs):
        return pickle.dumps(spec)  # much faster
    return bytes(cloudpickle.dumps(spec))


def _is_simple(value: Any) -> bool:
    if type(value) is dict:
        return all(map(_is_simple, value)) and all(map(_is_simple, value.values()))
    if type(value) in {list, tuple}:
        return all(map(_is_simple, value))
    return type(value) in {str, int, float, bool, bytes, type(None)}


# Receiving


_ARRIVED: dict[int, dict[str, str]] = {}
"""Ids that could not be sent, by registry that was received here."""


def register(packed: bytes) -> None:
    """Register the ids of `packed_registry` in this process, once.

    Other specs under the same ids are replaced. Modules that register the same ids once more, when
    a factory imports them, cause no warning. Empty bytes are an empty registry.
    """
    if not packed or hash(packed) in _ARRIVED:
        return
    again = r".*Overriding environment \S+ already in registry"
    warnings.filterwarnings("ignore", message=again)
    specs, left_out = pickle.loads(packed)  # noqa: S301 - packed by the parent process
    _ARRIVED[hash(packed)] = left_out
    for env_id, pickled in specs.items():
        try:
            spec = pickle.loads(pickled)  # noqa: S301 - as above
        except Exception as error:  # e.g. an argument whose class is missing here
            left_out[env_id] = f"{type(error).__name__}: {error}"
            continue
        if gym.registry.get(env_id) != spec:
            gym.registry[env_id] = spec


def explained(error: Exception) -> Exception:
    """Return an error of a factory, and of one in a worker with what to write."""
    if multiprocessing.parent_process() is None:
        return error
    if isinstance(error, AssertionError) and "daemonic processes are not allowed" in str(error):
        return type(error)(
            f"{error}: the environment starts processes. Let it do so in the process that trains, "
            "with num_workers=0 (--num-workers 0), or use GroupedVectorEnv(..., daemon=False)."
        )
    if not isinstance(error, gym.error.UnregisteredEnv):
        return error
    reasons = [f"{i} ({why})" for arrived in _ARRIVED.values() for i, why in arrived.items()]
    unsent = f" Some ids could not be sent to it: {'; '.join(reasons)}." if reasons else ""
    return type(error)(
        f"{str(error).rstrip('.')}. A worker process knows what its parent had registered when it "
        f"was started.{unsent} Let the factory register it in the process that builds: "
        "def make():\n    import module_that_registers_it\n    return gymnasium.make(...)"
    )
