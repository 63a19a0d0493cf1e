"""The C against the eager learner, the truth: one update from any state, then many in a row."""

from __future__ import annotations

import copy
import itertools
import math
import weakref
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fastdqn.algorithms.optimizers import Adam, AdamW, RMSprop
from fastdqn.algorithms.td_losses import masked_q
from fastdqn.learner.learner import Learner, LearnerState
from fastdqn.native import NativeActor, NativeUpdate
from fastdqn.native.c_actor import MAX_PLACES
from fastdqn.native.c_library import DTYPES, MAX_LAYERS
from fastdqn.networks.flat_network import FlatNetwork
from fastdqn.networks.mlp import MLP
from fastdqn.policies.policy import Policy
from fastdqn.replay import NewestSampler, ReplayBuffer, UniformSampler
from fastdqn.transition import Transitions
from tests.small_learners import filled_ring, random_batch, with_factors

OPTIMIZERS = {
    "adam": Adam(),
    "adam, decay, amsgrad": Adam(weight_decay=0.1, amsgrad=True),
    "adamw": AdamW(weight_decay=0.2),
    "adamw, amsgrad": AdamW(amsgrad=True),
    "rmsprop": RMSprop(),
    "rmsprop, decay": RMSprop(weight_decay=0.1),
}
CLIPS: list[tuple[float | None, float | None]] = [(None, None), (0.05, None), (10.0, 1e-3)]
TARGETS: list[dict[str, Any]] = [
    {"target": "soft", "tau": 0.1},
    {"target": "soft", "tau": 0.7},
    {"target": "soft", "tau": 1.0},
    {"target": "hard", "target_period": 3},
    {"target": "hard"},
    {"target": "none"},
]


def pair(module: MLP, **arguments: Any) -> tuple[Learner, Learner]:
    """Return an eager learner and a native one with equal parameters."""
    twin = copy.deepcopy(module)
    eager = Learner(module, execution="eager", **arguments)
    return eager, Learner(twin, execution="native", **arguments)


def tensors(state: LearnerState) -> list[Tensor]:
    return [state.online, state.target, *state.slots, state.updates, state.skipped, state.metrics]


def assert_alike(one: LearnerState, other: LearnerState, rtol: float = 1e-4) -> None:
    for mine, theirs in zip(tensors(one), tensors(other), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=rtol, atol=3e-6, equal_nan=True)


def copy_state(to: LearnerState, source: LearnerState) -> None:
    for mine, theirs in zip(tensors(to), tensors(source), strict=True):
        mine.copy_(theirs)


def replay_of(
    dtype: torch.dtype = torch.float32, *, size: int = 5, actions: int = 3, masked: bool = False
) -> ReplayBuffer:
    """Return a full ring of four environments whose episodes end within steps, by `dtype`."""
    generator = torch.Generator().manual_seed(0)
    replay = ReplayBuffer(200, 4, (size,), dtype, num_masked=actions * masked)

    def frames() -> Tensor:
        numbers = torch.randn(4, size, generator=generator) * 3
        return numbers.to(dtype) if dtype.is_floating_point else numbers.abs().to(dtype)

    def mask() -> Tensor | None:
        return torch.rand(4, actions, generator=generator) < 0.4 if masked else None

    replay.begin(frames(), mask())
    for _ in range(70):
        ended = torch.rand(4, generator=generator) < 0.2
        replay.write(
            torch.randint(actions, (4,), generator=generator),
            torch.randn(4, generator=generator),
            ended,
            torch.zeros(4, dtype=torch.bool),
            frames(),
            final_obs=frames(),
            ended=ended.nonzero().squeeze(1).numpy(),
            action_mask=mask(),
            final_action_mask=mask(),
        )
    return replay


# One update from the same state


