"""Episodes that outlive their worker: they are played again by the one that takes its place."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastdqn.envs.grouped import GroupedVectorEnv
from fastdqn.envs.sources.source import source_of
from fastdqn.envs.workers.allocation import Allocation
from fastdqn.envs.workers.supervision import Supervision
from fastdqn.errors import UsageError
from fastdqn.training.events import Episode
from fastdqn.training.host.rollout import HostRollout
from tests.continued import (
    DiesAfter,
    DiesBeginning,
    DiesOnce,
    NoiseEnv,
    PaysNaN,
    assert_nothing_is_joined,
    keeping,
    noisy,
    resumed,
    rows_of,
)
from tests.drive import everything_in, roll, rollout_of
from tests.oracles import Stored

RESTORES = Supervision(max_restarts=1000, delay_s=0.0, restore_s=30.0)
LONG_S = 60.0


def restoring(factories: list[Any], num_workers: int = 2, **given: Any) -> GroupedVectorEnv:
    kwargs = {"context": "forkserver", "supervision": RESTORES, **given}
    return keeping(factories, num_workers, **kwargs)


def started(envs: GroupedVectorEnv) -> HostRollout:
    rollout = rollout_of(source_of(envs), capacity=100_000)
    rollout.reset(range(11, 11 + envs.num_envs))
    return rollout


def roll_through(rollout: HostRollout, restarts: int, more: int = 20) -> list[Episode]:
    """Roll until so many workers were restarted and all of them step again; then some more."""
    episodes, deadline = [], time.monotonic() + LONG_S
    while rollout.num_restarts < restarts or not rollout.source.rows.real.all():
        assert time.monotonic() < deadline
        episodes += roll(rollout, 1)
        time.sleep(0.002)
    return episodes + roll(rollout, more)


def steps_by_episode(stored: Stored, env: int) -> dict[int, list[int]]:
    """Return the steps t of each episode of an environment, by its tag."""
    steps: dict[int, list[int]] = {}
    for row in rows_of(stored, {env}):
        steps.setdefault(int(row[1]), []).append(int(row[2]))
    return {tag: sorted(taken) for tag, taken in steps.items()}


def lost(rollout: HostRollout, stored: Stored, env: int) -> int:
    """Count the episodes of an environment that were cut, and check that none has a gap."""
    ended = {row[1] for row in rows_of(stored, {env}) if row[-1]}
    episodes = steps_by_episode(stored, env)
    for tag, steps in episodes.items():
        assert steps == list(range(len(steps))), f"environment {env}, episode {tag}: {steps}"
    size = rollout.replay.row_size
    running = bool(rollout.replay.shown(env // size)[env % size, 2] > 0)  # it has begun
    return sum(tag not in ended for tag in episodes) - running


def assert_counted(stored: Stored, episodes: list[Episode]) -> None:
    """Check returns and lengths of finished episodes against the rewards that were stored."""
    sums: Counter[tuple[float, float]] = Counter()
    ended: dict[tuple[float, float], float] = {}
    for row in rows_of(stored, range(100)):
        episode = row[4], row[1]
        sums[episode] += row[-2]  # type: ignore[assignment]
        if row[-1]:
            ended[episode] = row[2] + 1
    found = sorted((round(sums[tag], 2), int(length)) for tag, length in ended.items())
    said = sorted((round(each.return_, 2), each.length) for each in episodes)
    assert np.allclose(np.array(found), np.array(said), atol=0.03)


@pytest.mark.parametrize("groups", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_the_environments_of_a_worker_that_dies_within_a_step_go_on(
    tmp_path: Path, groups: int
) -> None:
    """Environment 0 has stepped before its neighbour ends their process: that step is dropped."""
    factories = noisy(4, partial(DiesOnce, 1, str(tmp_path / "died")), 1)
    rollout = started(restoring(factories, 2 // groups, num_groups=groups))
    episodes = roll_through(rollout, 1)
    stored = everything_in(rollout.replay)
    assert_nothing_is_joined(stored)
    assert [lost(rollout, stored, env) for env in range(4)] == [0] * 4
    assert_counted(stored, episodes)
    rollout.source.close()


@pytest.mark.parametrize("first", [True, False])
def test_an_episode_that_was_cut_does_not_outlive_its_worker(tmp_path: Path, first: bool) -> None:
    """A reward was a NaN: the worker dies in the next step, before or after the reset for it."""
    path = str(tmp_path / "paid")
    n = 2 if first else 1
    kinds: list[Any] = [partial(PaysNaN, path=path), partial(DiesAfter, path=path, n=n)]
    factories = [partial(kind, env) for env, kind in enumerate(kinds if first else kinds[::-1])]
    source = source_of(restoring(factories, 1))
    rollout = rollout_of(source, capacity=100_000, on_nonfinite="skip")
    rollout.reset([11, 12])
    roll_through(rollout, 1, more=60)
    stored = everything_in(rollout.replay)
    assert_nothing_is_joined(stored)
    times = stored.obs[stored.obs[:, 4] == 1 - first][:, 2]
    assert times.max() == 7  # its ninth step is no transition, and none follows
    assert rollout.nonfinite >= 2
    rollout.source.close()


def test_an_environment_that_raises_begins_anew_and_its_neighbours_go_on(tmp_path: Path) -> None:
    odd = partial(DiesOnce, 1, str(tmp_path / "raised"), how="raises")
    rollout = started(restoring(noisy(4, odd, 1)))
    roll_through(rollout, 1)
    stored = everything_in(rollout.replay)
    assert_nothing_is_joined(stored)
    assert [lost(rollout, stored, env) for env in range(4)] == [0, 1, 0, 0]
    rollout.source.close()


def test_an_environment_that_something_else_decides_begins_anew(tmp_path: Path) -> None:
    factories = [partial(NoiseEnv, "hidden"), partial(DiesOnce, 1, str(tmp_path / "died"))]
    rollout = started(restoring(factories, 1))
    roll_through(rollout, 1)
    stored = everything_in(rollout.replay)
    assert_nothing_is_joined(stored)
    assert [lost(rollout, stored, env) for env in range(2)] == [1, 0]
    rollout.source.close()


def test_without_the_setting_they_begin_anew(tmp_path: Path) -> None:
    factories = noisy(2, partial(DiesOnce, 1, str(tmp_path / "died")), 1)
    rollout = started(restoring(factories, 1, supervision=Supervision(delay_s=0.0)))
    roll_through(rollout, 1)
    stored = everything_in(rollout.replay)
    assert_nothing_is_joined(stored)
    assert [lost(rollout, stored, env) for env in range(2)] == [1, 1]
    rollout.source.close()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("groups", "given"),
    [(1, {}), (2, {}), (1, {"allocation": Allocation(2, 1)}), (2, {"num_workers": 1})],
)
def test_workers_killed_at_random_moments_lose_nothing(groups: int, given: Any) -> None:
    envs = restoring(noisy(6), num_groups=groups, **given)
    rollout, rng, episodes = started(envs), np.random.default_rng(5), []
    for kills in range(1, 16):
        episodes += roll(rollout, int(rng.integers(0, 40)))
        rollout.send(1.0)
        time.sleep(float(rng.random() * 0.002))
        victim = envs.processes[int(rng.integers(len(envs.processes)))]
        os.kill(victim.pid, signal.SIGKILL)
        rollout.collect()
        episodes += rollout.write()
        episodes += roll_through(rollout, kills, more=0)
    stored = everything_in(rollout.replay)
    assert_nothing_is_joined(stored)
    assert [lost(rollout, stored, env) for env in range(6)] == [0] * 6
    assert_counted(stored, episodes)
    twin = resumed(rollout, keeping(noisy(6), num_groups=groups))  # over the gaps, too
    assert twin.lost == {}
    rollout.source.close()
    twin.source.close()


def test_a_rollout_is_saved_over_the_gap_of_a_restart(tmp_path: Path) -> None:
    factories = noisy(2, partial(DiesOnce, 1, str(tmp_path / "died")), 1)
    rollout = started(restoring(factories, 1))
    roll_through(rollout, 1, more=2)
    twin = resumed(rollout, keeping(noisy(2)))
    assert twin.lost == {}
    assert roll(twin, 30) == roll(rollout, 30)
    assert_nothing_is_joined(everything_in(twin.replay))
    rollout.source.close()
    twin.source.close()


@pytest.mark.slow
def test_an_episode_outlives_two_workers_and_a_resume_with_the_seed_that_it_had() -> None:
    """The layout follows from the seed, and the second worker has new ones for new episodes."""
    factories = [partial(NoiseEnv, "layout", env) for env in range(2)]
    envs = restoring(factories, 1)
    rollout = started(envs)
    for kills in (1, 2):
        roll(rollout, 40)
        rollout.send(1.0)
        os.kill(envs.processes[0].pid, signal.SIGKILL)
        rollout.collect()
        rollout.write()
        roll_through(rollout, kills, more=1)
    stored = everything_in(rollout.replay)
    assert_nothing_is_joined(stored)
    assert [lost(rollout, stored, env) for env in range(2)] == [0, 0]
    assert set(stored.obs[:, 3].tolist()) == {11.0, 12.0}
    twin = resumed(rollout, keeping(factories))
    assert twin.lost == {}
    rollout.source.close()
    twin.source.close()


BEGUN_ANEW = "its worker was restarted meanwhile"


def opened(least: Callable[[list[int]], bool]) -> HostRollout:
    """Return a rollout of four environments of this process, once their lengths are such."""
    rollout = started(keeping(noisy(4)))
    while not least(lengths_of(rollout)):
        roll(rollout, 1)
    return rollout


def lengths_of(rollout: HostRollout) -> list[int]:
    source: Any = rollout.source
    return [len(actions) for actions in source.histories().actions]


def assert_goes_on(rollout: HostRollout, twin: HostRollout, lost: set[int]) -> None:
    """Check that nothing is joined, and that those who lost nothing go on as ever."""
    assert twin.num_restarts == 1
    for each in (rollout, twin):
        roll(each, 40)
    stored, others = everything_in(twin.replay), set(range(4)) - lost
    assert_nothing_is_joined(stored)
    assert rows_of(stored, others) == rows_of(everything_in(rollout.replay), others)
    for each in (rollout, twin):
        each.source.close()


@pytest.mark.slow
@pytest.mark.parametrize("restore_s", [0.0, 30.0])
def test_a_worker_that_dies_while_episodes_are_played_again_costs_its_own(
    tmp_path: Path, restore_s: float
) -> None:
    """Environment 0 has been played already, and rests, when its neighbour ends their process.

    It goes on where the next worker is there before the others have been played.
    """
    rollout = opened(lambda taken: 0 < taken[0] < 5 and min(taken[1:]) > 12)
    factories = noisy(4, partial(DiesOnce, 1, str(tmp_path / "died")), 1)
    supervision = Supervision(delay_s=0.0, restore_s=restore_s)
    twin = resumed(rollout, restoring(factories, supervision=supervision))
    assert set(twin.lost.values()) == {BEGUN_ANEW}
    assert twin.lost.keys() - ({0} if restore_s else {}) == ({1} if restore_s else {0, 1})
    assert_goes_on(rollout, twin, set(twin.lost))


def test_a_worker_that_dies_as_new_episodes_begin_costs_those_of_its_neighbours(
    tmp_path: Path,
) -> None:
    """Environment 1 shows something else; the reset for it ends the process of both."""
    rollout = opened(lambda taken: min(taken) > 5)
    factories = noisy(4, partial(DiesBeginning, 1, str(tmp_path / "died")), 1)
    twin = resumed(rollout, restoring(factories))
    assert twin.lost.keys() == {0, 1}
    assert twin.lost[0] == BEGUN_ANEW
    assert_goes_on(rollout, twin, {0, 1})


@pytest.mark.parametrize("given", [{"restore_s": -1.0}, {"restore_s": float("nan")}])
def test_a_limit_that_is_none_is_refused(given: Any) -> None:
    with pytest.raises(UsageError, match="restore_s"):
        Supervision(**given)
