"""Dueling heads and LayerNorm in C against the eager learner, together and alone."""

from __future__ import annotations

import copy
import itertools
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fastdqn import Learner, UsageError
from fastdqn.algorithms.td_losses import masked_q
from fastdqn.native import NativeActor
from fastdqn.native.c_library import MAX_LAYERS
from fastdqn.networks.flat_network import FlatNetwork
from fastdqn.networks.mlp import MLP
from fastdqn.policies.policy import Policy
from fastdqn.replay import ReplayBuffer
from tests.equivalence.test_native import (
    CLIPS,
    OPTIMIZERS,
    TARGETS,
    assert_alike,
    copy_state,
    pair,
    replay_of,
    tensors,
)
from tests.equivalence.test_replay_options import UPDATES, twins_of
from tests.small_learners import filled_ring, random_batch, with_factors

KINDS: dict[str, dict[str, Any]] = {
    "dueling": {"dueling": True},
    "normalised": {"layer_norm": True},
    "both": {"dueling": True, "layer_norm": True},
}
kinds = pytest.mark.parametrize("kind", KINDS)
pytestmark = pytest.mark.usefixtures("one_thread")


def mlp(obs: int, actions: int, sizes: tuple[int, ...], kind: str, **options: Any) -> MLP:
    """Return an MLP whose vectors, those of LayerNorm too, hold random numbers."""
    module = MLP((obs,), actions, sizes, **KINDS[kind], **options)
    for parameter in module.parameters():
        if parameter.ndim == 1:
            parameter.data += 0.3 * torch.randn_like(parameter)
    return module


# One update from the same state


@kinds
def test_each_of_many_updates_is_the_eager_one(kind: str) -> None:
    """From the same state, so that rounding cannot grow."""
    replay, updates = replay_of(masked=True), 4
    for number, (target, clip) in enumerate(itertools.product(TARGETS, CLIPS)):
        torch.manual_seed(number)
        eager, native = pair(
            mlp(5, 3, (9, 7), kind),
            optimizer=list(OPTIMIZERS.values())[number % len(OPTIMIZERS)],
            loss=("huber", "mse")[number % 2],
            double=number % 4 < 2,
            learning_rate=3e-3,
            clip_norm=clip[0],
            clip_value=clip[1],
            **target,
        )
        for index in replay.draw(updates, 12).unbind(0):
            for learner in (eager, native):
                learner.learn(replay, index.unsqueeze(0))
            assert_alike(native.state, eager.state)
            copy_state(native.state, eager.state)
        assert int(native.state.updates) == updates


@settings(max_examples=30, deadline=None)
@given(
    kind=st.sampled_from(list(KINDS)),
    sizes=st.lists(st.integers(2, 70), min_size=0, max_size=4),
    obs=st.integers(1, 40),
    actions=st.integers(1, 19),
    batch=st.integers(1, 150),
    seed=st.integers(0, 2**16),
)
def test_networks_and_batches_of_any_size(  # noqa: PLR0917 - hypothesis names them
    kind: str, sizes: list[int], obs: int, actions: int, batch: int, seed: int
) -> None:
    """At a small rate, since Adam turns the rounding of slopes near 0 into whole steps."""
    torch.manual_seed(seed)
    options: dict[str, Any] = {"double": seed % 3 > 0, "loss": "mse", "clip_norm": None}
    eager, native = pair(mlp(obs, actions, tuple(sizes), kind), learning_rate=1e-5, **options)
    drawn = random_batch(seed, batch, obs_size=obs, actions=actions, masked=seed % 2 == 0)
    for batch_ in (drawn, with_factors(drawn, seed)):
        eager.update(batch_)
        native.update(batch_)
        assert_alike(native.state, eager.state, rtol=1e-3)
        copy_state(native.state, eager.state)


@pytest.mark.parametrize("sizes", [(1,), (1, 6), (6, 1)])
def test_a_layer_of_one_unit_is_normalised_to_its_beta(sizes: tuple[int, ...]) -> None:
    """Its x - mean is 0, and so are its slopes, which PyTorch computes within rounding."""
    torch.manual_seed(0)
    _, native = pair(mlp(5, 3, sizes, "normalised"))
    obs, draws = torch.randn(50, 5), torch.ones(50, 2)
    chosen = NativeActor(native.network)(obs, 0.0, draws)
    assert torch.equal(chosen, Policy(native.network).choose(obs, 0.0, draws))
    native.update(random_batch(0, obs_size=5, actions=3))
    place = sizes.index(1)
    slopes = native.network.views(native.state.slots[0])
    gamma = slopes[2 * (len(sizes) + 1) + 2 * place]
    before = slopes[2 * place]
    assert float(gamma.abs().max()) == 0.0
    assert float(before.abs().max()) < 1e-6
    assert float(native.state.slots[0].abs().max()) > 0


@kinds
@pytest.mark.parametrize("width", [2, 33])
def test_as_many_layers_as_the_c_knows(width: int, kind: str) -> None:
    torch.manual_seed(0)
    module = mlp(3, 2, (width,) * (MAX_LAYERS - 1), kind)
    eager, native = pair(module, loss="mse", clip_norm=None, learning_rate=1e-5)
    for batch in (1, 17):
        drawn = random_batch(batch, batch, obs_size=3, masked=True)
        eager.update(drawn)
        native.update(drawn)
        assert_alike(native.state, eager.state, rtol=1e-3)
        copy_state(native.state, eager.state)


