"""Bugs of dueling heads, noisy layers and LayerNorm, and of epsilon beside a noisy network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor
from torch.nn import functional

from fastdqn import build, config
from fastdqn.agent import arguments, loading, memory_check
from fastdqn.config import Config
from fastdqn.foundation import pair_checks
from fastdqn.learner.update import Update
from fastdqn.networks import mlp, noisy
from fastdqn.networks.flat_network import FlatNetwork
from fastdqn.networks.mlp import MLP
from fastdqn.policies.policy import Policy
from tests.mutants.planted import Planted, exchange

__all__ = ["PLANTED"]

GOLDEN = "tests/golden/test_networks.py::test_"
OPTIONS = "tests/unit/networks/test_mlp_options.py::test_"
AGENT = "tests/unit/agent/test_network_options.py::test_"

PLANTED = Planted()
turns_red = PLANTED.turns_red


@turns_red(GOLDEN + "factorised_noise_is_that_of_a_plain_loop")
def noise_without_its_root() -> None:
    right = noisy.scaled_noise

    def scaled_noise(random: Tensor) -> Tensor:
        found = right(random)
        return found.sign() * found.square()

    exchange(noisy, "scaled_noise", scaled_noise)


@turns_red(GOLDEN + "factorised_noise_is_that_of_a_plain_loop")
def numbers_of_inputs_taken_for_those_of_outputs() -> None:
    right = noisy.noisy_linear

    def noisy_linear(x: Tensor, parameters: Sequence[Tensor], random: Tensor | None) -> Tensor:
        return right(x, parameters, None if random is None else random.roll(len(parameters[1])))

    exchange(noisy, "noisy_linear", noisy_linear)


@turns_red(GOLDEN + "noise_starts_at_half_of_one_by_the_root_of_the_inputs")
def noise_of_another_size_at_the_start() -> None:
    exchange(noisy, "SIGMA", 0.4)


@turns_red(OPTIONS + "numbers_become_normal_ones_and_are_finite_at_both_ends")
def a_number_of_0_that_becomes_infinite_noise() -> None:
    exchange(noisy, "SMALLEST", 0.0)


@turns_red(OPTIONS + "every_number_moves_the_outputs_and_is_read_once")
def layers_that_share_their_numbers() -> None:
    def _linear(
        self: MLP, number: int, parameters: Sequence[Tensor], x: Tensor, random: Tensor | None
    ) -> Tensor:
        own = parameters[self._first[number] : self._first[number + 1]]
        count = self._random[number + 1] - self._random[number]
        if len(own) == 2:
            return functional.linear(x, own[0], own[1])
        return noisy.noisy_linear(x, own, None if random is None else random[:count])

    exchange(MLP, "_linear", _linear)


@turns_red(
    GOLDEN + "a_dueling_head_adds_the_value_to_advantages_about_their_mean",
    OPTIONS + "a_dueling_network_divides_its_last_hidden_layer[5]",
)
def advantages_about_the_largest() -> None:
    right = MLP.head

    def head(
        self: MLP, parameters: Sequence[Tensor], x: Tensor, random: Tensor | None = None
    ) -> Tensor:
        q = right(self, parameters, x, random)
        if not self.dueling:
            return q
        return q - q.max(1, keepdim=True).values + q.mean(1, keepdim=True)

    exchange(MLP, "head", head)


@turns_red(OPTIONS + "layers_are_linear_then_normalised_then_activated")
def a_norm_without_its_own_parameters() -> None:
    right: Any = functional

    class Functional:
        def __getattr__(self, name: str) -> Any:
            return getattr(right, name)

        def layer_norm(self, x: Tensor, shape: Any, *_: Tensor) -> Tensor:
            found: Tensor = right.layer_norm(x, shape)
            return found

    exchange(mlp, "functional", Functional())


@turns_red(AGENT + "each_pass_of_an_update_has_noise_of_its_own_and_each_update_another")
def passes_that_share_their_noise() -> None:
    right = Update._split_random

    def _split_random(self: Update, random: Tensor | None, batch_size: int) -> list[Tensor | None]:
        own, first, *others = right(self, random, batch_size)
        return [own, first, *(first for _ in others)]

    exchange(Update, "_split_random", _split_random)


@turns_red(AGENT + "acting_at_epsilon_0_explores_and_predict_does_not")
def acting_without_noise() -> None:
    exchange(FlatNetwork, "numbers_in", lambda *_: None)


@turns_red(AGENT + "acting_at_epsilon_0_explores_and_predict_does_not")
def noise_in_greedy_actions() -> None:
    exchange(Policy, "_never_for", lambda self, obs: self._drawn(len(obs)))


@turns_red(AGENT + "acting_at_epsilon_0_explores_and_predict_does_not")
def noise_drawn_once_and_kept() -> None:
    right = Policy._drawn

    def _drawn(self: Policy, num_envs: int, ladder: Tensor | None = None) -> Tensor:
        if len(self._uniform) != num_envs:
            right(self, num_envs, ladder)
        self._uniform[:, :2].uniform_(generator=self._generator)
        return self._uniform

    exchange(Policy, "_drawn", _drawn)


@turns_red(AGENT + "a_network_with_all_options_learns_and_explores_by_its_noise[one by one]")
def epsilon_that_goes_on_beside_noise() -> None:
    exchange(build, "settled", lambda config: config)


@turns_red(
    AGENT + "an_epsilon_flag_beside_noisy_is_refused[--epsilon-start 0.9]",
    AGENT + "saved_policies_keep_their_options",
)
def epsilon_beside_noise_that_is_ignored() -> None:
    for module in (build, config, pair_checks, arguments):
        exchange(module, "refuse_epsilon", lambda *_: None)


@turns_red(AGENT + "options_beside_a_network_of_the_callers_own_have_no_effect_and_are_warned_of")
def epsilon_0_beside_a_network_of_the_callers_own() -> None:
    right = build.build_config

    def build_config(env_id: str, settings: dict[str, Any]) -> Config:
        found = right(env_id, settings)
        return replace(found, epsilon_start=0.0) if "noisy" in settings else found

    from fastdqn.agent import dqn  # noqa: PLC0415

    exchange(dqn, "build_config", build_config)


@turns_red(AGENT + "a_file_is_checked_against_the_options_it_names")
def saved_layers_that_are_not_checked() -> None:
    exchange(loading, "refuse_other_shapes", lambda *_: None)


@turns_red(AGENT + "memory_is_counted_with_all_options")
def memory_of_a_plain_network_alone() -> None:
    exchange(memory_check, "OF_SHAPES", ())
