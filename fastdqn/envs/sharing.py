"""Refuses one object used as two environments, behind every vectorizer.

A factory must build a new environment at each call. One that returns or wraps the same object again
mixes the episodes of several environments.
"""

from __future__ import annotations

import contextlib
import types
import weakref
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from itertools import islice
from typing import Any, Protocol

import gymnasium as gym
from gymnasium.envs.registration import EnvSpec

from fastdqn.envs.workers.settings import EnvFactory
from fastdqn.errors import UsageError
from fastdqn.foundation.trial_env import trial_env

__all__ = [
    "EnvsInUse",
    "core_of",
    "envs_in_use",
    "refuse_shared",
    "refuse_shared_by_processes",
    "refuse_the_same_again",
    "register_holder",
]

DEEP, WIDE = 4, 100
"""Depth of the search in a factory, and objects of a collection that are searched."""
COLLECTIONS = (list, tuple, set, dict)


class _Holder(Protocol):
    """Holds environments of a vector, the same object for all of its holders."""

    vector: Any

    def held(self) -> Iterable[tuple[int, Any]]:
        """Return (index in the vector, environment) of all that it holds now."""


EnvsInUse = dict[int, tuple[int, Any, Any]]
"""By the id of an environment's core: its index, its vector, and the core itself, which stays alive
so that no new environment gets its id."""
_holders: weakref.WeakSet[_Holder] = weakref.WeakSet()
register_holder = _holders.add
"""Note a holder of environments in this process, for as long as it lives."""
_builds_anew: weakref.WeakSet[Any] = weakref.WeakSet()
"""Factories that were seen to build anew."""


def core_of(env: Any) -> Any:
    """Return the environment within all wrappers."""
    core = getattr(env, "unwrapped", env)
    return core if isinstance(core, gym.Env) else env


# In one process


def envs_in_use() -> EnvsInUse:
    """Return the environments that live holders in this process hold now."""
    return {
        id(core := core_of(env)): (index, holder.vector, core)
        for holder in list(_holders)
        for index, env in holder.held()
    }


def refuse_shared(taken: EnvsInUse, env: Any, index: int, vector: Any) -> None:
    """Refuse an environment that is in use; enter any other in `taken`.

    Raises:
        UsageError: It is another environment already; names both.
    """
    core = core_of(env)
    if id(core) in taken:
        other, its_vector, _ = taken[id(core)]
        raise _one_object(other, index, apart=its_vector is not vector)
    taken[id(core)] = index, vector, core


def _one_object(first: int, second: int, *, apart: bool = False) -> UsageError:
    where = " of two vectors, such as training and evaluation," if apart else ""
    return UsageError(
        f"environments {first} and {second}{where} that are one object",
        "their factory returns or wraps the same one again, so that their episodes would mix",
        "Let it build a new one at each call: lambda: gymnasium.make(...), or "
        "lambda: copy.deepcopy(env).",
    )


# Before processes start, each of which would get a copy of its own


def refuse_the_same_again(factory: EnvFactory, first: Any, pair: tuple[int, int] = (0, 1)) -> None:
    """Build one more environment and compare it with the first, which is closed.

    A factory that is known to build anew is not called; an exception is left to later calls.

    Raises:
        UsageError: It returned the same again; names the indices of the pair.
    """
    if _must_build_anew(factory):
        return
    try:
        with trial_env(factory) as second:
            same = core_of(second) is core_of(first)
    except Exception:
        return
    if same:
        raise _one_object(*pair)
    with contextlib.suppress(TypeError):  # neither hashable nor to be referred to weakly
        _builds_anew.add(factory)


def refuse_shared_by_processes(
    env_fns: Sequence[EnvFactory], shares: Sequence[Sequence[tuple[int, int]]]
) -> None:
    """Refuse factories that hand one object to environments of several processes.

    Environments of one process are compared there. Of the others, one is built here for each
    factory that is used twice, or whose functions hold the same environment. The shares are
    (first, last + 1) environments by process and group.

    Raises:
        UsageError: Names the two environments.
    """
    process = {env: k for k, spans in enumerate(shares) for a, b in spans for env in range(a, b)}
    by_origin: dict[int, list[int]] = {}
    for index, factory in enumerate(env_fns):
        held = [] if _must_build_anew(factory) else _envs_within(factory, DEEP)
        for origin in {id(factory), *(id(core_of(env)) for env in held)}:
            by_origin.setdefault(origin, []).append(index)
    for indices in by_origin.values():
        first, second = (*indices, 0)[:2]
        if len(indices) == 1 or len({process[index] for index in indices}) < len(indices):
            continue
        if not _must_build_anew(env_fns[first]):
            with trial_env(env_fns[first]) as env:
                pass
            refuse_the_same_again(env_fns[second], env, (first, second))


def _must_build_anew(factory: Any) -> bool:
    """Return whether a factory is known to build an environment at each call."""
    with contextlib.suppress(TypeError):
        if factory in _builds_anew:
            return True
    if isinstance(factory, type):
        makers = [("__new__", kind) for kind in factory.__mro__ if kind is not object]
        metas = type.mro(type(factory))
        makers += [("__call__", meta) for meta in metas[: metas.index(type)]]
        return not any(name in vars(kind) for name, kind in makers)
    if not isinstance(factory, partial) or next(_envs_within(factory, DEEP), None) is not None:
        return False
    if factory.func is not gym.make:
        ours = factory.func.__module__.startswith("fastdqn.") and factory.args
        return _must_build_anew(factory.args[0] if ours else factory.func)
    spec = factory.args[0] if factory.args else factory.keywords.get("id")
    entry = spec.entry_point if isinstance(spec, EnvSpec) else None
    return isinstance(entry, str | None) or _must_build_anew(entry)


def _envs_within(thing: Any, deep: int) -> Iterator[Any]:
    """Return the environments that a factory holds already, as far as the search finds them."""
    if isinstance(thing, gym.Env):
        yield thing
    elif deep:
        for part in islice(_parts_of(thing), WIDE):
            yield from _envs_within(part, deep - 1)


def _parts_of(thing: Any) -> Iterator[Any]:
    if isinstance(thing, partial):
        yield from (thing.func, *thing.args, *thing.keywords.values())
    elif isinstance(thing, types.MethodType):
        yield from (thing.__self__, thing.__func__)
    elif isinstance(thing, types.FunctionType):
        for cell in thing.__closure__ or ():
            with contextlib.suppress(ValueError):  # not filled yet
                yield cell.cell_contents
        yield from (thing.__defaults__ or ())
        known = (thing.__globals__.get(name) for name in thing.__code__.co_names)
        yield from (value for value in known if isinstance(value, (*COLLECTIONS, gym.Env)))
    elif isinstance(thing, COLLECTIONS):
        yield from thing.values() if isinstance(thing, dict) else thing
    elif callable(thing) and not isinstance(thing, type):
        yield from getattr(thing, "__dict__", {}).values()
