"""Environments in the caller's own process: they fail and are rebuilt, or they raise."""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from typing import Any

import numpy as np
import pytest
from gymnasium.error import ClosedEnvironmentError
from gymnasium.vector import AutoresetMode

from fastdqn.envs.grouped import GroupedVectorEnv
from fastdqn.envs.workers.local_pool import LocalPool
from fastdqn.envs.workers.supervision import Supervision
from fastdqn.errors import WorkerError
from tests.drive import everything_in
from tests.oracles import (
    CrashError,
    CrashingEnv,
    HalfPicklableError,
    MortalEnv,
    TalkativeCounterEnv,
    assert_lived,
    counters,
    one_of,
)
from tests.supervised import LENGTHS, RULES, mortals, roll_until, rollout_over


def local(
    factories: list[Any], supervision: Supervision | None = None, **kwargs: Any
) -> GroupedVectorEnv:
    kwargs = {"autoreset_mode": AutoresetMode.SAME_STEP, **kwargs}
    return GroupedVectorEnv(factories, num_workers=0, supervision=supervision, **kwargs)


def falling(env_id: int, **kwargs: Any) -> Any:
    """Return factories of three talkative counters; one raises in its second step."""
    factories = counters(3, 5, kind=TalkativeCounterEnv)
    factories[env_id] = partial(CrashingEnv, env_id, 5, at=2, **kwargs)
    return factories


@pytest.mark.filterwarnings("ignore:.*ERROR")
def test_unsupervised_environments_raise_as_they_do_from_a_pool() -> None:
    envs = local(falling(1))
    envs.reset(seed=1)
    envs.step([0] * 3)
    with pytest.raises(CrashError, match=r"^out of luck$") as raised:
        envs.step([0] * 3)
    assert isinstance(raised.value.__cause__, WorkerError)
    assert str(raised.value.__cause__).startswith("environment 1 raised on action")
    with pytest.raises(ClosedEnvironmentError):
        envs.call("now")
    envs.reset(seed=1)
    assert envs.step([0] * 3)[0][:, 2].tolist() == [1] * 3
    envs.close()


def test_a_supervised_environment_is_built_anew_and_the_others_lose_nothing() -> None:
    envs = local(falling(1), Supervision())
    envs.reset(seed=7)
    envs.step([0] * 3)
    obs, reward, _, _, infos = envs.step([0] * 3)
    assert infos["restarted"].tolist() == [False, True, False]
    assert obs[:, 2].tolist() == [2, 0, 2]
    assert reward[1] == 0.0
    assert reward[0] > 0
    assert infos["word"][0] == infos["word"][2] == "t2"  # what the others had to say
    obs, _, _, _, infos = envs.step([0] * 3)
    assert not infos["restarted"].any()
    assert obs[:, 2].tolist() == [3, 1, 3]
    (message,) = envs.restarts
    first = message.splitlines()[0]
    assert "environment 1 raised on action" in first
    assert first.endswith(": CrashError: out of luck; in vector step 2, seed 8")
    assert "Traceback" in message
    envs.close()


def test_an_end_of_another_episode_in_the_same_step_is_not_lost() -> None:
    factories = [*counters(1, 2), partial(CrashingEnv, 1, 9, at=2)]
    envs = local(factories, Supervision())
    envs.reset(seed=7)
    envs.step([0] * 2)
    _, _, _, truncated, infos = envs.step([0] * 2)
    assert truncated.tolist() == [True, False]
    assert infos["final_obs"][0].tolist() == [0, 0, 2]
    envs.close()


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_rows_say_until_their_next_step_which_are_no_transitions(
    mode: AutoresetMode, groups: int
) -> None:
    factories = one_of(partial(CrashingEnv, 0, at=2), 0, 4)
    envs = local(factories, Supervision(), num_groups=groups, autoreset_mode=mode)
    envs.reset(seed=1)
    for real in (True, False, True, False):
        for group in range(groups):
            envs.send(np.zeros(4 // groups, np.int64), group)
        for group in range(groups):
            envs.recv(group=group)
            assert bool(envs.rows.real[0]) == real
    envs.close()


@pytest.mark.parametrize(
    ("mode", "groups"), [*((mode, 1) for mode in AutoresetMode), (AutoresetMode.SAME_STEP, 2)]
)
def test_no_transition_joins_two_lives(mode: AutoresetMode, groups: int) -> None:
    patient = Supervision(max_restarts=10_000, max_in_a_row=100, delay_s=0.0)
    factories = mortals(4, raises=0.03)
    envs = local(factories, patient, num_groups=groups, autoreset_mode=mode)
    rollout = rollout_over(envs)
    roll_until(rollout, lambda: envs.num_restarts >= 50, pause_s=0.0)
    assert len(rollout.replay) == rollout.env_steps
    assert sum(assert_lived(everything_in(rollout.replay), RULES).values()) > 25
    envs.close()


def test_only_the_seed_of_the_environment_that_failed_is_fresh() -> None:
    factories = [partial(MortalEnv, i, LENGTHS, raises=float(i == 1)) for i in range(3)]
    envs = local(factories, Supervision(max_in_a_row=3, delay_s=0.0))
    with pytest.raises(WorkerError, match="It failed 4 times without a single step") as raised:
        envs.reset(seed=7)
    assert "seed 8" in envs.restarts[0]
    seeds = {message.splitlines()[0].rpartition(" ")[2] for message in envs.restarts}
    assert len(seeds) == 3
    assert str(raised.value).startswith("environment 1 raised: ")
    assert isinstance(envs._pool, LocalPool)
    assert envs._pool._seeds[::2] == [7, 9]
    envs.close()


@pytest.mark.parametrize(("at", "taken"), [(1, 3), (2, 20)])
def test_an_environment_that_raises_in_each_first_step_is_given_up(at: int, taken: int) -> None:
    """One that takes a step in between is not."""
    patient = Supervision(max_in_a_row=3, delay_s=0.0)
    envs = local(one_of(partial(CrashingEnv, 0, at=at), 0, 2), patient)
    envs.reset(seed=1)
    steps = 0
    with suppress(WorkerError):
        while steps < 20:
            envs.step([0, 0])
            steps += 1
    assert steps == taken
    envs.close()


@pytest.mark.parametrize("error", [RuntimeError, partial(HalfPicklableError, 7)])
def test_the_budget_ends_with_what_the_environment_raised(error: Any) -> None:
    envs = local(falling(2, error=error), Supervision(max_restarts=0))
    envs.reset(seed=1)
    envs.step([0] * 3)
    with pytest.raises(WorkerError, match=r"environment 2 raised .*Error: out of luck") as message:
        envs.step([0] * 3)
    assert str(message.value).endswith("No worker may be restarted (--max-worker-restarts 0).")
    envs.close()


def test_calls_raise_and_cost_no_episode() -> None:
    envs = local(counters(2), Supervision())
    envs.reset(seed=1)
    with pytest.raises(AttributeError):
        envs.call("no_such_thing")
    envs.set_attr("mood", ["a", "b"])
    assert envs.get_attr("mood") == ("a", "b")
    assert envs.num_restarts == 0
    envs.close()
