"""The card's kernels against the eager learner, the truth: on a card, and emulated on the CPU."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch

from fastdqn.algorithms.optimizers import Adam, AdamW, RMSprop
from fastdqn.algorithms.td_losses import masked_q
from fastdqn.envs.tensor import make_tensor_env
from fastdqn.execution.modes import mode_of
from fastdqn.learner.learner import Learner
from fastdqn.native import CudaActor, CudaUpdate
from fastdqn.native.c_library import DTYPES
from fastdqn.native.cuda_plan import SOURCE, Call, Shape, fitted, on_the_card
from fastdqn.networks.flat_network import FlatNetwork
from fastdqn.networks.mlp import MLP
from fastdqn.replay import NewestSampler, ReplayBuffer, UniformSampler
from fastdqn.toolchain.nvrtc import KernelError
from fastdqn.training.tensor.block_runner import BlockRunner
from fastdqn.training.tensor.blocks import Block
from fastdqn.training.tensor.rollout import TensorRollout
from tests.compilers import HeldInductor
from tests.emulated.card import EmulatedKernels, has_compiler, make, on_emulated_card
from tests.equivalence.test_native import assert_alike, copy_state, replay_of
from tests.equivalence.test_native import tensors as all_of
from tests.small_learners import random_batch, with_factors

Maker = Callable[[Shape, torch.device], Any]
EMULATED = pytest.mark.skipif(not has_compiler(), reason="no g++ to emulate a card with")


@pytest.fixture(
    params=[pytest.param("cpu", marks=EMULATED), pytest.param("cuda", marks=pytest.mark.cuda)]
)
def device(request: pytest.FixtureRequest) -> str:
    """Where the kernels run: on the CPU they are emulated."""
    chosen: str = request.param
    return chosen


def pair(module: MLP, device: str, **arguments: Any) -> tuple[Learner, Learner]:
    """Return an eager learner and one on the card, with equal parameters."""
    twin = copy.deepcopy(module)
    eager = Learner(module, execution="eager", device=device, **arguments)
    if device == "cuda":
        return eager, Learner(twin, execution="native", device=device, **arguments)
    return eager, on_emulated_card(Learner(twin, **arguments))


def native_of(learner: Learner, device: str) -> CudaUpdate:
    """Return what updates a learner on the card, unrecorded."""
    builder: Maker = on_the_card if device == "cuda" else make
    native = learner.natively(learner.state, partial(CudaUpdate, make=builder))
    assert isinstance(native, CudaUpdate)
    return native


def moved(replay: ReplayBuffer, device: str) -> ReplayBuffer:
    """Return a copy of a replay buffer whose ring lies elsewhere."""
    twin = copy.deepcopy(replay)
    cells = {name: tensor.to(device) for name, tensor in replay.ring.cells().items()}
    twin.ring = replace(replay.ring, **cells)
    return twin


CHOICES: dict[str, dict[str, Any]] = {
    "huber, adam, soft, double, norm": {"tau": 0.1, "clip_norm": 0.05},
    "tau 0.7": {"tau": 0.7, "clip_norm": None},
    "tau 1": {"tau": 1.0},
    "plain": {"double": False},
    "mse, value": {"loss": "mse", "clip_norm": None, "clip_value": 1e-3},
    "hard": {"target": "hard", "target_period": 3},
    "hard when asked": {"target": "hard"},
    "no target": {"target": "none"},
    "no target, plain": {"target": "none", "double": False, "loss": "mse"},
    "decay, amsgrad": {"optimizer": Adam(weight_decay=0.1, amsgrad=True)},
    "adamw": {"optimizer": AdamW(weight_decay=0.2)},
    "adamw, amsgrad, hard": {"optimizer": AdamW(amsgrad=True), "target": "hard"},
    "rmsprop, decay": {"optimizer": RMSprop(weight_decay=0.1)},
    "rmsprop, no target": {"optimizer": RMSprop(), "target": "none"},
}


@pytest.mark.parametrize("name", CHOICES)
def test_each_of_many_updates_is_the_eager_one(name: str, device: str) -> None:
    """From the same state, so that rounding cannot grow."""
    masked = name != "plain"
    replay = replay_of(masked=masked)
    there = moved(replay, device)
    torch.manual_seed(1)
    eager, card = pair(MLP((5,), 3, (9, 4)), device, learning_rate=3e-3, **CHOICES[name])
    for index in torch.split(replay.draw(14, 12), 2):
        for learner in (eager, card):
            learner.learn(there, index.to(device))
        assert_alike(card.state, eager.state, rtol=3e-4)
        copy_state(card.state, eager.state)
    assert int(card.state.updates) == 14


@pytest.mark.parametrize("earlier", [0, 4, 5])
def test_the_hard_target_goes_on_from_earlier_updates(earlier: int, device: str) -> None:
    replay = replay_of()
    there = moved(replay, device)
    eager, card = pair(MLP((5,), 3, (8,)), device, target="hard", target_period=3)
    for learner in (eager, card):
        learner.go_on_from(earlier)
    native = native_of(card, device)
    for made, index in enumerate(torch.split(replay.draw(6, 12), 1), start=1):
        eager.learn(there, index.to(device))
        native(there.ring, index.to(device))
        assert_alike(card.state, eager.state, rtol=3e-4)
        copied = torch.equal(card.state.target, card.state.online)
        assert copied == ((earlier + made) % 3 == 0)
        copy_state(card.state, eager.state)


SIZES = [
    ((5,), 3, (), 7),
    ((1,), 1, (1,), 1),
    ((8,), 4, (64, 64), 64),
    ((6,), 18, (33, 70, 3), 130),
    ((40,), 2, (36,), 150),
]


@pytest.mark.parametrize(("obs", "actions", "hidden", "batch"), SIZES)
@pytest.mark.parametrize("double", [True, False])
def test_networks_and_batches_of_any_size(  # noqa: PLR0917 - the runner names them
    obs: tuple[int, ...],
    actions: int,
    hidden: tuple[int, ...],
    batch: int,
    double: bool,
    device: str,
) -> None:
    torch.manual_seed(0)
    arguments: dict[str, Any] = {"double": double, "loss": "mse", "clip_norm": None}
    eager, card = pair(MLP(obs, actions, hidden), device, **arguments)
    for seed in range(2):
        drawn = random_batch(seed, batch, obs_size=obs[0], actions=actions, masked=double)
        drawn = with_factors(drawn) if seed else drawn
        given = drawn.to_tensordict().to(device)
        for learner in (eager, card):
            learner.update(given)
        assert_alike(card.state, eager.state, rtol=1e-3)
        copy_state(card.state, eager.state)


@pytest.mark.parametrize("dtype", list(DTYPES), ids=str)
def test_observations_of_every_dtype_are_read(dtype: torch.dtype, device: str) -> None:
    replay = replay_of(dtype)
    there, index = moved(replay, device), replay.newest(3, 40).to(device)
    eager, card = pair(MLP((5,), 3, (8,), scale=1 / 255), device)
    for learner in (eager, card):
        learner.learn(there, index)
    assert_alike(card.state, eager.state)


def test_whole_numbers_become_one_hot_vectors(device: str) -> None:
    replay = ReplayBuffer(50, 2, (), torch.int64)
    replay.begin(torch.tensor([3, 5]))
    for _ in range(30):
        none = torch.zeros(2, dtype=torch.bool)
        replay.write(torch.randint(2, (2,)), torch.randn(2), none, none, torch.randint(3, 9, (2,)))
    eager, card = pair(MLP((), 2, (7,), one_hot=6, offset=3), device)
    there, index = moved(replay, device), replay.draw(6, 9).to(device)
    for learner in (eager, card):
        learner.learn(there, index)
    assert_alike(card.state, eager.state)


@pytest.mark.parametrize("newest", [False, True])
def test_batches_are_chosen_as_the_sampler_chooses_them(newest: bool, device: str) -> None:
    """With rows that are partly no transitions, over the wrap, and while the ring fills."""
    torch.manual_seed(0)
    eager, card = pair(MLP((5,), 3, (8,)), device, learning_rate=1e-4)
    replays = [ReplayBuffer(40, 4, (5,), seed=3, device=device) for _ in range(2)]
    for replay in replays:
        replay.begin(torch.zeros(4, 5, device=device))
    samplers = [(NewestSampler if newest else UniformSampler)(replay, 6) for replay in replays]
    none = torch.zeros(4, dtype=torch.bool, device=device)
    for step in range(30):
        numbers = torch.randint(3, (4,)), torch.randn(4), torch.rand(4) < 0.3, torch.randn(4, 5)
        action, reward, over, shown = (number.to(device) for number in numbers)
        real = torch.rand(4) < (0.6 if step % 3 else 2.0)
        real[0] = True
        for replay in replays:
            replay.write(action, reward, over, none, shown, real=real.numpy())
        for learner, sampler in zip((eager, card), samplers, strict=True):
            learner.learn(sampler, 3)
        # The first calls find so few transitions that a wrong choice would show at once.
        assert_alike(card.state, eager.state, rtol=1e-3)
        copy_state(card.state, eager.state)
    assert int(card.state.updates) == 90


def test_more_updates_than_are_gathered_at_once_are_the_same_to_the_bit(device: str) -> None:
    replay = replay_of()
    there, index = moved(replay, device), replay.draw(37, 10).to(device)
    states = []
    for rows in (37, 1):
        torch.manual_seed(0)
        _, card = pair(MLP((5,), 3, (8, 8)), device)
        native = native_of(card, device)
        for some in torch.split(index, rows):
            native(there.ring, some)
        states.append(all_of(card.state))
    assert all(map(torch.equal, *states))


@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_an_update_that_is_not_finite_changes_no_bit_and_is_counted(
    poison: float, device: str
) -> None:
    torch.manual_seed(0)
    eager, card = pair(MLP((4,), 2, (8,)), device)
    good, bad = random_batch(0), random_batch(1)
    bad.reward[3] = poison
    for number, batch in enumerate((good, bad, good)):
        before = [tensor.clone() for tensor in (card.state.online, card.state.target)]
        for learner in (eager, card):
            learner.update(batch.to_tensordict().to(device))
        same = map(torch.equal, before, (card.state.online, card.state.target))
        assert all(same) is (number == 1)
    assert int(card.state.skipped) == int(eager.state.skipped) == 1
    assert_alike(card.state, eager.state)


@pytest.mark.parametrize(("wrong", "where"), [(-1, "index"), (10**9, "index"), (3, "action")])
def test_what_does_not_lie_in_the_ring_is_never_read_and_changes_nothing(
    wrong: int, where: str, device: str
) -> None:
    replay = replay_of()
    there, index = moved(replay, device), replay.draw(2, 8).to(device)
    _, card = pair(MLP((5,), 3, (8,)), device)
    if where == "index":
        index[0, 4] = wrong
    else:
        there.ring.action[index[0, 4]] = wrong
        index[1] = index[0] = index[0]
    before = card.state.online.clone()
    card.learn(there, index[:1])
    assert torch.equal(card.state.online, before)
    assert (int(card.state.updates), int(card.state.skipped)) == (1, 1)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("envs", [1, 70, 600])
def test_acting_is_epsilon_greedy_over_the_allowed_actions(
    envs: int, masked: bool, device: str
) -> None:
    torch.manual_seed(envs)
    network = FlatNetwork(MLP((4,), 5, (16, 8)), device)
    builder: Maker = on_the_card if device == "cuda" else make
    actor, actions = (
        CudaActor(network, builder),
        torch.zeros(envs, dtype=torch.int64, device=device),
    )
    for epsilon in (0.0, 0.3, 1.0):
        obs, uniform = torch.randn(envs, 4).to(device), torch.rand(envs, 2).to(device)
        mask = (torch.rand(envs, 5) < 0.4).to(device) if masked else None
        actor(obs, torch.tensor(epsilon, device=device), uniform, mask, actions)
        with torch.no_grad():
            best = masked_q(network(network.views(network.flat), obs), mask).argmax(1)
        allowed = torch.ones(envs, 5, dtype=torch.bool) if mask is None else mask.cpu()
        allowed[~allowed.any(1)] = True
        for env in range(envs):
            among = allowed[env].nonzero().squeeze(1)
            anything = among[int(uniform[env, 1] * len(among))]
            explores = bool(uniform[env, 0] < epsilon)
            assert actions[env].cpu() == (anything if explores else best[env].cpu())
    network.flat.neg_()
    after = torch.zeros_like(actions)
    actor(obs, torch.tensor(0.0, device=device), uniform, mask, after)
    assert envs == 1 or not torch.equal(after, actions)


@EMULATED
@pytest.mark.parametrize("env_id", ["CartPole-v1", "Acrobot-v1"])
def test_a_block_by_the_cards_kernels_is_the_eager_block(
    env_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tensor environments act, step, write and learn; what is recorded on a card is run here.

    They step as they are in the first blocks, and compiled in the last.
    """
    rollouts, inductor = [], HeldInductor(monkeypatch)
    for way in ("eager", "native"):
        torch.manual_seed(0)
        env = make_tensor_env(env_id, 6, torch.device("cpu"))
        size, actions = env.single_observation_space.shape or (), int(env.single_action_space.n)
        learner = Learner(MLP(size, actions, (16,)), learning_rate=1e-3)
        given: dict[str, Any] = {"capacity": 200, "batch_size": 12, "seed": 3}
        rollout = TensorRollout(env, learner, **given)
        if way == "native":
            mode, written = mode_of(way, torch.device("cuda")), learner.state.written()
            parts = rollout._iteration, env, mode, written, rollout.device
            native = native_of(learner, "cpu")
            rollout._blocks = BlockRunner(*parts, native=native, background=True)
            # Kernels that are emulated cannot be recorded: the graphs run what they would record.
            monkeypatch.setattr(rollout._blocks, "_graph", lambda _, step: step)
        rollouts.append((rollout, learner))
    (eager, truth), (card, learner) = rollouts
    born = truth.state.online.clone()
    for block in (Block(2, 3, 2), Block(1, 0, 4), Block(1, 1, 4)) * 2:
        for rollout, _ in rollouts:
            rollout.advance(block, 0.5)
        inductor.finish()
        assert torch.equal(card.ring.ring.action, eager.ring.ring.action)
        torch.testing.assert_close(card.ring.ring.frames, eager.ring.ring.frames)
        assert_alike(learner.state, truth.state, rtol=1e-3)
        copy_state(learner.state, truth.state)
    assert int(truth.state.updates) == card.updates == 20
    assert (truth.state.online - born).abs().max() > 1e-3
    assert len(inductor.traces) == 3  # a vector step, and draws for three updates and for one
    assert inductor.calls == 4 + 4 + (4 + 4)  # one is compiled after another, a block each


