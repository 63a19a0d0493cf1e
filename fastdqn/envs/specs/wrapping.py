"""Environments of an id with arguments and wrappers that the caller names.

FlattenObservation            one of Gymnasium's own
TimeLimit(max_episode_steps=100)
my_module:MyWrapper(3)        the caller's; the module is imported, as those of ids are
"""

from __future__ import annotations

import ast
import contextlib
import json
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import gymnasium as gym

from fastdqn.envs.description import EnvFactory, factory_of
from fastdqn.envs.specs.construction import UsedWrapper, gymnasium_wrapper
from fastdqn.envs.specs.ids import first_line, import_from_here
from fastdqn.envs.specs.plain_values import NotPlainError, from_plain, to_plain
from fastdqn.errors import UsageError
from fastdqn.foundation.scalars import are_names, as_names

__all__ = [
    "CONFIGURING",
    "NamedWrapper",
    "factory_with",
    "plain_env_kwargs",
    "read_wrapper",
    "refuse_what_is_not_built",
    "spelled_arguments",
    "typed_wrapper",
    "with_plain_arguments",
]

CONFIGURING = ("env_kwargs", "wrapper")
"""Settings that say how the environments of an id are built."""
WRAPPER = re.compile(r"(?:([A-Za-z_][\w.]*):)?([A-Za-z_]\w*)(\(.*\))?", re.DOTALL)
MAX_TEXT, MAX_BYTES = 2_000, 200_000
"""Of a wrapper's words, and of all arguments of an environment as JSON."""
OURS = ("id", "disable_env_checker")
"""Arguments of `gymnasium.make` that are given here already."""


@dataclass(frozen=True)
class NamedWrapper:
    """A wrapper as the caller names it.

    Attributes:
        text: How it was written.
        module: Where it is; empty for those of Gymnasium.
        name: Of its class, or of a function that takes an environment and returns one.
        args: Its arguments after the environment.
        kwargs: Its arguments by name.
    """

    text: str
    module: str
    name: str
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    def around(self, env: gym.Env[Any, Any]) -> gym.Env[Any, Any]:
        """Wrap an environment; imports the module.

        Raises:
            UsageError: There is no such wrapper, or it cannot be put around this environment.
        """
        wrap = self.found()
        try:
            wrapped = wrap(env, *self.args, **self.kwargs)
        except Exception as error:  # a wrapper may raise any exception
            reason = f"it cannot be put around {env} ({type(error).__name__}: {first_line(error)})"
            way_out = f"Pass the arguments that it takes: '{self.name}(name=value)'."
            raise UsageError(f"--wrapper {self.text}", reason, way_out) from error
        if not isinstance(wrapped, gym.Env):
            raise self._refused(f"it returns a {type(wrapped).__name__} and no environment")
        return wrapped

    def found(self) -> Any:
        """Return the class or function of that name; imports the module.

        Raises:
            UsageError: There is none.
        """
        if not self.module:
            try:
                return gymnasium_wrapper(self.name)
            except KeyError:
                raise self._refused(f"Gymnasium has no wrapper {self.name}") from None
        try:
            found = getattr(import_from_here(self.module), self.name)
        except Exception as error:  # importing may raise any exception
            reason = f"it cannot be imported ({type(error).__name__}: {first_line(error)})"
            raise self._refused(reason) from error
        if not callable(found):
            raise self._refused(f"{self.name} of {self.module} is nothing that wraps")
        return found

    def _refused(self, reason: str) -> UsageError:
        way_out = "Name one of gymnasium.wrappers, or one of yours as module:Name."
        return UsageError(f"--wrapper {self.text}", reason, way_out)


def read_wrapper(text: Any) -> NamedWrapper:
    """Parse a wrapper's text; nothing is imported or evaluated.

    Raises:
        UsageError: It is not `Name` or `Name(arguments)`, with or without `module:`.
    """
    fine = isinstance(text, str) and len(text) <= MAX_TEXT and text.isprintable()
    match = WRAPPER.fullmatch(text.strip()) if fine else None
    args, kwargs = _arguments(match[3]) if match else (None, {})
    if match is None or args is None:
        raise UsageError(
            f"--wrapper {str(text)[:200]}",
            "it is no name with plain arguments",
            "Write it like FlattenObservation, 'TimeLimit(max_episode_steps=100)' or "
            "my_module:MyWrapper.",
        )
    return NamedWrapper(text, match[1] or "", match[2], args, kwargs)


