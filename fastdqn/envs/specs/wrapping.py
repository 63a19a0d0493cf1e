"""Wrappers by name: as the caller writes them, and as they were found around an environment.

FlattenObservation            one of Gymnasium's own
TimeLimit(max_episode_steps=100)
my_module:MyWrapper(3)        the caller's; the module is imported, as those of ids are
"""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import gymnasium as gym

from fastdqn.envs.specs.ids import factory_of, import_from_here
from fastdqn.envs.specs.plain_values import names_of, plain_env_kwargs, spelled_arguments, to_plain
from fastdqn.envs.workers.settings import EnvFactory
from fastdqn.errors import UsageError, first_line

__all__ = ["Wrapper", "factory_with", "gymnasium_wrapper", "read_wrapper"]

WRITTEN = re.compile(r"(?:([A-Za-z_][\w.]*):)?([A-Za-z_]\w*)(\(.*\))?", re.DOTALL)
MAX_TEXT = 2_000
REFUSED: Mapping[str, str] = {
    "NormalizeObservation": "its running mean is not saved",
    "RecordVideo": "it writes files",
    "HumanRendering": "it opens a window",
}
"""Gymnasium's own wrappers that no file may name."""
LARGEST, LARGEST_COUNT = 4_096, 2**53
"""Of a whole number in a wrapper's arguments, since it may be a size; and of a count."""
COUNTS = frozenset({"max_episode_steps", "buffer_length"})


@dataclass(frozen=True)
class Wrapper:
    """A wrapper by name.

    Attributes:
        name: Of its class, or of a function that takes an environment and returns one.
        module: Where it is; empty for those of Gymnasium.
        kwargs: Its arguments by name; None where they are not known, or not plain.
        args: Its arguments after the environment.
        text: How the caller wrote it; empty if it was found.
        why_unknown: Why its arguments are not known, or empty.
    """

    name: str
    module: str
    kwargs: Mapping[str, Any] | None
    args: tuple[Any, ...] = ()
    text: str = ""
    why_unknown: str = ""

    def around(self, env: gym.Env[Any, Any]) -> gym.Env[Any, Any]:
        """Wrap an environment; imports the module.

        Raises:
            UsageError: There is no such wrapper, or it cannot be put around this environment.
        """
        wrap = self.found()
        try:
            wrapped = wrap(env, *self.args, **(self.kwargs or {}))
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
            found = gymnasium_wrapper(self.name)
            if found is None:
                raise self._refused(f"Gymnasium has no wrapper {self.name}")
            return found
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

    def typed(self) -> tuple[str, bool]:
        """Return it as text for a command, and whether that holds all of its arguments."""
        if self.text:
            return self.text, True
        name = f"{self.module}:{self.name}" if self.module else self.name
        words = ", ".join(f"{key}={value!r}" for key, value in (self.kwargs or {}).items())
        text = f"{name}({words})" if words else name
        try:
            return text, read_wrapper(text).kwargs == self.kwargs
        except UsageError:
            return name, False

    def why_no_file(self) -> str:
        """Return why no file may have it put on; empty where one may."""
        if self.module:
            return f"{self.module}:{self.name} is a wrapper of the caller's own"
        if self.kwargs is None:
            return self.why_unknown
        for key, value in {**self.kwargs, "*": self.args}.items():
            for number in _whole_numbers(value):
                if abs(number) > (LARGEST_COUNT if key in COUNTS else LARGEST):
                    return f"the argument {key} of {self.name} is {number}"
        if self.name in REFUSED:
            return f"no file may ask for {self.name}: {REFUSED[self.name]}"
        return "" if gymnasium_wrapper(self.name) else f"Gymnasium has no wrapper {self.name}"


def gymnasium_wrapper(name: str) -> type[gym.Wrapper[Any, Any, Any, Any]] | None:
    """Return a wrapper of Gymnasium; None where it has none, or something of it is missing."""
    try:
        wrapper = getattr(gym.wrappers, name) if name in gym.wrappers.__all__ else None
    except (AttributeError, ImportError, gym.error.Error):
        return None
    return wrapper if isinstance(wrapper, type) and issubclass(wrapper, gym.Wrapper) else None


def _whole_numbers(value: Any) -> Iterator[int]:
    if isinstance(value, dict | list | tuple):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _whole_numbers(part)
    elif isinstance(value, int):
        yield value


def read_wrapper(text: Any) -> Wrapper:
    """Parse a wrapper's text; nothing is imported or evaluated.

    Raises:
        UsageError: It is not `Name` or `Name(arguments)`, with or without `module:`.
    """
    fine = isinstance(text, str) and len(text) <= MAX_TEXT and text.isprintable()
    match = WRITTEN.fullmatch(text.strip()) if fine else None
    arguments = _arguments(match[3]) if match else None
    if match is None or arguments is None:
        raise UsageError(
            f"--wrapper {str(text)[:200]}",
            "it is no name with plain arguments",
            "Write it like FlattenObservation, 'TimeLimit(max_episode_steps=100)' or "
            "my_module:MyWrapper.",
        )
    args, kwargs = arguments
    return Wrapper(match[2], match[1] or "", kwargs, args, text)


def _arguments(words: str | None) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """Read `(1, name="x")`; None if it is not a call with plain values."""
    try:
        call: Any = ast.parse(f"wrapper{words or '()'}", mode="eval").body
        args = tuple(map(ast.literal_eval, call.args))
        kwargs = {key.arg: ast.literal_eval(key.value) for key in call.keywords}
        to_plain([list(args), kwargs])
    except (AttributeError, ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
        return None
    return (args, kwargs) if isinstance(call.func, ast.Name) else None


# Environments of an id with arguments and wrappers


def factory_with(
    env_id: str, env_kwargs: Mapping[str, Any] | None, wrappers: Sequence[str] | None
) -> EnvFactory:
    """Return a picklable factory for an id, arguments and wrappers, the innermost first.

    Arguments are those of the environment's constructor, and `max_episode_steps`.

    Raises:
        UsageError: One of them cannot be used.
    """
    kwargs = plain_env_kwargs(env_kwargs or {})
    named = tuple(map(read_wrapper, names_of(wrappers)))
    for wrapper in named:
        wrapper.found()
    factory = factory_of(env_id, **kwargs)
    spelled = shlex.join(spelled_arguments(kwargs))
    return partial(_made, factory, spelled, named) if kwargs or named else factory


def _made(
    factory: EnvFactory, spelled_kwargs: str, wrappers: tuple[Wrapper, ...]
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