@pytest.mark.parametrize("earlier", [0, 4, 5, 1000])
def test_the_hard_target_goes_on_from_earlier_updates_as_the_eager_one(earlier: int) -> None:
    torch.manual_seed(0)
    replay = replay_of()
    eager, native = pair(MLP((5,), 3, (8,)), target="hard", target_period=3)
    for learner in (eager, native):
        learner.go_on_from(earlier)
    for made, index in enumerate(torch.split(replay.draw(9, 12), 1), start=1):
        for learner in (eager, native):
            learner.learn(replay, index)
        assert_alike(native.state, eager.state)
        copied = torch.equal(native.state.target, native.state.online)
        assert copied == ((earlier + made) % 3 == 0)
        copy_state(native.state, eager.state)


EACH = [
    (optimizer, loss, double)
    for number, optimizer in enumerate(OPTIMIZERS)
    for loss, double in (("huber", number % 2 == 0), ("mse", number % 2 == 1))
]
"""Every optimizer with both losses and, of each kind, with one choice of the next action."""


@pytest.mark.parametrize(("optimizer", "loss", "double"), EACH)
def test_each_of_many_updates_is_the_eager_one(optimizer: str, loss: str, double: bool) -> None:
    """From the same state, so that rounding cannot grow; a hundred states on one path."""
    replay, steps = replay_of(masked=double), 108
    for number, (target, clip) in enumerate(itertools.product(TARGETS, CLIPS)):
        torch.manual_seed(number)
        eager, native = pair(
            MLP((5,), 3, (9, 4)),
            optimizer=OPTIMIZERS[optimizer],
            loss=loss,
            double=double,
            learning_rate=3e-3,
            clip_norm=clip[0],
            clip_value=clip[1],
            **target,
        )
        for index in replay.draw(steps // 18, 12).unbind(0):
            for learner in (eager, native):
                learner.learn(replay, index.unsqueeze(0))
            assert_alike(native.state, eager.state)
            copy_state(native.state, eager.state)
        assert int(native.state.updates) == steps // 18


@pytest.mark.parametrize("dtype", list(DTYPES), ids=str)
def test_observations_of_every_dtype_are_read_as_the_eager_learner_reads_them(
    dtype: torch.dtype,
) -> None:
    replay = replay_of(dtype)
    eager, native = pair(MLP((5,), 3, (8,), scale=1 / 255))
    for learner in (eager, native):
        learner.learn(replay, replay.newest(5, 40))
    assert_alike(native.state, eager.state)


def test_half_precision_is_read_with_its_subnormal_and_largest_numbers() -> None:
    patterns = torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(torch.float16)
    finite = patterns[patterns.isfinite()]
    batch = random_batch(0, len(finite), obs_size=1)
    halves = Transitions(
        finite.unsqueeze(1),
        batch.action,
        torch.zeros(len(finite)),
        finite.unsqueeze(1),
        torch.ones(len(finite), dtype=torch.bool),
        batch.truncated,
    )
    for first in range(0, len(finite), 4096):
        rows = slice(first, first + 4096)
        part = Transitions(*(f if f is None else f[rows] for f in halves.tensors()))  # type: ignore[arg-type]
        eager, native = pair(MLP((1,), 2, ()), loss="mse", clip_norm=None)
        eager.update(part)
        native.update(part)
        torch.testing.assert_close(native.state.metrics, eager.state.metrics, rtol=1e-5, atol=0)


def test_whole_numbers_become_one_hot_vectors() -> None:
    replay = ReplayBuffer(50, 2, (), torch.int64)
    replay.begin(torch.tensor([3, 5]))
    for _ in range(30):
        shown = torch.randint(3, 9, (2,))
        none = torch.zeros(2, dtype=torch.bool)
        replay.write(torch.randint(2, (2,)), torch.randn(2), none, none, shown)
    eager, native = pair(MLP((), 2, (7,), one_hot=6, offset=3))
    index = replay.draw(6, 9)
    eager.learn(replay, index)
    native.learn(replay, index)
    assert_alike(native.state, eager.state)


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 70), min_size=0, max_size=4),
    obs=st.integers(1, 40),
    actions=st.integers(1, 19),
    batch=st.integers(1, 150),
    seed=st.integers(0, 2**16),
    double=st.booleans(),
)
def test_networks_and_batches_of_any_size(  # noqa: PLR0917 - hypothesis names them
    sizes: list[int], obs: int, actions: int, batch: int, seed: int, double: bool
) -> None:
    torch.manual_seed(seed)
    eager, native = pair(MLP((obs,), actions, sizes), double=double, loss="mse", clip_norm=None)
    drawn = random_batch(seed, batch, obs_size=obs, actions=actions, masked=seed % 2 == 0)
    for given_ in (drawn, with_factors(drawn, seed)):
        eager.update(given_)
        native.update(given_)
        assert_alike(native.state, eager.state, rtol=1e-3)
        copy_state(native.state, eager.state)


