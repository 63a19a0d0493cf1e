"""The rollout of tensor environments: what it stores, learns, counts and reports."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Dict, MultiDiscrete, Space
from torch import Tensor

from fastdqn.algorithms.exploration import explore
from fastdqn.envs.tensor import CartPole, PureTensorEnv, TensorEnv
from fastdqn.errors import NonFiniteError, UsageError
from fastdqn.execution.modes import mode_of
from fastdqn.execution.step import EagerStep
from fastdqn.learner.learner import Learner
from fastdqn.networks.mlp import MLP
from fastdqn.replay import Sampler, gather
from fastdqn.training.events import Episode
from fastdqn.training.tensor import block_runner
from fastdqn.training.tensor.block_runner import BlockRunner
from fastdqn.training.tensor.blocks import Block
from fastdqn.training.tensor.rollout import TensorRollout
from fastdqn.transition import STORAGE_DTYPES, Transitions
from tests.hotpath.test_hotpath import Calls, Operations
from tests.oracles import CHAIN_GAMMA, CHAIN_Q, CounterRules
from tests.small_learners import CountUp, Descent, Table
from tests.tensor_oracles import NUM_ACTIONS, PureChain, PureCounter, TensorCounter, assert_counts
from tests.unit.execution.test_cuda_graph import FakeCuda

each_kind = pytest.mark.parametrize("kind", [PureCounter, TensorCounter])
RULES = {
    "truncated": CounterRules((3,)),
    "terminated": CounterRules((1, 4), "terminated"),
    "both": CounterRules((2, 5, 1, 3), "alternating"),
}
each_rules = pytest.mark.parametrize("rules", RULES.values(), ids=RULES)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def rollout_of(env: TensorEnv, learner: Learner | None = None, **settings: Any) -> TensorRollout:
    """Return a rollout over `env`, with a small learner of its own if none is given."""
    size = int(np.prod(env.single_observation_space.shape or ()))
    learner = learner or Learner(MLP((size,), int(env.single_action_space.n), (8,)))
    given = {"capacity": 60, "batch_size": 8, "seed": 0, **settings}
    if "learn" in given:
        learner.learn_from = partial(_without_state, given.pop("learn"))  # type: ignore[method-assign]
    return TensorRollout(env, learner, **given)


def _without_state(learn: Any, _state: object, *arguments: Any) -> None:
    learn(*arguments)


def stored(rollout: TensorRollout) -> Transitions:
    """Return all that can be drawn, oldest first."""
    rows = min(rollout.rows, rollout.ring.num_rows - 1)
    index, _ = rollout.sampler.draw(torch.arange(rows * rollout.env.num_envs))
    return gather(rollout.ring.ring, index)


# What is stored


def test_the_oracles_are_what_they_claim() -> None:
    assert isinstance(PureCounter(2), PureTensorEnv)
    assert isinstance(PureChain(2), PureTensorEnv)
    assert isinstance(TensorCounter(2), TensorEnv)
    assert not isinstance(TensorCounter(2), PureTensorEnv)


@each_kind
@each_rules
@pytest.mark.parametrize("num_envs", [1, 5])
@pytest.mark.parametrize("block", [Block(1, 1), Block(3, 2, 2), Block(1, 0, 4), Block(2, 20)])
def test_every_transition_that_can_be_drawn_is_right(
    kind: type[TensorCounter], rules: CounterRules, num_envs: int, block: Block
) -> None:
    rollout = rollout_of(kind(num_envs, rules), capacity=7 * num_envs)
    for _ in range(12):
        rollout.advance(block, 0.5)
        batch = stored(rollout)
        assert len(batch.action) == min(rollout.rows, 7) * num_envs
        assert_counts(batch, rules)
    assert rollout.rows == 12 * block.total_steps
    assert rollout.env_steps == rollout.rows * num_envs
    assert rollout.updates == 12 * block.total_updates


@each_kind
def test_updates_come_after_the_steps_of_their_block_and_see_only_what_is_right(
    kind: type[TensorCounter],
) -> None:
    rules, tape = RULES["both"], list[tuple[int, int]]()
    rollout: TensorRollout

    def learn(sampler: Sampler, random_bits: Tensor) -> None:
        for bits in random_bits:
            batch = gather(sampler.ring, sampler.draw(bits)[0])
            assert_counts(batch, rules)
            tape.append((int(rollout.ring.row), len(batch.action)))

    rollout = rollout_of(kind(4, rules), learn=learn, batch_size=6)
    rollout.advance(Block(3, 2, 2), 0.5)
    rollout.advance(Block(1, 0), 0.5)
    rollout.advance(Block(0, 1), 0.5)
    assert tape == [(3, 6), (3, 6), (6, 6), (6, 6), (7, 6)]
    assert rollout.updates == 5


@each_kind
def test_a_reset_cuts_the_running_episodes(kind: type[TensorCounter]) -> None:
    rules = CounterRules((10,))
    rollout = rollout_of(kind(3, rules))
    rollout.advance(Block(4, 0), 1.0)
    rollout.reset([1])
    assert rollout.advance(Block(9, 0), 1.0) == []
    assert_counts(stored(rollout), rules)
    assert [episode.length for episode in rollout.advance(Block(1, 0), 1.0)] == [10] * 3
    assert len(stored(rollout).action) == 14 * 3


# Reports


@each_kind
@each_rules
def test_episodes_are_those_that_the_stored_rows_add_up_to(
    kind: type[TensorCounter], rules: CounterRules
) -> None:
    rollout = rollout_of(kind(3, rules), capacity=30)
    returns, lengths = [0.0] * 3, [0] * 3
    want: list[Episode] = []
    message: list[Episode] = []
    for _ in range(20):
        message += rollout.advance(Block(2, 1, 3), 0.5)
        batch = stored(rollout)
        columns = (batch.reward, batch.terminated, batch.truncated)
        rows = list(zip(*(column[-18:].tolist() for column in columns), strict=True))
        for place, (reward, terminated, truncated) in enumerate(rows):
            env, env_step = place % 3, rollout.env_steps - 18 + place // 3 * 3 + 3
            returns[env] += reward
            lengths[env] += 1
            if terminated or truncated:
                end = (returns[env], lengths[env], truncated)
                want.append(Episode(len(want) + 1, env_step, *end))
                returns[env], lengths[env] = 0.0, 0
    assert len(want) > 20
    assert message == want
    assert rollout.episodes == len(want)


# How it acts


def preferring(action: int, obs_size: int = 3) -> Learner:
    """Return a learner whose network likes one action best, whatever it sees."""
    learner = Learner(MLP((obs_size,), NUM_ACTIONS, ()))
    learner.state.online.zero_()
    learner.state.online[-NUM_ACTIONS + action] = 1.0
    return learner


@each_kind
@pytest.mark.parametrize(("epsilon", "share"), [(0.0, 0.0), (0.5, 1 / 3), (1.0, 2 / 3)])
def test_each_environment_explores_by_a_draw_of_its_own(
    kind: type[TensorCounter], epsilon: float, share: float
) -> None:
    rollout = rollout_of(kind(64), preferring(1), capacity=64 * 500)
    rollout.advance(Block(500, 0), epsilon)
    other = (stored(rollout).action != 1).view(500, 64).float()
    variance = share * (1 - share)
    assert abs(other.mean() - share) <= 5 * math.sqrt(variance / other.numel())
    for axis, size in ((1, 64), (0, 500)):  # binomial over environments, and over steps
        spread = float(other.sum(axis).var())
        assert 0.6 * size * variance <= spread <= 1.5 * size * variance


@each_kind
def test_the_actor_sees_what_is_stored_as_its_observation(kind: type[TensorCounter]) -> None:
    """Q = 2 a t - a^2 is largest where a = t; at an end it must see t = 0, not the last t."""
    learner = preferring(0)
    actions = torch.arange(NUM_ACTIONS).float()
    weight, bias = learner.network.views(learner.state.online)
    weight[:, 2], bias[:] = 2 * actions, -(actions**2)
    rollout = rollout_of(kind(3, CounterRules((2, 1))), learner)
    rollout.advance(Block(12, 0), 0.0)
    batch = stored(rollout)
    assert set(batch.action.tolist()) == {0, 1}
    assert batch.action.tolist() == batch.obs[:, 2].tolist()


def test_every_action_is_explored_alike() -> None:
    uniform = torch.rand(30_000, 2)
    q = torch.tensor([0.0, 9.0, 0.0, 0.0, 0.0]).expand(len(uniform), 5)
    counts = explore(q, torch.tensor(1.0), uniform).bincount(minlength=5)
    assert ((counts - 6_000).abs() < 400).all()
    edge = torch.tensor([[0.0, 1 - 2**-24]])
    for num_actions in range(1, 3000):
        action = explore(torch.zeros(1, num_actions), torch.tensor(1.0), edge)
        assert action.item() == num_actions - 1


def test_exploring_and_what_is_explored_are_independent() -> None:
    action = explore(torch.zeros(20_000, 2), torch.tensor(0.5), torch.rand(20_000, 2))
    assert abs(action.float().mean() - 0.25) < 0.02


@each_kind
def test_the_actor_sees_what_the_updates_write(kind: type[TensorCounter]) -> None:
    learner = preferring(0)

    def learn(sampler: Sampler, random_bits: Tensor) -> None:
        learner.state.online[-NUM_ACTIONS + 2] += 1.0

    rollout = rollout_of(kind(2), learner, learn=learn)
    rollout.advance(Block(1, 1, 4), 0.0)
    assert stored(rollout).action.tolist() == [0, 0, 0, 0, 2, 2, 2, 2]


def test_the_same_seed_is_the_same_run_and_another_is_another() -> None:
    def actions(seed: int) -> list[int]:
        torch.manual_seed(5)
        rollout = rollout_of(CartPole(4), seed=seed)
        rollout.advance(Block(10, 3), 0.7)
        found: list[int] = stored(rollout).action.tolist()
        return found

    assert actions(1) == actions(1)
    assert actions(1) != actions(2)


# How it learns


class ChainAround:
    """The chain without its purity."""

    def __init__(self, num_envs: int) -> None:
        self._chain = PureChain(num_envs)
        for name in ("env_id", "num_envs", "device", "reset", "step", "close"):
            setattr(self, name, getattr(self._chain, name))
        self.single_observation_space = self._chain.single_observation_space
        self.single_action_space = self._chain.single_action_space


@pytest.mark.parametrize(("kind", "double"), [(PureChain, True), (ChainAround, False)])
def test_q_of_the_chain_converges_to_the_known_values(kind: Any, double: bool) -> None:
    learner = Learner(
        Table(2, 2),
        gamma=CHAIN_GAMMA,
        double=double,
        optimizer=Descent(),
        learning_rate=1.0,
        tau=0.5,
        loss="mse",
        clip_norm=None,
    )
    rollout = rollout_of(kind(4), learner, capacity=400, batch_size=32)
    assert isinstance(rollout.env, PureTensorEnv) is (kind is PureChain)
    rollout.advance(Block(20, 0), 1.0)
    episodes = [episode for _ in range(20) for episode in rollout.advance(Block(1, 1, 5), 0.5)]
    assert {episode.truncated for episode in episodes} == {True, False}
    want = torch.tensor(CHAIN_Q)
    torch.testing.assert_close(learner.state.online.view(2, 2), want, atol=0.02, rtol=0)
    assert int(learner.state.updates) == 100


def test_the_rollout_and_the_learner_count_the_same_updates() -> None:
    learner = Learner(MLP((3,), NUM_ACTIONS, ()), optimizer=CountUp(), target="none")
    born = learner.state.online.clone()
    rollout = rollout_of(PureCounter(2), learner)
    for block in (Block(1, 5, 2), Block(1, 40), Block(3, 0), Block(0, 7)):
        rollout.advance(block, 0.5)
    assert rollout.updates == 57
    torch.testing.assert_close(learner.state.online, born + 57.0)


# What it does not do


@each_kind
@pytest.mark.parametrize(("length", "looks"), [(100, 1), (2, 2)])
def test_the_host_looks_once_and_once_more_if_an_episode_ended(
    kind: type[TensorCounter], length: int, looks: int
) -> None:
    rollout = rollout_of(kind(4, CounterRules((length,))))
    block = Block(2, 2, 3)
    rollout.advance(block, 0.5)
    with Operations() as operations, Calls() as calls:
        rollout.advance(block, 0.5)
    assert operations.looks == []
    assert operations.doubles == []
    assert calls.names == {"cpu": looks, "numpy": looks}
    assert operations.names["aten.index_put_"] > 0


def test_cartpole_makes_no_float64_and_is_never_looked_at() -> None:
    rollout = rollout_of(CartPole(4))
    rollout.advance(Block(30, 1), 1.0)
    with Operations() as operations:
        rollout.advance(Block(30, 1), 1.0)
    assert (operations.doubles, operations.looks) == ([], [])


# What goes wrong


@each_kind
@pytest.mark.parametrize("what", ["reward", "obs", "final_obs"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_number_that_is_not_finite_is_named(
    kind: type[TensorCounter], what: str, value: float
) -> None:
    env = kind(4, CounterRules((2,)))
    env.bad_at[what] = (2, 8, value)
    rollout = rollout_of(env)
    rollout.advance(Block(3, 1, 2), 0.5)
    name = "reward" if what == "reward" else "observation"
    with pytest.raises(NonFiniteError, match=rf"environment 2 .*{name} \[?{value}.* env step 32:"):
        rollout.advance(Block(3, 1, 2), 0.5)


INTEGERS: list[Space[Any]] = [
    MultiDiscrete([4096, 4096, 64]),
    Box(0, 4095, (3,), np.int32),
    Box(np.zeros(3), np.array([4095, 4095, 63]), dtype=np.int16),
]


def _of_integers(kind: type[TensorCounter], space: Space[Any]) -> TensorCounter:
    env = kind(4, CounterRules((2,)))
    env.single_observation_space = space
    dtype = STORAGE_DTYPES[str(space.dtype)]
    env._obs, env._final = (torch.zeros((4, 3), dtype=dtype) for _ in range(2))
    return env


@each_kind
@pytest.mark.parametrize("space", INTEGERS, ids=str)
@pytest.mark.parametrize("what", ["obs", "final_obs"])
@pytest.mark.parametrize("value", [4096, -1])
def test_an_integer_that_its_space_does_not_hold_is_named(
    kind: type[TensorCounter], what: str, value: int, space: Space[Any]
) -> None:
    env = _of_integers(kind, space)
    env.bad_at[what] = (2, 8, value)
    rollout = rollout_of(env)
    rollout.advance(Block(3, 1, 2), 0.5)
    with pytest.raises(UsageError, match=r"^environment 2 with the .* by env step 32: its obs"):
        rollout.advance(Block(3, 1, 2), 0.5)


def test_a_first_observation_outside_its_space_is_named() -> None:
    class Bad(PureCounter):
        def reset(self, seed: int) -> Tensor:
            obs = super().reset(seed)
            obs[1, 2] = 64
            return obs

    with pytest.raises(UsageError, match=r"^environment 1 with the observation \[1.*, 64.*Multi"):
        rollout_of(_of_integers(Bad, INTEGERS[0]))


def test_floats_from_a_space_of_integers_are_refused_by_their_dtype() -> None:
    env = _of_integers(TensorCounter, INTEGERS[1])
    env._obs = torch.zeros(4, 3)
    with pytest.raises(UsageError, match=r"^observations of torch.float32 .* torch\.int32\. Ret"):
        rollout_of(env)


def test_a_fault_that_the_ring_no_longer_holds_is_reported_all_the_same() -> None:
    env = PureCounter(4)
    env.bad_at["reward"] = (1, 2, math.nan)
    rollout = rollout_of(env, capacity=8)
    with pytest.raises(NonFiniteError, match=r"environment 1 .* number .* env step 8:"):
        rollout.advance(Block(9, 0), 0.5)


def test_a_first_observation_that_is_not_finite_is_named() -> None:
    class Bad(PureCounter):
        def reset(self, seed: int) -> Tensor:
            obs = super().reset(seed)
            obs[1, 2] = math.inf
            return obs

    with pytest.raises(NonFiniteError, match=r"environment 1 .*observation \[1.0, 0.0, inf\]"):
        rollout_of(Bad(2))


def test_what_cannot_be_is_refused() -> None:
    learner = Learner(MLP((3,), NUM_ACTIONS, ()))
    good: dict[str, Any] = {"capacity": 8, "batch_size": 2, "seed": 0}
    with pytest.raises(UsageError, match="--batch-size 0"):
        TensorRollout(PureCounter(2), learner, **{**good, "batch_size": 0})
    with pytest.raises(UsageError, match="--execution fast"):
        TensorRollout(PureCounter(2), learner, **good, execution="fast")
    with pytest.raises(UsageError, match="cudagraph on cpu"):
        TensorRollout(PureCounter(2), learner, **good, execution="cudagraph")
    elsewhere = PureCounter(2)
    elsewhere.device = torch.device("meta")
    with pytest.raises(UsageError, match="one device"):
        TensorRollout(elsewhere, learner, **good)
    nested = PureCounter(2)
    nested.single_observation_space = Dict({"x": Box(0, 1)})
    with pytest.raises(UsageError, match="one tensor"):
        TensorRollout(nested, learner, **good)


def test_updates_need_something_to_learn_from() -> None:
    fresh = rollout_of(PureCounter(2))
    with pytest.raises(UsageError, match="ring is empty"):
        fresh.advance(Block(0, 1), 0.5)
    assert (fresh.rows, fresh.updates) == (0, 0)


# Capturing, without a GPU


def test_a_warm_up_before_a_capture_leaves_no_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    """The stand-in graph repeats the block, so that a recorded run must equal a plain one."""

    def built() -> tuple[TensorRollout, Learner]:
        torch.manual_seed(0)
        learner = Learner(MLP((3,), NUM_ACTIONS, (8,)))
        return rollout_of(PureCounter(3, RULES["both"]), learner, capacity=24), learner

    (plain, plain_learner), (rollout, learner) = built(), built()
    cuda = FakeCuda()

    class Launched(EagerStep):
        def __call__(self, *tensors: Tensor) -> None:
            cuda.launch(partial(super().__call__, *tensors))

    mode, device = mode_of("cudagraph", torch.device("cuda")), torch.device("cpu")
    written = learner.state.written()
    blocks = BlockRunner(rollout._iteration, rollout.env, mode, written, device, cuda=cuda)
    monkeypatch.setattr(block_runner, "EagerStep", Launched)
    rollout._blocks = blocks
    for block in [Block(2, 2, 2)] * 3 + [Block(3, 1)] + [Block(2, 2, 2)] * 3:
        assert rollout.advance(block, 0.3) == plain.advance(block, 0.3)
    assert cuda.tape.count("replay") == 7
    assert cuda.tape.count("capture in pool 1") == 2
    for mine_, theirs_ in zip(stored(rollout).tensors(), stored(plain).tensors(), strict=True):
        assert mine_ is theirs_ or torch.equal(mine_, theirs_)  # type: ignore[arg-type]
    mine, theirs = learner.state, plain_learner.state
    assert torch.equal(mine.online, theirs.online)
    assert torch.equal(mine.target, theirs.target)
    assert int(mine.updates) == int(theirs.updates) == rollout.updates
