"""Stored transitions, n steps and time limits beside the buffers of Stable-Baselines3."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastdqn.replay import ReplayBuffer, gather
from tests.peers.histories import (
    VectorStep,
    add,
    history,
    ring_of,
    rows_of,
    sb3_buffer,
    sb3_rows_of,
    write,
)

pytestmark = pytest.mark.oracle
Rows = dict[tuple[float, ...], tuple[Any, ...]]
DRAWS_PER_ROW = 40
"""A row that is not among so many draws for each is one that is never drawn."""


def all_rows(ring: ReplayBuffer, gamma: float) -> Rows:
    return rows_of(gather(ring.ring, ring.newest(1, len(ring))[0], gamma))


def drawn_rows(buffer: Any, count: int, gamma: float, seed: int) -> Rows:
    np.random.seed(seed)  # SB3 draws from the global generator
    return sb3_rows_of(buffer.sample(count * DRAWS_PER_ROW), gamma)


def assert_alike(ours: Rows, theirs: Rows) -> None:
    """Check that both hold the same transitions, and that these lead to the same."""
    assert ours.keys() == theirs.keys()
    for obs, (action, reward, next_obs, discount) in ours.items():
        expected = theirs[obs]
        assert (action, next_obs) == (expected[0], expected[2]), obs
        assert reward == pytest.approx(expected[1], rel=1e-5, abs=1e-5), obs
        assert discount == pytest.approx(expected[3], rel=1e-5, abs=1e-7), obs


def filled(sb3: Any, steps: list[VectorStep], rows: int, n: int, gamma: float) -> tuple[Any, Any]:
    """Return a ring and a buffer of n steps with `rows` vector steps of room, and write all."""
    num_envs = len(steps[0].action)
    ring = ring_of(rows * num_envs, num_envs, n_step=n)
    sizes = rows * num_envs, num_envs
    buffer = sb3_buffer(sb3.NStepReplayBuffer, *sizes, n_steps=n, gamma=gamma)
    for step in steps:
        write(ring, step)
        add(buffer, step)
    return ring, buffer


@settings(max_examples=100, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    num_envs=st.integers(1, 5),
    rows=st.integers(7, 13),
    n=st.integers(2, 6),
    steps=st.integers(1, 40),
    ends=st.sampled_from([0.0, 0.05, 0.3]),
    gamma=st.sampled_from([0.0, 0.5, 0.97, 1.0]),
)
def test_n_steps_are_those_of_sb3(
    *,
    sb3: SimpleNamespace,
    seed: int,
    num_envs: int,
    rows: int,
    n: int,
    steps: int,
    ends: float,
    gamma: float,
) -> None:
    """The rewards, the state n steps later and the power of gamma of every stored transition.

    Rings are full or not, with the write head anywhere; n steps end at terminations, truncations
    and the head in both.
    """
    ring, buffer = filled(sb3, list(history(seed, num_envs, steps, ends)), rows, n, gamma)
    assert_alike(all_rows(ring, gamma), drawn_rows(buffer, len(ring), gamma, seed))


def test_at_a_time_limit_both_bootstrap_by_gamma_to_the_power_of_the_steps_made(
    sb3: SimpleNamespace,
) -> None:
    """Without `handle_timeout_termination` SB3 takes a time limit for a termination; we never do.

    Decoys: 0 where the bootstrap is lost, 0.125 = gamma^n, 0.5 = gamma.
    """
    late = [False, True, False]
    steps = [
        replace(step, truncated=np.array([flag]))
        for step, flag in zip(history(0, 1, 3, 0.0), late, strict=True)
    ]
    ring, buffer = filled(sb3, steps, 8, 3, 0.5)
    first = tuple(steps[0].obs[0].tolist())
    assert all_rows(ring, 0.5)[first][3] == 0.25
    assert drawn_rows(buffer, 3, 0.5, 0)[first][3] == 0.25
    plain = sb3_buffer(sb3.ReplayBuffer, 8, 1, handle_timeout_termination=False)
    for step in steps:
        add(plain, step)
    assert drawn_rows(plain, 3, 0.5, 0)[tuple(steps[1].obs[0].tolist())][3] == 0.0


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    num_envs=st.integers(1, 5),
    rows=st.integers(2, 9),
    steps=st.integers(1, 30),
    ends=st.sampled_from([0.0, 0.1, 0.4]),
)
def test_single_transitions_and_their_time_limits_are_those_of_sb3(
    *, sb3: SimpleNamespace, seed: int, num_envs: int, rows: int, steps: int, ends: float
) -> None:
    """Both store the true last observation, and cut the bootstrap at terminations alone."""
    ring = ring_of(rows * num_envs, num_envs)
    buffer = sb3_buffer(sb3.ReplayBuffer, rows * num_envs, num_envs)
    for step in history(seed, num_envs, steps, ends):
        write(ring, step)
        add(buffer, step)
    assert_alike(all_rows(ring, 0.9), drawn_rows(buffer, len(ring), 0.9, seed))


def test_a_capacity_that_is_no_multiple_of_the_environments_is_rounded_up_and_down_by_sb3(
    sb3: SimpleNamespace,
) -> None:
    ring, buffer = ring_of(10, 4), sb3_buffer(sb3.ReplayBuffer, 10, 4)
    for step in history(0, 4, 20, 0.1):
        write(ring, step)
        add(buffer, step)
    assert len(ring) == 12
    assert len(drawn_rows(buffer, 12, 0.9, 0)) == 8


def test_draws_are_uniform_in_both(sb3: SimpleNamespace) -> None:
    """Chi-square over 35 transitions of 5 environments, after the ring has turned over."""
    ring, buffer = ring_of(35, 5, seed=1), sb3_buffer(sb3.ReplayBuffer, 35, 5)
    for step in history(2, 5, 17, 0.2):
        write(ring, step)
        add(buffer, step)
    np.random.seed(4)
    found = {
        "ours": gather(ring.ring, ring.draw(1, 35_000)[0]).obs,
        "theirs": buffer.sample(35_000).observations,
    }
    for whose, obs in found.items():
        counts = torch.unique(obs, dim=0, return_counts=True)[1].double()
        assert len(counts) == 35, whose
        chi_square = float(((counts - 1_000) ** 2 / 1_000).sum())
        assert chi_square < 34 + 5 * (2 * 34) ** 0.5, whose
