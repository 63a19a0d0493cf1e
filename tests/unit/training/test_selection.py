"""Which policies are evaluated fully, and which one is the best, against planned returns."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from fastdqn.envs.seeding import Stream
from fastdqn.training.evaluation import EvaluationStopped, Evaluator
from fastdqn.training.events import BestPolicy, Evaluation
from fastdqn.training.selection import Selection

PLENTY = 10**9
"""Env steps of a training that can afford any evaluation."""


class Planned(Evaluator):
    """Plays nothing: the returns of each part of an evaluation come from a plan, the last for ever.

    Attributes:
        played: Number of episodes, or the same with a B for the best policy, of each part.
    """

    def __init__(self, *plan: Sequence[float], episodes: int = 100, length: int = 1) -> None:
        super().__init__(None, lambda: None, seed=0, episodes=episodes)  # type: ignore[arg-type, return-value]
        self.plan, self.length, self.played = list(plan), length, list[str]()

    def _play(self, episodes: int, stream: Stream) -> Evaluation:
        self.played.append(f"{episodes}{'B' * (stream == Stream.BEST_POLICY_ENVS)}")
        planned = self.plan.pop(0) if len(self.plan) > 1 else self.plan[0]
        returns = np.resize(np.array(planned, np.float64), episodes)
        return Evaluation(returns, np.full(episodes, self.length))


def selection_of(
    *plan: Sequence[float], best: float | None = None, **settings: int
) -> tuple[Selection, Planned]:
    planned = Planned(*plan, **settings)
    beaten = None if best is None else BestPolicy(5, best, 0.0, 100)
    return Selection(planned, beaten), planned


def evaluated(selection: Selection, *arguments: Any) -> tuple[Evaluation, bool]:
    found = selection.evaluate(*arguments)
    assert found is not None
    return found


def evaluated_last(selection: Selection) -> Evaluation:
    found = selection.evaluate_last(70)
    assert found is not None
    return found


def test_the_first_policy_is_the_best_after_a_full_evaluation_of_other_episodes() -> None:
    selection, planned = selection_of([90.0], [90.0], [1.0, 3.0])
    found, reached = evaluated(selection, 70, PLENTY)
    assert planned.played == ["5", "15", "100B"]
    assert (found.mean, found.best, reached) == (2.0, True, False)
    assert selection.best == BestPolicy(70, 2.0, 1.0, 100)
    assert selection.last is None


def test_a_lucky_screening_does_not_win() -> None:
    selection, planned = selection_of([90.0], [90.0], [9.0], [9.0], best=10.0)
    found, _ = evaluated(selection, 70, PLENTY)
    assert planned.played == ["5", "15", "40B"]
    assert (found.mean, found.episodes, found.best) == (9.0, 40, False)
    assert selection.best == BestPolicy(5, 10.0, 0.0, 100)


def test_a_full_evaluation_that_is_worse_does_not_win() -> None:
    selection, planned = selection_of([90.0], [90.0], [0.0, 19.0], [0.0, 19.0], best=10.0)
    found, _ = evaluated(selection, 70, PLENTY)
    assert planned.played == ["5", "15", "40B", "60B"]
    assert (found.episodes, found.best, selection.best) == (
        100,
        False,
        BestPolicy(5, 10.0, 0.0, 100),
    )


def test_a_better_one_wins_and_a_policy_is_compared_with_the_new_one() -> None:
    plan = [[20.0]] * 4 + [[15.0, 15.5]]
    selection, planned = selection_of(*plan, best=10.0)
    assert evaluated(selection, 70, PLENTY)[0].best
    assert selection.best == BestPolicy(70, 20.0, 0.0, 100)
    assert not evaluated(selection, 80, PLENTY)[0].best
    assert planned.played == ["5", "15", "40B", "60B", "5"]


def test_a_policy_that_ties_at_the_highest_return_is_played_no_further() -> None:
    selection, planned = selection_of([500.0], best=500.0)
    assert evaluated(selection, 70, PLENTY)[0].episodes == 5
    assert planned.played == ["5"]


def test_of_equal_means_the_earlier_policy_stays() -> None:
    selection, _ = selection_of([12.0], [12.0], [8.0, 12.0], [8.0, 12.0], best=10.0)
    assert not evaluated(selection, 70, PLENTY)[0].best
    assert selection.best == BestPolicy(5, 10.0, 0.0, 100)
    selection, _ = selection_of([10.0], best=10.0)
    assert not evaluated_last(selection).best


@pytest.mark.parametrize("strange", [math.nan, math.inf, -math.inf])
def test_a_mean_that_is_not_finite_is_never_the_best(strange: float) -> None:
    selection, _ = selection_of([strange])
    with np.errstate(invalid="ignore"):
        assert not evaluated_last(selection).best
    assert selection.best is None


def test_the_last_policy_may_be_the_best() -> None:
    selection, planned = selection_of([11.0], best=10.0)
    found = evaluated_last(selection)
    assert (planned.played, found.best, selection.last) == (["100"], True, found)
    assert selection.best == BestPolicy(70, 11.0, 0.0, 100)


@pytest.mark.parametrize("episodes", [1, 3, 5, 12])
def test_a_screening_of_all_episodes_does_not_count_as_a_full_evaluation(episodes: int) -> None:
    plan = [[9.0]] * (1 + (episodes > 5)) + [[1.0]]
    selection, planned = selection_of(*plan, episodes=episodes)
    found, _ = evaluated(selection, 70, PLENTY)
    assert planned.played[-1] == f"{episodes}B"
    assert (found.mean, selection.best) == (1.0, BestPolicy(70, 1.0, 0.0, episodes))


# What a training can afford


@pytest.mark.parametrize(
    ("trained", "spent", "goal", "played"),
    [
        (2_500, 0, None, ["5", "15", "40B", "60B"]),
        (2_499, 0, None, ["5"]),
        (2_500, 1_250, None, ["5", "15", "40B", "60B"]),
        (2_500, 1_251, None, ["5"]),
        (100_000, 10_000, 95.0, ["5", "40B", "60B"]),
        (100_000, 10_001, 95.0, ["5"]),
        (99_999, 0, 95.0, ["5"]),
    ],
)
def test_full_evaluations_keep_to_a_share_of_the_env_steps(
    trained: int, spent: int, goal: float | None, played: list[str]
) -> None:
    """A hundred episodes of a hundred steps are ten thousand."""
    selection, planned = selection_of(*[[90.0]] * 4, best=10.0, length=100)
    selection.extra_steps = spent
    found, reached = evaluated(selection, 70, trained, goal)
    assert planned.played == played
    assert (found.best, reached) == (len(played) > 1, False)
    assert selection.extra_steps == spent + 10_000 * found.best


@pytest.mark.parametrize(
    ("required", "screened", "played"),
    [(False, 500, ["5"]), (False, 501, []), (True, 501, ["5"])],
)
def test_a_screening_is_left_out_once_they_took_half_the_env_steps(
    required: bool, screened: int, played: list[str]
) -> None:
    planned = Planned([3.0], length=1_000)
    selection = Selection(planned, BestPolicy(5, 10.0, 0.0, 100), required=required)
    selection.screened_steps = screened
    assert (selection.evaluate(70, 1_000) is None) == (not played)
    assert planned.played == played
    assert selection.screened_steps == screened + 5_000 * len(played)
    assert (selection.evaluate(80, 10_000) is None) == (not required and bool(played))


# Beside a return that stops the run


def test_a_full_evaluation_that_reaches_the_goal_ends_the_run_on_the_usual_seeds() -> None:
    selection, planned = selection_of([90.0], [90.0], [50.0], [50.0])
    found, reached = evaluated(selection, 70, PLENTY, 50.0)
    assert planned.played == ["5", "15", "40", "60"]
    assert (reached, found.best, selection.last, selection.extra_steps) == (True, True, found, 0)


def test_one_that_does_not_reach_it_may_still_be_the_best() -> None:
    selection, planned = selection_of([90.0], [90.0], [40.0, 58.0], [40.0, 58.0], best=48.0)
    found, reached = evaluated(selection, 70, PLENTY, 50.0)
    assert planned.played == ["5", "15", "40", "60"]
    assert (found.mean, reached, found.best) == (49.0, False, True)


def test_a_screening_below_the_goal_leads_to_a_search_on_other_seeds() -> None:
    selection, planned = selection_of([30.0, 31.0], [90.0], [90.0], best=10.0)
    found, reached = evaluated(selection, 70, PLENTY, 50.0)
    assert planned.played == ["5", "40B", "60B"]
    assert (reached, found.best) == (False, True)


# Ends and side effects


def test_a_stop_leaves_the_best_policy_as_it_was() -> None:
    selection, planned = selection_of([90.0], [90.0], best=10.0)

    def stopped(*_: object) -> Evaluation:
        raise EvaluationStopped

    planned.full = stopped  # type: ignore[method-assign, assignment]
    with pytest.raises(EvaluationStopped):
        evaluated(selection, 70, PLENTY)
    assert selection.best == BestPolicy(5, 10.0, 0.0, 100)


def test_environments_that_draw_from_global_generators_change_nothing() -> None:
    class Drawing(Planned):
        def _play(self, episodes: int, stream: Stream) -> Evaluation:
            random.random()
            np.random.random()
            return super()._play(episodes, stream)

    drawing = Selection(Drawing([1.0], [1.0], [1.0], [1.0]))
    before = random.getstate(), np.random.get_state()[1].tolist()  # type: ignore[index]
    evaluated(drawing, 70, PLENTY)
    drawing.evaluate_last(80)
    assert before == (random.getstate(), np.random.get_state()[1].tolist())  # type: ignore[index]
