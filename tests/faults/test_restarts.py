"""What one restart means: for the caller of Gymnasium's methods, for calls, for the budget.

It is longer than most files: one test for each state that a worker can be in when it fails.
"""

from __future__ import annotations

import multiprocessing
import time
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from gymnasium.spaces import Box, Dict, Tuple
from gymnasium.vector import AutoresetMode

from fastdqn.envs.sources.source import source_of
from fastdqn.envs.workers.allocation import Allocation
from fastdqn.envs.workers.supervision import RestartBudget, Supervision
from fastdqn.errors import UsageError, WorkerError
from tests.frail import Deadly, FallsInReset, Heavy, Shrinks, SometimesFails
from tests.oracles import (
    CrashingEnv,
    FlawedEnv,
    HalfPicklableError,
    HangingEnv,
    LivingEnv,
    Stored,
    UnpicklableError,
    assert_lived,
    counters,
    one_of,
)
from tests.scripted import ScriptedEnv
from tests.supervised import PATIENT, RULES, mortals, roll_until, rollout_over, supervised

if TYPE_CHECKING:
    from pathlib import Path

    from fastdqn.envs.grouped import GroupedVectorEnv

pytestmark = [pytest.mark.usefixtures("nothing_left", "quick_starts")]

LIFE = 1
MODES = list(AutoresetMode)


def kill(envs: GroupedVectorEnv, worker: int) -> None:
    """Kill a worker and wait until it is dead."""
    envs.processes[worker].kill()
    envs.processes[worker].join()


def step_until(envs: GroupedVectorEnv, restarted: bool) -> Any:
    """Step until some rows are no transitions, or until all are; return the last result."""
    deadline = time.monotonic() + 30.0
    while True:
        result = envs.step(np.zeros(envs.num_envs, np.int64))
        if bool(result[4].get("restarted", np.False_).any()) == restarted:
            return result
        assert time.monotonic() < deadline


# Gymnasium's methods


class Trainer:
    """A caller's loop over `step`: it leaves out what `infos["restarted"]` names."""

    def __init__(self, envs: GroupedVectorEnv) -> None:
        self.envs, self.rows = envs, list[Any]()
        self.obs = envs.reset(seed=1)[0]
        self.ended = np.zeros(envs.num_envs, np.bool_)

    def step(self) -> None:
        envs, mode = self.envs, self.envs.autoreset_mode
        action = np.arange(envs.num_envs) % 3
        obs, reward, terminated, truncated, infos = envs.step(action)
        real = ~infos.get("restarted", np.zeros_like(terminated))
        if mode is AutoresetMode.NEXT_STEP:
            real &= ~self.ended
        last = obs.copy()
        self.ended = terminated | truncated
        if mode is AutoresetMode.SAME_STEP:
            for i in np.flatnonzero(self.ended):
                last[i] = infos["final_obs"][i]
        for i in np.flatnonzero(real):
            ends = (terminated[i], truncated[i])
            self.rows.append((self.obs[i], action[i], reward[i], last[i], *ends))
        if mode is AutoresetMode.DISABLED and self.ended.any():
            obs = envs.reset(options={"reset_mask": self.ended})[0]
        self.obs = obs

    def stored(self) -> Stored:
        return Stored(*map(np.array, zip(*self.rows, strict=True)))


@pytest.mark.parametrize("send_infos", [True, False])
@pytest.mark.parametrize("mode", MODES)
def test_a_loop_over_step_can_leave_out_what_is_no_transition(
    mode: AutoresetMode, send_infos: bool
) -> None:
    envs = supervised(
        mortals(4, kills=0.01, raises=0.01), 2, autoreset_mode=mode, send_infos=send_infos
    )
    loop = Trainer(envs)
    while envs.num_restarts < 25:
        loop.step()
        time.sleep(0.0005)
    assert sum(assert_lived(loop.stored(), RULES).values()) > 12
    envs.close()


