"""Tests of the states of parts: joined, taken apart, and refused by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch

from fastdqn.errors import CheckpointError
from fastdqn.foundation.state import PartState


def joined() -> PartState:
    one = PartState(
        {"count": 3, "rows": [1, 2], "mean": None, "digits": 10**400}, {"sums": torch.arange(3.0)}
    )
    other = PartState({"name": "b", "on": True}, {"sums": torch.ones(2)})
    whole = PartState.of_parts({"one": one, "other": other})
    return PartState(json.loads(json.dumps(whole.values)), whole.tensors)


def test_parts_come_back_with_their_values_and_tensors() -> None:
    one, other = (joined().part(name) for name in ("one", "other"))
    assert one.whole("count") == 3
    assert one.wholes("rows", 2) == [1, 2]
    assert one.number("mean") != one.number("mean")
    assert (other.text("name"), other.flag("on")) == ("b", True)
    into = torch.zeros(3)
    one.copy_into({"sums": into})
    assert into.tolist() == [0.0, 1.0, 2.0]
    assert set(other.tensors) == {"sums"}


@pytest.mark.parametrize(
    ("read", "said"),
    [
        (lambda s: s.whole("count", most=2), r"its count is 3, no whole number in \[0, 2\]"),
        (lambda s: s.whole("missing"), "its missing is None, no whole"),
        (lambda s: s.whole("mean"), "its mean is None"),
        (lambda s: s.wholes("rows", 3), r"its rows is \[1, 2\], no list of 3"),
        (lambda s: s.wholes("rows", 2, least=2), "its rows is a list with 1"),
        (lambda s: s.number("missing"), "its missing is 'missing'"),
        (lambda s: s.number("digits"), "its digits is 10000.*, no finite number"),
        (lambda s: s.flag("count"), "its count is 3, neither"),
        (lambda s: s.text("count"), "its count is 3, no text"),
        (lambda s: s.tensor("sums", torch.zeros(2)), r"its sums is \[3\] torch.float32, not \[2\]"),
        (lambda s: s.copy_into({"gone": torch.zeros(2)}), "its gone is missing"),
        (lambda s: s.part("count"), "state one: its count is missing"),
    ],
)
def test_what_a_part_cannot_hold_is_refused_by_name(
    read: Callable[[PartState], Any], said: str
) -> None:
    with pytest.raises(CheckpointError, match=said):
        read(joined().part("one"))


def test_a_flag_is_no_number() -> None:
    with pytest.raises(CheckpointError, match="its on is True, no whole"):
        joined().part("other").whole("on")


def test_nothing_is_copied_where_one_tensor_does_not_fit() -> None:
    state, into = joined().part("one"), torch.zeros(3)
    with pytest.raises(CheckpointError, match="its more is missing"):
        state.copy_into({"sums": into, "more": torch.zeros(1)})
    assert not into.any()


def test_parts_of_parts_come_back_and_say_where_they_are() -> None:
    inner = PartState({"count": 1}, {"sums": torch.ones(2)})
    outer = PartState({"name": "b"}).with_parts({"inner": inner})
    whole = PartState.of_parts({"outer": outer})
    found = whole.part("outer").part("inner")
    assert (found.whole("count"), found.tensors["sums"].tolist()) == (1, [1.0, 1.0])
    with pytest.raises(CheckpointError, match="state outer inner: its count is 1, no whole number"):
        found.whole("count", 2)


@pytest.mark.parametrize(
    ("read", "said"),
    [
        (lambda s: s.numbers("rows", 1), r"its rows is \[1, 'x'\], no list of at most 1 numbers"),
        (lambda s: s.numbers("rows", 2), "its rows is 'x', no finite number"),
        (lambda s: s.numbers("missing", 2), "its missing is None, no list"),
        (lambda s: s.scalar("seven", torch.tensor(0), most=6), r"its seven is 7, not in \[0, 6\]"),
        (lambda s: s.finite("inf", torch.zeros(1)), "its inf is not finite throughout"),
    ],
)
def test_numbers_and_scalars_are_refused_by_name(
    read: Callable[[PartState], Any], said: str
) -> None:
    tensors = {"seven": torch.tensor(7), "inf": torch.tensor([torch.inf])}
    with pytest.raises(CheckpointError, match=said):
        read(PartState({"rows": [1, "x"]}, tensors))
