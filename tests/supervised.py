"""Builds supervised vectors of environments that die, and rolls them out."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from gymnasium.vector import AutoresetMode

from fastdqn.envs.grouped import GroupedVectorEnv
from fastdqn.envs.sources.source import source_of
from fastdqn.envs.workers.supervision import Supervision
from fastdqn.replay import ReplayBuffer
from fastdqn.training.host.rollout import HostRollout
from tests.drive import random_policy
from tests.oracles import CounterRules, LivingEnv, MortalEnv, counters

LENGTHS = (3, 5, 2)
RULES = CounterRules(LENGTHS, "alternating")
PATIENT = Supervision(max_restarts=100_000, max_in_a_row=100, delay_s=0.01)
HASTY = Supervision(deadline_s=0.4, max_restarts=100_000, max_in_a_row=100, delay_s=0.01)
LONG_S = 90.0


def mortals(num_envs: int, kind: type[LivingEnv] = MortalEnv, **fate: float) -> list[Any]:
    return counters(num_envs, LENGTHS, "alternating", kind, **fate)


def supervised(
    factories: list[Any], num_workers: int = 2, supervision: Supervision = PATIENT, **kwargs: Any
) -> GroupedVectorEnv:
    kwargs = {"context": "forkserver", "autoreset_mode": AutoresetMode.SAME_STEP, **kwargs}
    return GroupedVectorEnv(factories, num_workers=num_workers, supervision=supervision, **kwargs)


def rollout_over(envs: GroupedVectorEnv, capacity: int = 400_000) -> HostRollout:
    source = source_of(envs)
    shape, groups = source.description.obs_shape, source.num_groups
    replay = ReplayBuffer(capacity, envs.num_envs, shape, num_groups=groups)
    rollout = HostRollout(source, random_policy(source), replay)
    rollout.reset(range(1, envs.num_envs + 1))
    return rollout


def roll_until(rollout: HostRollout, done: Callable[[], bool], pause_s: float = 0.0005) -> None:
    deadline = time.monotonic() + LONG_S
    while not done():
        assert time.monotonic() < deadline, "it did not come so far"
        rollout.send(epsilon=1.0)
        rollout.collect()
        rollout.write()
        time.sleep(pause_s)
