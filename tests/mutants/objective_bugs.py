"""Bugs of the distributional objectives and of Munchausen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from fastdqn.algorithms import distributional, munchausen, quantiles
from fastdqn.algorithms.distributional import C51Objective, DistributionalObjective
from fastdqn.algorithms.munchausen import MunchausenObjective
from fastdqn.algorithms.quantiles import IQNObjective
from fastdqn.algorithms.td_losses import huber, masked_q
from fastdqn.networks import iqn
from fastdqn.replay import returns as ring_returns
from fastdqn.training import value_range
from fastdqn.training.value_range import ValueRange
from fastdqn.transition import Transitions
from tests.mutants import batch_bugs
from tests.mutants.planted import Planted, exchange

__all__ = ["PLANTED"]

GOLDEN = "tests/golden/test_objectives.py::test_"
C51 = "tests/unit/algorithms/test_distributional.py::test_"
QUANTILES = "tests/unit/algorithms/test_quantiles.py::test_"
NETWORK = "tests/unit/networks/test_iqn.py::test_"
RANGE = "tests/unit/training/test_value_range.py::test_"
RETURNS = "tests/unit/replay/test_returns.py::test_"

PLANTED = Planted(batch_bugs.PLANTED)
turns_red = PLANTED.turns_red


@turns_red(
    C51 + "mass_stays_1_and_the_mean_moves_where_nothing_is_clipped",
    GOLDEN + "mass_that_moves_by_half_an_atom_lies_on_both_sides",
)
def atoms_that_leave_the_support_lose_their_mass() -> None:
    def project(
        reward: Tensor, discount: Tensor, probs: Tensor, v_min: float, v_max: float
    ) -> Tensor:
        wide = right(reward, discount, probs, v_min, v_max)
        spacing = (v_max - v_min) / (probs.shape[1] - 1)
        atoms = v_min + spacing * torch.arange(probs.shape[1])
        moved = distributional.moved_atoms(reward, discount, atoms)
        inside = (moved >= v_min) & (moved <= v_max)
        return torch.where(inside.all(1, keepdim=True), wide, wide * 0.5)

    right = distributional.project
    exchange(distributional, "project", project)


@turns_red(
    C51 + "without_a_future_all_mass_lies_around_the_reward",
    GOLDEN + "c51_is_the_cross_entropy_with_the_projected_target",
)
def all_mass_moved_to_the_atom_above() -> None:
    def project(
        reward: Tensor, discount: Tensor, probs: Tensor, v_min: float, v_max: float
    ) -> Tensor:
        return right(reward, discount, probs, v_min, v_max).roll(1, 1)

    right = distributional.project
    exchange(distributional, "project", project)


@turns_red(
    GOLDEN + "where_the_discount_is_0_no_output_of_the_next_state_does_harm",
    C51 + "without_a_future_all_mass_lies_around_the_reward",
)
def outputs_of_a_next_state_that_is_none() -> None:
    def moved(reward: Tensor, discount: Tensor, atoms: Tensor) -> Tensor:
        return right_moved(reward, discount.clamp(min=1e-30), atoms)

    def project(reward: Tensor, discount: Tensor, *rest: Any) -> Tensor:
        return right(reward, discount.clamp(min=1e-30), *rest)

    right, right_moved = distributional.project, distributional.moved_atoms
    exchange(distributional, "project", project)
    exchange(quantiles, "moved_atoms", moved)


@turns_red(
    GOLDEN + "c51_is_the_cross_entropy_with_the_projected_target",
    GOLDEN + "qr_is_the_huber_loss_of_all_pairs",
    GOLDEN + "iqn_reads_the_fractions_beside_the_quantiles",
)
def networks_exchanged_when_a_distribution_is_chosen() -> None:
    def following(
        self: DistributionalObjective, passes: Sequence[Tensor], batch: Transitions
    ) -> Tensor:
        return right(self, passes[::-1], batch)

    right = DistributionalObjective._next
    exchange(DistributionalObjective, "_next", following)


@turns_red(
    GOLDEN + "c51_is_the_cross_entropy_with_the_projected_target",
    GOLDEN + "qr_is_the_huber_loss_of_all_pairs",
)
def distributions_of_forbidden_actions() -> None:
    exchange(distributional, "masked_q", lambda q, _: q)


@turns_red(GOLDEN + "c51_is_the_cross_entropy_with_the_projected_target")
def the_entropy_of_the_target_in_the_priority() -> None:
    exchange(distributional, "relative_entropy", lambda _, cross: cross)


@turns_red(GOLDEN + "the_q_value_is_the_mean_of_the_atoms")
def the_most_likely_return_taken_for_the_mean() -> None:
    def q_values(self: C51Objective, outputs: Tensor, /) -> Tensor:
        spacing = (self.v_max - self.v_min) / (self.num_atoms - 1)
        return self.v_min + spacing * outputs.argmax(2)

    exchange(C51Objective, "q_values", q_values)


def _pairs(
    theta: Tensor, fractions: Tensor, target: Tensor, *, swapped: bool, negated: bool
) -> Tensor:
    error = target.detach().unsqueeze(1) - theta.unsqueeze(2)
    below = ((error > 0) if negated else (error < 0)).float()
    own = fractions.unsqueeze(-2) if swapped else fractions.unsqueeze(-1)
    return ((own - below).abs() * huber(error)).mean(2).sum(1)


@turns_red(
    GOLDEN + "qr_is_the_huber_loss_of_all_pairs",
    GOLDEN + "iqn_reads_the_fractions_beside_the_quantiles",
)
def fractions_of_the_targets_in_the_place_of_those_of_the_quantiles() -> None:
    def loss(theta: Tensor, fractions: Tensor, target: Tensor) -> Tensor:
        return _pairs(theta, fractions, target, swapped=True, negated=False)

    exchange(quantiles, "quantile_huber", loss)


@turns_red(
    GOLDEN + "qr_is_the_huber_loss_of_all_pairs",
    GOLDEN + "iqn_reads_the_fractions_beside_the_quantiles",
)
def quantiles_in_reverse() -> None:
    def loss(theta: Tensor, fractions: Tensor, target: Tensor) -> Tensor:
        return _pairs(theta, fractions, target, swapped=False, negated=True)

    exchange(quantiles, "quantile_huber", loss)


@turns_red(GOLDEN + "iqn_reads_the_fractions_beside_the_quantiles")
def midpoints_in_the_place_of_the_fractions_that_were_drawn() -> None:
    exchange(IQNObjective, "_fractions", quantiles.QRObjective._fractions)


@turns_red(
    NETWORK + "expectations_over_the_fractions_are_those_of_independent_ones",
    NETWORK + "each_fraction_lies_in_its_part_and_one_half_is_the_midpoint",
)
def fractions_at_the_start_of_their_parts() -> None:
    def stratified(random: Tensor) -> Tensor:
        return right(random * 0.0)

    right = iqn.stratified
    exchange(iqn, "stratified", stratified)


@turns_red(NETWORK + "the_embedding_is_that_of_the_paper")
def cosines_without_the_first_one() -> None:
    def cosines(fractions: Tensor) -> Tensor:
        return right(fractions).roll(-1, 2)

    right = iqn.cosines
    exchange(iqn, "cosines", cosines)


MUNCHAUSEN = GOLDEN + "munchausen_adds_the_clipped_log_policy_and_the_entropy"


@turns_red(MUNCHAUSEN)
def a_log_policy_without_its_clip() -> None:
    def loss(
        self: MunchausenObjective, outputs: Tensor, passes: Sequence[Tensor], batch: Any, _: Any
    ) -> tuple[Tensor, Tensor]:
        wide = MunchausenObjective(self.error_loss, self.alpha, self.temperature, -1e9)
        return right(wide, outputs, passes, batch, None)

    right = MunchausenObjective.loss
    exchange(MunchausenObjective, "loss", loss)


@turns_red(MUNCHAUSEN)
def a_soft_value_without_its_entropy() -> None:
    def value(q: Tensor, temperature: float, mask: Tensor | None = None) -> Tensor:
        policy = functional.softmax(masked_q(q, mask) / temperature, 1)
        return (policy * q).sum(1)

    exchange(munchausen, "soft_value", value)


@turns_red(MUNCHAUSEN)
def a_log_policy_of_the_next_state() -> None:
    def loss(
        self: MunchausenObjective, outputs: Tensor, passes: Sequence[Tensor], batch: Any, _: Any
    ) -> tuple[Tensor, Tensor]:
        return right(self, outputs, passes[::-1], batch, None)

    right = MunchausenObjective.loss
    exchange(MunchausenObjective, "loss", loss)


@turns_red(MUNCHAUSEN)
def forbidden_actions_in_both_softmaxes() -> None:
    exchange(munchausen, "masked_q", lambda q, _: q)


@turns_red(GOLDEN + "the_softmax_policy_of_large_values_and_a_small_temperature")
def a_policy_that_is_divided_before_its_best_value_is_subtracted() -> None:
    def log_policy(q: Tensor, action: Tensor, tau: float, mask: Tensor | None = None) -> Tensor:
        scaled = masked_q(q, mask) / tau
        powers = scaled.exp()
        logs = (powers / powers.sum(1, keepdim=True)).log()
        return tau * logs.gather(1, action.unsqueeze(1)).squeeze(1)

    exchange(munchausen, "log_policy", log_policy)


@turns_red(
    RANGE + "a_return_is_discounted_exactly",
    RETURNS + "each_return_is_that_of_a_loop_to_the_end_of_its_episode",
)
def returns_that_are_not_discounted() -> None:
    def returns(ring: Any, _: float) -> tuple[Tensor, Tensor]:
        return right(ring, 1.0)

    right = ring_returns.discounted_returns
    for owner in (value_range, ring_returns):
        exchange(owner, "discounted_returns", returns)


@turns_red(RANGE + "each_bound_is_reported_once_and_other_objectives_never_look")
def bounds_that_are_reported_again_and_again() -> None:
    def messages(self: ValueRange, found: Any) -> list[str]:
        kept = set(self.open)
        lines = right(self, found)
        self.open = kept
        return lines

    right = ValueRange._messages
    exchange(ValueRange, "_messages", messages)


@turns_red(
    "tests/unit/algorithms/test_objectives.py"
    "::test_a_choice_of_the_next_action_that_is_no_bool_is_refused"
)
def a_word_that_is_taken_for_double() -> None:
    exchange(distributional, "refuse_unless_bool", lambda *_: None)