@kinds
def test_whole_numbers_become_one_hot_vectors(kind: str) -> None:
    torch.manual_seed(0)
    replay, none = ReplayBuffer(50, 2, (), torch.int64), torch.zeros(2, dtype=torch.bool)
    replay.begin(torch.tensor([3, 5]))
    for _ in range(30):
        shown = torch.randint(3, 9, (2,))
        replay.write(torch.randint(2, (2,)), torch.randn(2), none, none, shown)
    for sizes in ((7,), ()):
        eager, native = pair(MLP((), 2, sizes, one_hot=6, offset=3, **KINDS[kind]))
        index = replay.draw(6, 9)
        eager.learn(replay, index)
        native.learn(replay, index)
        assert_alike(native.state, eager.state)


# Many updates


@kinds
def test_two_hundred_updates_in_a_row_stay_within_rounding(kind: str) -> None:
    torch.manual_seed(0)
    replay = filled_ring(num_masked=2)
    eager, native = pair(mlp(4, 2, (8,), kind), learning_rate=1e-3)
    initial = eager.state.online.clone()
    index = torch.randint(64, (200, 8))
    eager.learn(replay, index)
    native.learn(replay, index)
    assert (eager.state.online - initial).abs().max() > 0.01
    assert_alike(native.state, eager.state, rtol=5e-4)


def test_with_priorities_and_n_steps_two_hundred_updates_are_the_eager_ones() -> None:
    options: dict[str, Any] = {"prioritized": True, "n_step": 3, "num_masked": 3}
    twins = twins_of("native", network=KINDS["both"], **options)
    twins.assert_learn_alike(UPDATES, rtol=2e-4, atol=2e-5)
    twins.assert_learned(UPDATES, 0.05)


def test_an_update_that_is_not_finite_changes_no_bit() -> None:
    _, native = pair(mlp(4, 2, (8,), "both"))
    native.update(random_batch(0))
    before = [t.clone() for t in (native.state.online, native.state.target, *native.state.slots)]
    bad = random_batch(1)
    bad.reward[3] = math.nan
    native.update(bad)
    after = [native.state.online, native.state.target, *native.state.slots]
    assert all(map(torch.equal, before, after))
    assert int(native.state.skipped) == 1


@pytest.mark.parametrize("batch", [3, 70])
def test_a_variance_beyond_float32_is_no_update_as_in_eager_learning(batch: int) -> None:
    torch.manual_seed(0)
    eager, native = pair(mlp(4, 2, (8,), "both"), learning_rate=1e-5, loss="mse")
    before = native.state.online.clone()
    for number, field in enumerate(("obs", "next_obs"), 1):
        huge = random_batch(number, batch)
        getattr(huge, field)[batch - 1] = 1e30
        huge.terminated[batch - 1] = False
        for learner in (eager, native):
            learner.update(huge)
            assert int(learner.state.skipped) == number
    assert torch.equal(native.state.online, before)
    large = random_batch(3, batch)
    large.obs[batch - 1] = 1e15
    for learner in (eager, native):
        learner.update(large)
    assert_alike(native.state, eager.state, rtol=1e-3)
    assert int(native.state.skipped) == 2
    obs, draws = torch.stack((torch.full((4,), 1e30), torch.ones(4))), torch.ones(2, 2)
    chosen = NativeActor(native.network)(obs, 0.0, draws)
    assert torch.equal(chosen, Policy(native.network).choose(obs, 0.0, draws))


def test_a_copy_learns_what_the_original_does() -> None:
    _, native = pair(mlp(4, 2, (8,), "both"))
    native.update(random_batch(0))
    twin = copy.deepcopy(native)
    for learner in (native, twin):
        for seed in range(3):
            learner.update(random_batch(seed))
    assert all(map(torch.equal, tensors(native.state), tensors(twin.state)))
    assert native.state.online.data_ptr() != twin.state.online.data_ptr()


@pytest.mark.parametrize("execution", ["eager", "native"])
def test_layers_that_were_replaced_by_wider_ones_are_refused(execution: str) -> None:
    """The value would read four units as in the network that was built, not half of the ten."""
    module = mlp(4, 3, (8,), "both")
    module.layers[0], module.layers[1] = nn.Linear(4, 10), nn.Linear(6, 3)
    module.norms[0] = nn.LayerNorm(10)
    with pytest.raises(UsageError, match="its layers are not"):
        Learner(module, execution=execution).update(random_batch(0, actions=3))


# Acting


@settings(max_examples=25, deadline=None)
@given(
    kind=st.sampled_from(list(KINDS)),
    sizes=st.sampled_from([(), (2,), (9,), (16, 8), (33, 5)]),
    envs=st.integers(1, 70),
    actions=st.integers(1, 9),
    seed=st.integers(0, 2**16),
)
def test_acting_is_that_of_the_eager_policy(
    kind: str, sizes: tuple[int, ...], envs: int, actions: int, seed: int
) -> None:
    torch.manual_seed(seed)
    network = FlatNetwork(mlp(4, actions, sizes, kind))
    obs, uniform = torch.randn(envs, 4), torch.rand(envs, 2)
    mask = torch.rand(envs, actions) < 0.4 if seed % 2 else None
    actor, policy = NativeActor(network), Policy(network)
    for epsilon in (0.0, 0.3):
        action = actor(obs, epsilon, uniform, mask)
        assert torch.equal(action, policy.choose(obs, epsilon, uniform, mask))
        assert actor.on_host(obs, epsilon, uniform, mask)[1].tolist() == action.tolist()
    with torch.no_grad():
        best = masked_q(network(network.views(network.flat), obs), mask).argmax(1)
    assert torch.equal(actor(obs, 0.0, uniform, mask), best)
