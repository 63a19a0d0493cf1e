"""Guarded ratios: taken within laps, asked for by pattern, timed in turns."""

from __future__ import annotations

import time
from itertools import count

import pytest
import torch

from benchmarks.guards import Guard, Selection, faster, slower, summed_up
from benchmarks.measure import PROBE_S, Effort, Timer, interleave, medians, rate_of

ROUNDS = [
    [{"a": 10.0, "b": 5.0}, {"a": 80.0, "b": 10.0}, {"a": 30.0, "b": 10.0}],
    [{"a": 4.0, "b": 1.0}],
    [{"a": 6.0, "b": 6.0}],
]
NAMES = ("lander@1 x naive", "lander@1/4 x naive", "update compile x eager, 64-64 b64 K1")


# Ratios


def test_a_ratio_is_the_median_within_laps_then_over_rounds() -> None:
    """The first round's laps give 2, 8, 3: the ratio of their medians would be another."""
    guard = faster("a x b", ROUNDS, "a", "b")
    assert guard.values == (3.0, 4.0, 1.0)
    assert (guard.median, guard.better) == (3.0, "higher")
    assert guard.spread == "3.00 (1.00 to 4.00)"


def test_time_over_time_is_the_inverse_of_rates() -> None:
    guard = slower("b / a", ROUNDS, "b", "a")
    assert guard.values == (3.0, 4.0, 1.0)  # b takes so many times as long
    assert guard.better == "lower"


@pytest.mark.parametrize(
    ("better", "goal", "aim"),
    [
        ("higher", 3.0, ">= 3 yes"),
        ("higher", 3.1, ">= 3.1 NO"),
        ("lower", 3.0, "<= 3 yes"),
        ("lower", 1 / 3, "<= 0.33 NO"),
        ("lower", None, "-"),
    ],
)
def test_a_goal_is_reached_or_not(better: str, goal: float | None, aim: str) -> None:
    guard = Guard("a", better, (3.0,), goal)  # type: ignore[arg-type]
    assert guard.aim == aim
    assert summed_up([guard]).splitlines()[-1] == f"| a | {better} | 3.00 (3.00 to 3.00) | {aim} |"


@pytest.mark.parametrize(
    ("better", "now", "worse"),
    [("higher", 8.0, 0.2), ("higher", 12.0, -0.2), ("lower", 12.0, 0.2), ("lower", 8.0, -0.2)],
)
def test_worse_is_a_fraction_of_the_base_in_the_right_direction(
    better: str, now: float, worse: float
) -> None:
    base = Guard("a", better, (10.0,))  # type: ignore[arg-type]
    assert Guard("a", base.better, (now,)).worse_than(base) == pytest.approx(worse)


def test_a_guard_survives_json() -> None:
    guard = Guard("a", "lower", (1.0, 3.0, 2.0), 0.5, again=True)
    assert Guard.from_json(guard.as_json()) == guard
    assert guard.as_json()["median"] == 2.0


# Selections


@pytest.mark.parametrize(
    ("selection", "taken"),
    [
        (Selection(), (0, 1, 2)),
        (Selection(only=("lander@1 *",)), (0,)),
        (Selection(only=("LANDER",)), (0, 1)),
        (Selection(only=("naive",), skip=("1/4",)), (0,)),
        (Selection(skip=("update *",)), (0, 1)),
        (Selection(only=("nothing",)), ()),
        (Selection(names=frozenset(NAMES[1:2])), (1,)),
    ],
)
def test_patterns_choose_ratios(selection: Selection, taken: tuple[int, ...]) -> None:
    assert [name for name in NAMES if selection.takes(name)] == [NAMES[i] for i in taken]
    assert selection.any_of(NAMES) == bool(taken)


# Turns


def test_things_are_timed_in_turns_and_backwards_every_other_time() -> None:
    asked: list[tuple[str, float]] = []

    def timer(name: str) -> Timer:
        def run_for(seconds: float) -> float:
            if seconds > PROBE_S:
                asked.append((name, seconds))
            return len(asked)

        return run_for

    rounds = interleave({"a": timer("a"), "b": timer("b")}, Effort(2, 1.0, turns=2), "timing")
    assert "".join(name for name, _ in asked) == "abba" + "baab"
    assert {seconds for _, seconds in asked} == {0.5}
    assert rounds[0] == [{"a": 1, "b": 2}, {"a": 4, "b": 3}]
    assert [len(laps) for laps in rounds] == [2, 2]
    assert list(rounds[0][1]) == ["a", "b"]


def test_laps_are_as_long_as_one_call_of_the_slowest() -> None:
    asked: list[float] = []

    def quick(seconds: float) -> float:
        asked.append(seconds)
        return 1.0

    def slow(seconds: float) -> float:
        time.sleep(0.02)
        return 1.0

    interleave({"quick": quick, "slow": slow}, Effort(1, 0.01, turns=10), "timing")
    assert asked[:3] == [PROBE_S] * 3
    assert asked[3:] == [pytest.approx(0.02, rel=0.5)] * 10


def test_medians_are_those_of_all_laps() -> None:
    assert medians(ROUNDS) == {"a": 10.0, "b": 6.0}


def test_a_rate_counts_what_a_call_does(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = count()
    monkeypatch.setattr("benchmarks.measure.time.perf_counter", lambda: float(next(clock)))
    # Clock: 0 before, 1 at the start of the loop, 2 to 5 before calls and at their end, 6 after.
    assert rate_of(lambda: None, torch.device("cpu"), counts=16)(4.0) == pytest.approx(3 * 16 / 6)


def test_an_effort_scales() -> None:
    assert Effort(5, 3.0).small == Effort(10, 0.15, 50)
    assert Effort(5, 3.0).loops == Effort(5, 3.0, 10)
    assert Effort(5, 3.0, 7).doubled == Effort(10, 3.0, 7)
