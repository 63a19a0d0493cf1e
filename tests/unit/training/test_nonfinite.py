"""Counting numbers that are not finite, reporting them, and ending a run that has no others."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from fastdqn.errors import NonFiniteError
from fastdqn.training.callbacks import Callback
from fastdqn.training.nonfinite import NonFiniteReports, Tally, TensorTally

both = pytest.mark.parametrize("on_nonfinite", ["skip", "replace"])


class Told(Callback):
    """Keeps the messages."""

    def __init__(self) -> None:
        self.messages: list[tuple[int, str]] = []

    def on_nonfinite(self, env_steps: int, message: str) -> None:
        self.messages.append((env_steps, message))


def _state(updates: int, skipped: int) -> Any:
    numbers = {"updates": torch.tensor(updates), "skipped": torch.tensor(skipped)}
    return SimpleNamespace(**numbers, metrics=torch.full((4,), torch.nan))


def _rollout(count: int, words: str = "") -> Any:
    return SimpleNamespace(nonfinite=count, env_steps=77, nonfinite_words=lambda: words)


def test_a_tally_raises_unless_something_else_was_asked_for() -> None:
    with pytest.raises(NonFiniteError, match=r"it is bad: DQN cannot .* --on-nonfinite skip"):
        Tally().note(1, "it is bad", 0)


def test_a_tally_ends_after_a_thousand_in_a_row_only() -> None:
    tally = Tally("skip")
    for progress in (4, 5):
        for _ in range(999):
            tally.note(2, "it is bad", progress)
    assert tally.count == 2 * 999 * 2
    with pytest.raises(NonFiniteError, match="it is bad: of 1,000 vector steps in a row"):
        tally.note(1, "it is bad", 5)


def test_what_is_replaced_never_ends_a_run() -> None:
    tally = Tally("replace")
    for _ in range(3000):
        tally.note(1, "it is bad", 0)
    assert tally.count == 3000


def test_steps_of_a_log_are_named_by_their_env_steps() -> None:
    tally = TensorTally("skip")
    tally.note_skipped(np.array([[False, False], [False, True], [True, True]]), 100)
    words = "environment 1 returned a number that is not finite by env step 104"
    assert (tally.count, tally.take_words(), tally.take_words()) == (3, words, "")
    with pytest.raises(NonFiniteError, match="by env step 2096: of 1,000"):
        tally.note_skipped(np.ones((1000, 2), np.bool_), 100)  # after one above


def test_a_skipped_update_is_an_error_with_raise_at_every_report() -> None:
    reports = NonFiniteReports()
    reports.look_at(_state(5, 0), 9)
    for _ in range(2):
        with pytest.raises(
            NonFiniteError, match=r"^3 updates before env step 9 had a loss or a gr"
        ):
            reports.look_at(_state(5, 3), 9)


@both
def test_skipped_updates_are_counted_from_the_beginning_of_the_call(on_nonfinite: str) -> None:
    reports, told = NonFiniteReports(on_nonfinite), Told()
    reports.begin(_state(100, 40), _rollout(7))
    reports.look_at(_state(120, 40), 9)
    reports.report(_rollout(7), told)
    assert told.messages == []
    reports.look_at(_state(150, 41), 9)
    reports.look_at(_state(180, 43), 9)
    reports.report(_rollout(9, "it is bad"), told)
    done = "skipped" if on_nonfinite == "skip" else "replaced"
    assert told.messages == [
        (
            77,
            f"not finite since the last report: 2 steps of environments (first, it is bad) {done} "
            "and 3 updates skipped",
        )
    ]
    assert (reports.transitions, reports.updates) == (2, 3)
    reports.look_at(_state(190, 44), 9)
    reports.report(_rollout(10), told)
    assert told.messages[1:] == [
        (
            77,
            f"not finite since the last report: 1 step of environments {done} and 1 update skipped",
        )
    ]
    assert (reports.transitions, reports.updates) == (3, 4)


@both
def test_a_thousand_updates_in_a_row_end_the_run(on_nonfinite: str) -> None:
    reports = NonFiniteReports(on_nonfinite)
    reports.begin(_state(40, 40), _rollout(0))
    reports.look_at(_state(1039, 1039), 9)
    with pytest.raises(NonFiniteError, match=r"^1000 updates before env step 9 had a loss"):
        reports.look_at(_state(1040, 1040), 9)
    reports.look_at(_state(1041, 1040), 9)  # one was made
    reports.look_at(_state(2040, 2039), 9)
    with pytest.raises(NonFiniteError, match=r"^1000 updates"):
        reports.look_at(_state(2041, 2040), 9)