def test_next_step_resets_are_not_called_restarts() -> None:
    envs = supervised(mortals(2, LivingEnv), 2, autoreset_mode=AutoresetMode.NEXT_STEP)
    envs.reset(seed=1)
    kill(envs, 0)
    step_until(envs, restarted=True)
    step_until(envs, restarted=False)
    for _ in range(10):
        assert not envs.step([0, 0])[4]["restarted"].any()
    envs.close()


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_restart_in_a_partial_reset_reports_that_the_others_were_cut(num_workers: int) -> None:
    """The environments 0 and 1 share a worker; only the first is reset, and raises."""
    factories = [partial(FallsInReset, i) for i in range(4)]
    envs = supervised(factories, num_workers, autoreset_mode=AutoresetMode.DISABLED)
    loop_obs = envs.reset(seed=1)[0]
    for _ in range(2):
        loop_obs = envs.step([0] * 4)[0]
    obs, _ = envs.reset(options={"reset_mask": np.array([True, False, False, False])})
    assert envs.num_restarts == 1
    assert obs[2:].tolist() == loop_obs[2:].tolist()
    after, _, _, _, infos = envs.step([0] * 4)
    real = ~infos["restarted"]
    assert real.tolist() == ([True] * 4 if num_workers == 0 else [False, False, True, True])
    assert (after[real] - obs[real]).tolist() == [[0, 0, 0, 1, 0]] * int(real.sum())
    envs.close()


# Other spaces, other ways of observations and actions

BOX = Box(-1, 1, (2,), np.float32)


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("shared_memory", [True, False])
def test_any_space_goes_through_a_restart(shared_memory: bool, num_workers: int) -> None:
    """Observations and actions that lie in no block; every third step of environment 0 raises."""
    spaces: dict[str, Any] = {"obs_space": Dict(a=BOX, b=BOX), "action_space": Tuple((BOX, BOX))}
    factories = [partial(SometimesFails, i, length=50, **spaces) for i in range(3)]
    envs = supervised(factories, num_workers, shared_memory=shared_memory)
    plain = ScriptedEnv(2, length=50, **spaces)
    plain.reset()
    envs.reset(seed=1)
    envs.action_space.seed(1)
    for _ in range(300):
        if envs.num_restarts > 2:
            break
        obs, reward, _, _, infos = envs.step(envs.action_space.sample())
        expected = plain.step(None)
        if num_workers == 0 or not infos.get("restarted", np.zeros(3, bool))[2]:
            np.testing.assert_array_equal(obs["b"][2], expected[0]["b"])
            assert reward[2] == expected[1]
        time.sleep(0.001)
    assert envs.num_restarts > 2
    envs.close()


# Between steps


def test_a_worker_that_dies_idle_is_replaced_by_whatever_comes_next() -> None:
    envs = supervised(mortals(4, LivingEnv), 2)
    lives = envs.reset(seed=1)[0][:, LIFE]
    kill(envs, 0)
    obs, _ = envs.reset(seed=2)
    assert envs.num_restarts == 1
    assert (obs[2:, LIFE] == [4, 5]).all()  # seeds 2 + 2 and 2 + 3
    assert not set(obs[:2, LIFE]) & {2.0, 3.0, *lives.tolist()}
    assert envs.step([0] * 4)[0][:, 3].tolist() == [1] * 4
    kill(envs, 1)
    assert envs.call("now") == (1, 1, 0, 0)
    infos = envs.step([0] * 4)[4]  # the first one that shows the new episodes
    assert infos["restarted"].tolist() == [False, False, True, True]
    assert envs.get_attr("t") == (2, 2, 0, 0)
    assert not envs.step([0] * 4)[4]["restarted"].any()
    envs.close()


def test_attributes_that_were_set_outlive_the_worker() -> None:
    envs = supervised(counters(4), 2)
    envs.reset(seed=1)
    envs.set_attr("mood", ["a", "b", "c", "d"])
    kill(envs, 1)
    envs.step([0] * 4)
    assert envs.get_attr("mood") == ("a", "b", "c", "d")
    envs.close()


def test_what_a_call_raises_costs_no_worker() -> None:
    envs = supervised(counters(2), 2)
    envs.reset(seed=1)
    pids = envs.call("pid")
    with pytest.raises(AttributeError, match="no_such_thing"):
        envs.call("no_such_thing")
    assert envs.call("pid") == pids
    assert envs.num_restarts == 0
    envs.close()


def test_a_call_that_kills_its_worker_each_time_ends_in_an_error() -> None:
    envs = supervised([Deadly], 1, Supervision(max_in_a_row=2, delay_s=0.01))
    envs.reset(seed=1)
    with pytest.raises(WorkerError, match="It failed 3 times without a single step"):
        envs.call("die")
    envs.close()


# Slow and dead


