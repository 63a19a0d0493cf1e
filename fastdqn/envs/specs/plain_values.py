"""Arguments of environments as JSON values and back; refuses what JSON cannot hold.

Tuples and dtypes, which JSON lacks, are marked, so that they come back as what they were.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

__all__ = ["NotPlainError", "from_plain", "to_plain"]

TUPLE, DTYPE = "$tuple", "$dtype"
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
    if value is None or type(value) in {bool, int, float, str}:
        return _refuse_number(value)
    if depth == MAX_DEPTH:
        raise NotPlainError(f"more than {MAX_DEPTH} levels deep")
    if type(value) is list:
        return [to_plain(part, depth + 1) for part in value]
    if type(value) is tuple:
        return {TUPLE: [to_plain(part, depth + 1) for part in value]}
    if isinstance(value, Mapping):
        return {_name(key): to_plain(part, depth + 1) for key, part in value.items()}
    if _dtype_name(value) in DTYPES:
        return {DTYPE: _dtype_name(value)}
    raise NotPlainError(f"of type {type(value).__name__}")


def from_plain(value: Any, depth: int = 0) -> Any:
    """Return what `to_plain` made plain; a stranger may have written it.

    Args:
        value: As the JSON parser gave it.
        depth: Its depth in other values.

    Raises:
        NotPlainError: `to_plain` does not write such a value.
    """
    if value is None or type(value) in {bool, int, float, str}:
        return _refuse_number(value)
    if depth == MAX_DEPTH:
        raise NotPlainError(f"more than {MAX_DEPTH} levels deep")
    if type(value) is list:
        return [from_plain(part, depth + 1) for part in value]
    if type(value) is not dict:
        raise NotPlainError(f"of type {type(value).__name__}")
    if value.keys() == {TUPLE} and type(value[TUPLE]) is list:
        return tuple(from_plain(part, depth + 1) for part in value[TUPLE])
    if value.keys() == {DTYPE} and type(value[DTYPE]) is str and value[DTYPE] in DTYPES:
        return np.dtype(value[DTYPE]).type
    return {_name(key): from_plain(part, depth + 1) for key, part in value.items()}


def _refuse_number(value: Any) -> Any:
    if type(value) is int and abs(value) > LARGEST:
        raise NotPlainError("a number beyond 64 bits")
    if type(value) is float and not math.isfinite(value):
        raise NotPlainError(f"the number {value}")
    return value


def _name(key: Any) -> str:
    if type(key) is not str or key.startswith("$"):
        raise NotPlainError(f"a dict with the key {key!r}")
    return key


def _dtype_name(value: Any) -> str | None:
    is_dtype = isinstance(value, np.dtype) or (
        isinstance(value, type) and issubclass(value, np.generic)
    )
    return np.dtype(value).name if is_dtype else None
