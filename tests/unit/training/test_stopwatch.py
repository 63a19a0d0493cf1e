"""The stopwatch, on a clock that the test moves."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from fastdqn.training.stopwatch import ACTIVITIES, Stopwatch

if TYPE_CHECKING:
    from tests.clock import Clock


def _spend(watch: Stopwatch, clock: Clock, activity: str, seconds: float) -> None:
    clock.now += seconds
    watch.lap(activity)


def test_each_lap_books_the_time_since_the_one_before(clock: Clock) -> None:
    watch = Stopwatch()
    for activity, seconds in (("act", 1.0), ("learn", 4.0), ("act", 2.0), ("other", 0.0)):
        _spend(watch, clock, activity, seconds)
    assert watch.seconds == {
        "act": 3.0,
        "env_wait": 0.0,
        "write": 0.0,
        "learn": 4.0,
        "other": 0.0,
        "compile": 0.0,
        "evaluate": 0.0,
    }


def test_compiling_and_evaluating_are_not_training(clock: Clock) -> None:
    watch = Stopwatch()
    for activity, seconds in (("learn", 3.0), ("compile", 50.0), ("evaluate", 7.0), ("act", 1.0)):
        _spend(watch, clock, activity, seconds)
    assert watch.train_s == 4.0
    assert watch.shares() == {
        "act": 0.25,
        "env_wait": 0.0,
        "write": 0.0,
        "learn": 0.75,
        "other": 0.0,
    }


def test_time_can_be_moved_and_none_is_lost(clock: Clock) -> None:
    watch = Stopwatch()
    _spend(watch, clock, "learn", 10.0)
    watch.move(8.0, "learn", "compile")
    assert (watch.seconds["learn"], watch.seconds["compile"]) == (2.0, 8.0)
    assert sum(watch.seconds.values()) == 10.0


def test_shares_sum_to_one_and_are_zero_before_the_first_lap(clock: Clock) -> None:
    watch = Stopwatch()
    assert set(watch.shares().values()) == {0.0}
    for seconds, activity in enumerate(ACTIVITIES, start=1):
        _spend(watch, clock, activity, seconds)
    assert sum(watch.shares().values()) == pytest.approx(1.0)
    assert tuple(watch.shares()) == ACTIVITIES


def test_an_unknown_activity_is_an_error(clock: Clock) -> None:
    with pytest.raises(KeyError):
        Stopwatch().lap("sleep")
