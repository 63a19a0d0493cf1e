"""Bugs of evaluations while training, and of the best policy."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

from fastdqn.envs.seeding import Stream, seeds_of
from fastdqn.reporting import best_policy, plots
from fastdqn.reporting.best_policy import BestPolicyFolder
from fastdqn.reporting.run_checkpoints import RunCheckpoints
from fastdqn.training import checkpoint, evaluation, selection
from fastdqn.training.events import BestPolicy, Evaluation
from fastdqn.training.selection import Selection
from fastdqn.training.trainer import Trainer
from tests.mutants.planted import Planted, exchange

__all__ = ["PLANTED"]

SELECTION = "tests/unit/training/test_selection.py::test_"
TRAINER = "tests/unit/training/test_trainer.py::test_"
AGENT = "tests/unit/agent/test_best_policy.py::test_"

PLANTED = Planted()
turns_red = PLANTED.turns_red


@turns_red(
    SELECTION + "a_full_evaluation_that_is_worse_does_not_win",
    AGENT + "a_later_call_keeps_the_best_policy_until_it_is_beaten",
)
def the_best_policy_replaced_by_a_worse_one() -> None:
    def compared(self: Selection, env_step: int, found: Evaluation) -> Evaluation:
        self.best = BestPolicy(env_step, found.mean, found.std, found.episodes)
        return replace(found, best=True)

    exchange(Selection, "_compared", compared)


@turns_red(SELECTION + "a_lucky_screening_does_not_win")
def an_evaluation_that_ended_early_wins() -> None:
    right = Selection._try_to_beat

    def lucky(self: Selection) -> Evaluation:
        found = right(self)
        return found if found.episodes == self.evaluator.episodes else found + found + found

    def compared(self: Selection, env_step: int, found: Evaluation) -> Evaluation:
        self.best = BestPolicy(env_step, found.mean, found.std, found.episodes)
        return replace(found, best=True)

    exchange(Selection, "_try_to_beat", lucky)
    exchange(Selection, "_compared", compared)


@turns_red(
    SELECTION + "a_policy_that_ties_at_the_highest_return_is_played_no_further",
    SELECTION + "of_equal_means_the_earlier_policy_stays",
)
def a_tie_that_wins() -> None:
    def goal(self: Selection) -> float:
        return -math.inf if self.best is None else self.best.mean

    exchange(Selection, "_goal", property(goal))


@turns_red(SELECTION + "the_first_policy_is_the_best_after_a_full_evaluation_of_other_episodes")
def a_screening_that_wins() -> None:
    def beat(self: Selection) -> Evaluation:
        return self.evaluator.screen(-math.inf)

    exchange(Selection, "_try_to_beat", beat)


@turns_red(SELECTION + "a_screening_below_the_goal_leads_to_a_search_on_other_seeds")
def a_search_that_takes_the_seeds_of_the_stop() -> None:
    exchange(Selection, "_try_to_beat", lambda self: self.evaluator.full(self._goal))


@turns_red(SELECTION + "full_evaluations_keep_to_a_share_of_the_env_steps")
def full_evaluations_without_a_budget() -> None:
    exchange(Selection, "_affords", lambda *_: True)


@turns_red(AGENT + "the_best_policy_of_a_run_is_saved_loaded_and_said")
def the_end_of_a_run_evaluated_twice() -> None:
    right = Trainer.__post_init__

    def forget(self: Trainer) -> None:
        right(self)
        self.evaluated_at_end = False

    exchange(Trainer, "__post_init__", forget)


@turns_red(SELECTION + "a_screening_is_left_out_once_they_took_half_the_env_steps")
def screenings_without_a_budget() -> None:
    exchange(selection, "BUDGET_OF_SCREENINGS", math.inf)


@turns_red(SELECTION + "environments_that_draw_from_global_generators_change_nothing")
def generators_that_evaluations_advance() -> None:
    exchange(selection, "generators_restored", ExitStack)


@turns_red(AGENT + "environments_that_draw_while_they_are_built_change_nothing")
def environments_of_evaluations_built_with_the_generators_of_the_training() -> None:
    right = Selection._guarded

    def build_first(self: Selection, play: Callable[[], Any]) -> Any:
        self.evaluator._source = self.evaluator._source or self.evaluator.make_source()
        return right(self, play)

    exchange(Selection, "_guarded", build_first)


@turns_red(AGENT + "environments_that_fail_in_an_evaluation_end_no_training")
def an_evaluation_that_ends_a_training_unasked() -> None:
    right = Selection.__post_init__

    def insist(self: Selection) -> None:
        right(self)
        self.required = True

    exchange(Selection, "__post_init__", insist)


@turns_red(TRAINER + "what_a_callback_raises_in_an_evaluation_ends_the_run")
def an_exception_of_a_callback_taken_for_one_of_an_evaluation() -> None:
    def report(self: Selection, *progress: int) -> None:
        self.callback.on_evaluation_progress(*progress)

    exchange(Selection, "_report_progress", report)


@turns_red(AGENT + "the_best_policy_of_a_run_is_saved_loaded_and_said")
def a_rotation_that_deletes_the_best_policy() -> None:
    right = RunCheckpoints.save_last

    def save_last(self: RunCheckpoints, trainer: Trainer) -> None:
        shutil.rmtree(self._folder / "best", ignore_errors=True)
        right(self, trainer)

    exchange(RunCheckpoints, "save_last", save_last)


@turns_red(AGENT + "the_best_policy_of_a_run_is_saved_loaded_and_said")
def the_last_policy_loaded_as_the_best() -> None:
    exchange(checkpoint, "load_best", checkpoint.newest_checkpoint)


@turns_red(AGENT + "a_later_call_keeps_the_best_policy_until_it_is_beaten")
def a_later_call_that_forgets_the_best_policy() -> None:
    exchange(BestPolicyFolder, "read", lambda self: None)


@turns_red(AGENT + "what_a_full_disk_refused_is_kept_by_later_calls_and_written")
def a_best_policy_that_the_next_call_forgets() -> None:
    right = BestPolicyFolder.__init__

    def forget(self: BestPolicyFolder, *arguments: Any) -> None:
        right(self, *arguments[:3])

    exchange(BestPolicyFolder, "__init__", forget)


@turns_red(AGENT + "a_best_policy_that_a_crash_left_aside_is_still_the_one_to_beat")
def a_best_policy_aside_that_is_not_seen() -> None:
    exchange(best_policy, "has_best", lambda run: (run / "checkpoints" / "best").exists())


@turns_red(AGENT + "no_call_of_learn_plays_episodes_of_another_or_of_evaluate")
def calls_of_learn_evaluated_on_the_same_episodes() -> None:
    def of_first_call(run_seed: int, stream: Stream, count: int, round_: int, call: int) -> Any:
        del call
        return seeds_of(run_seed, stream, count, round_)

    exchange(evaluation, "seeds_of", of_first_call)


@turns_red(AGENT + "the_end_of_a_run_is_not_evaluated_on_the_episodes_of_evaluate")
def the_end_of_a_run_evaluated_on_the_episodes_of_evaluate() -> None:
    exchange(Selection, "evaluate_last", lambda self, _: self.evaluator.full())


@turns_red("tests/unit/reporting/test_plots.py::test_a_star_needs_a_best_policy_in_the_folder")
def a_star_for_a_screening() -> None:
    exchange(plots, "has_best", lambda _: True)


@turns_red(AGENT + "what_a_full_disk_refuses_is_saved_when_there_is_room")
def a_best_policy_lost_on_a_full_disk() -> None:
    exchange(BestPolicyFolder, "flush", lambda self: None)
