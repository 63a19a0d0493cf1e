"""GroupedVectorEnv by itself: waiting, misuse, aliasing, and what is refused."""

from __future__ import annotations

import multiprocessing
import re
import threading
import time
from functools import partial
from multiprocessing import forkserver
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.error import AlreadyPendingCallError, ClosedEnvironmentError, NoAsyncCallError
from gymnasium.spaces import Box
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space

from fastdqn.envs.grouped import GroupedVectorEnv
from fastdqn.envs.workers.pool import WorkerPool
from fastdqn.envs.workers.supervision import Supervision
from tests.oracles import (
    CounterEnv,
    HangingEnv,
    KeepsActionEnv,
    PairEnv,
    TalkativeCounterEnv,
    Uint8CounterEnv,
    WrongShapeEnv,
    counter_with,
    counters,
    one_of,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SAME_STEP = AutoresetMode.SAME_STEP


@pytest.fixture(scope="module")
def shared() -> Iterator[GroupedVectorEnv]:
    """Three talkative counters on two workers; every test resets them first."""
    envs = GroupedVectorEnv(counters(3, 5, kind=TalkativeCounterEnv), num_workers=2)
    yield envs
    envs.close()


@pytest.fixture
def envs(shared: GroupedVectorEnv) -> GroupedVectorEnv:
    shared.set_attr("episode", -1)
    shared.reset(seed=1)
    return shared


# Waiting is a state


@pytest.mark.parametrize("pending", ["step", "reset", "call"])
@pytest.mark.parametrize("then", ["step_async", "reset_async", "call_async", "set_attr"])
def test_a_second_call_while_one_is_pending_is_refused_and_changes_nothing(
    envs: GroupedVectorEnv, pending: str, then: str
) -> None:
    starts: dict[str, Callable[[], Any]] = {
        "step_async": lambda: envs.step_async([0, 0, 0]),
        "reset_async": envs.reset_async,
        "call_async": lambda: envs.call_async("now"),
        "set_attr": lambda: envs.set_attr("episode", 50),
    }
    starts[f"{pending}_async"]()
    with pytest.raises(
        AlreadyPendingCallError, match=f"{then}` while .* pending call to `{pending}"
    ) as message:
        starts[then]()
    assert message.value.name == pending
    result = getattr(envs, f"{pending}_wait")()
    if pending == "step":
        assert result[0][:, 1:].tolist() == [[0, 1]] * 3
    elif pending == "reset":
        assert result[0][:, 1:].tolist() == [[1, 0]] * 3
    else:
        assert result == (0, 0, 0)


@pytest.mark.parametrize("call", ["step", "reset", "call"])
def test_waiting_for_what_was_never_started_is_refused(envs: GroupedVectorEnv, call: str) -> None:
    with pytest.raises(
        NoAsyncCallError, match=f"{call}_wait` without any prior call to `{call}_async"
    ):
        getattr(envs, f"{call}_wait")()


@pytest.fixture(scope="module")
def closed() -> GroupedVectorEnv:
    """A vector that was closed, twice."""
    envs = GroupedVectorEnv(counters(1), num_workers=1)
    envs.close()
    envs.close()
    return envs


def test_waiting_for_another_call_than_the_pending_one_is_refused(envs: GroupedVectorEnv) -> None:
    envs.step_async([0, 0, 0])
    with pytest.raises(NoAsyncCallError):
        envs.reset_wait()
    assert envs.step_wait()[0][:, 2].tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    "call",
    ["reset", "step_async", "step_wait", "reset_async", "reset_wait", "call_async", "call_wait",
     "set_attr", "get_attr", "render"],
)  # fmt: skip
def test_every_call_after_close_is_refused(closed: GroupedVectorEnv, call: str) -> None:
    arguments: dict[str, tuple[Any, ...]] = {
        "step_async": ([0],),
        "set_attr": ("t", 1),
        "get_attr": ("t",),
        "call_async": ("now",),
    }
    with pytest.raises(ClosedEnvironmentError, match="after a call to `close"):
        getattr(closed, call)(*arguments.get(call, ()))


