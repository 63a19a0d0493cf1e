"""Environment workers under fire: they die, hang and raise, and no transition is ever wrong."""

from __future__ import annotations

import random
import threading
from contextlib import contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from gymnasium.vector import AutoresetMode

from fastdqn import DQN
from fastdqn.training.callbacks import Callback
from tests.drive import everything_in
from tests.oracles import (
    CounterRules,
    CrashingEnv,
    LivingEnv,
    MortalEnv,
    NonFiniteEnv,
    Stored,
    assert_counted,
    assert_lived,
    counters,
)
from tests.supervised import HASTY, LENGTHS, RULES, mortals, roll_until, rollout_over, supervised

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fastdqn.envs.grouped import GroupedVectorEnv
    from fastdqn.training.host.rollout import HostRollout

pytestmark = [pytest.mark.usefixtures("nothing_left", "quick_starts")]


def assert_nothing_joined(rollout: HostRollout, restarts: int) -> None:
    """Check all that was stored, and that every restart began new lives under new seeds."""
    assert len(rollout.replay) == rollout.env_steps > 0
    lives = assert_lived(everything_in(rollout.replay), RULES)
    assert rollout.source.num_restarts >= restarts
    assert sum(lives.values()) > restarts / 2  # some died in their first step


@contextmanager
def fire_at(envs: GroupedVectorEnv, pause_s: float) -> Iterator[None]:
    """Kill random workers from outside, at random moments."""
    over, dice = threading.Event(), random.Random(1)

    def shoot() -> None:
        while not over.wait(dice.expovariate(1 / pause_s)):
            process = dice.choice(envs.processes)
            with suppress(ValueError):  # it has been closed meanwhile
                process.kill()

    thread = threading.Thread(target=shoot)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def lived(env: LivingEnv, seeds: list[int], steps: int) -> Stored:
    """Return what an environment shows in some steps after each of its resets."""
    rows: list[Any] = []
    for seed in seeds:
        obs, _ = env.reset(seed=seed)
        for _ in range(steps):
            after, reward, terminated, truncated, _ = env.step(1)
            rows.append((obs, 1, reward, after, terminated, truncated))
            obs = env.reset()[0] if terminated or truncated else after
    return Stored(*map(np.array, zip(*rows, strict=True)))


def test_lives_differ_by_all_bits_of_their_seeds() -> None:
    env = LivingEnv(1, LENGTHS, "alternating")
    seeds = [7, 7 + 2**20, 7 + 2**24, 2**31 - 1, 2**20 - 1]
    assert assert_lived(lived(env, seeds, 9), RULES) == {1: 5}
    with pytest.raises(AssertionError, match=f"environment 1, life {7 + 2**20}: "):
        assert_lived(lived(env, [7, 7 + 2**20, 7 + 2**20], 9), RULES)


# Under fire


@pytest.mark.slow
@pytest.mark.parametrize("groups", [1, 2])
def test_workers_killed_from_outside_at_any_moment_join_no_two_lives(groups: int) -> None:
    envs = supervised(mortals(6, LivingEnv), num_workers=3, num_groups=groups)
    rollout = rollout_over(envs)
    with fire_at(envs, pause_s=0.02):
        roll_until(rollout, lambda: envs.num_restarts >= 80)
    roll_until(rollout, lambda: not envs._pool.restarted.any())
    assert_nothing_joined(rollout, 80)
    envs.close()


@pytest.mark.parametrize("groups", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_workers_that_die_hang_and_raise_in_steps_and_resets_join_no_two_lives(
    groups: int,
) -> None:
    kinds = ("SIGKILL (often out of memory)", "out of luck", "has not answered within 0.4 s")
    factories = mortals(6, kills=0.01, raises=0.01, hangs=0.001)
    envs = supervised(factories, 3, HASTY, num_groups=groups)
    rollout = rollout_over(envs)
    roll_until(rollout, lambda: envs.num_restarts >= 80)
    roll_until(rollout, lambda: all(kind in "".join(envs.restarts) for kind in kinds))
    assert_nothing_joined(rollout, 80)
    envs.close()


def test_an_agent_learns_on_while_its_workers_die() -> None:
    envs = supervised(mortals(4, kills=0.01, raises=0.01), 2)
    agent = DQN(envs, batch_size=16, learning_starts=100, hidden_sizes=(8,), buffer_size=200_000)
    agent.learn(2000)
    assert len(agent.replay) >= 2000
    assert_lived(everything_in(agent.replay), RULES)
    assert envs.num_restarts > 10
    assert int(agent.learner.state.updates) > 400
    envs.close()


def test_an_agent_that_builds_its_environments_restarts_them_too() -> None:
    factory = partial(MortalEnv, 0, LENGTHS, "alternating", kills=0.003)
    settings: dict[str, Any] = {"num_envs": 4, "num_workers": 2, "hidden_sizes": (8,)}
    agent = DQN(factory, batch_size=16, learning_starts=100, **settings)
    with agent.trainer(1500, Callback()) as trainer:
        trainer.run(agent.env_seeds())
    assert trainer.worker_restarts == trainer.rollout.num_restarts >= 1
    assert len(agent.replay) == trainer.rollout.env_steps >= 1500
    assert_lived(everything_in(agent.replay), RULES)


@pytest.mark.slow
@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.DISABLED])
def test_a_vector_in_another_autoreset_mode_is_as_safe_a_source(mode: AutoresetMode) -> None:
    envs = supervised(mortals(4, kills=0.01, raises=0.01), 2, autoreset_mode=mode)
    rollout = rollout_over(envs)
    roll_until(rollout, lambda: envs.num_restarts >= 40)
    assert_nothing_joined(rollout, 40)
    envs.close()


def test_what_a_worker_wrote_before_it_failed_is_forgotten() -> None:
    """Environment 0 shows a NaN in the step in which environment 1 raises: no NaN is seen."""
    factories = [partial(NonFiniteEnv, 0, what="obs", at=2), partial(CrashingEnv, 1, at=2)]
    envs = supervised([*factories, *counters(4)[2:]], 2)
    rollout = rollout_over(envs)
    roll_until(rollout, lambda: envs.num_restarts >= 3)
    assert_counted(everything_in(rollout.replay), CounterRules())
    envs.close()


# No step waits


def test_others_go_on_while_a_worker_is_restarted() -> None:
    envs = supervised(mortals(3, LivingEnv), 3, context="spawn")
    rollout = rollout_over(envs)
    envs.processes[0].kill()
    before = rollout.env_steps
    roll_until(rollout, lambda: bool(envs._pool.restarted.any()))
    steps = 0
    while envs._pool.restarted.any():
        roll_until(rollout, iter([False, True]).__next__)
        steps += 1
    assert steps > 20  # a fresh interpreter takes a while
    assert rollout.env_steps - before >= 2 * steps
    assert_nothing_joined(rollout, 1)
    envs.close()
