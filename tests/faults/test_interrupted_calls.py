"""Ctrl-C within a wait of the caller's own loop: the call stays pending, and nothing is lost."""

from __future__ import annotations

import multiprocessing
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from gymnasium.error import AlreadyPendingCallError
from gymnasium.vector import AutoresetMode

from fastdqn.envs.description import describe
from fastdqn.envs.grouped import GroupedVectorEnv
from fastdqn.envs.sources.source import GroupedSource, source_of
from fastdqn.envs.workers.allocation import Allocation
from fastdqn.envs.workers.process import WorkerProcess
from fastdqn.envs.workers.supervision import Supervision
from tests.oracles import CounterEnv, CrashError, CrashingEnv, HangingEnv, Step, counters

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.usefixtures("forked_workers")


class InterruptedEnv(CounterEnv):
    """Ctrl-C comes before its n-th step or in its n-th reset, once."""

    def __init__(self, *args: Any, step: int = 0, reset: int = 0) -> None:
        super().__init__(*args)
        self.at_step, self.at_reset = step, reset

    def step(self, action: int) -> Step:
        if self.wakes + 1 == self.at_step:
            self.at_step = 0
            raise KeyboardInterrupt
        return super().step(action)

    def reset(self, **kwargs: Any) -> Any:
        if self.episode + 2 == self.at_reset:
            self.at_reset = 0
            raise KeyboardInterrupt
        return super().reset(**kwargs)


