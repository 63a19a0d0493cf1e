"""Munchausen DQN learns with the masks of both states, from a ring and in a loop of one's own."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from fastdqn import MLP, Learner, MunchausenObjective, PrioritizedSampler
from fastdqn.replay import gather
from fastdqn.replay.buffer import ReplayBuffer
from fastdqn.transition import Transitions
from tests.fake_cuda import RecordingCuda
from tests.learner_modes import run_by_graphs
from tests.small_learners import filled_ring

pytestmark = pytest.mark.usefixtures("one_thread")

NUM_MASKED, GAMMA = 3, 0.99
ROWS = torch.tensor([3, 40, 17, 22, 8, 51, 30, 12])


def learners_of(number: int) -> list[Learner]:
    torch.manual_seed(0)
    module = MLP((4,), NUM_MASKED, (16,))
    objective = MunchausenObjective(temperature=1.0, clip=-5.0)
    return [Learner(copy.deepcopy(module), objective=objective) for _ in range(number)]


def by_hand(replay: ReplayBuffer, rows: Tensor) -> Transitions:
    """Return a batch of one step, each field read by its place in the ring."""
    ring, following = replay.ring, replay.ring.next_index[rows]
    assert ring.masks is not None
    assert not torch.equal(ring.masks[rows], ring.masks[following])
    return Transitions(
        obs=ring.frames[rows],
        action=ring.action[rows],
        reward=ring.reward[rows],
        next_obs=ring.frames[following],
        terminated=ring.terminated[rows],
        truncated=ring.truncated[rows],
        next_action_mask=ring.masks[following],
        action_mask=ring.masks[rows],
    )


@pytest.mark.parametrize("execution", ["eager", "cudagraph"])
def test_learning_from_a_ring_reads_the_mask_of_each_obs(execution: str) -> None:
    replay, (learning, updating, decoy) = filled_ring(num_masked=NUM_MASKED), learners_of(3)
    if execution == "cudagraph":
        run_by_graphs(learning, RecordingCuda())
        learning.execute_as("cudagraph")
    batch = by_hand(replay, ROWS)
    learning.learn(replay, ROWS.unsqueeze(0))
    updating.update(batch)
    decoy.update(replace(batch, action_mask=None))
    torch.testing.assert_close(learning.state.metrics, updating.state.metrics)
    torch.testing.assert_close(learning.state.online, updating.state.online)
    assert abs(float(decoy.state.metrics[0] - updating.state.metrics[0])) > 0.1


@pytest.mark.parametrize("n_step", [1, 3])
def test_a_gathered_batch_is_learned_as_one_of_the_ring(n_step: int) -> None:
    replay = filled_ring(num_masked=NUM_MASKED, n_step=n_step)
    learning, updating = learners_of(2)
    learning.learn(replay, ROWS.unsqueeze(0))
    updating.update(gather(replay.ring, ROWS, GAMMA))
    torch.testing.assert_close(learning.state.metrics, updating.state.metrics)


def test_a_sample_has_the_masks_of_both_states() -> None:
    replay = filled_ring(num_masked=NUM_MASKED)
    frames, masks = replay.ring.frames, replay.ring.masks
    assert masks is not None
    drawn = Transitions.from_tensordict(replay.sample(16))
    by_priority, _ = PrioritizedSampler(replay, 16).sample()
    for batch in (drawn, by_priority):
        for obs, mask in (
            (batch.obs, batch.action_mask),
            (batch.next_obs, batch.next_action_mask),
        ):
            assert mask is not None
            places = (obs[:, None] == frames).all(2).float().argmax(1)
            assert torch.equal(mask, masks[places])