def test_close_does_not_wait_for_a_pending_step_beyond_its_timeout() -> None:
    envs = GroupedVectorEnv([partial(HangingEnv, at=1, sleep_s=30)], num_workers=1)
    envs.reset()
    envs.step_async([0])
    start = time.monotonic()
    with pytest.warns(UserWarning, match="while waiting for a pending call to `step`"):
        envs.close(timeout=0.2)
    assert time.monotonic() - start < 3


# Timeouts


@pytest.fixture(scope="module")
def slow() -> Iterator[GroupedVectorEnv]:
    """Two workers; environment 1 sleeps in its first step, environment 0 in none."""
    factory = partial(HangingEnv, 1, 50, at=1, sleep_s=0.6)
    envs = GroupedVectorEnv(one_of(factory, 1, 2), num_workers=2)
    yield envs
    envs.close()


def test_a_late_answer_is_taken_for_its_own_step_and_for_no_later_one(
    slow: GroupedVectorEnv,
) -> None:
    slow.set_attr("wakes", 0)
    slow.reset()
    slow.step_async([1, 2])
    message = r"worker 1 \(pid \d+, environments 1 to 1\) has not answered within 0.05 s"
    for _ in range(2):
        with pytest.raises(multiprocessing.TimeoutError, match=message):
            slow.step_wait(timeout=0.05)
    with pytest.raises(AlreadyPendingCallError):
        slow.step_async([0, 0])
    obs, reward, *_ = slow.step_wait()
    assert obs[:, 2].tolist() == [1, 1]
    assert (reward % 4).tolist() == [1, 2]
    obs, reward, *_ = slow.step([2, 0])
    assert obs[:, 2].tolist() == [2, 2]
    assert (reward % 4).tolist() == [2, 0]


def test_a_timeout_that_is_long_enough_changes_nothing(slow: GroupedVectorEnv) -> None:
    slow.set_attr("wakes", 0)
    slow.reset()
    slow.step_async([0, 0])
    assert slow.step_wait(timeout=20)[0][:, 2].tolist() == [1, 1]


def test_a_timeout_in_call_and_reset_keeps_them_pending(slow: GroupedVectorEnv) -> None:
    slow.call_async("nap", 0.3)
    with pytest.raises(multiprocessing.TimeoutError):
        slow.call_wait(timeout=0.0)
    assert slow.call_wait(timeout=20) == (0.3, 0.3)
    slow.reset_async(options={"nap_s": 0.3})
    with pytest.raises(multiprocessing.TimeoutError):
        slow.reset_wait(timeout=0.0)
    assert slow.reset_wait(timeout=20)[0][:, 2].tolist() == [0, 0]


# Aliasing


@pytest.mark.parametrize("copy", [True, False])
def test_observations_alias_the_block_only_without_copy(copy: bool) -> None:
    vector = GroupedVectorEnv(counters(2), copy=copy, num_workers=1)
    first, _ = vector.reset()
    assert np.shares_memory(first, vector.rows.obs) is not copy
    second, *_ = vector.step([0, 0])
    third, *_ = vector.step([0, 0])
    vector.close()
    shown = [obs[:, 2].tolist() for obs in (first, second, third)]
    assert shown == ([[0, 0], [1, 1], [2, 2]] if copy else [[2, 2]] * 3)


def test_rewards_ends_and_last_observations_are_copies_always() -> None:
    vector = GroupedVectorEnv(counters(1, 1), copy=False, num_workers=1, autoreset_mode=SAME_STEP)
    vector.reset()
    _, reward, terminated, truncated, infos = vector.step([1])
    kept = (reward.copy(), terminated.copy(), truncated.copy(), infos["final_obs"][0].copy())
    vector.step([2])
    vector.close()
    now = (reward, terminated, truncated, infos["final_obs"][0])
    assert all(np.array_equal(a, b) for a, b in zip(kept, now, strict=True))


