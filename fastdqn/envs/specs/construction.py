"""How an environment was made, in plain values, and the environment made again from them.

Gymnasium notes it in the specs of environments and in the arguments of its own wrappers. What it
does not note cannot be repeated: attributes that were set afterwards, wrappers of the caller's own.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import gymnasium as gym
from gymnasium.envs.registration import EnvSpec, load_env_creator

from fastdqn.envs.masks import MaskInInfo
from fastdqn.envs.specs.plain_values import NotPlainError, from_plain, to_plain

__all__ = [
    "FORWARDING",
    "GIVEN",
    "Construction",
    "UsedWrapper",
    "bare_env",
    "chain_of",
    "construction_of",
    "gymnasium_wrapper",
    "rebuilt",
    "why_not_from_a_file",
    "why_too_large",
]

WHY_NOT = "why_not"
GIVEN: Mapping[str, Any] = {WHY_NOT: "the caller built it"}
"""The construction of environments that the caller built."""
QUIET = (gym.wrappers.OrderEnforcing, gym.wrappers.PassiveEnvChecker, MaskInInfo)
"""Wrappers that change no transition, or that are applied again anyway."""
REFUSED: Mapping[str, str] = {
    "NormalizeObservation": "its running mean is not saved",
    "RecordVideo": "it writes files",
    "HumanRendering": "it opens a window",
}
"""Gymnasium's own wrappers that no file may name."""
FORWARDING = frozenset({"GymV21Environment-v0", "GymV26Environment-v0"})
"""Ids whose arguments name what is imported."""
MAX_BYTES = 200_000
LARGEST, LARGEST_COUNT = 4_096, 2**53
"""Of a whole number in a wrapper's arguments, since it may be a size; and of a count."""
COUNTS = frozenset({"max_episode_steps", "buffer_length"})


@dataclass(frozen=True)
class UsedWrapper:
    """A wrapper that was found around an environment.

    Attributes:
        name: Of its class.
        module: Where that is; None for those of Gymnasium.
        kwargs: Its arguments; None where they are not known, or not plain.
        why_not: Why it cannot be applied again, or empty.
    """

    name: str
    module: str | None
    kwargs: dict[str, Any] | None
    why_not: str = ""


@dataclass(frozen=True)
class Construction:
    """How an environment was made.

    Attributes:
        env_id: Its id in Gymnasium's registry.
        kwargs: All arguments of its constructor.
        wrappers: Around it, the innermost first.
        why_not: Why it cannot be made again, or empty.
    """

    env_id: str = ""
    kwargs: Mapping[str, Any] | None = None
    wrappers: tuple[UsedWrapper, ...] = ()
    why_not: str = ""

    @classmethod
    def read(cls, noted: Any) -> Construction:
        """Check what `construction_of` noted; a stranger may have written it.

        Raises:
            NotPlainError: It is something else; the message says what.
        """
        if isinstance(noted, dict) and noted.keys() == {WHY_NOT}:
            return cls(why_not=_text(noted[WHY_NOT]))
        if not isinstance(noted, dict) or noted.keys() != {"id", "kwargs", "wrappers"}:
            raise NotPlainError("no description of an environment")
        env_id, kwargs = _text(noted["id"]), _kwargs(noted["kwargs"])
        if ":" in env_id:
            raise NotPlainError(f"the id {env_id}, which names a module")
        if env_id in FORWARDING:
            return cls(why_not=f"{env_id} imports what its arguments name")
        if not isinstance(noted["wrappers"], list):
            raise NotPlainError("wrappers that are no list")
        return cls(env_id, kwargs, tuple(map(_read_wrapper, noted["wrappers"])))


def construction_of(env: gym.Env[Any, Any]) -> dict[str, Any]:
    """Note how an environment was made.

    Returns:
        Plain JSON values: id, kwargs and wrappers, or why_not.
    """
    spec = env.unwrapped.spec
    if not isinstance(spec, EnvSpec):
        return {WHY_NOT: "it was not made by gymnasium.make, which alone notes how"}
    try:
        kwargs = _plain_arguments(spec.kwargs, spec.id)
    except NotPlainError as error:
        return {WHY_NOT: _printable(error)}
    wrappers = [_note_wrapper(wrapper) for wrapper in chain_of(env)]
    noted = {"id": spec.id, "kwargs": kwargs, "wrappers": wrappers}
    if _entry(spec) != _entry(gym.registry.get(spec.id, spec)):
        return {WHY_NOT: f"{spec.id} is registered as something else than what was made"}
    if len(json.dumps(noted)) > MAX_BYTES:
        return {WHY_NOT: f"the arguments of {spec.id} take more than {MAX_BYTES:,} bytes"}
    return noted


def rebuilt(
    spec: EnvSpec, kwargs: Mapping[str, Any], wrappers: tuple[UsedWrapper, ...]
) -> gym.Env[Any, Any]:
    """Make an environment again.

    Args:
        spec: As it is registered now.
        kwargs: All arguments of its constructor.
        wrappers: All around it, the innermost first, those of its entry point included.

    Raises:
        NotPlainError: A wrapper is neither Gymnasium's own nor one of the registered spec.
    """
    env = bare_env(spec, kwargs)
    inside = [type(wrapper).__name__ for wrapper in chain_of(env)]
    if inside != [wrapper.name for wrapper in wrappers[: len(inside)]]:
        raise NotPlainError(f"{spec.id} now comes with other wrappers, {', '.join(inside)}")
    added = {wrapper.entry_point: wrapper for wrapper in spec.additional_wrappers}
    for wrapper in wrappers[len(inside) :]:
        known = added.get(f"{wrapper.module}:{wrapper.name}")
        if known is not None:
            creator: Any = load_env_creator(known.entry_point)
            env = creator(env=env, **(known.kwargs or {}))
        elif wrapper.why_not or wrapper.kwargs is None:
            raise NotPlainError(wrapper.why_not)
        else:
            env = gymnasium_wrapper(wrapper.name)(env, **wrapper.kwargs)
    return env


