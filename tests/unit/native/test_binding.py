"""What C and CUDA C are given is compared with what they rely on, where it is bound."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from fastdqn.algorithms.optimizers import Adam
from fastdqn.errors import UsageError
from fastdqn.learner.learner import Learner
from fastdqn.native import CudaActor, CudaUpdate, NativeActor, NativeUpdate
from fastdqn.networks.flat_network import FlatNetwork
from fastdqn.networks.mlp import MLP
from fastdqn.policies.policy import Policy
from fastdqn.replay import ReplayBuffer, Ring, UniformSampler
from fastdqn.transition import Transitions
from tests.emulated.card import has_compiler, make, on_emulated_card
from tests.small_learners import Branches, filled_ring, random_batch

EMULATED = pytest.mark.skipif(not has_compiler(), reason="no g++ to emulate a card with")
KINDS = [pytest.param("c"), pytest.param("cuda", marks=EMULATED)]


def learner_of(obs: int = 4, actions: int = 2, execution: str = "native") -> Learner:
    return Learner(MLP((obs,), actions, (8,)), execution=execution)


def native_of(learner: Learner, kind: str) -> NativeUpdate | CudaUpdate:
    how: Any = partial(CudaUpdate, make=make) if kind == "cuda" else None
    return learner.natively(learner.state, how)


def replay_of(dtype: torch.dtype = torch.float32, shape: tuple[int, ...] = (4,)) -> ReplayBuffer:
    replay = ReplayBuffer(20, 2, shape, dtype)
    none = torch.zeros(2, dtype=torch.bool)
    for _ in range(9):
        obs = torch.ones(2, *shape, dtype=dtype)
        replay.write(torch.zeros(2, dtype=torch.int64), torch.zeros(2), none, none, obs)
    return replay


def spaced(tensor: Tensor) -> Tensor:
    """Return equal numbers that do not lie side by side."""
    wide = torch.stack([tensor, tensor], -1)
    assert not wide[..., 0].is_contiguous()
    return wide[..., 0]


# Rings


RINGS: dict[str, Callable[[Ring], Ring]] = {
    "wide frames": lambda ring: replace(ring, frames=torch.zeros(len(ring.frames), 5)),
    "narrow frames": lambda ring: replace(ring, frames=ring.frames[:, :3].contiguous()),
    "frames of float64": lambda ring: replace(ring, frames=ring.frames.double()),
    "spaced frames": lambda ring: replace(ring, frames=spaced(ring.frames)),
    "spaced actions": lambda ring: replace(ring, action=spaced(ring.action)),
    "actions of int32": lambda ring: replace(ring, action=ring.action.int()),
    "few actions": lambda ring: replace(ring, action=ring.action[:1]),
    "next index of int32": lambda ring: replace(ring, next_index=ring.next_index.int()),
    "few next indices": lambda ring: replace(ring, next_index=ring.next_index[:-1]),
    "rewards of float64": lambda ring: replace(ring, reward=ring.reward.double()),
    "few rewards": lambda ring: replace(ring, reward=ring.reward[:3]),
    "ends of int64": lambda ring: replace(ring, terminated=ring.terminated.long()),
    "few ends": lambda ring: replace(ring, terminated=ring.terminated[:2]),
    "wide masks": lambda ring: replace(ring, masks=flags(len(ring.frames), 3)),
    "narrow masks": lambda ring: replace(ring, masks=flags(len(ring.frames), 1)),
    "few masks": lambda ring: replace(ring, masks=flags(1, 2)),
    "masks of bytes": lambda ring: replace(ring, masks=flags(len(ring.frames), 2).byte()),
    "spaced masks": lambda ring: replace(ring, masks=spaced(flags(len(ring.frames), 2))),
    "elsewhere": lambda ring: replace(ring, reward=ring.reward.to("meta")),
    "frames elsewhere": lambda ring: replace(ring, frames=ring.frames.to("meta")),
}


def flags(rows: int, width: int) -> Tensor:
    return torch.ones(rows, width, dtype=torch.bool)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", RINGS)
def test_a_ring_that_native_code_would_read_wrongly_is_refused(name: str, kind: str) -> None:
    learner, replay = learner_of(), filled_ring()
    native, index = native_of(learner, kind), replay.draw(2, 8)
    native(replay.ring, index)
    with pytest.raises(UsageError):
        native(RINGS[name](replay.ring), index)
    native(replay.ring, index)
    assert int(learner.state.updates) == 4


@pytest.mark.parametrize("name", RINGS)
def test_what_is_bound_is_looked_at_when_it_is_bound(name: str) -> None:
    native, replay = native_of(learner_of(), "c"), filled_ring()
    assert isinstance(native, NativeUpdate)
    with pytest.raises(UsageError):
        native.bound(RINGS[name](replay.ring), replay.draw(2, 8))


INDICES: dict[str, Callable[[Tensor], Tensor]] = {
    "int32": Tensor.int,
    "float": Tensor.float,
    "one row": lambda index: index[0],
    "elsewhere": lambda index: index.to("meta"),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", INDICES)
def test_an_index_that_is_no_row_of_int64_for_every_update_is_refused(name: str, kind: str) -> None:
    learner, replay = learner_of(), filled_ring()
    index = INDICES[name](replay.draw(2, 8))
    native = native_of(learner, kind)
    with pytest.raises(UsageError, match="index"):
        native(replay.ring, index)
    if isinstance(native, NativeUpdate):
        with pytest.raises(UsageError, match="index"):
            native.bound(replay.ring, index)


@pytest.mark.parametrize("execution", ["eager", "native", "compile"])
def test_a_learner_refuses_a_buffer_of_other_widths_in_every_way_of_running(
    execution: str,
) -> None:
    """Once per ring: what fits is not looked at again."""
    learner, fitting = learner_of(execution=execution), filled_ring()
    for replay, reason in (
        (filled_ring(obs_size=5), "takes 4 numbers, and an observation has 5"),
        (filled_ring(num_masked=3), "the network has 2 actions"),
    ):
        with pytest.raises(UsageError, match=reason):
            learner.learn(replay, replay.draw(1, 8))
        with pytest.raises(UsageError, match=reason):
            learner.learn(UniformSampler(replay, 8), 1)
    with pytest.raises(UsageError, match="index"):
        learner.learn(fitting, fitting.draw(1, 8)[0])
    assert int(learner.state.updates) == 0


def test_a_network_of_the_callers_own_is_tried_on_a_ring(one_thread: None) -> None:
    learner, wide = Learner(Branches()), filled_ring(obs_size=5)
    with pytest.raises(UsageError, match="raises on observations"):
        learner.learn(wide, wide.draw(1, 8))
    fitting = filled_ring()
    learner.learn(fitting, fitting.draw(1, 8))
    assert int(learner.state.updates) == 1


def test_a_ring_that_fits_is_looked_at_once_and_not_kept_alive() -> None:
    import weakref  # noqa: PLC0415

    learner, replay = learner_of(execution="eager"), filled_ring()
    looks: list[Ring] = []
    right = learner._check_ring

    def look(ring: Ring) -> None:
        looks.append(ring)
        right(ring)

    learner._check_ring = look  # type: ignore[method-assign]
    sampler = UniformSampler(replay, 8)
    for _ in range(3):
        learner.learn(replay, replay.draw(1, 8))
        learner.learn(sampler, 1)
    assert len(looks) == 2  # for the buffer, and for the sampler
    gone = weakref.ref(replay.ring)
    looks.clear()
    del replay, sampler
    assert gone() is None
    assert learner.compiling == []


# Batches


def batches(batch: Transitions) -> dict[str, Transitions]:
    """Return batches none of which can be learned from."""
    return {
        "wide": replace(batch, obs=torch.zeros(8, 5), next_obs=torch.zeros(8, 5)),
        "next wide": replace(batch, next_obs=torch.zeros(8, 5)),
        "next of uint8": replace(batch, next_obs=batch.next_obs.byte()),
        "actions of int32": replace(batch, action=batch.action.int()),
        "actions of floats": replace(batch, action=batch.action.float()),
        "few actions": replace(batch, action=batch.action[:3]),
        "few rewards": replace(batch, reward=batch.reward[:3]),
        "rewards of int64": replace(batch, reward=batch.reward.long()),
        "ends of floats": replace(batch, terminated=batch.reward),
        "few ends": replace(batch, terminated=batch.terminated[:1]),
        "truncated [B, 1]": replace(batch, truncated=batch.truncated.unsqueeze(1)),
        "narrow masks": replace(batch, next_action_mask=flags(8, 1)),
        "wide masks": replace(batch, next_action_mask=flags(8, 3)),
        "few masks": replace(batch, next_action_mask=flags(7, 2)),
        "masks of floats": replace(batch, next_action_mask=torch.ones(8, 2)),
        "elsewhere": replace(batch, reward=batch.reward.to("meta")),
        "nothing": Transitions(*(getattr(batch, f.name)[:0] for f in fields(batch)[:6])),
    }


@pytest.mark.parametrize("execution", ["eager", "native"])
@pytest.mark.parametrize("name", batches(random_batch()))
def test_a_batch_that_is_not_as_documented_is_refused(name: str, execution: str) -> None:
    learner = learner_of(execution=execution)
    learner.update(random_batch())
    before = learner.state.online.clone()
    with pytest.raises(UsageError):
        learner.update(batches(random_batch())[name])
    assert torch.equal(learner.state.online, before)
    learner.update(random_batch(1))
    assert int(learner.state.updates) == 2


@EMULATED
@pytest.mark.parametrize("name", batches(random_batch()))
def test_a_card_refuses_the_same_batches(name: str) -> None:
    with pytest.raises(UsageError):
        on_emulated_card(learner_of(execution="eager")).update(batches(random_batch())[name])


# Acting


def acting(kind: str) -> Callable[..., object]:
    """Return what acts for a network of four numbers and two actions."""
    network = FlatNetwork(MLP((4,), 2, (8,)))
    if kind == "c":
        return NativeActor(network)
    card, epsilon = CudaActor(network, make), torch.tensor(0.0)

    def act(obs: Tensor, _: float, uniform: Tensor, mask: Tensor | None = None) -> None:
        card(obs, epsilon, uniform, mask, torch.zeros(len(obs), dtype=torch.int64))

    return act


ACTED: dict[str, tuple[Tensor, Tensor, Tensor | None]] = {
    "narrow": (torch.zeros(3, 2), torch.zeros(3, 2), None),
    "wide": (torch.zeros(3, 5), torch.zeros(3, 2), None),
    "no row": (torch.zeros(4), torch.zeros(4, 2), None),
    "float64": (torch.zeros(3, 4).double(), torch.zeros(3, 2), None),
    "few draws": (torch.zeros(3, 4), torch.zeros(2, 2), None),
    "one draw each": (torch.zeros(3, 4), torch.zeros(3, 1), None),
    "draws of float64": (torch.zeros(3, 4), torch.zeros(3, 2).double(), None),
    "draws apart": (torch.zeros(3, 4), torch.zeros(2, 3).T, None),
    "narrow masks": (torch.zeros(3, 4), torch.zeros(3, 2), flags(3, 1)),
    "few masks": (torch.zeros(3, 4), torch.zeros(3, 2), flags(2, 2)),
    "masks of bytes": (torch.zeros(3, 4), torch.zeros(3, 2), flags(3, 2).byte()),
    "obs elsewhere": (torch.zeros(3, 4, device="meta"), torch.zeros(3, 2), None),
    "draws elsewhere": (torch.zeros(3, 4), torch.zeros(3, 2, device="meta"), None),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ACTED)
def test_what_acting_would_read_wrongly_is_refused(name: str, kind: str) -> None:
    act, (obs, uniform, mask) = acting(kind), ACTED[name]
    act(torch.zeros(3, 4), 0.0, torch.zeros(3, 2), flags(3, 2))
    with pytest.raises(UsageError):
        act(obs, 0.0, uniform, mask)


@pytest.mark.parametrize("name", ACTED)
def test_what_is_new_at_a_place_is_looked_at(name: str) -> None:
    actor, (obs, uniform, mask) = NativeActor(FlatNetwork(MLP((4,), 2))), ACTED[name]
    with pytest.raises(UsageError):
        actor.on_host(obs, 0.0, uniform, mask)
    if mask is None:
        with pytest.raises(UsageError):
            actor.bound(obs, uniform, torch.zeros(len(obs), dtype=torch.int64))


def test_other_shapes_at_a_known_place_are_looked_at_again() -> None:
    actor, memory = NativeActor(FlatNetwork(MLP((4,), 2))), torch.zeros(8 * 4)
    masks, uniform = flags(8, 2), torch.zeros(8, 2)
    actor.on_host(memory.view(8, 4), 0.0, uniform, masks)
    for obs, mask in (
        (memory.view(8, 2, 2)[:, :1], masks),
        (memory[:16].view(8, 2), masks),
        (memory.view(4, 8).T, masks),
        (memory.view(8, 4), masks.view(16, 1)),
    ):
        with pytest.raises(UsageError):
            actor.on_host(obs, 0.0, uniform, mask)


def test_other_masks_at_a_known_place_are_looked_at_again() -> None:
    actor, obs = NativeActor(FlatNetwork(MLP((4,), 2))), torch.zeros(8, 4)
    masks, uniform = flags(8, 2), torch.zeros(8, 2)
    actor.on_host(obs, 0.0, uniform, masks)
    narrow, turned = masks[:1].expand(8, 2), masks.view(2, 8).T
    for mask in (narrow, turned, masks.view(torch.uint8)):
        assert mask.data_ptr() == masks.data_ptr()
        with pytest.raises(UsageError, match="mask"):
            actor.on_host(obs, 0.0, uniform, mask)


def test_numbers_drawn_for_fewer_rows_are_not_taken_for_more() -> None:
    actor, uniform = NativeActor(FlatNetwork(MLP((4,), 2))), torch.zeros(3, 2)
    for act in (actor, actor.on_host):
        act(torch.zeros(3, 4), 0.0, uniform)
        with pytest.raises(UsageError, match="uniform"):
            act(torch.zeros(9, 4), 0.0, uniform)


@pytest.mark.parametrize(
    "out", [torch.zeros(2).long(), torch.zeros(3).int(), spaced(torch.ones(3).long())]
)
def test_actions_are_written_only_where_there_is_room_for_them(out: Tensor) -> None:
    actor, uniform = NativeActor(FlatNetwork(MLP((4,), 2))), torch.zeros(3, 2)
    with pytest.raises(UsageError, match="out"):
        actor.bound(torch.zeros(3, 4), uniform, out)


def test_acting_copies_what_does_not_lie_side_by_side() -> None:
    torch.manual_seed(0)
    network = FlatNetwork(MLP((4,), 5, (8,)))
    actor, obs, mask = NativeActor(network), torch.randn(50, 4), torch.rand(50, 5) < 0.5
    uniform = torch.rand(50, 2)
    expected = actor(obs, 0.5, uniform, mask)
    turned = mask.T.contiguous().T
    assert not turned.is_contiguous()
    assert torch.equal(actor(spaced(obs), 0.5, uniform, turned), expected)
    policy = Policy(network)
    greedy = policy.greedy(obs, mask)
    policy.actor = actor
    assert torch.equal(policy.greedy(obs.T.contiguous().T, turned), greedy)


@pytest.mark.parametrize("uniform", [1.0, 2.0, -1.0, float("nan"), float("inf")])
@pytest.mark.parametrize("kind", KINDS)
def test_a_draw_outside_its_range_still_leads_to_an_allowed_action(
    uniform: float, kind: str
) -> None:
    network = FlatNetwork(MLP((4,), 3))
    obs, mask = torch.zeros(2, 4), torch.tensor([[False, True, False], [False, False, False]])
    draws = torch.tensor([[0.0, uniform]] * 2)
    if kind == "c":
        action = NativeActor(network)(obs, 1.0, draws, mask)
    else:
        action = torch.zeros(2, dtype=torch.int64)
        CudaActor(network, make)(obs, torch.tensor(1.0), draws, mask, action)
    assert action[0] == 1
    assert 0 <= action[1] < 3


def test_only_an_mlp_on_the_cpu_acts_in_c() -> None:
    for module, device in (
        (Branches(), "cpu"),
        (MLP((4,), 2), "meta"),
        (MLP((4,), 2, (3,) * 20), "cpu"),
    ):
        with pytest.raises(UsageError, match="acting in C"):
            NativeActor(FlatNetwork(module, device))


# The learner's own tensors


def test_a_state_that_does_not_go_with_the_network_is_refused() -> None:
    learner = Learner(MLP((4,), 2), optimizer=Adam(amsgrad=True))
    state, flat = learner.state, learner.state.online
    for wrong in (
        replace(state, target=flat[:-1].clone()),
        replace(state, target=flat.double()),
        replace(state, slots=state.slots[:2]),
        replace(state, slots=[*state.slots[:2], flat[:3]]),
        replace(state, updates=state.updates.int()),
        replace(state, skipped=state.skipped.unsqueeze(0)),
        replace(state, learning_rate=state.learning_rate.double()),
        replace(state, metrics=state.metrics[:3]),
    ):
        with pytest.raises(UsageError):
            learner.natively(wrong)
    learner.natively(state)


# One-hot observations


def one_hot_batch(obs: int, next_obs: int, *, terminated: bool = False) -> Transitions:
    one, none = torch.ones(8, dtype=torch.int64), torch.zeros(8, dtype=torch.bool)
    shown, after = one.clone(), one.clone()
    shown[3], after[5] = obs, next_obs
    return Transitions(shown, one * 0, torch.ones(8), after, none | terminated, none)


WHERE = [(7, 1), (1, 7), (-1, 1), (1, 2**62), (-(2**63), 1), (2**63 - 1, 1)]


@pytest.mark.parametrize("execution", ["eager", "native"])
@pytest.mark.parametrize(("obs", "next_obs"), WHERE)
def test_a_one_hot_observation_out_of_range_is_an_error(
    obs: int, next_obs: int, execution: str
) -> None:
    learner = Learner(MLP((), 2, (4,), one_hot=5, offset=-0), execution=execution)
    before = learner.state.online.clone()
    with pytest.raises(IndexError, match="one-hot network knows"):
        learner.update(one_hot_batch(obs, next_obs))
    assert torch.equal(learner.state.online, before)
    learner.update(one_hot_batch(4, 0))
    assert int(learner.state.updates) == 1


@pytest.mark.parametrize(
    "where",
    [
        pytest.param("compiled", marks=pytest.mark.slow),
        pytest.param("on a card", marks=EMULATED),
    ],
)
def test_compiled_or_on_a_card_it_changes_nothing_and_is_counted(
    where: str, one_thread: None
) -> None:
    execution = "compile" if where == "compiled" else "eager"
    learner = Learner(MLP((), 2, (4,), one_hot=5), execution=execution)
    update = learner.update if where == "compiled" else native_of(learner, "cuda").on_batch
    for observations in ((7, 1), (1, 7)):
        before = learner.state.online.clone()
        update(one_hot_batch(*observations))
        assert torch.equal(learner.state.online, before)
    assert (int(learner.state.updates), int(learner.state.skipped)) == (2, 2)
    update(one_hot_batch(4, 0))
    assert not torch.equal(learner.state.online, before)


@pytest.mark.parametrize("native", [False, True])
def test_acting_on_a_one_hot_observation_out_of_range_is_an_error(native: bool) -> None:
    policy = Policy(FlatNetwork(MLP((), 2, one_hot=3, offset=2)))
    if native:
        policy.actor = NativeActor(policy.network)
    assert len(policy.greedy(torch.tensor([2, 4]))) == 2
    for wrong in (1, 5, -(2**62)):
        for act in (
            policy.greedy,
            policy.greedy_on_host,
            partial(policy.act, epsilon=0.0),
            partial(policy.act_on_host, epsilon=0.0),
        ):
            with pytest.raises(IndexError, match="one-hot"):
                act(torch.tensor([2, wrong]))


def test_one_hot_observations_are_whole_numbers_in_c() -> None:
    replay = replay_of(torch.float32, ())
    learner = Learner(MLP((), 2, one_hot=5), execution="native")
    with pytest.raises(UsageError, match="whole numbers"):
        learner.learn(replay, replay.draw(1, 4))
