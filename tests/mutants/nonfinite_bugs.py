"""Bugs of numbers that are not finite: learned from, joined across, or miscounted."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastdqn.envs.sources.source import GroupedSource
from fastdqn.envs.sources.vector_source import VectorSource
from fastdqn.envs.workers.hosted_envs import HostedEnvs
from fastdqn.envs.workers.kept_rows import KeptRows
from fastdqn.replay import saved_ring
from fastdqn.replay.functional_ring import FunctionalRing
from fastdqn.replay.skipping_ring import SkippingRing
from fastdqn.training import nonfinite
from fastdqn.training.games import Games
from fastdqn.training.host import guard, rollout, saved_rollout
from fastdqn.training.host.saved_guards import SavedGuards
from fastdqn.training.tensor import guard as tensor_guard
from fastdqn.training.tensor import saved_state as tensor_state
from tests.mutants.planted import Planted, exchange

__all__ = ["PLANTED"]

HOST = "tests/unit/training/test_guards.py::test_"
TENSOR = "tests/unit/training/test_tensor_guards.py::test_"
RING = "tests/unit/replay/test_skipping_ring.py::test_"
COUNTS = "tests/unit/training/test_nonfinite.py::test_"
GRAPHS = "tests/equivalence/test_nonfinite.py::test_"
RESUMED = "tests/equivalence/test_resume_nonfinite.py::test_"
MIDDLE = RESUMED + "a_training_that_was_stopped_is_the_one_that_was_not"
SAVED = "tests/unit/training/test_saved_guards.py::test_"
FAULTS = "tests/faults/test_"

PLANTED = Planted()
turns_red = PLANTED.turns_red


@turns_red(HOST + "skipped_steps_are_no_transitions_and_nothing_joins_across")
def a_skipped_step_learned_from_with_its_mended_numbers() -> None:
    right = guard.Guard.look

    def look(self: guard.Guard, *over: Any) -> None:
        right(self, *over)

    exchange(guard.Guard, "look", look)


@turns_red(
    HOST + "the_last_step_of_an_episode_is_skipped_without_a_second_reset",
    HOST + "a_bad_start_after_a_good_end_costs_the_start_alone",
)
def an_episode_that_is_over_cut_as_if_it_ran() -> None:
    right = guard._SkippingGuard._mend

    def mend(self: Any, reward: Any, obs: Any, final: Any, _over: Any) -> Any:
        return right(self, reward, obs, final, guard.NO_ENVS)

    exchange(guard._SkippingGuard, "_mend", mend)


@turns_red(HOST + "skipped_steps_are_no_transitions_and_nothing_joins_across")
def the_row_of_a_reset_taken_for_a_transition() -> None:
    right = guard._SkippingGuard._begin_anew

    def begin_anew(self: Any, anew: Any, obs: Any) -> None:
        right(self, anew, obs)
        self._spoiled = None

    exchange(guard._SkippingGuard, "_begin_anew", begin_anew)


@turns_red(HOST + "a_reset_drops_a_new_episode_that_was_asked_for")
def a_new_episode_still_asked_for_after_a_reset() -> None:
    right = GroupedSource.reset

    def reset(self: GroupedSource, seeds: Any) -> None:
        asked = self.rows.restarting.copy()
        right(self, seeds)
        self.rows.restarting[:] = self.rows.resting[:] = asked

    exchange(GroupedSource, "reset", reset)


@turns_red(HOST + "an_environment_begins_anew_at_once_and_loses_its_cut_episode_alone")
def all_environments_reset_for_one() -> None:
    right = VectorSource.begin_anew

    def begin_anew(self: VectorSource, _envs: Any) -> Any:
        return right(self, np.arange(self.num_envs))

    exchange(VectorSource, "begin_anew", begin_anew)


@turns_red(HOST + "skipped_steps_are_no_transitions_and_nothing_joins_across")
def an_environment_at_rest_that_never_begins_anew() -> None:
    def rests(self: HostedEnvs, i: int) -> None:
        self._resting[i] = self._restarting[i] = False

    exchange(HostedEnvs, "_reset_if_asked", rests)


@turns_red(HOST + "replaced_numbers_are_finite_and_every_step_is_a_transition")
def a_return_that_keeps_the_replaced_nan() -> None:
    exchange(guard._ReplacingGuard, "look", guard.Guard.look)


@turns_red(HOST + "the_steps_of_a_skipped_episode_do_not_count_towards_the_limit_of_the_next")
def a_skipped_episode_of_an_evaluation_counted() -> None:
    right = Games.count
    exchange(Games, "count", lambda self, _lost=None: right(self))


@turns_red(HOST + "a_bad_start_between_two_episodes_of_an_evaluation_is_reset_before_it_is_played")
def an_episode_of_an_evaluation_played_from_a_bad_start() -> None:
    def settle(self: Games) -> None:
        self.rows.resting[:] = self._playing < 0

    exchange(Games, "settle", settle)


@turns_red(HOST + "an_evaluation_leaves_out_what_is_left_of_an_episode_that_cannot_be_cut")
def the_rest_of_a_cut_episode_taken_for_a_whole_one() -> None:
    exchange(guard.Guard, "going_on", property(lambda _: None, lambda _, __: None))


@turns_red(HOST + "an_infinity_becomes_the_bound_of_the_space_or_a_million")
def an_infinity_replaced_by_the_largest_float() -> None:
    exchange(nonfinite, "LARGEST", 3e38)


@turns_red(RING + "rewards_of_n_steps_stop_before_a_skipped_step")
def rewards_added_up_through_a_skipped_step() -> None:
    right = SkippingRing.write_some

    def write_some(self: SkippingRing, real: Tensor, step: Any) -> None:
        before = self._slots(self.row - 1)
        right(self, real, step)
        self.ring.continues[before] = self.row > 1

    exchange(SkippingRing, "write_some", write_some)


@turns_red(RING + "where_everything_was_skipped_draws_find_what_cannot_be_learned")
def a_transition_of_a_lap_ago_drawn_from_an_empty_list() -> None:
    def nth(self: SkippingRing, n: Tensor, first: Tensor) -> Tensor:
        return self.order[(first + n) % len(self.ring.action)]

    exchange(SkippingRing, "nth", nth)


@turns_red(GRAPHS + "a_recorded_run_is_that_of_the_eager_mode[uniform-skip]")
def a_warm_up_that_leaves_its_steps_in_the_list() -> None:
    exchange(SkippingRing, "snapshot", FunctionalRing.snapshot)


@turns_red(TENSOR + "a_pure_environment_begins_anew_in_the_state_of_its_last_start")
def a_pure_environment_that_goes_on_after_a_skipped_step() -> None:
    right = tensor_guard.SkippingGuard.begin

    def begin(self: tensor_guard.SkippingGuard, obs: Tensor) -> Tensor:
        shown = right(self, obs)
        self.start_state, self._env_state = [], ()
        return shown

    exchange(tensor_guard.SkippingGuard, "begin", begin)


@turns_red(TENSOR + "another_environment_goes_on_without_what_its_bad_numbers_belong_to")
def what_follows_a_mended_observation_learned_from() -> None:
    right = tensor_guard.SkippingGuard.__call__

    def judged(self: tensor_guard.SkippingGuard, step: Any) -> Any:
        self.spoiled.zero_()
        return right(self, step)

    exchange(tensor_guard.SkippingGuard, "__call__", judged)


@turns_red(
    COUNTS + "a_tally_ends_after_a_thousand_in_a_row_only",
    TENSOR + "a_thousand_vector_steps_without_a_transition_end_the_run",
)
def a_run_of_nothing_but_skipped_steps_that_never_ends() -> None:
    exchange(nonfinite, "MOST_IN_A_ROW", 10**9)


@turns_red(COUNTS + "skipped_updates_are_counted_from_the_beginning_of_the_call")
def updates_skipped_in_an_earlier_call_counted_again() -> None:
    exchange(nonfinite.NonFiniteReports, "begin", lambda _self, _state, _rollout: None)


@turns_red(TENSOR + "replaced_numbers_are_those_of_the_space")
def a_reward_replaced_by_the_largest_float() -> None:
    right = tensor_guard.ReplacingGuard.__call__

    def judged(self: tensor_guard.ReplacingGuard, step: Any) -> Any:
        paid = torch.nan_to_num(step.reward, nan=3e38)
        step = type(step)(step.obs, step.final_obs, paid, step.terminated, step.truncated)
        return right(self, step)

    exchange(tensor_guard.ReplacingGuard, "__call__", judged)


# Of trainings that go on


def forgets(owner: Any, name: str) -> None:
    """Let a function that restores something do nothing."""
    exchange(owner, name, lambda *_, **__: None)


@turns_red(SAVED + "it_goes_on_wherever_it_was_saved", MIDDLE + "[host, groups-replace]")
def an_episode_played_again_compared_as_it_came() -> None:
    exchange(guard._MendingGuard, "stored", guard.Guard.stored)


@turns_red(SAVED + "it_goes_on_wherever_it_was_saved[1-skip]")
def a_new_episode_that_was_due_forgotten_by_a_resume() -> None:
    right = rollout.HostRollout._show

    def show(self: rollout.HostRollout, *saved: Any, **more: Any) -> None:
        right(self, *saved, **more)
        self.source.rows.resting[:] = self.source.rows.restarting[:] = False

    exchange(rollout.HostRollout, "_show", show)


@turns_red(SAVED + "it_goes_on_wherever_it_was_saved")
def guards_that_begin_anew_after_a_resume() -> None:
    forgets(guard.Guard, "go_on_from")


@turns_red(MIDDLE + "[host, groups-skip]", MIDDLE + "[host, groups-replace]")
def a_tally_that_begins_anew_after_a_resume() -> None:
    forgets(nonfinite.Tally, "restore")


@turns_red(SAVED + "a_bad_start_in_the_place_of_a_lost_episode_is_looked_at")
def a_new_start_after_a_resume_that_is_not_looked_at() -> None:
    right = guard.Guard.begin

    def begin(self: guard.Guard, begun: Any = None) -> None:
        if begun is None:
            right(self)

    exchange(guard.Guard, "begin", begin)


@turns_red(SAVED + "a_forged_state_is_refused_by_name")
def a_forged_guard_taken_as_it_is() -> None:
    forgets(SavedGuards, "restore")


@turns_red(
    SAVED + "a_forged_state_is_refused_by_name[new episodes]",
    SAVED + "a_forged_state_is_refused_by_name[shown]",
)
def a_forged_new_episode_taken_as_it_is() -> None:
    forgets(saved_rollout, "_refuse_outside")


@turns_red(RING + "a_ring_that_was_saved_lists_the_same", MIDDLE + "[tensors-skip]")
def a_list_that_begins_anew_after_a_resume() -> None:
    class Never:
        """No ring."""

    exchange(saved_ring, "SkippingRing", Never)


@turns_red(RING + "a_forged_list_is_refused_by_name")
def a_forged_list_taken_as_it_is() -> None:
    forgets(saved_ring, "refuse_other_lists")


@turns_red(RING + "a_forged_list_is_refused_by_name[rewards everywhere]")
def rewards_of_skipped_steps_taken_from_a_file() -> None:
    forgets(saved_ring, "_refuse_learnable")


@turns_red(RING + "a_ring_that_was_saved_lists_the_same")
def a_step_that_may_be_drawn_from_an_empty_list() -> None:
    exchange(SkippingRing, "drawable", FunctionalRing.drawable)


@turns_red(MIDDLE + "[tensors, prioritized-skip]", MIDDLE + "[tensors, prioritized-replace]")
def a_guard_on_the_device_that_begins_anew_after_a_resume() -> None:
    forgets(tensor_state, "_restore_guard")


@turns_red(MIDDLE + "[tensors, prioritized-skip]", MIDDLE + "[host, groups-skip]")
def reports_that_begin_anew_after_a_resume() -> None:
    forgets(nonfinite.NonFiniteReports, "restore")


@turns_red(
    RESUMED + "without_the_ring_the_counts_go_on",
    RESUMED + "environments_that_do_not_come_back_begin_anew_and_the_counts_go_on",
)
def steps_of_a_restored_count_taken_off_again() -> None:
    right = nonfinite.NonFiniteReports.begin

    def begin(self: Any, state: Any, counted: Any) -> None:
        right(self, state, counted)
        self._steps_before = counted.nonfinite

    exchange(nonfinite.NonFiniteReports, "begin", begin)


@turns_red(
    FAULTS + "restored_episodes.py::test_an_episode_that_was_cut_does_not_outlive_its_worker"
)
def a_cut_episode_that_outlives_its_worker() -> None:
    right = KeptRows._past_of

    def past_of(self: Any, *given: Any) -> Any:
        self._rows.restarting[:] = self._kept.restarting[:] = False
        return right(self, *given)

    exchange(KeptRows, "_past_of", past_of)


@turns_red(
    FAULTS + "interrupted_calls.py::"
    "test_a_new_episode_that_was_asked_for_begins_although_its_reset_was_interrupted"
)
def a_new_episode_forgotten_at_ctrl_c() -> None:
    right = HostedEnvs._reset_if_asked

    def reset_if_asked(self: HostedEnvs, i: int) -> None:
        try:
            right(self, i)
        finally:
            self._resting[i] = self._restarting[i] = False

    exchange(HostedEnvs, "_reset_if_asked", reset_if_asked)