def bare_env(spec: EnvSpec, kwargs: Mapping[str, Any]) -> gym.Env[Any, Any]:
    """Make an environment with no wrappers but those of its entry point."""
    bare = replace(spec, kwargs=dict(kwargs), max_episode_steps=None, additional_wrappers=())
    return gym.make(replace(bare, order_enforce=False), disable_env_checker=True)


def gymnasium_wrapper(name: str) -> type[gym.Wrapper[Any, Any, Any, Any]]:
    """Return a wrapper of Gymnasium by its name.

    Raises:
        KeyError: It has none of that name, or something that it needs is not installed.
    """
    try:
        wrapper = getattr(gym.wrappers, name) if name in gym.wrappers.__all__ else None
    except (AttributeError, ImportError, gym.error.Error):
        wrapper = None
    if not (isinstance(wrapper, type) and issubclass(wrapper, gym.Wrapper)):
        raise KeyError(name)
    return wrapper


def chain_of(env: Any) -> list[gym.Wrapper[Any, Any, Any, Any]]:
    """Return the wrappers around an environment that matter, the innermost first."""
    found = [wrapper for wrapper in _wrappers_of(env) if type(wrapper) not in QUIET]
    return found[::-1]


def _wrappers_of(env: Any) -> Iterator[gym.Wrapper[Any, Any, Any, Any]]:
    while isinstance(env, gym.Wrapper):
        yield env
        env = env.env


# Noting


def _note_wrapper(wrapper: gym.Wrapper[Any, Any, Any, Any]) -> dict[str, Any]:
    kind = type(wrapper)
    saved = getattr(wrapper, "_saved_kwargs", None)
    noted: dict[str, Any] = {"name": kind.__name__, "kwargs": None}
    gymnasiums = kind.__module__.startswith("gymnasium.wrappers.")
    if not (gymnasiums and gymnasium_wrapper(kind.__name__) is kind and isinstance(saved, dict)):
        return {**noted, "module": kind.__module__}
    try:
        named = {name: value for name, value in saved.items() if name != "env"}
        return {**noted, "kwargs": _plain_arguments(named, kind.__name__)}
    except NotPlainError as error:
        return {**noted, WHY_NOT: _printable(error)}


def _printable(error: Exception) -> str:
    return "".join(filter(str.isprintable, str(error)))[:300]


def _plain_arguments(kwargs: Mapping[str, Any], name: str) -> dict[str, Any]:
    plain = {}
    for key, value in kwargs.items():
        try:
            plain[key] = to_plain(value)
        except NotPlainError as error:
            raise NotPlainError(f"the argument {key} of {name} is {error}") from None
    return plain


def _entry(spec: EnvSpec) -> str:
    """Return the name of what a spec makes, which may be given by name or as an object."""
    if isinstance(spec.entry_point, str):
        return spec.entry_point.rpartition(":")[2]
    return str(getattr(spec.entry_point, "__qualname__", spec.entry_point))


# Reading


def _read_wrapper(noted: Any) -> UsedWrapper:
    if not isinstance(noted, dict) or not {"name", "kwargs"} <= noted.keys():
        raise NotPlainError("a wrapper without name or arguments")
    if not noted.keys() <= {"name", "kwargs", "module", WHY_NOT}:
        raise NotPlainError("a wrapper of more than name and arguments")
    name, module = _text(noted["name"]), noted.get("module")
    if module is not None:
        module = _text(module)
        return UsedWrapper(name, module, None, f"{module}:{name} is a wrapper of the caller's own")
    if noted["kwargs"] is None or WHY_NOT in noted:
        why_not = _text(noted.get(WHY_NOT, f"the arguments of {name} are not known"))
        return UsedWrapper(name, None, None, why_not)
    kwargs, why_not = _kwargs(noted["kwargs"]), why_not_from_a_file(name)
    return UsedWrapper(name, None, kwargs, why_not or why_too_large(kwargs, name))


def why_not_from_a_file(name: str) -> str:
    """Return why a file may not name a wrapper of Gymnasium; empty where it may."""
    if name in REFUSED:
        return f"no file may ask for {name}: {REFUSED[name]}"
    try:
        gymnasium_wrapper(name)
    except KeyError:
        return f"Gymnasium has no wrapper {name}"
    return ""


def _kwargs(noted: Any) -> dict[str, Any]:
    kwargs = from_plain(noted)
    if not isinstance(kwargs, dict):
        raise NotPlainError("arguments that are no names and values")
    return kwargs


def why_too_large(kwargs: Mapping[str, Any], name: str) -> str:
    """Return why a file may not give such arguments to a wrapper; empty where it may.

    A whole number could be a size, which no file may choose freely.
    """
    for key, value in kwargs.items():
        for part in _whole_numbers(value):
            if abs(part) > (LARGEST_COUNT if key in COUNTS else LARGEST):
                return f"the argument {key} of {name} is {part}"
    return ""


def _whole_numbers(value: Any) -> Iterator[int]:
    if isinstance(value, dict | list | tuple):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _whole_numbers(part)
    elif isinstance(value, int):
        yield value


def _text(noted: Any) -> str:
    if not isinstance(noted, str) or len(noted) > 500 or not noted.isprintable():
        raise NotPlainError("a name that is no short text")
    return noted
