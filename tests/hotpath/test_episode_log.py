"""What keeping open episodes costs a vector step: a few calls, however many environments."""

from __future__ import annotations

import sys
import tracemalloc
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
from gymnasium.vector import AutoresetMode

from fastdqn.envs.grouped import GroupedVectorEnv
from fastdqn.envs.workers.kept_rows import KeptRows
from fastdqn.envs.workers.open_episodes import EpisodeLog
from fastdqn.envs.workers.origins import NUM_WORDS
from fastdqn.envs.workers.settings import PoolSettings
from fastdqn.envs.workers.shared_block import RowSpec, SharedBlock
from tests.oracles import CounterEnv

FEW, MANY = 2, 64
APPENDS = Counter({"EpisodeLog.append": 1, "memoryview.tobytes": 1, "ndarray.fill": 1})
"""All calls of one `append`: two copies of a row, and a counter."""
A_FEW_BYTES = 256
"""Numbers of Python that grow: the counts of steps."""
ROW_BYTES = MANY * 4 * 4
"""One observation of each environment, which is copied but never allocated."""


def calls_of(work: Callable[[], object]) -> Counter[str]:
    """Count the calls of Python functions, and of C functions from Python, by name."""
    names: Counter[str] = Counter()

    def see(frame: Any, event: str, called: Any) -> None:
        if event == "call":
            names[frame.f_code.co_qualname] += 1
        elif event == "c_call" and called is not sys.setprofile:
            names[called.__qualname__] += 1

    sys.setprofile(see)
    try:
        work()
    finally:
        sys.setprofile(None)
    del names[getattr(work, "__qualname__", "")]
    return names


class Kept:
    """A log and kept rows over a block that nobody steps."""

    def __init__(self, num_envs: int, num_groups: int = 1) -> None:
        spec = RowSpec(num_envs, (4,), "float32", num_masked=2, num_origin=NUM_WORDS)
        settings = PoolSettings(spec, num_groups=num_groups, action_range=(0, 2))
        self.block = SharedBlock.allocate(spec)
        self.log = EpisodeLog(settings, self.block)
        self.rows = KeptRows(self.block, settings, self.log, 1.0)

    def step(self) -> None:
        self.log.append(0)
        self.rows.keep(0)
        self.rows.release(0)


@pytest.mark.parametrize("groups", [1, 2])
def test_a_step_is_kept_by_as_many_calls_for_many_environments_as_for_few(groups: int) -> None:
    for num_envs in (FEW, MANY):
        kept = Kept(num_envs, groups)
        append = partial(kept.log.append, groups - 1)
        for _ in range(1000):
            assert calls_of(append) == APPENDS


def test_rows_are_kept_by_as_many_calls_for_many_environments_as_for_few() -> None:
    counts = []
    for num_envs in (FEW, MANY):
        kept = Kept(num_envs)
        kept.rows.keep(0)
        counts.append(calls_of(lambda kept=kept: (kept.rows.keep(0), kept.rows.release(0))))  # type: ignore[misc]
    assert counts[0] == counts[1]
    assert counts[0]["KeptRows.keep"] == counts[0]["KeptRows.release"] == 1
    assert counts[0].total() < 12


def test_nothing_grows_with_an_episode() -> None:
    kept = Kept(MANY)
    for _ in range(300):  # numbers of Python below 257 are shared
        kept.step()
    tracemalloc.start()
    try:
        kept.step()
        before, _ = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        for _ in range(3000):
            kept.step()
        after, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert after - before <= A_FEW_BYTES
    assert peak - before < ROW_BYTES  # the flags as bytes, and views of arrays


def test_a_long_episode_overwrites_the_log_that_it_was_born_with() -> None:
    kept = Kept(MANY)
    log, place = kept.log._log, kept.log._log.ctypes.data
    assert log.nbytes == 65_536 * MANY
    for _ in range(kept.log.longest + 3):
        kept.log.append(0)
    assert kept.log._log is log
    assert kept.log._log.ctypes.data == place


@pytest.mark.parametrize("num_envs", [FEW, MANY])
def test_a_vector_step_that_is_kept_makes_no_other_calls_than_the_log(num_envs: int) -> None:
    """Where no episode ends; what an episode begins from is read at its reset alone."""
    counts = []
    for keep in (False, True):
        envs = GroupedVectorEnv(
            [partial(CounterEnv, i, episode_length=1000) for i in range(num_envs)],
            num_workers=0,
            autoreset_mode=AutoresetMode.SAME_STEP,
            send_infos=False,
            keep_episodes=keep,
        )
        envs.reset(seed=1)
        actions = np.zeros(num_envs, np.int64)

        def step(envs: Any = envs, actions: Any = actions) -> None:
            envs.send(actions)
            envs.recv()

        step()
        counts.append(calls_of(step))
        envs.close()
    assert counts[1] - counts[0] == APPENDS
    assert counts[0] - counts[1] == Counter()
