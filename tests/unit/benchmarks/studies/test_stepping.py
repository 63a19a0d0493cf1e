"""The stepping benchmark: what counts as a step, and what its tables say."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import numpy as np
import pytest

from benchmarks.steppers import KINDS, Crowd, open_steppers, step_source, step_vector, timer_of
from benchmarks.studies.stepping import ratios, spread, summary, tables
from fastdqn.envs.description import describe
from fastdqn.envs.sources.source import VectorSource
from tests.drive import MODES, vector_of
from tests.oracles import CounterEnv, counters

LAPS = [
    {"bare": 100.0, "sync": 80.0, "grouped": 150.0},
    {"bare": 50.0, "sync": 90.0, "grouped": 90.0},
    {"bare": 100.0, "sync": 100.0, "grouped": 180.0},
]


# Counting


def test_a_row_that_only_resets_is_no_step() -> None:
    """Episodes of 3 and of 1 env steps: 3 of 4 and 1 of 2 vector steps are real."""
    envs = vector_of("sync", counters(2, (3, 1)), MODES[0])
    envs.reset(seed=0)
    step = step_vector(envs)
    counts = [step(np.zeros(2, np.int64)) for _ in range(8)]
    # Environment 0: lengths 3, 1, 3; environment 1: lengths 1, 3, 1.
    real_0 = [1, 1, 1, 0, 1, 0, 1, 1]
    real_1 = [1, 0, 1, 1, 1, 0, 1, 0]
    assert counts == [a + b for a, b in zip(real_0, real_1, strict=True)]


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.name)
def test_a_source_counts_its_real_rows(mode: Any) -> None:
    source = VectorSource(vector_of("sync", counters(1, 2), mode), describe(CounterEnv))
    source.reset([0])
    step = step_source(source)
    counts = [step(np.zeros(1, np.int64)) for _ in range(6)]
    assert counts == ([1, 1, 0, 1, 1, 0] if mode is MODES[0] else [1] * 6)
    source.close()


def test_a_timer_takes_the_actions_in_turn_and_divides_by_the_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = iter(range(100))
    monkeypatch.setattr("benchmarks.measure.time.perf_counter", lambda: float(next(clock)))
    taken: list[str] = []

    def step(row: str) -> int:
        taken.append(row)
        return 3

    # The clock strikes at the start and before each call: 4 calls, and 5 s at the end.
    assert timer_of(step, ["a", "b"])(5.0) == pytest.approx(4 * 3 / 5.0)
    assert taken == ["a", "b", "a", "b"]


# Kinds


@pytest.mark.parametrize(
    "kind",
    [
        "bare",
        pytest.param("bare on all cores", marks=pytest.mark.slow),
        "sync",
        "grouped",
        "grouped source",
        "envpool source",
    ],
)
def test_kinds_step_and_leave_nothing_running(kind: str, nothing_left: None) -> None:
    with open_steppers(Crowd("CartPole-v1", 2, cores=2), [kind]) as timers:
        if kind == "envpool source" and not timers:
            pytest.skip("EnvPool IS NOT INSTALLED")
        assert timers[kind](0.05) > 0.0


def test_kinds_that_cannot_be_had_are_left_out() -> None:
    crowd = Crowd("CartPole-v1", 65, cores=1, async_limit=64)
    with ExitStack() as stack:
        assert KINDS["async"](crowd, stack) is None
        assert KINDS["grouped in a run"](crowd, stack) is None
        unknown = Crowd("NoSuchEnv-v0", 1, cores=1)
        assert KINDS["envpool"](unknown, stack) is None
        assert KINDS["envpool source"](unknown, stack) is None
        assert KINDS["tensor"](unknown, stack) is None


# Tables


def test_ratios_are_taken_within_rounds() -> None:
    found = ratios(LAPS, cores=2)
    assert set(found) == {"grouped / (cores x bare)", "grouped / sync"}
    # 0.75, 0.9, 0.9: the ratio of the medians would be 0.75.
    assert found["grouped / (cores x bare)"] == {"median": 0.9, "lowest": 0.75, "highest": 0.9}
    assert found["grouped / sync"]["median"] == pytest.approx(1.8)


def test_a_spread_is_median_lowest_and_highest() -> None:
    assert spread([5.0, 1.0, 2.0]) == {"median": 2.0, "lowest": 1.0, "highest": 5.0}


def test_tables_have_a_row_for_each_number_and_a_dash_for_what_is_missing() -> None:
    laps = [{**lap, "async": 10.0} for lap in LAPS]
    few = summary(Crowd("CartPole-v1", 4, 2), laps)
    many = summary(Crowd("CartPole-v1", 128, 2), LAPS)
    rates, shares = tables([few, many])
    assert rates.splitlines()[0] == "### CartPole-v1, env steps/s"
    assert rates.splitlines()[2] == "| envs | bare | sync | grouped | async |"
    assert rates.splitlines()[-1].endswith("| 150 (90 to 180) | - |")
    assert rates.splitlines()[-1].startswith("| 128 | 100 (50 to 100) | 90 (80 to 100) |")
    assert "| 4 | 0.90 (0.75 to 0.90) | 15.00 (9.00 to 18.00) |" in shares
    assert shares.splitlines()[-1] == "| 128 | 0.90 (0.75 to 0.90) | - | 1.80 (1.00 to 1.88) |"
