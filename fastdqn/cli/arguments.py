"""Parses a command line into a dataclass, or one line that says what is wrong."""

from __future__ import annotations

import ast
import contextlib
import difflib
import io
import json
import re
from dataclasses import MISSING, Field, fields
from itertools import takewhile
from typing import Any, TypeVar

import tyro
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

from fastdqn.config import choices_of, flag_of, spelled
from fastdqn.errors import UsageError
from fastdqn.foundation.scalars import as_whole, is_whole

__all__ = ["fields_in", "parse", "words_after"]

T = TypeVar("T")
SEVERAL = ("tuple[str, ...]", "dict[str, Any]")
"""Types of flags whose words add up over several uses of the flag."""
REGISTRY = ConstructorRegistry()


@REGISTRY.primitive_rule
def _named_arguments(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Any] | None:
    """Parse flags of type dict from `KEY=VALUE` words."""
    if info.type_origin is not dict:
        return None
    return PrimitiveConstructorSpec(
        nargs="*",
        metavar="[KEY=VALUE ...]",
        instance_from_str=_arguments_of,
        is_instance=lambda value: isinstance(value, dict),
        str_from_instance=lambda value: [f"{key}={part}" for key, part in value.items()],
    )


def parse(kind: type[T], command: str, argv: list[str], default: T | None = None) -> T:
    """Fill a dataclass from flags; its fields' docstrings are the help.

    Args:
        kind: The dataclass.
        command: Name of the command, for the help.
        argv: The words after the command.
        default: Values of missing flags; None takes the dataclass's.

    Raises:
        UsageError: A word cannot be used; the message names it, the reason and the way out.
        SystemExit: Help was printed.
    """
    _refuse_unknown_flags(kind, command, argv)
    argv = _with_whole_numbers(kind, _joined(kind, argv))
    box = io.StringIO()
    try:
        with contextlib.redirect_stderr(box):
            how: Any = {"args": argv, "prog": f"fastdqn {command}", "registry": REGISTRY}
            if default is not None:
                how["default"] = default
            filled: T = tyro.cli(kind, **how)
            return filled
    except SystemExit as stop:
        if not stop.code:
            raise
        if isinstance(stop.__context__, UsageError):  # raised by the dataclass itself
            raise stop.__context__ from None
        raise _usage_error(kind, command, argv, box.getvalue()) from None


def words_after(argv: list[str], flag: str) -> list[str]:
    """Return the words after the last use of a flag on the command line."""
    for position in reversed(range(len(argv))):
        if _flag_in(argv[position]) == flag:
            _, equals, value = argv[position].partition("=")
            rest = takewhile(lambda word: not word.startswith("--"), argv[position + 1 :])
            return [value] if equals else list(rest)
    return []


def fields_in(kind: type[Any], argv: list[str]) -> list[str]:
    """Return the names of the dataclass's fields whose flags the command line holds."""
    flags = set(map(_flag_in, argv))
    return [field.name for field in fields(kind) if flags.intersection(_spellings(field))]


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
    """Turn tyro's message into a UsageError; where it names a flag, add what that flag takes."""
    see = f"See fastdqn {command} --help."
    text = " ".join(re.sub(r"[│╭╮╰╯]|[─-]{3,}", " ", box).split()).partition(" For full help")[0]
    for field in fields(kind):
        if re.search(rf"{flag_of(field.name)}(?![\w-])", text):
            got = " ".join([flag_of(field.name), *words_after(argv, flag_of(field.name))])
            message = field.default and field.default is not MISSING
            way_out = f"The default is {spelled(field.default)}." if message else see
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
        "tuple[str, ...]": "names",
        "dict[str, Any]": "KEY=VALUE, one or several",
        "float": "a number",
        "bool": "no value: " + " or ".join(_spellings(field)),
        "Path": "a path",
        "str": "a word",
    }
    taken = words.get(kind) or " or ".join(choices_of(field))
    optional = re.sub(r"Literal\['(\w+)'\]", r"\1", optional)
    return f"{taken} or {optional}" if optional else taken


def value_of(word: str) -> Any:
    """Return the value of a word: JSON, or a literal of Python, or else the word itself."""
    with contextlib.suppress(ValueError, RecursionError):
        return json.loads(word, parse_constant=_no_number)
    with contextlib.suppress(ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
        return ast.literal_eval(word)
    return word


def _no_number(name: str) -> Any:
    raise ValueError(name)


def _arguments_of(words: list[str]) -> dict[str, Any]:
    """Return the values of `KEY=VALUE` words, by key."""
    pairs = [word.partition("=") for word in words]
    if not all(key.isidentifier() and equals for key, equals, _ in pairs):
        raise ValueError("KEY=VALUE")
    return {key: value_of(value) for key, _, value in pairs}


def _joined(kind: type[Any], argv: list[str]) -> list[str]:
    """Collect the words of a flag that is used several times."""
    several = {flag_of(field.name) for field in fields(kind) if field.type in SEVERAL}
    words: dict[str, list[str]] = {}
    rest: list[str] = []
    place = rest
    for word in argv:
        flag = _flag_in(word)
        if flag not in several:
            place = rest if flag else place
            place.append(word)
        elif "=" in word:
            words.setdefault(flag, []).append(word.partition("=")[2])
            place = rest
        else:
            place = words.setdefault(flag, [])
    return rest + [word for flag, given_words in words.items() for word in (flag, *given_words)]


def _spellings(field: Field[Any]) -> tuple[str, ...]:
    negated = (flag_of(f"no_{field.name}"),) if field.type == "bool" else ()
    return (flag_of(field.name), *negated)


def _flag_in(word: str) -> str:
    """Return the flag that a word holds, spelled with hyphens and without its value."""
    return word.partition("=")[0].replace("_", "-") if word.startswith("--") else ""
