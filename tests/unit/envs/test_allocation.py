"""Who steps the environments: counts, and a caller that takes a share."""

from __future__ import annotations

import multiprocessing
import socket
import threading
import time
from functools import partial
from itertools import cycle
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from gymnasium.vector import AutoresetMode

from fastdqn.envs import grouped, spaces
from fastdqn.envs.grouped import GroupedVectorEnv
from fastdqn.envs.provider import GymnasiumEnvs
from fastdqn.envs.specs.ids import factory_of
from fastdqn.envs.workers import allocation, worker
from fastdqn.envs.workers.allocation import (
    Allocation,
    allocation_beside_learner,
    choose_allocation,
    timed_in_turns,
)
from fastdqn.envs.workers.supervision import Supervision
from fastdqn.envs.workers.worker import next_signal
from tests.oracles import (
    CounterEnv,
    CrashError,
    CrashingEnv,
    HangingEnv,
    TalkativeCounterEnv,
    counters,
    one_of,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.usefixtures("nothing_left")

FAST_S, SLOW_S = 1e-6, 1e-3


@pytest.mark.parametrize(
    ("cores", "question", "chosen"),
    [
        (4, (3, 8, FAST_S), Allocation(3)),
        (4, (9, 8, None), Allocation(8)),
        (4, (0, 8, SLOW_S), Allocation(0, 8)),
        (4, (None, 8, None), Allocation(4)),
        (4, (None, 8, SLOW_S), Allocation(3, 2)),
        (4, (None, 8, FAST_S), Allocation(0, 8)),
        (4, (None, 2, SLOW_S), Allocation(1, 1)),
        (4, (None, 1, SLOW_S), Allocation(0, 1)),
        (4, (None, 1, None), Allocation(1)),
        (1, (None, 8, SLOW_S), Allocation(0, 8)),
        (1, (None, 8, None), Allocation(1)),
    ],
)
def test_workers_are_woken_only_where_that_pays(
    cores: int,
    question: tuple[int | None, int, float | None],
    chosen: Allocation,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(allocation, "available_cores", lambda: cores)
    assert choose_allocation(*question) == chosen


STEP_S = 30e-6


@pytest.mark.parametrize(
    ("cores", "question", "chosen"),
    [
        # learning takes longer than everything else together: the worker has all environments
        (2, (16, STEP_S, 20 * STEP_S), Allocation(1)),
        (2, (16, STEP_S, 1.0), Allocation(1)),
        # no learning: halves, the caller's a little larger since it wakes no process
        (2, (16, STEP_S, 0.0), Allocation(1, 9)),
        (2, (16, STEP_S, 4 * STEP_S), Allocation(1, 7)),
        # waking a worker would take longer than doing it oneself
        (2, (16, 1e-6, 0.0), Allocation(0, 16)),
        (2, (1, STEP_S, 0.0), Allocation(0, 1)),
        # a single core does everything; slow or strange environments go to workers alone
        (1, (16, STEP_S, 1.0), Allocation(0, 16)),
        (1, (16, None, 1.0), Allocation(0, 16)),
        (2, (16, None, 0.0), Allocation(1)),
        (8, (4, None, 0.0), Allocation(4)),
        # many cores
        (8, (64, STEP_S, 64 * STEP_S), Allocation(7)),
        (8, (64, STEP_S, 0.0), Allocation(7, 8)),
    ],
)
def test_the_learners_core_steps_what_learning_leaves_time_for(
    cores: int,
    question: tuple[int, float | None, float],
    chosen: Allocation,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(allocation, "available_cores", lambda: cores)
    monkeypatch.setattr(allocation, "COLD", 1.0)
    assert allocation_beside_learner(*question) == chosen


def test_learning_beside_environments_takes_longer_than_by_itself(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Eight steps of learning by itself are twelve with cold caches: the caller has two fewer."""
    monkeypatch.setattr(allocation, "available_cores", lambda: 2)
    shares = []
    for cold in (1.0, 1.5):
        monkeypatch.setattr(allocation, "COLD", cold)
        shares.append(allocation_beside_learner(32, STEP_S, 8 * STEP_S).caller_envs)
    assert shares == [13, 11]


def test_while_groups_take_turns_handling_them_is_the_callers_work(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Five steps of handling: the worker has five environments more, and no wake-up to wait for."""
    monkeypatch.setattr(allocation, "available_cores", lambda: 2)
    monkeypatch.setattr(allocation, "HANDLING_S", 5 * STEP_S)
    monkeypatch.setattr(allocation, "COLD", 1.0)
    chosen = partial(allocation_beside_learner, 16, STEP_S)
    assert chosen(0.0, num_groups=2) == Allocation(1, 5)
    assert chosen(4 * STEP_S, num_groups=2) == Allocation(1, 3)
    assert chosen(11 * STEP_S, num_groups=2) == Allocation(1)
    assert chosen(0.0, num_groups=1) == Allocation(1, 9)


def test_a_machine_that_slows_down_now_and_then_changes_no_share() -> None:
    """Learning takes ten steps; in every third turn everything takes longer, in some learning."""
    steps, learned = cycle([20e-6, 60e-6, 25e-6]), cycle([200e-6, 600e-6, 250e-6, 900e-6])
    step_s, learn_s = timed_in_turns(lambda: next(steps), lambda: next(learned))
    assert step_s == 20e-6
    assert 8 <= learn_s / step_s <= 12


def test_an_environment_that_turns_out_slow_is_left_to_workers() -> None:
    steps = iter([20e-6, None])
    assert timed_in_turns(lambda: next(steps), lambda: 1e-3) == (None, 0.0)


def test_where_only_workers_step_nothing_is_timed() -> None:
    def learning() -> float:
        raise AssertionError

    assert GymnasiumEnvs(CounterEnv)._seconds(learning) == (None, 0.0)


def test_timing_ends_soon_where_learning_is_slow() -> None:
    asked = []

    def learning() -> float:
        asked.append(1)
        time.sleep(0.6 * allocation.ENOUGH_S)
        return 0.6 * allocation.ENOUGH_S

    _, learn_s = GymnasiumEnvs(factory_of("CartPole-v1"))._seconds(learning)
    assert len(asked) == 3
    assert learn_s > 0


def test_a_slow_environment_is_left_to_workers_and_a_fast_one_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(spaces, "PATIENCE_S", 0.5)  # of a busy machine
    for factory, processes in ((CounterEnv, 0), (partial(HangingEnv, at=0, sleep_s=0.02), 2)):
        envs = GroupedVectorEnv([factory] * 2)
        assert envs.num_workers == len(envs.processes) == min(processes, envs.num_workers)
        assert (envs.num_workers > 0) == (processes > 0)
        envs.close()


def test_under_supervision_nothing_runs_in_the_callers_process() -> None:
    envs = GroupedVectorEnv([CounterEnv] * 2, supervision=Supervision())
    pids = envs.call("pid")
    envs.close()
    assert multiprocessing.current_process().pid not in pids


# A caller that takes a share


@pytest.fixture
def helped(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Build vectors of one worker and a caller that helps; close them afterwards."""
    monkeypatch.setattr(
        grouped, "choose_allocation", lambda _, size, __: Allocation(1, size - size // 2)
    )
    built: list[GroupedVectorEnv] = []

    def build(factories: list[Any], **settings: Any) -> GroupedVectorEnv:
        built.append(GroupedVectorEnv(factories, **settings))
        return built[-1]

    yield build
    for envs in built:
        envs.close()


def test_the_caller_hosts_the_last_environments_and_the_worker_the_others(helped: Any) -> None:
    envs = helped(counters(5))
    pids = envs.call("pid")
    own = multiprocessing.current_process().pid
    assert [pid == own for pid in pids] == [False, False, True, True, True]
    assert envs.num_workers == len(envs.processes) == 1


@pytest.mark.parametrize("mode", AutoresetMode)
def test_a_helped_vector_gives_what_workers_give(helped: Any, mode: AutoresetMode) -> None:
    factories = counters(5, (3, 1, 4), "alternating", kind=TalkativeCounterEnv)
    ours = helped(factories, autoreset_mode=mode)
    theirs = GroupedVectorEnv(factories, num_workers=2, autoreset_mode=mode)
    results: list[list[Any]] = [[envs.reset(seed=3)] for envs in (ours, theirs)]
    for step in range(8):
        actions = np.arange(5) % 3
        for envs, message in zip((ours, theirs), results, strict=True):
            message.append(envs.step(actions))
            if mode is AutoresetMode.DISABLED:
                mask = message[-1][2] | message[-1][3]
                if mask.any():
                    message.append(envs.reset(options={"reset_mask": mask}))
        assert repr(results[0]) == repr(results[1]), step
    assert ours.get_attr("t") == theirs.get_attr("t")
    theirs.close()


def test_two_groups_of_a_helped_vector_step_by_themselves(helped: Any) -> None:
    envs = helped(counters(8), num_groups=2)
    envs.reset()
    envs.send(np.zeros(4, np.int64), 0)
    envs.send(np.ones(4, np.int64), 1)
    envs.recv(None, 0)
    envs.recv(None, 1)
    envs.send(np.zeros(4, np.int64), 0)
    envs.recv(None, 0)
    assert envs.rows.obs[:, 2].tolist() == [2] * 4 + [1] * 4
    assert (envs.rows.reward[4:] % 4).tolist() == [1] * 4


@pytest.mark.filterwarnings("ignore:.*ERROR")
@pytest.mark.parametrize("unlucky", [0, 3])
def test_an_error_is_raised_whichever_process_steps_the_environment(
    helped: Any, unlucky: int
) -> None:
    envs = helped(one_of(partial(CrashingEnv, unlucky), unlucky, 4))
    envs.reset()
    with pytest.raises(CrashError) as raised:
        envs.step([0] * 4)
    assert str(raised.value.__cause__).startswith(f"environment {unlucky} raised on action 0")
    envs.reset()
    assert envs.get_attr("t") == (0, 0, 0, 0)


def test_a_timeout_of_the_workers_does_not_step_the_callers_share_twice(helped: Any) -> None:
    envs = helped(one_of(partial(HangingEnv, 0, sleep_s=0.5), 0, 4))
    envs.reset()
    envs.step_async([0, 1, 2, 0])
    with pytest.raises(multiprocessing.TimeoutError):
        envs.step_wait(timeout=0.05)
    obs, reward, *_ = envs.step_wait()
    assert obs[:, 2].tolist() == [1, 1, 1, 1]
    assert (reward % 4).tolist() == [0, 1, 2, 0]


def test_a_constructor_that_raises_in_the_callers_share_leaves_nothing(helped: Any) -> None:
    with pytest.raises(CrashError):
        helped(one_of(partial(CrashingEnv, 3, where="constructor"), 3, 4))


# The same under supervision


def test_under_supervision_both_shares_are_restarted_and_counted_together() -> None:
    factories = counters(6, kind=CounterEnv)
    factories[1] = partial(CrashingEnv, 1, at=2)
    factories[5] = partial(CrashingEnv, 5, at=3)
    envs = GroupedVectorEnv(
        factories,
        autoreset_mode=AutoresetMode.SAME_STEP,
        supervision=Supervision(),
        allocation=Allocation(2, 2),
    )
    own = multiprocessing.current_process().pid
    assert [pid == own for pid in envs.call("pid")] == [False] * 4 + [True] * 2
    envs.reset(seed=list(range(6)))
    cut = np.zeros(6, np.int64)
    for _ in range(40):
        envs.step([0] * 6)
        cut += ~envs.rows.real
    assert cut[1] > 0
    assert cut[5] > 0
    assert cut[[2, 3, 4]].tolist() == [0, 0, 0]
    assert envs.num_restarts == len(envs.restarts) >= 2
    message = " ".join(envs.restarts)
    assert "environment 1 raised" in message
    assert "environment 5 raised" in message
    envs.close()


def test_a_worker_that_is_killed_costs_the_callers_share_nothing() -> None:
    envs = GroupedVectorEnv(
        counters(4),
        autoreset_mode=AutoresetMode.SAME_STEP,
        supervision=Supervision(),
        allocation=Allocation(1, 2),
    )
    envs.reset(seed=[0, 1, 2, 3])
    for step in range(200):
        if step == 3:
            envs.processes[0].kill()
        envs.step([0] * 4)
        assert envs.rows.real[2:].all()
        if envs.num_restarts and envs.rows.real.all():
            break
    assert envs.num_restarts == 1
    assert envs.rows.real.all()
    envs.close()


# Staying awake


@pytest.mark.parametrize(
    ("processes", "awake"), [(0, True), (1, True), (2, True), (3, False), (5, False)]
)
def test_who_waits_stays_awake_only_while_there_is_a_core_for_every_worker(
    processes: int, awake: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(allocation, "available_cores", lambda: 2)
    assert (Allocation(processes).spin_s > 0) == awake


@pytest.mark.parametrize("spin_s", [0.0, 0.02, 5.0])
@pytest.mark.parametrize("late_s", [0.0, 0.1])
def test_a_signal_is_heard_awake_or_asleep(spin_s: float, late_s: float) -> None:
    ours, theirs = socket.socketpair()
    timer = threading.Timer(late_s, theirs.send, [b"d"])
    timer.start()
    start = time.perf_counter()
    assert next_signal(ours, spin_s) == b"d"
    assert time.perf_counter() - start < 3
    timer.join()
    theirs.close()
    assert next_signal(ours, spin_s) == b""  # the other end is closed
    ours.close()


def test_who_is_awake_offers_the_core_to_others_between_two_looks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where a third program runs, the signal comes from a process that waits for this very core."""
    ours, theirs = socket.socketpair()
    offers = []

    def let_others_run() -> None:
        offers.append(1)
        if len(offers) == 3:
            theirs.send(b"d")

    monkeypatch.setattr(worker, "let_others_run", let_others_run)
    assert next_signal(ours, 60.0) == b"d"
    assert len(offers) == 3
    ours.close()
    theirs.close()


def test_who_is_awake_goes_to_sleep_in_the_end() -> None:
    ours, theirs = socket.socketpair()
    timer = threading.Timer(0.6, theirs.send, [b"d"])
    timer.start()
    before = time.thread_time()
    assert next_signal(ours, 0.05) == b"d"
    assert time.thread_time() - before < 0.3
    timer.join()
    ours.close()
    theirs.close()