def test_a_slow_worker_is_not_dead_and_a_timeout_of_the_caller_restarts_none() -> None:
    envs = supervised(one_of(partial(HangingEnv, 1, sleep_s=0.6), 1, 2), 2)
    envs.reset(seed=1)
    envs.step_async([0, 0])
    with pytest.raises(multiprocessing.TimeoutError, match=r"has not answered within 0\.05 s"):
        envs.step_wait(timeout=0.05)
    assert envs.step_wait()[0][:, 2].tolist() == [1, 1]
    assert envs.num_restarts == 0
    envs.close()


def test_two_workers_that_hang_cost_one_deadline() -> None:
    envs = supervised([partial(HangingEnv, i) for i in range(3)], 3, Supervision(deadline_s=1.5))
    envs.reset(seed=1)
    start = time.monotonic()
    infos = envs.step([0] * 3)[4]
    assert 1.4 < time.monotonic() - start < 2.5
    assert infos["restarted"].all()
    assert envs.num_restarts == 3
    assert all("has not answered within 1.5 s" in message for message in envs.restarts)
    envs.close()


@pytest.mark.slow
def test_a_death_is_seen_while_another_worker_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    factories = [partial(HangingEnv, 0, sleep_s=2.5), partial(HangingEnv, 1)]
    envs = supervised(factories, 2)
    envs.reset(seed=1)
    envs.step_async([0, 0])
    kill(envs, 1)
    told_at: list[float] = []
    spend = RestartBudget.spend

    def note(*given: Any) -> float:
        told_at.append(time.monotonic())
        return spend(*given)

    monkeypatch.setattr(RestartBudget, "spend", note)
    envs.step_wait()
    assert time.monotonic() - told_at[0] > 0.4  # the first one was still asleep
    envs.close()


@pytest.mark.slow
def test_a_worker_stopped_in_the_middle_of_a_message_is_a_hang() -> None:
    envs = supervised([partial(Heavy, i) for i in range(2)], 2, Supervision(deadline_s=1.0))
    envs.reset(seed=1)
    start = time.monotonic()
    envs.step_async([0, 0])
    time.sleep(0.6)  # the sockets are full, and the first worker stands still
    infos = envs.step_wait()[4]
    assert time.monotonic() - start < 10.0
    assert infos["restarted"].tolist() == [True, False]
    assert "does not answer" in envs.restarts[0]
    envs.close()


# The budget


def test_one_restart_too_many_is_an_error_that_names_everything() -> None:
    envs = supervised(mortals(4, LivingEnv), 2, Supervision(max_restarts=2))
    envs.reset(seed=5)
    for _ in range(2):
        kill(envs, 1)
        step_until(envs, restarted=True)
        step_until(envs, restarted=False)
    pid = envs.processes[1].pid
    kill(envs, 1)
    said = (
        rf"^worker 1 \(pid {pid}, environments 2 to 3\) ended with SIGKILL "
        rf"\(often out of memory\); in vector step \d+, seeds \d+, \d+\.\n"
        rf"Workers were restarted 2 times within 600 s already \(--max-worker-restarts 2\)\.$"
    )
    with pytest.raises(WorkerError, match=said):
        step_until(envs, restarted=True)
    envs.close()


@pytest.mark.parametrize(("raises", "caller_envs"), [(0, 0), (0, 2), (5, 2)])
def test_once_the_budget_is_spent_no_later_step_is_collected(raises: int, caller_envs: int) -> None:
    """The answers of the others lie there, and would be taken for those to the next step."""
    factories = one_of(partial(CrashingEnv, raises, at=2), raises, 6)
    shares = Allocation(2, caller_envs)
    envs = supervised(factories, 2, Supervision(max_restarts=0), allocation=shares)
    envs.reset(seed=5)
    envs.step([0] * 6)
    step = partial(envs.step, [1] * 6)
    for again in (step, step, partial(envs.call, "now"), envs.reset, step):
        with pytest.raises(WorkerError, match=f"environment {raises} raised on action 1: "):
            again()
    envs.close()


def test_what_no_restart_can_mend_is_raised_by_each_later_call_too(tmp_path: Path) -> None:
    flaw = tmp_path / "flaw"
    envs = supervised([partial(Shrinks, i, str(flaw)) for i in range(2)], 2)
    envs.reset(seed=5)
    kill(envs, 0)
    flaw.touch()
    with pytest.raises(UsageError, match=r"environment . with an observation of shape"):
        step_until(envs, restarted=False)
    for again in (partial(envs.step, [0, 0]), envs.reset):
        with pytest.raises(UsageError, match="environment 0 with an observation of shape"):
            again()
    envs.close()


