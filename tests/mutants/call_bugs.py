"""Bugs of calls to environments that Ctrl-C interrupts, or of which one group fails."""

from __future__ import annotations

from typing import Any

from fastdqn.envs.pooled import PooledVectorEnv
from fastdqn.envs.workers.failures import EnvFailures
from fastdqn.envs.workers.hosted_envs import HostedEnvs
from tests.mutants.planted import Planted, exchange

__all__ = ["PLANTED"]

CALLS = "tests/faults/test_interrupted_calls.py::test_"

PLANTED = Planted()
turns_red = PLANTED.turns_red


@turns_red(CALLS + "answers_of_workers_that_came_before_the_interrupt_are_kept")
def a_call_that_is_over_when_its_wait_is_interrupted() -> None:
    right = PooledVectorEnv._answers

    def answers(self: PooledVectorEnv, timeout: float | None) -> list[Any]:
        try:
            return right(self, timeout)
        except KeyboardInterrupt:
            self._take_collected()
            raise

    exchange(PooledVectorEnv, "_answers", answers)


@turns_red(CALLS + "a_step_of_the_callers_own_environments_goes_on_where_it_was_interrupted")
def an_interrupted_step_that_begins_again() -> None:
    right = HostedEnvs.step

    def step(self: HostedEnvs, actions: Any = None) -> Any:
        self._interrupted = None
        return right(self, actions)

    exchange(HostedEnvs, "step", step)


@turns_red(CALLS + "what_another_group_answered_is_not_taken_for_later_answers")
def answers_of_other_groups_left_behind_by_one_that_failed() -> None:
    def collect(self: PooledVectorEnv, timeout: float | None, group: int) -> list[Any]:
        try:
            return self._pool.collect(timeout, group)
        except EnvFailures as error:
            error.raise_last()

    exchange(PooledVectorEnv, "_collect", collect)