@EMULATED
def test_an_update_is_three_kernels_and_a_call_one_more() -> None:
    replay = replay_of()
    _, card = pair(MLP((5,), 3, (8,)), "cpu")
    native = native_of(card, "cpu")
    native(replay.ring, replay.draw(4, 8))
    (plan,) = native._plans.values()
    kernels = plan._kernels
    assert isinstance(kernels, EmulatedKernels)
    assert kernels.launched == ["prepare", *["learn", "gradients", "commit"] * 4]


def test_what_does_not_fit_gets_fewer_rows_and_threads_and_is_refused_by_name() -> None:
    wide = Shape((8, 512, 512, 4), 256, torch.float32, 8, 1024)
    for limit in (227 * 1024, 99 * 1024):
        shape = fitted(wide, limit)
        assert max(shape.shared_bytes.values()) <= limit
        assert (shape.rows, shape.threads) < (wide.rows, wide.threads)
        assert shape.sizes == wide.sizes
    fitting = Shape((8, 64, 64, 4), 64, torch.float32, 1, 256)
    assert fitted(fitting, 64 * 1024) is fitting
    with pytest.raises(KernelError, match=r"layers of 512 units need .* bytes of shared memory"):
        fitted(wide, 16 * 1024)


@EMULATED
@pytest.mark.parametrize("rows", [1, 4])
def test_shared_memory_suffices_for_every_product(rows: int) -> None:
    """As the host counts it; the kernels refuse to compile where it does not."""
    for sizes in ((8, 256, 256, 4), (84, 512, 512, 18), (3, 120, 84, 2)):
        shape = fitted(Shape(sizes, 256, torch.float32, rows, 512), 227 * 1024)
        EmulatedKernels(SOURCE, shape.macros, Call, shape.shared_bytes)
