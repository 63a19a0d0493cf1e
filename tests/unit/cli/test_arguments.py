"""Words of the command line that stand for values."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest

from fastdqn.cli.arguments import parse, value_of
from fastdqn.envs.specs.wrapping import read_wrapper
from fastdqn.errors import UsageError

AGAIN = ("--wrapper", "B(1)")


@dataclass(frozen=True)
class Asked:
    """Two flags of several words."""

    env_kwargs: dict[str, Any] = field(default_factory=dict)
    """Arguments."""
    wrapper: tuple[str, ...] = ()
    """Names."""
    seed: int = 0
    """A number."""


@pytest.mark.parametrize(
    ("word", "value"),
    [
        *(("false", False), ("False", False), ("null", None), ("None", None), ("-5.0", -5.0)),
        *(("8x8", "8x8"), ("", ""), ("1e3", 1000.0), ("007", "007"), ("NaN", "NaN"), ("'1'", "1")),
        *(('["SF","HG"]', ["SF", "HG"]), ("(3, 4)", (3, 4)), ('{"a": [1]}', {"a": [1]})),
        *(
            ("open(1)", "open(1)"),
            ("__import__('os')", "__import__('os')"),
            ("[" * 9999, "[" * 9999),
        ),
    ],
)
def test_a_word_is_json_or_a_literal_or_itself(word: str, value: Any) -> None:
    assert value_of(word) == value
    assert type(value_of(word)) is type(value)


@pytest.mark.parametrize(
    "words",
    [
        ["--env-kwargs", "a=1", "b=x=y", "--wrapper", "A", "B(1)", "--seed", "3"],
        [
            "--env-kwargs",
            "a=1",
            "--seed",
            "3",
            "--wrapper",
            "A",
            "--env_kwargs",
            "b=x=y",
            "--wrapper",
            "B(1)",
        ],
        ["--wrapper=A", "--env-kwargs=a=1", "--wrapper=B(1)", "--env-kwargs=b=x=y", "--seed=3"],
    ],
)
def test_flags_of_several_words_may_come_several_times(words: list[str]) -> None:
    assert parse(Asked, "try", words) == Asked({"a": 1, "b": "x=y"}, ("A", "B(1)"), 3)


def test_flags_of_several_words_may_have_none() -> None:
    assert parse(Asked, "try", ["--wrapper", "--env-kwargs"]) == Asked()


@pytest.mark.parametrize("words", [["--env-kwargs", "a"], ["--env-kwargs", "a b=1"]])
def test_what_is_no_pair_is_refused(words: list[str]) -> None:
    with pytest.raises(UsageError, match=r"it takes KEY=VALUE, one or several\. See fastdqn try"):
        parse(Asked, "try", words)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("A", ("", "A", (), {})),
        (" a.b_c:D ", ("a.b_c", "D", (), {})),
        ("A(1, 'x:y', k=(2, None))", ("", "A", (1, "x:y"), {"k": (2, None)})),
        ("m:A({'a': [1.5]})", ("m", "A", ({"a": [1.5]},), {})),
    ],
)
def test_a_wrapper_is_a_name_with_plain_arguments(text: str, found: Any) -> None:
    wrapper = read_wrapper(text)
    assert (wrapper.module, wrapper.name, wrapper.args, wrapper.kwargs) == found


@pytest.mark.parametrize(
    "text",
    [
        *("", "1A", "A(", "A)", "A(x)", "A(**{})", "A(*[1])", "A()()", "A(1).b(2)", "A(open('x'))"),
        *("A(1) or B(2)", "a:b:C", ":A", "A(\x00)", "A(" + "[" * 5000 + ")", "A(1e999)", "A({1})"),
        *("A(1, 1=2)", "A('" + "x" * 3000 + "')", 5, None),
    ],
)
def test_other_words_are_no_wrapper_and_never_evaluated(text: Any) -> None:
    with pytest.raises(UsageError, match="it is no name with plain arguments"):
        read_wrapper(text)