@pytest.mark.parametrize("width", [1, 3, 33])
def test_as_many_layers_as_the_c_knows(width: int) -> None:
    torch.manual_seed(0)
    eager, native = pair(MLP((3,), 2, (width,) * (MAX_LAYERS - 1)), loss="mse", clip_norm=None)
    for batch in (1, 17):
        drawn = random_batch(batch, batch, obs_size=3, masked=True)
        eager.update(drawn)
        native.update(drawn)
        assert_alike(native.state, eager.state, rtol=1e-3)
    obs, uniform = torch.randn(9, 3), torch.ones(9, 2)
    chosen = NativeActor(native.network)(obs, 0.0, uniform)
    assert torch.equal(chosen, Policy(native.network).choose(obs, 0.0, uniform))


# Many updates


@pytest.mark.parametrize("masked", [False, True])
def test_two_hundred_updates_in_a_row_stay_within_rounding(masked: bool) -> None:
    torch.manual_seed(0)
    replay = filled_ring(num_masked=2 * masked)
    eager, native = pair(MLP((4,), 2, (8,)), learning_rate=1e-3)
    born = eager.state.online.clone()
    index = torch.randint(64, (200, 8))
    eager.learn(replay, index)
    native.learn(replay, index)
    assert (eager.state.online - born).abs().max() > 0.01
    assert_alike(native.state, eager.state, rtol=2e-4)


def test_updates_in_one_call_are_updates_one_by_one_to_the_bit() -> None:
    torch.manual_seed(0)
    replay = replay_of()
    _, together = pair(MLP((5,), 3, (8, 8)))
    torch.manual_seed(0)
    replay_of()
    _, apart = pair(MLP((5,), 3, (8, 8)))
    index = replay.draw(23, 10)
    together.learn(replay, index)
    for row in index.unbind(0):
        apart.learn(replay, row.unsqueeze(0))
    assert all(map(torch.equal, tensors(together.state), tensors(apart.state)))


def test_a_schedule_of_the_learning_rate_is_obeyed() -> None:
    eager, native = pair(MLP((4,), 2, (8,)))
    for rate in (1e-2, 0.0, 1e-3):
        for learner in (eager, native):
            learner.state.learning_rate.fill_(rate)
            learner.update(random_batch(3))
    assert_alike(native.state, eager.state)


@pytest.mark.parametrize("newest", [False, True])
def test_batches_are_chosen_as_the_sampler_chooses_them(newest: bool) -> None:
    """With rows that are partly no transitions, over the wrap, and while the ring fills."""
    eager, native = pair(MLP((5,), 3, (8,)), learning_rate=1e-4)
    replays = [ReplayBuffer(40, 4, (5,), seed=3) for _ in range(2)]
    generator = torch.Generator().manual_seed(0)
    for replay in replays:
        replay.begin(torch.zeros(4, 5))
    samplers = [(NewestSampler if newest else UniformSampler)(replay, 6) for replay in replays]
    none = torch.zeros(4, dtype=torch.bool)
    for step in range(30):
        row = (
            torch.randint(3, (4,), generator=generator),
            torch.randn(4, generator=generator),
            torch.rand(4, generator=generator) < 0.3,
            none,
            torch.randn(4, 5, generator=generator),
        )
        real = torch.rand(4, generator=generator) < (0.6 if step % 3 else 2.0)
        real[0] = True
        for replay in replays:
            replay.write(*row, real=real.numpy())
        for learner, sampler in zip((eager, native), samplers, strict=True):
            learner.learn(sampler, 3)
    assert int(native.state.updates) == 90
    assert_alike(native.state, eager.state, rtol=1e-3)


