"""Arguments of environments as JSON values and back; refuses what JSON cannot hold.

Tuples and dtypes, which JSON lacks, are marked, so that they come back as what they were.
"""

from __future__ import annotations

import ast
import contextlib
import json
import math
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from fastdqn.errors import UsageError
from fastdqn.foundation.scalars import are_names, as_names

__all__ = [
    "CONFIGURING",
    "MAX_BYTES",
    "NotPlainError",
    "from_plain",
    "names_of",
    "plain_env_kwargs",
    "refuse_what_is_not_built",
    "spelled_arguments",
    "to_plain",
    "with_plain_arguments",
]

CONFIGURING = ("env_kwargs", "wrapper")
"""Settings that say how the environments of an id are built."""
MAX_BYTES = 200_000
"""Of all arguments of an environment as JSON."""
OURS = ("id", "disable_env_checker")
"""Arguments of `gymnasium.make` that are given here already."""

MAX_DEPTH = 16
LARGEST = 2**64
DTYPES = (
    *("bool", "uint8", "int8", "uint16", "int16", "int32", "int64"),
    *("float16", "float32", "float64"),
)


class NotPlainError(ValueError):
    """A value that JSON cannot hold faithfully; the message names what it is."""


def to_plain(value: Any, depth: int = 0) -> Any:
    """Return a value as JSON holds it; `from_plain` gives back an equal one.

    Args:
        value: None, a bool, a number, a string, a dtype, or lists, tuples and dicts of them.
        depth: Its depth in other values.

    Raises:
        NotPlainError: It is, or holds, something else, or a number that is not finite.
    """
    if isinstance(value, np.bool_ | np.integer | np.float64):
        value = value.item()
    if type(value) is tuple:
        return {"$tuple": to_plain(list(value), depth)}
    if _dtype_name(value) in DTYPES:
        return {"$dtype": _dtype_name(value)}
    return _converted(value, to_plain, depth)


def from_plain(value: Any, depth: int = 0) -> Any:
    """Return what `to_plain` made plain; a stranger may have written it.

    Args:
        value: As the JSON parser gave it.
        depth: Its depth in other values.

    Raises:
        NotPlainError: `to_plain` does not write such a value.
    """
    match value:
        case {"$tuple": list(parts)} if len(value) == 1:
            return tuple(from_plain(parts, depth))
        case {"$dtype": str(name)} if len(value) == 1 and name in DTYPES:
            return np.dtype(name).type
    return _converted(value, from_plain, depth)


def _converted(value: Any, convert: Callable[[Any, int], Any], depth: int) -> Any:
    """Return a scalar as it is, and a list or a dict of converted parts."""
    if type(value) is int and abs(value) > LARGEST:
        raise NotPlainError("a number beyond 64 bits")
    if type(value) is float and not math.isfinite(value):
        raise NotPlainError(f"the number {value}")
    if value is None or type(value) in {bool, int, float, str}:
        return value
    if depth == MAX_DEPTH:
        raise NotPlainError(f"more than {MAX_DEPTH} levels deep")
    if type(value) is list:
        return [convert(part, depth + 1) for part in value]
    if not isinstance(value, Mapping):
        raise NotPlainError(f"of type {type(value).__name__}")
    for key in value:
        if type(key) is not str or key.startswith("$"):
            raise NotPlainError(f"a dict with the key {key!r}")
    return {key: convert(part, depth + 1) for key, part in value.items()}


def _dtype_name(value: Any) -> str | None:
    is_scalar_type = isinstance(value, type) and issubclass(value, np.generic)
    return np.dtype(value).name if is_scalar_type or isinstance(value, np.dtype) else None


# Settings that hold them


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
            f"--env-kwargs {shlex.join(spelled_arguments(given))}",
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
    for name, as_plain in (("env_kwargs", plain_env_kwargs), ("wrapper", names_of)):
        if name in plain:
            plain[name] = as_plain(plain[name])
    return plain


def names_of(given: Any) -> tuple[str, ...]:
    """Return wrappers as a tuple, one as a tuple of one; UsageError if they are no names."""
    names: Any = as_names(given)
    if not are_names(names):
        raise UsageError(f"--wrapper {given!r}", "it is no list of names", "Pass (name, ...).")
    return tuple(names)


def refuse_what_is_not_built(
    env_kwargs: Mapping[str, Any] | None, wrappers: Sequence[str] | None
) -> None:
    """Refuse arguments and wrappers for environments that Gymnasium does not build from an id.

    Raises:
        UsageError: There are arguments or wrappers.
    """
    for flag, given in (("--env-kwargs", env_kwargs), ("--wrapper", wrappers)):
        if given:
            words = spelled_arguments(given) if isinstance(given, Mapping) else names_of(given)
            raise UsageError(
                f"{flag} {shlex.join(words)}",
                "it configures what Gymnasium builds from an id, and these environments come from "
                "elsewhere (the caller, EnvPool, or tensors)",
                "Configure them where they are built, or pass an id and leave --vectorizer out.",
            )


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
