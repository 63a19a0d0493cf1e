"""Arguments as JSON holds them come back as what they were, or are refused."""

from __future__ import annotations

import enum
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastdqn.envs.specs.plain_values import NotPlainError, from_plain, to_plain

NAMES = st.text(max_size=8).filter(lambda text: not text.startswith("$"))
NUMBERS = st.integers(-(2**64), 2**64) | st.floats(allow_nan=False, allow_infinity=False)
PLAIN = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(NAMES, inner, max_size=3)
    ),
    max_leaves=12,
)


def through_json(value: Any) -> Any:
    return from_plain(json.loads(json.dumps(to_plain(value), allow_nan=False)))


def types_of(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return type(value), [types_of(part) for part in value]
    if isinstance(value, dict):
        return {key: types_of(part) for key, part in value.items()}
    return type(value)


@given(PLAIN)
def test_plain_values_come_back_equal_and_of_their_types(value: Any) -> None:
    assert through_json(value) == value
    assert types_of(through_json(value)) == types_of(value)


@pytest.mark.parametrize(
    ("value", "again"),
    [
        (np.float32, np.float32),
        (np.dtype("uint8"), np.uint8),
        (np.bool_(True), True),
        (np.uint8(7), 7),
        (np.float64(0.1), 0.1),
    ],
)
def test_dtypes_and_numbers_of_numpy_come_back(value: Any, again: Any) -> None:
    assert through_json([value]) == [again]
    assert type(through_json(value)) is type(again)


class _Color(enum.IntEnum):
    RED = 1


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (lambda: 0, "of type function"),
        (np.ones(2), "of type ndarray"),
        (np.float32(0.1), "of type float32"),
        (float("nan"), "the number nan"),
        (float("inf"), "the number inf"),
        (2**64 + 1, "beyond 64 bits"),
        (_Color.RED, "of type _Color"),
        ({1: 2}, "a dict with the key 1"),
        ({"$tuple": []}, "a dict with the key '\\$tuple'"),
        ({1, 2}, "of type set"),
        (b"x", "of type bytes"),
        (np.dtype(object), "of type"),
    ],
)
def test_what_json_cannot_hold_is_refused_at_any_depth(value: Any, words: str) -> None:
    for around in (value, [value], ({"a": (value,)},)):
        with pytest.raises(NotPlainError, match=words):
            to_plain(around)


def test_what_holds_itself_is_refused() -> None:
    endless: list[Any] = []
    endless.append(endless)
    with pytest.raises(NotPlainError, match="more than 16 levels deep"):
        to_plain(endless)
    with pytest.raises(NotPlainError, match="more than 16 levels deep"):
        from_plain(endless)


@pytest.mark.parametrize(
    "noted", [{"$tuple": 1}, {"$dtype": "object"}, {"$dtype": []}, {"$x": 1}, float("inf"), 2**70]
)
def test_what_is_never_written_is_not_read(noted: Any) -> None:
    with pytest.raises(NotPlainError):
        from_plain(noted)
