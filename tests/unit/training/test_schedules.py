"""Schedules at both ends and beyond; the account of updates per env step."""

from __future__ import annotations

import math

import pytest

from fastdqn.errors import UsageError
from fastdqn.training.schedules import (
    Constant,
    Cosine,
    Exponential,
    Linear,
    Multiplicative,
    ReplayRatio,
    Schedule,
)

# Schedules


def test_a_constant_never_changes() -> None:
    schedule = Constant(0.3)
    assert {schedule(step, episodes) for step in (0, 10**9) for episodes in (0, 10**6)} == {0.3}


@pytest.mark.parametrize(
    ("env_steps", "value"),
    [(-5, 1.0), (0, 1.0), (250, 0.775), (500, 0.55), (1000, 0.1), (1001, 0.1), (10**12, 0.1)],
)
def test_a_line_goes_from_start_to_end_and_stays(env_steps: int, value: float) -> None:
    assert Linear(1.0, 0.1, 1000)(env_steps, 3) == pytest.approx(value, abs=1e-12)


@pytest.mark.parametrize(
    ("env_steps", "value"),
    [
        *((-5, 1.0), (0, 1.0), (500, 0.55), (1000, 0.1), (10**12, 0.1)),
        (250, 0.55 + 0.45 / math.sqrt(2)),
        (333, 0.55 + 0.45 * math.cos(math.pi * 0.333)),
    ],
)
def test_half_a_cosine_wave_goes_from_start_to_end_and_stays(env_steps: int, value: float) -> None:
    assert Cosine(1.0, 0.1, 1000)(env_steps, 3) == pytest.approx(value, abs=1e-12)


@pytest.mark.parametrize(
    ("env_steps", "value"),
    [(-5, 1.0), (0, 1.0), (1000, 0.1 + 0.9 / math.e), (10**9, 0.1)],
)
def test_an_exponential_goes_from_start_towards_end(env_steps: int, value: float) -> None:
    assert Exponential(1.0, 0.1, 1000)(env_steps, 3) == pytest.approx(value, abs=1e-12)


@pytest.mark.parametrize(
    ("episodes", "value"), [(0, 1.0), (1, 0.9), (2, 0.81), (21, 0.9**21), (22, 0.1), (10**6, 0.1)]
)
def test_a_factor_per_episode_goes_down_to_its_floor(episodes: int, value: float) -> None:
    assert Multiplicative(1.0, 0.1, 0.9)(7, episodes) == pytest.approx(value, abs=1e-12)


@pytest.mark.parametrize(
    "schedule",
    [
        Linear(1.0, 0.05, 500),
        Cosine(1.0, 0.05, 500),
        Exponential(1.0, 0.05, 200.0),
        Multiplicative(1, 0.05, 0.9),
    ],
)
def test_decaying_schedules_really_decay_and_never_leave_their_range(schedule: Schedule) -> None:
    values = [schedule(progress, progress) for progress in range(0, 1000, 10)]
    assert values[0] == 1.0
    assert values == sorted(values, reverse=True)
    assert len(set(values)) >= 4
    assert values[-1] == pytest.approx(0.05, abs=0.01)
    assert all(0.05 - 1e-12 <= value <= 1.0 for value in values)


def test_schedules_can_rise_too() -> None:
    assert Linear(0.4, 1.0, 10)(5, 0) == pytest.approx(0.7)
    assert Exponential(0.4, 1.0, 10)(10**6, 0) == pytest.approx(1.0)


def test_each_schedule_reads_its_own_count_only() -> None:
    """Env steps, never vector steps: the same after 6400 steps of 1 or of 64 environments."""
    for schedule in (Linear(1.0, 0.1, 10_000), Exponential(1.0, 0.1, 10_000)):
        one = [schedule(step, step) for step in range(0, 6401, 64)]
        many = [schedule(vector_step * 64, 0) for vector_step in range(101)]
        assert one == many
        assert one[0] > one[-1]
    assert Multiplicative(1.0, 0.1, 0.9)(0, 5) == Multiplicative(1.0, 0.1, 0.9)(10**6, 5)


@pytest.mark.parametrize("duration", [0, -1])
def test_a_slope_without_length_is_refused(duration: int) -> None:
    with pytest.raises(UsageError, match="must be positive"):
        Linear(1.0, 0.1, duration)
    with pytest.raises(UsageError, match="must be positive"):
        Cosine(1.0, 0.1, duration)
    with pytest.raises(UsageError, match="must be positive"):
        Exponential(1.0, 0.1, duration)


@pytest.mark.parametrize("factor", [0.0, -0.5, 1.001, math.nan])
def test_a_factor_that_does_not_decay_is_refused(factor: float) -> None:
    with pytest.raises(UsageError, match=r"\(0, 1\]"):
        Multiplicative(1.0, 0.1, factor)


# Replay ratio


@pytest.mark.parametrize("ratio", [0.25, 0.3, 1.0, 8.0])
@pytest.mark.parametrize("num_envs", [1, 4, 64, 512])
@pytest.mark.parametrize("start", [0, 1000])
def test_the_ratio_is_exact_for_any_number_of_environments(
    num_envs: int, ratio: float, start: int
) -> None:
    account = ReplayRatio(ratio, start)
    largest = 0
    for env_steps in range(num_envs, 8193, num_envs):
        due = account.due(env_steps)
        largest = max(largest, due)
        account.pay(due)
        assert account.updates == max(0, math.floor(ratio * (env_steps - start)))
    assert account.updates == math.floor(ratio * (8192 - start)) > 0
    assert largest <= math.ceil(ratio * num_envs)  # no burst, at the start or later


def test_env_steps_before_the_start_owe_nothing() -> None:
    account = ReplayRatio(1.0, 100)
    assert [account.due(step) for step in (0, 99, 100, 101, 103)] == [0, 0, 0, 1, 3]


def test_asking_is_not_paying_and_the_debt_never_turns_negative() -> None:
    account = ReplayRatio(0.5)
    assert [account.due(10), account.due(10)] == [5, 5]
    account.pay(7)
    assert (account.due(10), account.updates) == (0, 7)
    assert account.due(20) == 3


def test_a_ratio_of_zero_never_owes() -> None:
    assert ReplayRatio(0.0).due(10**9) == 0


@pytest.mark.parametrize("ratio", [-0.1, math.inf, math.nan])
def test_a_ratio_that_cannot_be_kept_is_refused(ratio: float) -> None:
    with pytest.raises(UsageError, match="replay ratio"):
        ReplayRatio(ratio)
