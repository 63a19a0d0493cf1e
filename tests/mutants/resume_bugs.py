"""Bugs of trainings that go on: something of their state is forgotten, or not looked at."""

from __future__ import annotations

import math
from collections import deque
from typing import Any

from fastdqn.agent import going_on, training_state
from fastdqn.foundation.state import PartState
from fastdqn.learner import saved_state as learner_state
from fastdqn.learner.learner import Learner
from fastdqn.replay import saved_list, saved_ring
from fastdqn.replay.prioritized import PrioritizedSampler
from fastdqn.replay.valid_transitions import FinalObservations, ValidTransitions
from fastdqn.training import saved_state
from fastdqn.training.resuming import Resumable
from fastdqn.training.schedules import ReplayRatio
from fastdqn.training.selection import Selection
from fastdqn.training.tensor import saved_state as tensor_state
from tests.mutants.planted import Planted, exchange

__all__ = ["PLANTED"]

MEMORY = "tests/equivalence/test_resume_in_memory.py::test_"
CALLS = MEMORY + "two_calls_of_learn_are_the_same_with_save_and_load_between_them"
MIDDLE = MEMORY + "a_training_that_was_stopped_is_the_one_that_was_not"
STATES = "tests/unit/agent/test_training_state.py::test_"
FORGED = STATES + "a_forged_state_is_refused_by_part_and_value"

PLANTED = Planted()
turns_red = PLANTED.turns_red


def forgets(owner: Any, name: str) -> None:
    """Let a function that restores something do nothing."""
    exchange(owner, name, lambda *_, **__: None)


@turns_red(CALLS + "[noisy]", MIDDLE + "[host]")
def the_exploration_begins_anew_after_a_resume() -> None:
    forgets(training_state, "restore_generator")


@turns_red(CALLS + "[groups]")
def the_draws_begin_anew_after_a_resume() -> None:
    forgets(saved_ring, "restore_generator")


@turns_red(CALLS + "[frozen lake]")
def the_generator_of_given_batches_begins_anew() -> None:
    forgets(learner_state, "restore_generator")


@turns_red(CALLS + "[tensors prioritized]", MIDDLE + "[plain]")
def a_block_draws_anew_after_a_resume() -> None:
    forgets(tensor_state, "restore_generator")


@turns_red(CALLS + "[native prioritized]")
def beta_begins_anew_after_a_resume() -> None:
    right = PrioritizedSampler.restore

    def restore(self: PrioritizedSampler, state: PartState) -> None:
        right(self, state)
        self.draws.zero_()

    exchange(PrioritizedSampler, "restore", restore)


@turns_red(CALLS + "[native prioritized]", CALLS + "[groups]")
def a_resumed_tree_follows_the_ring_from_the_start() -> None:
    right = PrioritizedSampler.restore

    def restore(self: PrioritizedSampler, state: PartState) -> None:
        right(self, state)
        self._mark = 0, 0

    exchange(PrioritizedSampler, "restore", restore)


@turns_red(CALLS + "[frozen lake]", MIDDLE + "[host, groups]")
def the_fraction_of_an_update_is_lost_at_a_resume() -> None:
    def restore(ratio: ReplayRatio, state: PartState, env_steps: int, _: int) -> None:
        ratio.start = 0
        ratio.go_on_from(env_steps, state.whole("updates"))

    exchange(training_state, "restore_ratio", restore)


@turns_red(FORGED + "[a burst]", FORGED + "[an earlier burst]")
def a_forged_account_makes_a_burst() -> None:
    exchange(math, "ceil", lambda _: 10**9)


@turns_red(CALLS + "[rows that are not whole]")
def a_resumed_list_is_put_in_order_too_soon() -> None:
    right = ValidTransitions.restore

    def restore(self: ValidTransitions, state: PartState) -> None:
        right(self, state)
        self._newest_partial = -1

    exchange(ValidTransitions, "restore", restore)


@turns_red(CALLS + "[groups]", MIDDLE + "[host]")
def places_of_last_observations_are_taken_from_the_start() -> None:
    right = FinalObservations.restore

    def restore(self: FinalObservations, state: PartState, rows: int) -> None:
        right(self, state, rows)
        self._used = 0

    exchange(FinalObservations, "restore", restore)


@turns_red(CALLS + "[native prioritized]", MIDDLE + "[plain]")
def a_resumed_target_is_the_online_network() -> None:
    right = learner_state.restore_learner

    def restore(learner: Learner, state: PartState) -> None:
        right(learner, state)
        learner.sync_target()

    exchange(training_state, "restore_learner", restore)


@turns_red(CALLS + "[frozen lake]", MIDDLE + "[host]")
def a_resumed_optimizer_counts_from_zero() -> None:
    right = learner_state.restore_learner

    def restore(learner: Learner, state: PartState) -> None:
        right(learner, state)
        learner.state.updates.zero_()

    exchange(training_state, "restore_learner", restore)


@turns_red(
    MIDDLE + "[evaluated]",
    STATES + "an_evaluation_that_was_stopped_is_played_when_the_training_goes_on",
)
def a_resumed_training_evaluates_with_the_first_seeds() -> None:
    right = saved_state.restore_selection

    def restore(selection: Selection, state: PartState) -> None:
        right(selection, state)
        selection.evaluator._rounds.clear()

    exchange(going_on, "restore_selection", restore)


@turns_red(STATES + "an_evaluation_that_was_stopped_is_played_when_the_training_goes_on")
def an_evaluation_that_was_stopped_is_left_out() -> None:
    right = Resumable._take_up

    def take_up(self: Resumable) -> None:
        self._evaluation_due = False
        right(self)

    exchange(Resumable, "_take_up", take_up)


@turns_red(MIDDLE + "[evaluated]")
def a_resumed_training_forgets_its_returns() -> None:
    right = Resumable.restore

    def restore(self: Resumable, state: PartState, rollout: PartState | None = None) -> None:
        right(self, state, rollout)
        self.returns = deque(maxlen=100)

    exchange(Resumable, "restore", restore)


@turns_red(MIDDLE + "[falling rate, ladder]")
def a_resumed_step_size_falls_from_the_top() -> None:
    right = Resumable.restore

    def restore(self: Resumable, state: PartState, rollout: PartState | None = None) -> None:
        right(self, state, rollout)
        self._begun_at = self.rollout.env_steps

    exchange(Resumable, "restore", restore)


@turns_red(FORGED + "[a pointer to another row]", FORGED + "[on over an end]")
def pointers_of_a_forged_ring_are_not_looked_at() -> None:
    forgets(saved_ring, "_refuse_other_places")


@turns_red(FORGED + "[another list]")
def places_of_a_forged_list_are_not_looked_at() -> None:
    forgets(saved_list, "_refuse_other_places")


@turns_red(STATES + "the_global_generators_go_on")
def the_global_generators_begin_anew() -> None:
    forgets(training_state, "restore_global_generators")
