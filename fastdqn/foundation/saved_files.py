"""Strict JSON: read from files that a stranger may have written, and written whole."""

from __future__ import annotations

import json
import math
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

__all__ = ["parse_json", "read_regular", "replacing", "without_nan", "write_json_whole"]


def read_regular(path: Path, most: int) -> bytes:
    """Read a regular file of limited size.

    Args:
        path: The file itself: links are not followed, pipes and devices are not read.
        most: Largest size, bytes.

    Raises:
        OSError: It is missing, not a regular file, or larger.
    """
    if path.is_symlink():
        raise OSError(f"{path.name} is a link; put the file itself there")
    never_wait = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    descriptor = os.open(path, os.O_RDONLY | never_wait)
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(f"{path.name} is no regular file")
        if status.st_size > most:
            raise OSError(f"{path.name} takes {status.st_size:,} bytes, more than {most:,}")
        return file.read(status.st_size)


def parse_json(content: bytes | str) -> Any:
    """Parse JSON as its standard has it: no NaN or infinity, no name twice, finite numbers.

    Raises:
        ValueError: It is not JSON, or nested too deeply.
    """
    try:
        return json.loads(
            content,
            parse_constant=_refuse_constant,
            object_pairs_hook=_without_duplicates,
            parse_float=_finite,
        )
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no number of JSON")


def _finite(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise ValueError(f"{digits[:40]} is too large a number")
    return number


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name stands in it twice")
    return found


def without_nan(values: dict[str, Any]) -> dict[str, Any]:
    """Return values as JSON can hold them: NaN and the infinities become None."""
    return {name: _without_nan(value) for name, value in values.items()}


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return without_nan(value)
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_json_whole(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON file so that a reader sees the old one or the whole new one.

    Raises:
        OSError: The disk is full or the folder cannot be written; the old file stays.
    """
    with replacing(path) as draft, draft.open("w", encoding="utf-8") as stream:
        json.dump(content, stream, indent=2)
        stream.write("\n")
        stream.flush()
        os.fsync(stream.fileno())


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield the path of a draft that becomes the file at the end; after an error the old one stays.

    Raises:
        OSError: The draft cannot be put in the file's place.
    """
    draft = path.with_name(f".tmp-{path.name}-{os.getpid()}")
    try:
        yield draft
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
