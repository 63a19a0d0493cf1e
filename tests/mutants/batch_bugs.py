"""Bugs of what an objective is handed: masks, rewards, returns, and networks that do not fit."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from fastdqn.agent import network as agent_network
from fastdqn.algorithms import distributional
from fastdqn.learner import learner, update
from fastdqn.replay import returns as ring_returns
from fastdqn.replay import storage
from fastdqn.training import value_range
from fastdqn.transition import Transitions
from tests.mutants.planted import Planted, exchange

__all__ = ["PLANTED"]

C51 = "tests/unit/algorithms/test_distributional.py::test_"
RANGE = "tests/unit/training/test_value_range.py::test_"
RETURNS = "tests/unit/replay/test_returns.py::test_"
EQUIVALENCE = "tests/equivalence/test_objectives.py::test_"
MASKS = "tests/equivalence/test_masks_of_obs.py::test_"
OUTPUTS = "tests/unit/learner/test_outputs_check.py::test_"

PLANTED = Planted()
turns_red = PLANTED.turns_red


@turns_red(
    MASKS + "learning_from_a_ring_reads_the_mask_of_each_obs[eager]",
    MASKS + "learning_from_a_ring_reads_the_mask_of_each_obs[cudagraph]",
    MASKS + "a_gathered_batch_is_learned_as_one_of_the_ring[1]",
)
def a_batch_of_the_ring_without_the_masks_of_obs() -> None:
    right = storage.gather

    def gather(*arguments: Any, both_masks: bool) -> Transitions:
        return right(*arguments, both_masks=False)

    exchange(update, "gather", gather)


@turns_red(
    MASKS + "a_gathered_batch_is_learned_as_one_of_the_ring[1]",
    MASKS + "a_gathered_batch_is_learned_as_one_of_the_ring[3]",
    MASKS + "a_sample_has_the_masks_of_both_states",
)
def gathered_batches_without_the_masks_of_obs() -> None:
    exchange(storage.gather, "__kwdefaults__", {"both_masks": False})


@turns_red(
    EQUIVALENCE + "a_reward_that_is_not_finite_is_not_learned[c51-True-inf]",
    C51 + "a_reward_that_is_not_finite_has_no_distribution",
)
def an_infinite_reward_that_is_clipped_to_the_support() -> None:
    right = distributional.project

    def project(reward: Tensor, *arguments: Any) -> Tensor:
        return right(reward.clamp(-1e6, 1e6), *arguments)

    exchange(distributional, "project", project)


@turns_red(
    RANGE + "a_time_limit_leaves_the_value_of_going_on",
    RETURNS + "each_return_is_that_of_a_loop_to_the_end_of_its_episode",
)
def returns_that_end_at_a_time_limit() -> None:
    def returns(ring: Any, gamma: float) -> tuple[Tensor, Tensor]:
        total, factor = right(ring, gamma)
        return total, factor.masked_fill(ring.truncated.cpu(), 0.0)

    right = ring_returns.discounted_returns
    for owner in (value_range, ring_returns):
        exchange(owner, "discounted_returns", returns)


@turns_red(
    OUTPUTS + "outputs_that_would_be_taken_for_something_else_are_refused[an IQN of one action]",
    OUTPUTS + "outputs_that_would_be_taken_for_something_else_are_refused[an IQN and atoms]",
)
def fractions_that_are_taken_for_an_action() -> None:
    exchange(learner, "refuse_other_outputs", lambda *_: None)


@turns_red(OUTPUTS + "a_last_row_that_holds_no_fractions_is_refused")
def any_numbers_that_are_taken_for_fractions() -> None:
    exchange(agent_network, "refuse_no_fractions", lambda *_: None)
