"""Bugs of prioritized replay and of n-step returns."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from fastdqn.foundation.copying import snapshot
from fastdqn.foundation.trial_env import generators_restored
from fastdqn.replay import prioritized, storage, sum_tree
from fastdqn.replay.prioritized import PrioritizedSampler
from fastdqn.replay.sum_tree import SumTree
from fastdqn.replay.valid_transitions import ValidTransitions
from fastdqn.training import autotune
from tests.mutants.planted import Planted, exchange

__all__ = ["PLANTED"]

LAWS = "tests/property/test_ring_laws.py::test_"
RING = LAWS + "the_ring_holds_the_newest_transitions_of_any_history"
PRIORITIZED = "tests/unit/replay/test_prioritized.py::test_"
TREE = "tests/unit/replay/test_sum_tree.py::test_"
AUTOTUNE = "tests/unit/training/test_autotune.py::test_"
AGENT = "tests/unit/agent/test_replay_options.py::test_"

PLANTED = Planted()
turns_red = PLANTED.turns_red


@turns_red(PRIORITIZED + "probabilities_and_weights_equal_the_closed_form")
def priorities_without_their_exponent() -> None:
    def feedback(self: PrioritizedSampler, rows: Tensor, priority: Tensor) -> None:
        self.tree.set(rows, priority.abs() + self.eps)

    PrioritizedSampler.feedback = feedback  # type: ignore[method-assign]


@turns_red(PRIORITIZED + "probabilities_and_weights_equal_the_closed_form")
def errors_below_zero_taken_for_small() -> None:
    def feedback(self: PrioritizedSampler, rows: Tensor, priority: Tensor) -> None:
        right(self, rows, priority.clamp(min=0.0))

    right = PrioritizedSampler.feedback
    PrioritizedSampler.feedback = feedback  # type: ignore[method-assign]


@turns_red(
    PRIORITIZED + "probabilities_and_weights_equal_the_closed_form",
    PRIORITIZED + "beta_is_annealed_over_the_batches_and_then_stays",
)
def weights_that_favour_what_is_drawn_often() -> None:
    right = PrioritizedSampler.draw

    def draw(self: PrioritizedSampler, random_bits: Tensor) -> tuple[Tensor, Tensor | None]:
        rows, weights = right(self, random_bits)
        assert weights is not None
        return rows, 1 / weights

    PrioritizedSampler.draw = draw  # type: ignore[method-assign]


@turns_red(PRIORITIZED + "skipped_updates_write_no_priority")
def skipped_updates_that_write_priorities() -> None:
    right = PrioritizedSampler.feedback

    def feedback(self: PrioritizedSampler, rows: Tensor, priority: Tensor) -> None:
        right(self, rows, priority.nan_to_num(7.0))

    PrioritizedSampler.feedback = feedback  # type: ignore[method-assign]


@turns_red(PRIORITIZED + "new_rows_have_the_largest_priority_of_the_buffer_and_1_at_first")
def new_rows_of_priority_1() -> None:
    PrioritizedSampler._largest = lambda self: torch.ones(())  # type: ignore[method-assign]


@turns_red(RING, PRIORITIZED + "rows_that_are_pushed_out_leave_the_draw_however_late_it_is_asked")
def rows_pushed_out_that_stay_in_the_draw() -> None:
    right = ValidTransitions.changes

    def changes(self: ValidTransitions, mark: tuple[int, int]) -> Any:
        return [], right(self, mark)[1]

    ValidTransitions.changes = changes  # type: ignore[method-assign]


@turns_red(RING, PRIORITIZED + "numbers_that_no_transition_had_are_ignored")
def priorities_of_rows_that_were_overwritten() -> None:
    def places_of(self: ValidTransitions, numbers: Tensor) -> tuple[Tensor, Tensor]:
        return numbers % len(self._list), torch.ones_like(numbers, dtype=torch.bool)

    ValidTransitions.places_of = places_of  # type: ignore[method-assign]


@turns_red(PRIORITIZED + "both_rings_are_followed_alike")
def rows_of_tensor_environments_that_get_no_priority() -> None:
    PrioritizedSampler.wrote = lambda self: None  # type: ignore[method-assign]


@turns_red(TREE + "the_first_and_the_last_number_choose_rows_that_live")
def dead_rows_drawn() -> None:
    def chosen(values: Tensor, uniform: Tensor) -> Tensor:
        reached = values.cumsum(1)
        bound = uniform * reached[:, -1]
        return (reached >= bound.unsqueeze(1)).int().argmax(1)

    sum_tree._chosen = chosen


@turns_red(TREE + "every_row_of_a_large_ring_can_be_drawn")
def one_prefix_of_bits_for_all_levels() -> None:
    right = sum_tree._uniform
    exchange(sum_tree, "_uniform", lambda bits, _: right(bits, 2))


@turns_red(TREE + "sums_equal_dense_ones_after_a_hundred_thousand_changes")
def sums_that_are_added_to() -> None:
    right = SumTree._refresh

    def refresh(self: SumTree, places: Tensor) -> None:
        before = self.levels[0][0].clone()
        right(self, places)
        here = places // 16
        self.levels[0][0, here] = before[here] + (self.levels[0][0, here] - before[here])
        self.levels[0][0, here[:1]] += 1e-3

    SumTree._refresh = refresh  # type: ignore[method-assign]


@turns_red(RING)
def n_steps_over_the_end_of_an_episode() -> None:
    right = storage._returns

    def returns(ring: Any, *rest: Any) -> Any:
        everywhere = torch.ones_like(ring.continues)
        return right(replace(ring, continues=everywhere), *rest)

    exchange(storage, "_returns", returns)


@turns_red(RING)
def gamma_once_for_n_steps() -> None:
    right = storage._returns

    def returns(ring: Any, index: Tensor, reward: Tensor, gamma: float) -> Any:
        last, total, factor = right(ring, index, reward, gamma)
        return last, total, torch.full_like(factor, gamma)

    exchange(storage, "_returns", returns)


@turns_red(RING)
def n_steps_to_the_neighbouring_environment() -> None:
    right = storage._returns

    def returns(ring: Any, *rest: Any) -> Any:
        return right(replace(ring, stride=1), *rest)

    exchange(storage, "_returns", returns)


@turns_red(AGENT + "settings_reach_the_sampler_and_go_with_the_agent")
def beta_that_starts_again_at_each_call() -> None:
    right = PrioritizedSampler.expect
    prioritized.PrioritizedSampler.expect = (  # type: ignore[method-assign]
        lambda self, drawn, total: right(self, 0, total)
    )


@turns_red(PRIORITIZED + "rows_that_were_written_before_a_measurement_may_be_drawn_after_it")
def rows_forgotten_by_a_measurement() -> None:
    right = PrioritizedSampler.follow

    def follow(self: PrioritizedSampler) -> None:
        rehearsing, self._rehearsing = self._rehearsing, False
        right(self)
        self._rehearsing = rehearsing

    PrioritizedSampler.follow = follow  # type: ignore[method-assign]


@turns_red(AUTOTUNE + "each_mode_is_tried_over_a_tree_that_holds_priorities")
def a_measurement_that_begins_over_an_empty_tree() -> None:
    @contextmanager
    def trial(learner: Any, sampler: Any) -> Iterator[Callable[[], None]]:
        restore = snapshot((*learner.state.written(), *sampler.written()))
        with sampler.rehearsal(), generators_restored():
            yield restore

    exchange(autotune, "_trial", trial)
