"""Bugs of the epsilon ladder and of the step size that falls."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from fastdqn import build
from fastdqn.algorithms.exploration import ladder_of
from fastdqn.policies import policy
from fastdqn.training.host.group import EnvGroup
from fastdqn.training.schedules import Constant, Cosine, Schedule, learning_rate_schedule
from fastdqn.training.tensor import rollout as tensor_rollout
from fastdqn.training.trainer import Trainer
from tests.mutants.planted import Planted, exchange

__all__ = ["SCHEDULED"]

OPTIONS = "tests/unit/agent/test_schedule_options.py::test_"
EACH = OPTIONS + "each_environment_explores_with_its_power_of_epsilon"
TRAINER = "tests/unit/training/test_trainer.py::test_"
SCHEDULES = "tests/unit/training/test_schedules.py::test_"

SCHEDULED = Planted()
turns_red = SCHEDULED.turns_red


@turns_red(EACH + "[one by one-eager]", EACH + "[tensors-eager]")
def a_ladder_upside_down() -> None:
    right = ladder_of
    exchange(build, "ladder_of", lambda *given: right(*given).flip(0))


@turns_red(EACH + "[groups-eager]")
def a_ladder_that_begins_anew_in_each_group() -> None:
    right = EnvGroup.__init__

    def begin(self: Any, source: Any, guard: Any, device: Any, ladder: Tensor | None) -> None:
        right(self, source, guard, device, ladder)
        self.ladder = None if ladder is None else ladder[: len(self.rows.real)]

    exchange(EnvGroup, "__init__", begin)


@turns_red(EACH + "[one by one-eager]", OPTIONS + "whatever_acts_explores_by_the_ladder")
def a_ladder_that_bends_the_number_of_the_action() -> None:
    def bend(uniform: Tensor, ladder: Tensor) -> None:
        uniform[..., 1].pow_(ladder)

    exchange(policy, "bend_", bend)


@turns_red(EACH + "[tensors-eager]", EACH + "[impure tensors-eager]")
def no_ladder_in_tensor_environments() -> None:
    exchange(tensor_rollout, "bend_", lambda *_: None)


@turns_red(TRAINER + "the_step_size_falls_over_the_env_steps_of_this_call")
def a_step_size_over_the_env_steps_of_all_calls() -> None:
    def anneal(self: Trainer, env_steps: int) -> None:
        if self.learning_rate is not None:
            self.learner.state.learning_rate.fill_(self.learning_rate(env_steps, 0))

    exchange(Trainer, "_anneal", anneal)


@turns_red(
    OPTIONS + "reports_show_the_step_size_of_their_env_steps",
    OPTIONS + "in_tensor_environments_each_block_has_the_step_size_of_its_first_env_step",
)
def a_step_size_that_never_falls() -> None:
    exchange(Trainer, "_anneal", lambda *_: None)


@turns_red(OPTIONS + "a_constant_step_size_stays_as_it_was_written_by_hand")
def a_constant_step_size_that_is_written_again() -> None:
    right = learning_rate_schedule

    def schedule(name: str, start: float, *others: Any) -> Schedule | None:
        return right(name, start, *others) or Constant(start)

    exchange(build, "learning_rate_schedule", schedule)


@turns_red(SCHEDULES + "half_a_cosine_wave_goes_from_start_to_end_and_stays")
def a_quarter_of_a_cosine_wave() -> None:
    def value(self: Cosine, env_steps: int, _: int) -> float:
        fraction = min(max(env_steps / self.duration, 0.0), 1.0)
        return self.end + (self.start - self.end) * math.cos(math.pi * fraction / 2)

    exchange(Cosine, "__call__", value)