def _arguments(words: str | None) -> tuple[tuple[Any, ...] | None, dict[str, Any]]:
    """Read `(1, name="x")`; None if it is not a call with plain values."""
    try:
        call: Any = ast.parse(f"wrapper{words or '()'}", mode="eval").body
        args = tuple(map(ast.literal_eval, call.args))
        kwargs = {key.arg: ast.literal_eval(key.value) for key in call.keywords}
        to_plain([list(args), kwargs])
    except (AttributeError, ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
        return None, {}
    return (args, kwargs) if isinstance(call.func, ast.Name) else (None, {})


def typed_wrapper(wrapper: UsedWrapper) -> tuple[str, bool]:
    """Return a wrapper as text for a command, and whether that holds all of its arguments."""
    name = f"{wrapper.module}:{wrapper.name}" if wrapper.module else wrapper.name
    words = ", ".join(f"{key}={value!r}" for key, value in (wrapper.kwargs or {}).items())
    text = f"{name}({words})" if words else name
    try:
        whole = read_wrapper(text).kwargs == wrapper.kwargs
    except UsageError:
        return name, False
    return text, whole


def plain_env_kwargs(given: Any) -> dict[str, Any]:
    """Check arguments of an environment; numbers of numpy become Python's.

    Raises:
        UsageError: A name or a value that JSON cannot hold.
    """
    if not isinstance(given, Mapping):
        raise UsageError(
            f"env_kwargs {given!r}", "it is no mapping of names", 'Pass {"name": value}.'
        )
    try:
        for key in given:
            if not (isinstance(key, str) and key.isidentifier()) or key in OURS:
                raise NotPlainError(f"no argument of an environment, {key}")
        noted = to_plain(dict(given))
        if len(json.dumps(noted)) > MAX_BYTES:
            raise NotPlainError(f"of more than {MAX_BYTES:,} bytes")
        plain: dict[str, Any] = from_plain(noted)
    except NotPlainError as error:
        raise UsageError(
            f"--env-kwargs {_spelled(given)}",
            f"one is {error}",
            "Pass numbers, text, lists and dicts; for all else pass a factory from Python.",
        ) from None
    return plain


def with_plain_arguments(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings with arguments and wrappers as Config has them; None is left out.

    Raises:
        UsageError: JSON cannot hold one.
    """
    plain = {k: v for k, v in settings.items() if v is not None or k not in CONFIGURING}
    if "env_kwargs" in plain:
        plain["env_kwargs"] = plain_env_kwargs(plain["env_kwargs"])
    if "wrapper" in plain:
        plain["wrapper"] = _names(plain["wrapper"])
    return plain


def _names(given: Any) -> tuple[str, ...]:
    """Return the wrappers as a tuple; one may be given as a string."""
    names: Any = as_names(given)
    if not are_names(names):
        raise UsageError(f"--wrapper {given!r}", "it is no list of names", "Pass (name, ...).")
    return tuple(names)


def factory_with(
    env_id: str, env_kwargs: Mapping[str, Any] | None, wrappers: Sequence[str] | None
) -> EnvFactory:
    """Return a picklable factory for an id, arguments and wrappers.

    Args:
        env_id: As in `factory_of`.
        env_kwargs: Arguments of the environment's constructor, and `max_episode_steps`.
        wrappers: See `read_wrapper`; the first one is the innermost.

    Raises:
        UsageError: One of them cannot be used.
    """
    kwargs = plain_env_kwargs(env_kwargs or {})
    named = tuple(map(read_wrapper, _names(wrappers)))
    for wrapper in named:
        wrapper.found()
    factory = factory_of(env_id, **kwargs)
    return partial(_made, factory, _spelled(kwargs), named) if kwargs or named else factory


def refuse_what_is_not_built(
    env_kwargs: Mapping[str, Any] | None, wrappers: Sequence[str] | None
) -> None:
    """Refuse arguments and wrappers for environments that Gymnasium does not build from an id.

    Raises:
        UsageError: There are arguments or wrappers.
    """
    for flag, given in (("--env-kwargs", env_kwargs), ("--wrapper", wrappers)):
        if given:
            typed = _spelled(given) if isinstance(given, Mapping) else shlex.join(_names(given))
            raise UsageError(
                f"{flag} {typed}",
                "it configures what Gymnasium builds from an id, and these environments come from "
                "elsewhere (the caller, EnvPool, or tensors)",
                "Configure them where they are built, or pass an id and leave --vectorizer out.",
            )


def _made(
    factory: EnvFactory, spelled_kwargs: str, wrappers: tuple[NamedWrapper, ...]
) -> gym.Env[Any, Any]:
    try:
        env = factory()
    except Exception as error:
        if not spelled_kwargs:
            raise
        reason = first_line(error).partition(" was raised from the environment creator")[0]
        raise UsageError(
            f"--env-kwargs {spelled_kwargs}",
            f"the environment cannot be built with them ({type(error).__name__}: {reason})",
            "Pass what its constructor takes.",
        ) from error
    for wrapper in wrappers:
        env = wrapper.around(env)
    return env


def _spelled(kwargs: Mapping[str, Any]) -> str:
    return shlex.join(spelled_arguments(kwargs))


def spelled_arguments(kwargs: Mapping[str, Any]) -> list[str]:
    """Return arguments as --env-kwargs reads them, a word each, not yet quoted for a shell."""
    return [f"{key}={_spelled_value(value)}" for key, value in kwargs.items()]


def _spelled_value(value: Any) -> str:
    """Return a value as it is typed; text that reads as text is not quoted."""
    other = {"true", "false", "none", "null", "nan", "infinity"}
    if not isinstance(value, str) or value.lower() in other:
        return repr(value)
    with contextlib.suppress(ValueError, SyntaxError):
        ast.literal_eval(value)
        return repr(value)  # it would be taken for a number
    return value if re.fullmatch(r"[\w./:-]+", value) else repr(value)
