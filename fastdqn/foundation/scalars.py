"""Single values as callers may write them: NumPy's scalars, and 1e5 for a whole number."""

from __future__ import annotations

import math
from typing import Any

from fastdqn.errors import UsageError

__all__ = [
    "are_names",
    "as_bool",
    "as_names",
    "as_whole",
    "is_finite",
    "is_whole",
    "python_scalar",
    "refuse_unless_bool",
    "refuse_unless_finite",
    "whole",
    "whole_numbers",
]


def python_scalar(value: Any) -> Any:
    """Return the number or bool that a scalar of NumPy or PyTorch holds; all else as it is."""
    single = getattr(value, "ndim", None) == 0 and hasattr(value, "item")
    return value.item() if single else value


def as_whole(value: Any) -> Any:
    """Return a whole number as an int, also one that is written as 1e5; all else as it is."""
    value = python_scalar(value)
    return int(value) if isinstance(value, float) and value.is_integer() else value


def as_bool(value: Any) -> Any:
    """Return True or False for a bool of NumPy, and for 1 and 0; all else as it is."""
    value = python_scalar(value)
    return bool(value) if isinstance(value, int) and value in {0, 1} else value


def as_names(value: Any) -> Any:
    """Return a list of names as a tuple; one name is a tuple of one, None is none."""
    if value is None or isinstance(value, str):
        return () if value is None else (str(value),)
    return tuple(value) if isinstance(value, list) else value


def are_names(value: Any) -> bool:
    """Return whether a value is a tuple of names."""
    return isinstance(value, tuple) and all(isinstance(name, str) for name in value)


def is_whole(value: Any) -> bool:
    """Return whether a value is an int and no bool."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_finite(value: Any) -> bool:
    """Return whether a value is an int or a finite float, and no bool."""
    return is_whole(value) or (isinstance(value, float) and math.isfinite(value))


def whole(name: str, value: Any, *, least: int = 0, way_out: str) -> int:
    """Return a whole number of a call's argument, or refuse it.

    Args:
        name: Its name in messages.
        value: The caller's value.
        least: Smallest allowed value.
        way_out: What to pass instead.

    Raises:
        UsageError: It is not whole, or below `least`.
    """
    number = as_whole(value)
    if not is_whole(number):
        raise UsageError(f"{name} {value!r}", "it must be a whole number (int)", way_out)
    if number < least:
        raise UsageError(f"{name} {number}", f"it must be at least {least}", way_out)
    return int(number)


def whole_numbers(name: str, values: Any, *, least: int = 0, way_out: str) -> tuple[int, ...]:
    """Return several whole numbers, such as a shape; see `whole`.

    Raises:
        UsageError: They are not a sequence, or one of them is not whole or below `least`.
    """
    values = values.tolist() if getattr(values, "ndim", None) == 1 else values
    if not isinstance(values, tuple | list):
        raise UsageError(f"{name} {values!r}", "it must be a tuple of whole numbers", way_out)
    numbers = tuple(map(as_whole, values))
    if not all(is_whole(number) and number >= least for number in numbers):
        reason = f"each must be a whole number of at least {least}"
        raise UsageError(f"{name} {tuple(values)}", reason, way_out)
    return numbers


def refuse_unless_bool(name: str, value: Any, way_out: str) -> None:
    """Refuse a value that is neither True nor False, nor 1 or 0.

    Raises:
        UsageError: It is not; names it.
    """
    if not isinstance(as_bool(value), bool):
        raise UsageError(f"{name} {value!r}", "it must be True or False", way_out)


def refuse_unless_finite(name: str, value: Any, way_out: str) -> None:
    """Refuse a value that is not a finite number.

    Raises:
        UsageError: It is not; names it.
    """
    if not is_finite(python_scalar(value)):
        raise UsageError(f"{name} {value!r}", "it must be a finite number", way_out)