# What is not learned from


@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_an_update_that_is_not_finite_changes_no_bit_and_is_counted(poison: float) -> None:
    eager, native = pair(MLP((4,), 2, (8,)))
    for learner in (eager, native):
        learner.update(random_batch(0))
    before = [t.clone() for t in (native.state.online, native.state.target, *native.state.slots)]
    bad = random_batch(1)
    bad.reward[3] = poison
    for learner in (eager, native):
        learner.update(bad)
    after = [native.state.online, native.state.target, *native.state.slots]
    assert all(map(torch.equal, before, after))
    assert int(native.state.skipped) == int(eager.state.skipped) == 1
    for learner in (eager, native):
        learner.update(random_batch(2))
    assert_alike(native.state, eager.state)


@pytest.mark.parametrize("wrong", [-1, 10**9])
def test_an_index_outside_the_ring_is_refused_before_memory_is_touched(wrong: int) -> None:
    replay = replay_of()
    _, native = pair(MLP((5,), 3, (8,)))
    index = replay.draw(3, 8)
    index[1, 4] = wrong
    with pytest.raises(IndexError, match="ring"):
        native.learn(replay, index)
    assert int(native.state.updates) == 1


def test_what_is_bound_reads_its_tensors_anew_at_each_call_and_refuses_as_others_do() -> None:
    replay = replay_of()
    ours, theirs = pair(MLP((5,), 3, (8,)))
    index = torch.zeros(2, 8, dtype=torch.int64)
    native = theirs.natively(theirs.state)
    assert isinstance(native, NativeUpdate)
    learn = native.bound(replay.ring, index)
    for _ in range(5):
        index.copy_(replay.draw(2, 8))
        ours.learn(replay, index)
        learn()
        assert_alike(theirs.state, ours.state)
    index[1, 4] = -1
    with pytest.raises(IndexError, match="ring"):
        learn()


def test_what_is_bound_chooses_as_the_actor_does() -> None:
    learner, _ = pair(MLP((5,), 3, (8,)))
    actor = NativeActor(learner.network)
    obs, uniform, out = torch.zeros(7, 5), torch.zeros(7, 4), torch.zeros(7, dtype=torch.int64)
    choose = actor.bound(obs, uniform[:, :2], out)
    for epsilon in (0.0, 0.4, 1.0):
        obs.normal_()
        uniform.uniform_()
        choose(epsilon)
        assert torch.equal(out, actor(obs, epsilon, uniform[:, :2]))


@pytest.mark.parametrize("masked", [False, True])
def test_at_the_place_of_each_group_it_acts_as_anywhere(masked: bool) -> None:
    learner, _ = pair(MLP((5,), 3, (8,)))
    actor = NativeActor(learner.network)
    groups = [torch.zeros(7, 5), torch.zeros(4, 5), torch.zeros(7, 5)]
    masks = [torch.ones(len(obs), 3, dtype=torch.bool) for obs in groups]
    kept: dict[int, Any] = {}
    for step in range(30):
        group = step % 3
        obs, mask = groups[group].normal_(), masks[group] if masked else None
        if mask is not None:
            mask.copy_(torch.rand(len(obs), 3) < 0.5)
        epsilon, uniform = (0.0, 0.4, 1.0)[step % 7 % 3], torch.rand(len(obs), 2)
        action, seen = actor.on_host(obs, epsilon, uniform, mask)
        assert seen.tolist() == action.tolist()
        assert torch.equal(action, actor(obs, epsilon, uniform, mask))
        before = kept.setdefault(group, (action, seen))
        assert action is before[0]
        assert seen is before[1]


