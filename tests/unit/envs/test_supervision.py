"""The budget of restarts, fresh seeds, rows that are not real, and messages."""

from __future__ import annotations

import numpy as np
import pytest

from fastdqn.envs.workers import supervision
from fastdqn.envs.workers.failures import Failure
from fastdqn.envs.workers.shared_block import RowSpec, SharedBlock
from fastdqn.envs.workers.supervision import (
    RestartBudget,
    Supervision,
    failure_text,
    fresh_seeds,
    mark_unreal,
    with_circumstances,
)
from fastdqn.errors import UsageError, WorkerError


class Clock:
    """Stands in for `time`; moved by hand."""

    now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(supervision, "time", clock)
    return clock


def test_the_delay_doubles_from_the_second_restart_in_a_row_up_to_half_a_minute() -> None:
    budget = RestartBudget(Supervision(max_in_a_row=12))
    delays = [budget.spend("trouble", in_a_row) for in_a_row in range(1, 12)]
    assert delays == [0.0, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0, 30.0]


def test_restarts_are_counted_in_a_window_that_moves(clock: Clock) -> None:
    budget = RestartBudget(Supervision(max_restarts=2, window_s=10.0))
    budget.spend("first", 1)
    clock.now += 6
    budget.spend("second", 1)
    clock.now += 6  # the first one has left the window
    budget.spend("third", 1)
    clock.now += 3
    with pytest.raises(WorkerError, match=r"^fourth\.\nWorkers were restarted 2 times within 10 s"):
        budget.spend("fourth", 1)
    assert budget.count == 3
    assert list(budget.restarts) == ["first", "second", "third"]


@pytest.mark.parametrize("limits", [Supervision(max_restarts=1), Supervision(max_in_a_row=0)])
def test_a_spent_budget_refuses_what_follows_by_the_same_error(limits: Supervision) -> None:
    budget = RestartBudget(limits)
    for _ in range(min(limits.max_restarts, limits.max_in_a_row)):
        budget.spend("trouble", 1)
        budget.refuse_if_over()
    with pytest.raises(WorkerError) as spent:
        budget.spend("trouble", 1)
    for _ in range(2):
        with pytest.raises(WorkerError) as again:
            budget.refuse_if_over()
        assert again.value is spent.value


@pytest.mark.parametrize(
    ("allowed", "said"),
    [
        (0, r"No worker may be restarted \(--max-worker-restarts 0\)\.$"),
        (1, r"Workers were restarted once within 600 s already \(--max-worker-restarts 1\)\.$"),
    ],
)
def test_a_spent_budget_names_its_flag(allowed: int, said: str) -> None:
    budget = RestartBudget(Supervision(max_restarts=allowed))
    for _ in range(allowed):
        budget.spend("trouble", 1)
    with pytest.raises(WorkerError, match=said):
        budget.spend("trouble", 1)


def test_a_worker_that_never_steps_is_given_up_before_the_budget_is_spent() -> None:
    budget = RestartBudget(Supervision(max_in_a_row=2))
    budget.spend("trouble", 1)
    budget.spend("trouble", 2)
    with pytest.raises(
        WorkerError, match=r"^trouble\.\nIt failed 3 times without a single step\.$"
    ):
        budget.spend("trouble", 3)


def test_the_newest_thousand_are_remembered_and_all_are_counted() -> None:
    budget = RestartBudget(Supervision(max_restarts=2000))
    for number in range(1500):
        budget.spend(str(number), 1)
    assert budget.count == 1500
    assert (budget.restarts[0], budget.restarts[-1], len(budget.restarts)) == ("500", "1499", 1000)


@pytest.mark.parametrize("deadline_s", [0.0, -1.0, float("inf"), float("nan")])
def test_a_deadline_that_is_none_is_refused(deadline_s: float) -> None:
    with pytest.raises(UsageError, match=rf"--worker-deadline-s {deadline_s}: it must be positive"):
        Supervision(deadline_s=deadline_s)


def test_a_negative_budget_is_refused() -> None:
    with pytest.raises(UsageError, match="--max-worker-restarts -1: it is negative"):
        Supervision(max_restarts=-1)


def test_branches_of_seeds_differ_from_each_other_and_repeat() -> None:
    seeds: list[int | None] = list(range(50))
    branches = [fresh_seeds(seeds, branch) for branch in range(1, 20)]
    everything = [seed for branch in [seeds, *branches] for seed in branch]
    assert len(set(everything)) == 20 * 50
    assert all(seed is not None and 0 <= seed < 2**31 for seed in everything)
    assert fresh_seeds(seeds, 3) == branches[2]
    assert fresh_seeds([None, 1], 3)[0] is None


def test_some_environments_alone_are_marked() -> None:
    rows = SharedBlock.allocate(RowSpec(4, (2,), "float32"))
    for array in (rows.reward, rows.terminated, rows.truncated, rows.obs):
        array[:] = 1
    mark_unreal(rows, 1, 3)
    assert rows.real.tolist() == [True, False, False, True]
    assert rows.reward.tolist() == [1, 0, 0, 1]
    assert rows.terminated.tolist() == rows.truncated.tolist() == [True, False, False, True]
    assert np.all(rows.obs == 1)


def test_what_was_raised_is_named_in_one_line() -> None:
    one = Failure(3, None, "Traceback ...", "ValueError: two", " on action 1", ended=True)
    other = Failure(5, None, "Traceback ...", "OddError: no pickle", "", ended=True)
    assert (
        failure_text([one]).splitlines()[0] == "environment 3 raised on action 1: ValueError: two"
    )
    lines = failure_text([one, other]).splitlines()
    assert lines[0] == "environments 3, 5 raised: OddError: no pickle"
    assert lines[1:] == [*str(one).splitlines(), *str(other).splitlines()]


@pytest.mark.parametrize(
    ("seeds", "message"),
    [([7], "seed 7"), ([1, None], "seeds 1, None"), (list(range(9)), "seeds 0, 1, 2, 3, ...")],
)
def test_some_seeds_are_named(seeds: list[int | None], message: str) -> None:
    said = with_circumstances("It fell.\nTraceback ...", 3, seeds)
    assert said == f"It fell.; in vector step 3, {message}\nTraceback ..."
    assert with_circumstances("It fell.", 3, seeds) == f"It fell.; in vector step 3, {message}"