def test_a_source_whose_budget_is_spent_raises_that_until_it_is_closed() -> None:
    factories = one_of(partial(CrashingEnv, 0, at=2), 0, 4)
    envs = supervised(factories, 2, Supervision(max_restarts=0), num_groups=2)
    rollout = rollout_over(envs, 100)
    with pytest.raises(WorkerError, match="environment 0 raised"):
        roll_until(rollout, lambda: False)
    for _ in range(2):
        with pytest.raises(WorkerError, match="environment 0 raised"):
            rollout.reset([1, 2, 3, 4])
    envs.close()


@pytest.mark.parametrize("error", [RuntimeError, UnpicklableError, partial(HalfPicklableError, 7)])
def test_what_an_environment_raised_is_reported_in_one_line_and_in_full(error: Any) -> None:
    factories = one_of(partial(CrashingEnv, 2, at=2, error=error), 2, 4)
    envs = supervised(factories, 2, Supervision(max_restarts=0))
    envs.reset(seed=5)
    envs.step([0] * 4)
    with pytest.raises(WorkerError) as message:
        envs.step([0, 0, 1, 0])
    first, *rest, last = str(message.value).splitlines()
    name = error.func.__name__ if isinstance(error, partial) else error.__name__
    assert first.startswith("worker 1 (pid ")
    assert "environment 2 raised on action 1: " in first
    assert f"{name}: out of luck; in vector step 2, seed 7" in first
    assert "Traceback" in "\n".join(rest)
    assert last == "No worker may be restarted (--max-worker-restarts 0)."
    envs.close()


@pytest.mark.parametrize("how", ["raises", "exits", "dies", "hangs"])
def test_a_constructor_that_fails_later_is_given_up_after_growing_delays(
    how: str, tmp_path: Path
) -> None:
    flaw = tmp_path / "flaw"
    deadline_s = 0.5 if how == "hangs" else 30.0
    patience = Supervision(deadline_s, max_in_a_row=3, delay_s=0.2)
    envs = supervised([partial(FlawedEnv, i, str(flaw), how) for i in range(2)], 2, patience)
    envs.reset(seed=1)
    flaw.touch()
    kill(envs, 0)
    start, steps = time.monotonic(), 0
    with pytest.raises(WorkerError, match="It failed 4 times without a single step") as message:  # noqa: PT012 - the step is not known
        while True:
            envs.step([0, 0])
            steps += 1
    assert time.monotonic() - start > 0.2 + 0.4 + (3 * 0.5 if how == "hangs" else 0)
    assert steps > 20  # the other worker did not wait, or there would be four
    reasons = {
        "raises": "environment 0 raised: HalfPicklableError: out of parts; ",
        "exits": "ended with exit code 9",
        "dies": "ended with SIGKILL",
        "hangs": "has not started within 0.5 s",
    }
    assert reasons[how] in str(message.value).splitlines()[0]
    envs.close()


def test_a_worker_recovers_from_constructors_that_failed_for_a_while(tmp_path: Path) -> None:
    flaw = tmp_path / "flaw"
    envs = supervised([partial(FlawedEnv, 0, str(flaw))], 1, PATIENT)
    rows = source_of(envs)
    rows.reset([1])
    flaw.touch()
    kill(envs, 0)
    while envs.num_restarts < 4:
        rows.send(np.zeros(1, np.int64))
        rows.recv()
    flaw.unlink()
    step_until(envs, restarted=False)
    assert envs.rows.real.all()
    envs.close()


def test_without_any_worker_a_step_still_returns_soon(tmp_path: Path) -> None:
    flaw = tmp_path / "flaw"
    envs = supervised([partial(FlawedEnv, 0, str(flaw), "hangs")], 1)
    envs.reset(seed=1)
    flaw.touch()
    kill(envs, 0)
    start = time.monotonic()
    for _ in range(3):
        assert envs.step([0])[4]["restarted"].all()
    assert time.monotonic() - start < 5.0
    start = time.monotonic()
    envs.close()
    assert time.monotonic() - start < 2.0  # a worker that only starts is killed at once
