"""From the words of a command line to a dataclass, or to one line that says what is wrong."""

from __future__ import annotations

import contextlib
import difflib
import io
import re
from dataclasses import Field, fields
from itertools import takewhile
from typing import Any, TypeVar

import tyro

from fastdqn.config import choices_of, flag_of, spelled
from fastdqn.errors import UsageError
from fastdqn.scalars import as_whole, is_whole

__all__ = ["given", "parse"]

T = TypeVar("T")


def parse(kind: type[T], command: str, argv: list[str], default: T | None = None) -> T:
    """Fill a dataclass from flags; its fields' docstrings are the help.

    Args:
        kind: The dataclass.
        command: Name of the command, for the help.
        argv: The words after the command.
        default: Values of the flags that are not given; None is those of the dataclass.

    Raises:
        UsageError: A word cannot be used; names it, the reason and the way out.
        SystemExit: Help was asked for and printed.
    """
    _refuse_unknown_flags(kind, command, argv)
    argv = _with_whole_numbers(kind, argv)
    box = io.StringIO()
    try:
        with contextlib.redirect_stderr(box):
            prog = f"fastdqn {command}"
            if default is None:
                return tyro.cli(kind, args=argv, prog=prog)
            return tyro.cli(kind, args=argv, prog=prog, default=default)
    except SystemExit as stop:
        if not stop.code:
            raise
        if isinstance(stop.__context__, UsageError):  # raised by the dataclass itself
            raise stop.__context__ from None
        raise _usage_error(kind, command, argv, box.getvalue()) from None


def given(argv: list[str], flag: str) -> list[str]:
    """Return the words that the command line gives to a flag, the last time it names it."""
    for position in reversed(range(len(argv))):
        if _flag_in(argv[position]) == flag:
            _, equals, value = argv[position].partition("=")
            rest = takewhile(lambda word: not word.startswith("--"), argv[position + 1 :])
            return [value] if equals else list(rest)
    return []


def _with_whole_numbers(kind: type[Any], argv: list[str]) -> list[str]:
    """Return the words with 1e5 spelled out where a flag takes whole numbers."""
    takes_whole = {flag_of(field.name) for field in fields(kind) if "int" in str(field.type)}
    flag, words = "", []
    for word in argv:
        flag = _flag_in(word) or flag
        name, equals, value = word.partition("=") if _flag_in(word) else ("", "", word)
        words.append(f"{name}{equals}{_spelled_out(value) if flag in takes_whole else value}")
    return words


def _spelled_out(word: str) -> str:
    """Return a whole number that is written as 1e5 or 2.0 as tyro reads it; all else as it is."""
    try:
        number = as_whole(float(word))
    except (ValueError, OverflowError):
        return word
    return str(number) if is_whole(number) and not word.lstrip("+-").isdecimal() else word


def _refuse_unknown_flags(kind: type[Any], command: str, argv: list[str]) -> None:
    known = {"--help"}.union(*(_spellings(field) for field in fields(kind)))
    for flag in map(_flag_in, argv):
        if flag.startswith("--") and flag not in known:
            close = difflib.get_close_matches(flag, known, 2)
            hint = f"Did you mean {' or '.join(close)}? " if close else ""
            raise UsageError(flag, "there is no such flag", f"{hint}See fastdqn {command} --help.")


def _usage_error(kind: type[Any], command: str, argv: list[str], box: str) -> UsageError:
    """Turn tyro's box into a UsageError; where it names a flag, say what that flag takes."""
    see = f"See fastdqn {command} --help."
    text = " ".join(re.sub(r"[│╭╮╰╯]|[─-]{3,}", " ", box).split()).partition(" For full help")[0]
    for field in fields(kind):
        if re.search(rf"{flag_of(field.name)}(?![\w-])", text):
            got = " ".join([flag_of(field.name), *given(argv, flag_of(field.name))])
            way_out = f"The default is {spelled(field.default)}." if field.default else see
            return UsageError(got, f"it takes {_taken_by(field)}", way_out)
    reason = re.sub(r".*Missing from [\w ]+: (\S+) .*", r"\1 is missing", text)
    reason = re.sub(r".*Unrecognized options: ", "no flag takes the word ", reason)
    return UsageError(f"fastdqn {command}", reason, see)


def _taken_by(field: Field[Any]) -> str:
    """Return what a flag takes, in words."""
    kind, _, optional = str(field.type).partition(" | ")
    words = {
        "int": "a whole number",
        "tuple[int, ...]": "whole numbers",
        "float": "a number",
        "bool": "no value: " + " or ".join(_spellings(field)),
        "Path": "a path",
        "str": "a word",
    }
    taken = words.get(kind) or " or ".join(choices_of(field))
    return f"{taken} or {optional}" if optional else taken


def _spellings(field: Field[Any]) -> tuple[str, ...]:
    negated = (flag_of(f"no_{field.name}"),) if field.type == "bool" else ()
    return (flag_of(field.name), *negated)


def _flag_in(word: str) -> str:
    """Return the flag that a word holds, spelled with hyphens and without its value."""
    return word.partition("=")[0].replace("_", "-") if word.startswith("--") else ""