def test_the_callers_actions_may_be_overwritten_while_the_step_runs(
    slow: GroupedVectorEnv,
) -> None:
    slow.set_attr("wakes", 0)
    slow.reset()
    actions = np.array([1, 2])
    slow.step_async(actions)
    actions[:] = 0
    assert (slow.step_wait()[1] % 4).tolist() == [1, 2]


def test_an_environment_may_keep_the_action_it_was_given() -> None:
    vector = GroupedVectorEnv([KeepsActionEnv] * 2, num_workers=1)
    vector.reset()
    vector.step(np.array([[1, 1], [2, 2]]))
    _, reward, *_ = vector.step(np.array([[4, 1], [2, 2]]))
    vector.close()
    assert reward.tolist() == [3.0, 0.0]


# Actions


@pytest.mark.parametrize(
    ("actions", "message"),
    [
        ([0, 0], "2 actions for 3 environments: environment 2 has none"),
        (np.zeros(4, np.int64), "4 actions for 3 environments: there is no 3"),
        ([[0, 0, 0]], "1 actions for 3 environments: environment 1 has none"),
    ],
    ids=str,
)
def test_too_few_or_too_many_actions_are_refused_by_environment(
    envs: GroupedVectorEnv, actions: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        envs.step(actions)
    assert envs.step((0, 1, 2))[0][:, 2].tolist() == [1, 1, 1]


@pytest.mark.filterwarnings("ignore:.*ERROR")
@pytest.mark.parametrize("kind", [list, np.array])
def test_an_action_that_an_environment_does_not_take_is_named_with_its_environment(
    kind: Any,
) -> None:
    """It reaches the environment, as in Gymnasium's class: some take more than they say."""
    vector = GroupedVectorEnv([lambda: gym.make("CartPole-v1")] * 3, num_workers=2)
    vector.reset()
    with pytest.raises(AssertionError) as raised:
        vector.step(kind([0, 7, 1]))
    message = str(raised.value.__cause__)
    vector.close()
    assert re.match(r"environment 1 raised on action .*7.*, not in Discrete\(2\):", message)


def test_a_single_number_is_no_list_of_actions(envs: GroupedVectorEnv) -> None:
    with pytest.raises(TypeError):
        envs.step(0)


def test_actions_of_several_numbers_reach_their_environment() -> None:
    vector = GroupedVectorEnv([PairEnv] * 3, num_workers=2)
    vector.reset()
    _, reward, *_ = vector.step(np.array([[0, 0], [1, 0], [1, 2]]))
    vector.close()
    assert (reward % 4).tolist() == [0, 1, 3]


# Rows


@pytest.mark.parametrize("mode", list(AutoresetMode), ids=lambda mode: mode.name)
def test_the_block_says_which_rows_were_only_a_reset(mode: AutoresetMode) -> None:
    vector = GroupedVectorEnv(counters(2, (1, 2)), autoreset_mode=mode, num_workers=1)
    vector.reset()
    seen = []
    for _ in range(2):
        vector.step([0, 0])
        seen.append(vector.rows.real.tolist())
    vector.close()
    second = [mode is not AutoresetMode.NEXT_STEP, True]
    assert seen == [[True, True], second]
    assert vector.rows.episode_length.tolist() == [1, 2]


# Arguments


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"env_fns": []}, "a vector needs an environment"),
        ({"worker": print}, "a foreign worker"),
        ({"worker": lambda: None}, "must accept 8 arguments"),
        ({"num_workers": -1}, "num_workers=-1: it is negative"),
        ({"max_concurrency": 0}, "`max_concurrency` must be a positive or None, got 0"),
        ({"max_concurrency": 2.0}, "`max_concurrency` must be an integer or None"),
        ({"num_groups": 3}, "--env-groups 3: 2 environments do not fall into"),
        ({"supervision": Supervision(), "max_concurrency": 1}, "takes its permit along"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_cannot_be_honoured_is_refused_before_a_process_starts(
    arguments: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(WorkerPool, "_start", _nothing_may_start)
    with pytest.raises(ValueError, match=message):
        GroupedVectorEnv(**{"env_fns": counters(2), **arguments})


def _nothing_may_start(*_: Any) -> None:
    raise AssertionError("a worker was started")


@pytest.mark.parametrize("mode", ["Sometimes", None])
def test_an_unknown_autoreset_mode_is_refused(mode: Any) -> None:
    with pytest.raises(ValueError, match="is not a valid AutoresetMode"):
        GroupedVectorEnv(counters(1), autoreset_mode=mode)


def test_the_autoreset_mode_may_be_given_by_name() -> None:
    vector = GroupedVectorEnv(counters(1), autoreset_mode="SameStep", num_workers=1)
    vector.close()
    assert vector.metadata["autoreset_mode"] is SAME_STEP


# Observation modes

WIDE, NARROW = Box(0, 100, (3,), np.float32), Box(0, 50, (3,), np.float32)
PAIR = (batch_space(WIDE, 2), WIDE)


def _differing() -> list[Callable[[], gym.Env[Any, Any]]]:
    return [partial(counter_with, WIDE), partial(counter_with, NARROW)]


def test_mode_different_takes_spaces_of_one_shape_and_dtype() -> None:
    vector = GroupedVectorEnv(_differing(), observation_mode="different", num_workers=2)
    vector.close()
    assert vector.single_observation_space == WIDE
    assert isinstance(vector.observation_space, Box)
    assert vector.observation_space.high[:, 0].tolist() == [100, 50]


def test_mode_different_closes_the_environments_that_it_looked_at() -> None:
    built, closed = [], []

    class Closing(CounterEnv):
        def __init__(self) -> None:
            super().__init__()
            built.append(True)

        def close(self) -> None:
            closed.append(True)

    GroupedVectorEnv([Closing] * 3, observation_mode="different", num_workers=1).close()
    assert len(built) == len(closed) == 4


def test_a_pair_of_spaces_is_taken_as_it_is() -> None:
    vector = GroupedVectorEnv(_differing(), observation_mode=PAIR, num_workers=2)
    vector.close()
    assert (vector.observation_space, vector.single_observation_space) == PAIR


def test_an_unknown_observation_mode_is_refused() -> None:
    with pytest.raises(ValueError, match=r"expected: 'same' or 'different'.* got alike"):
        GroupedVectorEnv(counters(1), observation_mode="alike")


@pytest.mark.parametrize(
    ("factories", "mode", "message"),
    [
        (_differing(), "same", "Environment 1 differs"),
        (one_of(Uint8CounterEnv, 2, 3), PAIR, "Environment 2 differs"),
        (
            one_of(partial(CounterEnv, num_actions=7), 1, 3),
            "same",
            "action space different.*Environment 1 differs",
        ),
    ],
    ids=["bounds", "dtype", "actions"],
)
def test_spaces_that_differ_are_refused_by_environment_and_no_worker_stays(
    factories: list[Any], mode: Any, message: str
) -> None:
    before = set(multiprocessing.active_children())
    with pytest.raises(RuntimeError, match=message) as refused:
        GroupedVectorEnv(factories, observation_mode=mode, num_workers=2)
    assert refused.tb is not None  # the traceback keeps the vector, so that only close ends it
    assert set(multiprocessing.active_children()) == before


@pytest.mark.filterwarnings("ignore:.*ERROR")
def test_an_observation_of_another_shape_than_its_space_is_refused_at_reset() -> None:
    vector = GroupedVectorEnv([WrongShapeEnv], num_workers=1)
    with pytest.raises(ValueError, match=r"observation of shape \(2,\).* says \(3,\)"):
        vector.reset()
    vector.close()


# Seeds, attributes, calls


def test_seeds_that_do_not_match_the_environments_are_refused(envs: GroupedVectorEnv) -> None:
    with pytest.raises(ValueError, match="num_envs=3 but got length=2"):
        envs.reset(seed=[1, 2])


def test_values_that_do_not_match_the_environments_are_refused(envs: GroupedVectorEnv) -> None:
    with pytest.raises(ValueError, match="`2` values for 3 environments"):
        envs.set_attr("t", [1, 2])


def test_a_value_that_cannot_be_sent_leaves_no_half_sent_call_behind(
    envs: GroupedVectorEnv,
) -> None:
    """The first worker's part could be sent, the second's not: neither is."""
    with pytest.raises(TypeError, match="pickle"):
        envs.set_attr("t", [40, 40, threading.Lock()])
    assert envs.get_attr("t") == (0, 0, 0)
    assert envs.step([0, 0, 0])[0][:, 2].tolist() == [1, 1, 1]


def test_an_unknown_attribute_is_named(envs: GroupedVectorEnv) -> None:
    with pytest.raises(AttributeError, match="colour_of_the_moon"):
        envs.get_attr("colour_of_the_moon")
    assert envs.call("now") == (0, 0, 0)


@pytest.mark.parametrize("name", ["reset", "step", "close"])
def test_calls_that_would_go_round_the_rows_are_refused(envs: GroupedVectorEnv, name: str) -> None:
    with pytest.raises(ValueError, match=f"use `{name}` directly"):
        envs.call(name)


def test_infos_are_not_sent_unless_they_are_wanted() -> None:
    factories = counters(2, 2, kind=TalkativeCounterEnv)
    vector = GroupedVectorEnv(factories, send_infos=False, num_workers=1, autoreset_mode=SAME_STEP)
    _, infos = vector.reset(seed=1)
    assert infos == {}
    assert vector.step([0, 0])[-1] == {}
    *_, infos = vector.step([0, 0])
    vector.close()
    assert sorted(infos) == ["_final_obs", "final_obs"]


# Workers


@pytest.mark.parametrize(
    ("num_envs", "num_workers", "hosted"),
    [(5, 2, [2, 3]), (4, 4, [1] * 4), (3, 9, [1] * 3), (7, 3, [2, 2, 3])],
)
def test_environments_are_dealt_out_evenly_and_in_order(
    num_envs: int, num_workers: int, hosted: list[int]
) -> None:
    vector = GroupedVectorEnv(counters(num_envs), num_workers=num_workers)
    ids, pids = vector.get_attr("env_id"), vector.call("pid")
    vector.close()
    assert ids == tuple(range(num_envs))
    assert [pids.count(pid) for pid in dict.fromkeys(pids)] == hosted
    assert vector.num_workers == len(hosted)


@pytest.fixture
def server_of_its_own(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A fork server that has imported nothing, in the place of the one of all tests."""
    server = forkserver.ForkServer()
    monkeypatch.setattr(forkserver, "_forkserver", server)
    for name in ("ensure_running", "connect_to_new_process"):
        monkeypatch.setattr(forkserver, name, getattr(server, name))
    yield
    server._stop()  # type: ignore[attr-defined]


@pytest.mark.usefixtures("server_of_its_own")
@pytest.mark.parametrize("context", ["spawn", "forkserver"])
def test_workers_never_load_pytorch(context: str) -> None:
    vector = GroupedVectorEnv(counters(2), num_workers=2, context=context)
    vector.reset()
    vector.step([0, 0])
    assert vector.call("has_imported", "fastdqn.envs.workers.worker") == (True, True)
    assert vector.call("has_imported", "torch") == (False, False)
    vector.close()


@pytest.mark.parametrize(("allowed", "at_once"), [(1, 1), (None, 2)])
def test_no_more_workers_run_at_a_time_than_max_concurrency(
    allowed: int | None, at_once: int
) -> None:
    factories = [partial(HangingEnv, i, 50, at=0, sleep_s=0.05) for i in range(2)]
    vector = GroupedVectorEnv(factories, max_concurrency=allowed, num_workers=2)
    vector.reset()
    most = 0
    for _ in range(8):  # a busy machine may keep two free workers apart for a step or two
        most = max(most, _most_at_once(vector.step([0, 0])[-1]["span"]))
        if most == 2:
            break
    vector.close()
    assert most == at_once


def _most_at_once(spans: np.ndarray[Any, Any]) -> int:
    """Return how many of the spans (begin, end) hold the same moment at the most."""
    return max(int(((spans[:, 0] <= t) & (t < spans[:, 1])).sum()) for t in spans[:, 0])