def test_acting_follows_other_memory_at_the_same_place() -> None:
    """Places are known by their address, which may be used again: masks elsewhere, other sizes."""
    learner, _ = pair(MLP((6,), 3, (8,)))
    actor, obs = NativeActor(learner.network), torch.randn(7, 6)
    masks = [torch.rand(7, 3) < 0.5 for _ in range(2)]
    uniform = torch.rand(7, 2)
    for rows in (obs, obs[:4], obs, obs.view(torch.int32)[:7]):
        for mask in (None, *masks):
            mine, draws = mask if mask is None else mask[: len(rows)], uniform[: len(rows)]
            action, seen = actor.on_host(rows, 0.3, draws, mine)
            assert seen.tolist() == action.tolist() == actor(rows, 0.3, draws, mine).tolist()


def test_acting_keeps_no_memory_alive_and_knows_a_limited_number_of_places() -> None:
    learner, _ = pair(MLP((5,), 3, (8,)))
    actor, uniform = NativeActor(learner.network), torch.rand(7, 2)
    held = [torch.randn(7, 5) for _ in range(3 * MAX_PLACES)]
    gone = [weakref.ref(obs) for obs in held]
    for obs in held:
        assert actor.on_host(obs, 0.0, uniform)[0].tolist() == actor(obs, 0.0, uniform).tolist()
    assert len(actor._places) <= MAX_PLACES
    del obs, held
    assert not any(ref() is not None for ref in gone)


@pytest.mark.parametrize("wrong", [-1, 3, 2**40])
def test_an_action_that_the_network_has_not_is_refused(wrong: int) -> None:
    _, native = pair(MLP((4,), 3, (8,)))
    batch = random_batch(0, actions=3)
    batch.action[5] = wrong
    with pytest.raises(IndexError, match="action"):
        native.update(batch)
    assert int(native.state.updates) == 0


# Acting


@settings(max_examples=40, deadline=None)
@given(
    envs=st.integers(1, 70),
    actions=st.integers(1, 9),
    epsilon=st.sampled_from([0.0, 0.3, 1.0]),
    masked=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_acting_is_epsilon_greedy_over_the_allowed_actions(
    envs: int, actions: int, epsilon: float, masked: bool, seed: int
) -> None:
    torch.manual_seed(seed)
    network = FlatNetwork(MLP((4,), actions, (16, 8)))
    obs, uniform = torch.randn(envs, 4), torch.rand(envs, 2)
    mask = torch.rand(envs, actions) < 0.4 if masked else None
    action = NativeActor(network)(obs, epsilon, uniform, mask)
    with torch.no_grad():
        best = masked_q(network(network.views(network.flat), obs), mask).argmax(1)
    allowed = torch.ones(envs, actions, dtype=torch.bool) if mask is None else mask.clone()
    allowed[~allowed.any(1)] = True
    for env in range(envs):
        among = allowed[env].nonzero().squeeze(1)
        anything = among[int(uniform[env, 1] * len(among))]
        explores = bool(uniform[env, 0] < epsilon)
        assert action[env] == (anything if explores else best[env])


def test_actions_follow_the_weights_of_the_moment() -> None:
    torch.manual_seed(0)
    learner = pair(MLP((4,), 2, (8,)), learning_rate=0.3)[1]
    act, obs, draws = NativeActor(learner.network), torch.randn(64, 4), torch.ones(64, 2)
    before = act(obs, 0.0, draws)
    for seed in range(20):
        learner.update(random_batch(seed))
    assert not torch.equal(before, act(obs, 0.0, draws))
