"""How an environment was made, in plain values, and the environment made again from them.

Gymnasium notes it in the specs of environments and in the arguments of its own wrappers. What it
does not note cannot be repeated: attributes that were set afterwards, wrappers of the caller's own.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import gymnasium as gym
from gymnasium.envs.registration import EnvSpec, load_env_creator

from fastdqn.envs.masks import MaskInInfo
from fastdqn.envs.specs.plain_values import MAX_BYTES, NotPlainError, from_plain, to_plain
from fastdqn.envs.specs.wrapping import Wrapper, gymnasium_wrapper

__all__ = [
    "FORWARDING",
    "GIVEN",
    "Construction",
    "bare_env",
    "chain_of",
    "construction_of",
    "rebuilt",
]

WHY_NOT = "why_not"
GIVEN: Mapping[str, Any] = {WHY_NOT: "the caller built it"}
"""The construction of environments that the caller built."""
QUIET = (gym.wrappers.OrderEnforcing, gym.wrappers.PassiveEnvChecker, MaskInInfo)
"""Wrappers that change no transition, or that are applied again anyway."""
FORWARDING = frozenset({"GymV21Environment-v0", "GymV26Environment-v0"})
"""Ids whose arguments name what is imported."""


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
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    wrappers: tuple[Wrapper, ...] = ()
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


def _read_wrapper(noted: Any) -> Wrapper:
    if not isinstance(noted, dict) or not {"name", "kwargs"} <= noted.keys():
        raise NotPlainError("a wrapper without name or arguments")
    if not noted.keys() <= {"name", "kwargs", "module", WHY_NOT}:
        raise NotPlainError("a wrapper of more than name and arguments")
    name, module = _text(noted["name"]), noted.get("module")
    if module is not None:
        return Wrapper(name, _text(module), None)
    if noted["kwargs"] is None or WHY_NOT in noted:
        why = _text(noted.get(WHY_NOT, f"the arguments of {name} are not known"))
        return Wrapper(name, "", None, why_unknown=why)
    return Wrapper(name, "", _kwargs(noted["kwargs"]))


def _kwargs(noted: Any) -> dict[str, Any]:
    kwargs = from_plain(noted)
    if not isinstance(kwargs, dict):
        raise NotPlainError("arguments that are no names and values")
    return kwargs


def _text(noted: Any) -> str:
    if not isinstance(noted, str) or len(noted) > 500 or not noted.isprintable():
        raise NotPlainError("a name that is no short text")
    return noted


# Noting


def construction_of(env: gym.Env[Any, Any]) -> dict[str, Any]:
    """Note how an environment was made, in plain JSON values: id, kwargs, wrappers; or why_not."""
    spec = env.unwrapped.spec
    if not isinstance(spec, EnvSpec):
        return {WHY_NOT: "it was not made by gymnasium.make, which alone notes how"}
    arguments = _plain_arguments(spec.kwargs, spec.id)
    if WHY_NOT in arguments:
        return {WHY_NOT: arguments[WHY_NOT]}
    noted = {"id": spec.id, **arguments, "wrappers": list(map(_note_wrapper, chain_of(env)))}
    if _entry(spec) != _entry(gym.registry.get(spec.id, spec)):
        return {WHY_NOT: f"{spec.id} is registered as something else than what was made"}
    if len(json.dumps(noted)) > MAX_BYTES:
        return {WHY_NOT: f"the arguments of {spec.id} take more than {MAX_BYTES:,} bytes"}
    return noted


def _note_wrapper(wrapper: gym.Wrapper[Any, Any, Any, Any]) -> dict[str, Any]:
    kind, saved = type(wrapper), getattr(wrapper, "_saved_kwargs", None)
    if gymnasium_wrapper(kind.__name__) is not kind or not isinstance(saved, dict):
        return {"name": kind.__name__, "kwargs": None, "module": kind.__module__}
    named = {name: value for name, value in saved.items() if name != "env"}
    return {"name": kind.__name__, **_plain_arguments(named, kind.__name__)}


def _plain_arguments(kwargs: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return plain kwargs of something, or why there are none."""
    plain = {}
    for key, value in kwargs.items():
        try:
            plain[key] = to_plain(value)
        except NotPlainError as error:
            why_not = f"the argument {key} of {name} is {error}"
            return {"kwargs": None, WHY_NOT: "".join(filter(str.isprintable, why_not))[:300]}
    return {"kwargs": plain}


def _entry(spec: EnvSpec) -> str:
    """Return the name of what a spec makes, which may be given by name or as an object."""
    if isinstance(spec.entry_point, str):
        return spec.entry_point.rpartition(":")[2]
    return str(getattr(spec.entry_point, "__qualname__", spec.entry_point))


# Making again


def rebuilt(
    spec: EnvSpec, kwargs: Mapping[str, Any], wrappers: tuple[Wrapper, ...]
) -> gym.Env[Any, Any]:
    """Make an environment of a spec again, with all arguments and wrappers of a `Construction`.

    Raises:
        NotPlainError: A wrapper is neither Gymnasium's own nor one of the registered spec.
    """
    env = bare_env(spec, kwargs)
    inside = [type(wrapper).__name__ for wrapper in chain_of(env)]
    if inside != [wrapper.name for wrapper in wrappers[: len(inside)]]:
        raise NotPlainError(f"{spec.id} now comes with other wrappers, {', '.join(inside)}")
    added = {wrapper.entry_point: wrapper for wrapper in spec.additional_wrappers}
    for wrapper in wrappers[len(inside) :]:
        known, why_not = added.get(f"{wrapper.module}:{wrapper.name}"), wrapper.why_no_file()
        if known is not None:
            creator: Any = load_env_creator(known.entry_point)
            env = creator(env=env, **(known.kwargs or {}))
        elif why_not:
            raise NotPlainError(why_not)
        else:
            env = wrapper.found()(env, **(wrapper.kwargs or {}))
    return env


def bare_env(spec: EnvSpec, kwargs: Mapping[str, Any]) -> gym.Env[Any, Any]:
    """Make an environment with no wrappers but those of its entry point."""
    bare = replace(spec, kwargs=dict(kwargs), max_episode_steps=None, additional_wrappers=())
    return gym.make(replace(bare, order_enforce=False), disable_env_checker=True)


def chain_of(env: Any) -> list[gym.Wrapper[Any, Any, Any, Any]]:
    """Return the wrappers around an environment that matter, the innermost first."""
    found: list[gym.Wrapper[Any, Any, Any, Any]] = []
    while isinstance(env, gym.Wrapper):
        found += [] if type(env) in QUIET else [env]
        env = env.env
    return found[::-1]
