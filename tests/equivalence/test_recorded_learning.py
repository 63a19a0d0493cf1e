"""Learning through a graph equals eager learning to the bit, and only what is on the device moves.

The graph is a stand-in that records real operations (`tests.fake_cuda`): what Python computed at
the capture is frozen in it, as it is on a card.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from fastdqn.execution.modes import chunks
from fastdqn.learner.learner import Learner
from fastdqn.learner.steps import UPDATES_PER_GRAPH
from fastdqn.replay import UniformSampler
from tests.fake_cuda import RecordingCuda
from tests.learner_modes import run_by_graphs
from tests.learner_settings import BATCH, SETTINGS, Setting, nothing_left_in, written
from tests.small_learners import Looking, filled_ring, random_batch

pytestmark = pytest.mark.usefixtures("one_thread")

PLAIN = SETTINGS["huber, adam, soft, double, norm"]
LONG = (4, 1, 16, 8, 2, 4, 5, 16, 27, 1, 16, 100)
SHORT = (4, 1, 16, 2, 4, 5, 16, 1)
"""Updates by call; LONG ones are recorded in graphs of 1, 2, 4, 8, 16, 32 and 64."""


def recorded(setting: Setting, **changes: Any) -> tuple[Learner, RecordingCuda]:
    """Build a learner that runs by graphs of the stand-in."""
    learner, cuda = setting.build(**changes), RecordingCuda()
    run_by_graphs(learner, cuda)
    learner.execute_as("cudagraph")
    return learner, cuda


def assert_same(learner: Learner, other: Learner) -> None:
    for mine, theirs in zip(written(learner.state), written(other.state), strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("name", SETTINGS)
def test_sampled_graphs_learn_what_eager_learning_does(name: str) -> None:
    setting = SETTINGS[name]
    (learner, cuda), eager = recorded(setting), setting.build()
    mine, theirs, replay = setting.sampler(), setting.sampler(), setting.replay()
    born = eager.state.online.clone()
    plan, captures = (LONG, 7) if setting is PLAIN else (SHORT, 4)
    for updates in plan:
        learner.learn(mine, updates)
        eager.learn(theirs, updates)
        replay.begin(torch.randn(2, setting.obs_size))
    assert int(learner.state.updates) == sum(plan)
    assert (eager.state.online - born).abs().max() > 0.01
    assert_same(learner, eager)
    assert cuda.captures() == captures
    assert cuda.tape.count("new pool") == 1
    assert torch.equal(mine.fill(3), theirs.fill(3))  # the generators have gone equally far


def test_a_call_is_one_replay_where_the_updates_have_a_graph() -> None:
    learner, cuda = recorded(PLAIN)
    sampler = PLAIN.sampler()
    for updates in (1, 2, 4, 8, 16):
        learner.learn(sampler, updates)
        before = cuda.replays()
        learner.learn(sampler, updates)
        assert cuda.replays() == before + 1
    assert chunks(27, UPDATES_PER_GRAPH) == [16, 8, 2, 1]


def test_graphs_see_what_is_written_after_their_capture() -> None:
    """New rows, more of them, and another learning rate, without another capture."""
    (learner, cuda), eager = recorded(PLAIN), PLAIN.build()
    rings = [filled_ring(rows=20), filled_ring(rows=20)]
    samplers = [UniformSampler(ring, BATCH) for ring in rings]
    for step in range(60):
        for ring, one, sampler in zip(rings, (learner, eager), samplers, strict=True):
            row = random_batch(1000 + step, 2)
            real = row.terminated.numpy() if step % 7 == 0 else None
            ring.write(row.action, row.reward, row.terminated, row.truncated, row.obs, real=real)
            one.state.learning_rate.fill_(1e-3 * 0.9**step)
            one.learn(sampler, 2)
    assert_same(learner, eager)
    assert cuda.captures() == 1
    before = learner.state.online.clone()
    learner.state.learning_rate.zero_()
    learner.learn(samplers[0], 2)
    assert torch.equal(learner.state.online, before)


@pytest.mark.parametrize("masked", [False, True])
def test_batches_and_indices_that_the_caller_brings_are_fed_to_graphs(masked: bool) -> None:
    setting = Setting(masked=masked)
    (learner, cuda), eager = recorded(setting), setting.build()
    replay = setting.replay()
    for seed in range(40):
        batch = random_batch(seed, BATCH, masked=masked)
        index = replay.draw(5, BATCH)
        for one in (learner, eager):
            assert torch.isfinite(one.update(batch)).all()
            one.learn(replay, index)
    assert_same(learner, eager)
    assert cuda.captures() == 3  # a batch; four rows of an index; one


def test_another_ring_is_another_graph() -> None:
    (learner, cuda), eager = recorded(PLAIN), PLAIN.build()
    rings = [filled_ring(rows=rows) for rows in (32, 20)]
    samplers = [[UniformSampler(ring, BATCH) for ring in rings] for _ in range(2)]
    for number in range(12):
        index = rings[number % 2].draw(4, BATCH)
        for one, own in zip((learner, eager), samplers, strict=True):
            one.learn(rings[number % 2], index)
            state = rings[number % 2].generator.get_state()
            one.learn(own[number % 2], 2)
            if one is learner:
                rings[number % 2].generator.set_state(state)
    assert_same(learner, eager)
    assert cuda.captures() == 4


def test_an_update_that_is_not_finite_changes_nothing_in_a_graph() -> None:
    learner, _ = recorded(PLAIN)
    replay = filled_ring()
    sampler = UniformSampler(replay, BATCH)
    learner.learn(sampler, 4)
    before = written(learner.state)
    replay.ring.reward.fill_(math.nan)
    learner.learn(sampler, 4)
    for kept, now in zip(before[:-3], written(learner.state)[:-3], strict=True):
        assert torch.equal(kept, now)
    assert (int(learner.state.updates), int(learner.state.skipped)) == (8, 4)


def test_a_capture_leaves_no_trace_but_its_own_replay() -> None:
    (learner, _), eager = recorded(PLAIN), PLAIN.build()
    sampler, other = PLAIN.sampler(), PLAIN.sampler()
    with nothing_left_in(other):
        index, _ = other.draw(torch.arange(BATCH).expand(1, BATCH))
    assert index.shape == (1, BATCH)
    learner.learn(sampler, 1)
    eager.learn(other, 1)
    assert_same(learner, eager)
    assert learner.compile_s > 0
    seconds = learner.compile_s
    learner.learn(sampler, 1)
    assert learner.compile_s == seconds


def test_a_graph_that_would_wait_for_the_device_is_refused() -> None:
    learner, _ = recorded(PLAIN)
    learner.objective = Looking(look=lambda priority: priority.sum().item())
    with pytest.raises(RuntimeError, match="capturing"):
        learner.learn(PLAIN.sampler(), 1)


def _counted_on_the_host(learner: Learner) -> None:
    """Move a hard target by a counter in Python, a known fault of known libraries."""
    calls = 0

    def move(state: Any, fine: Tensor) -> None:
        nonlocal calls
        calls += 1
        if calls % 3 == 0:
            state.target.copy_(state.online)

    learner._move_target = move  # type: ignore[method-assign]


def _rate_on_the_host(learner: Learner) -> None:
    """Read the learning rate when the graph is recorded, and never again."""
    optimizer = learner._optimizer

    def frozen(flat: Tensor, grad: Tensor, slots: Any, step: Tensor, rate: Tensor) -> Any:
        return optimizer(flat, grad, slots, step, torch.tensor(1e-3))

    learner._optimizer = frozen  # type: ignore[assignment]


@pytest.mark.parametrize("plant", [_counted_on_the_host, _rate_on_the_host])
def test_what_the_host_computes_at_the_capture_is_seen_to_be_frozen(
    plant: Callable[[Learner], None],
) -> None:
    """The comparison of this file can fail: bugs of graphs make a difference in the stand-in."""
    setting = SETTINGS["convolutions, hard"]
    (learner, _), eager = recorded(setting), setting.build()
    plant(learner)
    mine, theirs = setting.sampler(), setting.sampler()
    for rate in (1e-3, 1e-2):
        for one, sampler in ((learner, mine), (eager, theirs)):
            one.state.learning_rate.fill_(rate)
            for _ in range(10):
                one.learn(sampler, 1)
    with pytest.raises(AssertionError):
        assert_same(learner, eager)