def vector(
    factories: list[Any], processes: int, groups: int = 1, **kwargs: Any
) -> GroupedVectorEnv:
    """Return four environments; with one process the caller steps all but the first of a group."""
    shares = {0: 4 // groups, 1: 4 // groups - 1, 2: 0}
    return GroupedVectorEnv(
        factories,
        allocation=Allocation(processes, shares[processes]),
        num_groups=groups,
        autoreset_mode=AutoresetMode.SAME_STEP,
        **kwargs,
    )


def interrupted(envs: GroupedVectorEnv, call: Callable[[], object]) -> None:
    """Make a call that Ctrl-C interrupts; what follows is refused until it was waited for."""
    with pytest.raises(KeyboardInterrupt):
        call()
    with pytest.raises(AlreadyPendingCallError):
        envs.step_async([0] * envs.num_envs)


def assert_next_step(envs: GroupedVectorEnv, t: int) -> None:
    """Take a step and see that its answers are its own."""
    obs, reward, *_ = envs.step([1, 2, 0, 1])
    assert obs[:, 2].tolist() == [t] * 4
    assert (reward % 4).tolist() == [1, 2, 0, 1]


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("processes", [0, 1])
@pytest.mark.parametrize("env", [1, 3])
def test_a_step_of_the_callers_own_environments_goes_on_where_it_was_interrupted(
    env: int, processes: int, groups: int
) -> None:
    factories = counters(4, 9)
    factories[env] = partial(InterruptedEnv, env, 9, step=2)
    envs = vector(factories, processes, groups)
    envs.reset(seed=1)
    assert_next_step(envs, 1)
    interrupted(envs, lambda: envs.step([2, 1, 1, 2]))
    obs, reward, *_ = envs.step_wait()
    assert obs[:, 2].tolist() == [2] * 4
    assert (reward % 4).tolist() == [2, 1, 1, 2]
    assert_next_step(envs, 3)
    envs.close()


def test_a_new_episode_that_was_asked_for_begins_although_its_reset_was_interrupted() -> None:
    factories = counters(4, 9)
    factories[2] = partial(InterruptedEnv, 2, 9, reset=2)
    envs = vector(factories, 0, send_infos=False)
    source = GroupedSource(envs, describe(factories[0]))
    source.reset([1, 2, 3, 4])
    source.begin_anew(np.array([2]))
    source.send(np.zeros(4, np.int64))
    with pytest.raises(KeyboardInterrupt):
        source.recv()
    source.recv()
    assert source.rows.obs[:, 1:].tolist() == [[0, 1], [0, 1], [1, 0], [0, 1]]
    assert not source.rows.restarting.any()
    assert not source.rows.resting.any()
    source.send(np.zeros(4, np.int64))
    source.recv()
    assert source.rows.obs[:, 1:].tolist() == [[0, 2], [0, 2], [1, 1], [0, 2]]
    source.close()


@pytest.mark.parametrize("processes", [0, 1])
def test_an_environment_whose_rebuilding_was_interrupted_is_rebuilt_by_the_next_call(
    processes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others are not stepped again."""
    factories = counters(4, 9)
    factories[2] = partial(CrashingEnv, 2, 9, at=2)
    envs = vector(factories, processes, supervision=Supervision())
    envs.reset(seed=1)
    assert_next_step(envs, 1)
    envs.step_async([2, 1, 1, 2])
    with monkeypatch.context() as patch:
        patch.setattr(CrashingEnv, "reset", InterruptedEnv(0, 9, reset=1).reset)
        interrupted(envs, envs.step_wait)
    obs, *_, infos = envs.step_wait()
    assert obs[:, 2].tolist() == [2, 2, 0, 2]
    assert infos["restarted"].tolist() == [False, False, True, False]
    assert envs.step([0] * 4)[0][:, 2].tolist() == [3, 3, 1, 3]
    envs.close()


def test_an_interrupted_reset_and_an_interrupted_call_are_made_again() -> None:
    factories = counters(4, 9)
    factories[1] = partial(InterruptedEnv, 1, 9, reset=2)
    envs = vector(factories, 0)
    envs.reset(seed=1)
    assert_next_step(envs, 1)
    interrupted(envs, lambda: envs.reset(seed=2))
    assert envs.reset_wait()[0][:, 2].tolist() == [0] * 4
    assert_next_step(envs, 1)
    envs.close()


@pytest.mark.parametrize("supervision", [None, Supervision()])
@pytest.mark.parametrize("groups", [1, 2])
def test_answers_of_workers_that_came_before_the_interrupt_are_kept(
    groups: int, supervision: Supervision | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C comes at the first wait, at the second, and so on."""
    envs = vector(counters(4, 99), 2, groups, supervision=supervision)
    envs.reset(seed=1)
    wait = WorkerProcess.next_signal
    for t, at in enumerate(range(2 * groups), 1):
        waits = iter(range(99))

        def counted(worker: WorkerProcess, at: int = at, waits: Any = waits) -> bytes:
            if next(waits) == at:
                raise KeyboardInterrupt
            return wait(worker)

        monkeypatch.setattr(WorkerProcess, "next_signal", counted)
        interrupted(envs, lambda: envs.step([0] * 4))
        obs, *_ = envs.step_wait()
        assert obs[:, 2].tolist() == [t] * 4
        assert envs.rows.real.all()
    envs.close()


def test_an_interrupted_set_attr_is_waited_for_as_a_call(monkeypatch: pytest.MonkeyPatch) -> None:
    envs = vector(counters(4, 9), 2)
    envs.reset(seed=1)
    with monkeypatch.context() as patch:
        patch.setattr(WorkerProcess, "next_signal", InterruptedEnv(reset=1).reset)
        interrupted(envs, lambda: envs.set_attr("t", 5))
    assert envs.call_wait() == ()
    assert envs.call("now") == (5,) * 4
    envs.close()


@pytest.mark.parametrize("processes", [0, 1])
def test_a_source_drops_an_interrupted_step_when_it_is_reset(processes: int) -> None:
    factories = counters(4, 9)
    factories[3] = partial(InterruptedEnv, 3, 9, step=2)
    envs = vector(factories, processes, send_infos=False)
    source = source_of(envs)
    source.reset([1, 2, 3, 4])
    source.send(np.zeros(4, np.int64))
    source.recv()
    source.send(np.zeros(4, np.int64))
    with pytest.raises(KeyboardInterrupt):
        source.recv()
    source.reset([1, 2, 3, 4])
    source.send(np.zeros(4, np.int64))
    source.recv()
    assert source.rows.obs[:, 2].tolist() == [1] * 4
    source.close()


# Groups


def test_a_late_group_keeps_the_answers_of_the_one_before() -> None:
    factories = counters(4, 9)
    factories[3] = partial(HangingEnv, 3, 9, at=1, sleep_s=0.3)
    envs = vector(factories, 2, groups=2)
    envs.reset(seed=1)
    envs.step_async([1, 2, 0, 1])
    with pytest.raises(multiprocessing.TimeoutError):
        envs.step_wait(timeout=0.05)
    obs, reward, *_ = envs.step_wait()
    assert obs[:, 2].tolist() == [1] * 4
    assert (reward % 4).tolist() == [1, 2, 0, 1]
    assert_next_step(envs, 2)
    envs.close()


@pytest.mark.filterwarnings("ignore:.*ERROR")
@pytest.mark.parametrize("processes", [0, 2])
def test_what_another_group_answered_is_not_taken_for_later_answers(processes: int) -> None:
    factories = counters(4, 9)
    factories[0] = partial(CrashingEnv, 0, 9, at=2)
    envs = vector(factories, processes, groups=2)
    envs.reset(seed=1)
    assert_next_step(envs, 1)
    with pytest.raises(CrashError):
        envs.step([2, 1, 1, 2])
    assert envs.reset(seed=1)[0].tolist() == [[0, 0, 0], *([env, 1, 0] for env in (1, 2, 3))]
    assert envs.call("now") == (0,) * 4
    assert_next_step(envs, 1)
    envs.close()
