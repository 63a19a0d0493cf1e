"""Bugs of evaluations while training, and of the best policy."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from fastdqn.reporting import run_recorder
from fastdqn.reporting.best_policy import BestPolicyFolder
from fastdqn.training import checkpoint, selection
from fastdqn.training.events import BestPolicy, Evaluation
from fastdqn.training.selection import Selection

__all__ = ["PLANTED"]

SELECTION = "tests/unit/training/test_selection.py::test_"
AGENT = "tests/unit/agent/test_best_policy.py::test_"

PLANTED: dict[str, tuple[Callable[[], None], tuple[str, ...]]] = {}
"""Name -> what plants the bug, and tests that must turn red."""


def turns_red(*tests: str) -> Callable[[Callable[[], None]], Callable[[], None]]:
    def enter(plant: Callable[[], None]) -> Callable[[], None]:
        PLANTED[plant.__name__.replace("_", " ")] = plant, tests
        return plant

    return enter


def exchange(owner: Any, name: str, new: object) -> None:
    assert hasattr(owner, name)
    setattr(owner, name, new)


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


@turns_red(SELECTION + "environments_that_draw_from_global_generators_change_nothing")
def generators_that_evaluations_advance() -> None:
    exchange(selection, "generators_restored", ExitStack)


@turns_red(AGENT + "the_best_policy_of_a_run_is_saved_loaded_and_said")
def a_rotation_that_deletes_the_best_policy() -> None:
    right = checkpoint.save_checkpoint

    def save_checkpoint(checkpoints: Path, *rest: Any) -> Path:
        shutil.rmtree(checkpoints / "best", ignore_errors=True)
        return right(checkpoints, *rest)

    exchange(run_recorder, "save_checkpoint", save_checkpoint)


@turns_red(AGENT + "the_best_policy_of_a_run_is_saved_loaded_and_said")
def the_last_policy_loaded_as_the_best() -> None:
    exchange(checkpoint, "load_best", checkpoint.newest_checkpoint)


@turns_red(AGENT + "a_later_call_keeps_the_best_policy_until_it_is_beaten")
def a_later_call_that_forgets_the_best_policy() -> None:
    exchange(BestPolicyFolder, "read", lambda self: None)


@turns_red(AGENT + "what_a_full_disk_refuses_is_saved_when_there_is_room")
def a_best_policy_lost_on_a_full_disk() -> None:
    exchange(BestPolicyFolder, "flush", lambda self: None)
