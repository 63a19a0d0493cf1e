"""Compiled learning against eager learning, the truth; and that nothing compiles twice.

Compiling is slow, so that each setting is compiled once and its learner is shared; `start`
brings it back to where it was born.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters

from fastdqn.execution.ahead import AheadOfTime
from fastdqn.execution.compile import CompiledStep
from fastdqn.learner.learner import Learner, LearnerState
from fastdqn.networks.mlp import MLP
from fastdqn.policies.policy import Policy
from fastdqn.replay import ReplayBuffer, UniformSampler
from tests.learner_settings import NO_TARGET, PLAIN, SmallConv
from tests.small_learners import Branches, filled_ring, random_batch

pytestmark = pytest.mark.usefixtures("one_thread")

UPDATES = 200
ROUGH = 2e-2
"""A compiled function keeps bits between its operations that bfloat16 drops after each."""
BATCH = 8
REPLAY = filled_ring()
MASKED = filled_ring(num_masked=2)


@dataclass(frozen=True)
class Setting:
    """One way to set a learner up, and one way to feed it."""

    module: Callable[[], nn.Module]
    arguments: dict[str, Any]
    from_ring: bool
    masked: bool = False
    obs_size: int = 4

    @property
    def rounding(self) -> float:
        """Relative difference that the executions may have after many updates."""
        return ROUGH if self.arguments.get("precision") == "bf16" else 2e-4

    def build(self, execution: str) -> Learner:
        torch.manual_seed(0)
        return Learner(self.module(), learning_rate=1e-3, execution=execution, **self.arguments)

    def feed(self, learner: Learner, updates: int) -> None:
        """Make `updates` updates, always on the same batches."""
        if self.from_ring:
            generator = torch.Generator().manual_seed(0)
            index = torch.randint(64, (updates, BATCH), generator=generator)
            for part in torch.split(index, 5):  # in chunks of 4 and of 1
                learner.learn(MASKED if self.masked else REPLAY, part)
            return
        for seed in range(updates):
            given = random_batch(seed, BATCH, obs_size=self.obs_size, masked=self.masked)
            learner.update(given)


SETTINGS = {
    "ring, huber, adam, soft, double, norm": Setting(lambda: MLP((4,), 2, (8,)), {}, True),
    "mse, rmsprop, hard, value, a user's module": Setting(Branches, PLAIN, False),
    "adamw, amsgrad, no target, both clips": Setting(
        lambda: MLP((4,), 2, (8,)), {**NO_TARGET, "gamma": 0.9}, False
    ),
    "masks, ring, double": Setting(lambda: MLP((4,), 2, (8,)), {}, True, True),
    "masks, given, plain": Setting(lambda: MLP((4,), 2, (8,)), {"double": False}, False, True),
    "convolutions, hard": Setting(
        SmallConv, {"target": "hard", "target_period": 3}, False, obs_size=16
    ),
    "bfloat16, masks, double": Setting(
        lambda: MLP((4,), 2, (8,)), {"precision": "bf16"}, False, True
    ),
}
RING, GIVEN = "ring, huber, adam, soft, double, norm", "masks, given, plain"
QUICK = (RING,)
each_setting = pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.slow] * (name not in QUICK)) for name in SETTINGS],
)
some_and_all = pytest.mark.parametrize(
    "names",
    [
        pytest.param(QUICK, id="some"),
        pytest.param(tuple(SETTINGS), id="all", marks=pytest.mark.slow),
    ],
)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


class Compilers(dict[str, Learner]):
    """Learners that have compiled all that they need for chunks of 4 and of 1, made when asked."""

    def __missing__(self, name: str) -> Learner:
        self[name] = SETTINGS[name].build("compile")
        SETTINGS[name].feed(self[name], 5)
        return self[name]

    def of(self, names: tuple[str, ...]) -> dict[str, Learner]:
        """Return those of some settings."""
        return {name: self[name] for name in names}


@pytest.fixture(scope="module")
def compiled() -> Iterator[Compilers]:
    yield Compilers()
    torch._dynamo.reset()


def _tensors(state: LearnerState) -> list[Tensor]:
    return [state.online, state.target, *state.slots, state.updates, state.skipped]


def start(learner: Learner, setting: Setting) -> Learner:
    """Write the state of a newly born learner into a compiled one."""
    newborn = setting.build("eager").state
    for tensor, fresh in zip(_tensors(learner.state), _tensors(newborn), strict=True):
        tensor.copy_(fresh)
    learner.state.learning_rate.copy_(newborn.learning_rate)
    return learner


def assert_alike(state: LearnerState, other: LearnerState, rtol: float) -> None:
    for mine, theirs in zip(_tensors(state), _tensors(other), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=rtol, atol=1e-6)
    torch.testing.assert_close(state.metrics, other.metrics, rtol=rtol, atol=1e-6)


@each_setting
def test_compiled_learning_equals_eager_learning(name: str, compiled: Compilers) -> None:
    setting = SETTINGS[name]
    learner, eager = start(compiled[name], setting), setting.build("eager")
    born = eager.state.online.clone()
    for learning in (learner, eager):
        setting.feed(learning, UPDATES)
    assert int(learner.state.updates) == UPDATES
    assert (eager.state.online - born).abs().max() > 0.01
    assert_alike(learner.state, eager.state, rtol=setting.rounding)


def test_masks_make_a_difference_that_the_comparison_would_see() -> None:
    for name, setting in SETTINGS.items():
        if setting.masked:
            masked, free = setting.build("eager"), setting.build("eager")
            setting.feed(masked, UPDATES)
            replace(setting, masked=False).feed(free, UPDATES)
            apart = (masked.state.online - free.state.online).abs().max()
            assert apart > 1e-3, name


@pytest.mark.slow
def test_one_learner_compiles_batches_with_and_without_masks(
    compiled: Compilers,
) -> None:
    """The mask is one more tensor: both kinds of batch go through the same learner in turn."""
    setting = SETTINGS[GIVEN]
    learner, eager = start(compiled[GIVEN], setting), setting.build("eager")
    for seed in range(20):
        batch = random_batch(seed, BATCH, masked=seed % 2 == 0)
        learner.update(batch)
        eager.update(batch)
    assert_alike(learner.state, eager.state, rtol=2e-4)


def test_updates_in_chunks_are_updates_one_by_one_to_the_bit_when_eager() -> None:
    setting = SETTINGS[RING]
    together, apart = setting.build("eager"), setting.build("eager")
    index = torch.randint(64, (23, BATCH))
    together.learn(REPLAY, index)
    for row in torch.split(index, 1):
        apart.learn(REPLAY, row)
    for mine, theirs in zip(_tensors(together.state), _tensors(apart.state), strict=True):
        assert torch.equal(mine, theirs)


def test_updates_in_chunks_are_updates_one_by_one_when_compiled(
    compiled: Compilers,
) -> None:
    setting, learner = SETTINGS[RING], compiled[RING]
    index = torch.randint(64, (9, BATCH))
    start(learner, setting).learn(REPLAY, index)
    together = [tensor.clone() for tensor in _tensors(learner.state)]
    start(learner, setting)
    for row in torch.split(index, 1):
        learner.learn(REPLAY, row)
    for mine, theirs in zip(together, _tensors(learner.state), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-7)


@some_and_all
def test_nothing_compiles_again_after_the_first_calls(
    names: tuple[str, ...], compiled: Compilers
) -> None:
    learners = compiled.of(names)
    graphs = dict(counters["stats"])
    seconds = {name: learner.compile_s for name, learner in learners.items()}
    assert min(seconds.values()) > 0
    replays = {masked: filled_ring(num_masked=2 * masked) for masked in (False, True)}
    with torch.compiler.set_stance("fail_on_recompile"):
        for name, learner in learners.items():
            learner.state.learning_rate.fill_(1e-4)
            learner.sync_target()
            SETTINGS[name].feed(learner, 9)
            replay = replays[SETTINGS[name].masked]
            replay.begin(torch.randn(2, 4))
            if SETTINGS[name].from_ring:
                own = MASKED if SETTINGS[name].masked else REPLAY
                learner.learn(own, replay.draw(5, BATCH))
                learner.learn(own, replay.newest(4, BATCH))
    assert dict(counters["stats"]) == graphs
    assert {name: learner.compile_s for name, learner in learners.items()} == seconds


@pytest.mark.slow
def test_choosing_batches_compiles_with_the_update_and_reads_the_ring_anew() -> None:
    """What a graph may hold: one compile, though the ring grows, wraps and has gaps."""
    setting = SETTINGS[RING]
    learner, eager = setting.build("eager"), setting.build("eager")
    samplers = [UniformSampler(ReplayBuffer(40, 2, (4,)), BATCH) for _ in range(2)]

    compiler = AheadOfTime(learner.device)
    step = CompiledStep(learner._learning_from(samplers[1]), compiler)
    for number in range(60):
        row = random_batch(number, 2)
        real = row.terminated.numpy() if number % 9 == 5 else None
        for sampler in samplers:
            given = (row.action, row.reward, row.terminated, row.truncated, row.obs)
            sampler.buffer.write(*given, real=real)
        eager.learn(samplers[0], 1)
        step(samplers[1].fill(1))
    assert compiler.loaded + compiler.made == 1
    assert_alike(learner.state, eager.state, rtol=2e-4)


@some_and_all
def test_nothing_of_a_learner_has_to_be_compiled_inside(
    names: tuple[str, ...], compiled: Compilers
) -> None:
    for learner in compiled.of(names).values():
        for step in learner._steps.all:
            assert isinstance(step, CompiledStep)
            assert isinstance(step.compiler, AheadOfTime)
            assert step.compiler.fallback is None


@some_and_all
def test_a_compiled_update_that_is_not_finite_changes_nothing(
    names: tuple[str, ...], compiled: Compilers
) -> None:
    for name in names:
        setting = SETTINGS[name]
        if setting.from_ring:
            continue
        learner = start(compiled[name], setting)
        setting.feed(learner, 2)
        before = [tensor.clone() for tensor in _tensors(learner.state)[:-2]]
        batch = random_batch(2, BATCH, obs_size=setting.obs_size)
        learner.update(replace(batch, reward=batch.reward * math.nan))
        for tensor, kept in zip(_tensors(learner.state)[:-2], before, strict=True):
            assert torch.equal(tensor, kept)
        assert (int(learner.state.updates), int(learner.state.skipped)) == (3, 1)


@some_and_all
def test_the_learning_rate_is_read_anew_by_compiled_updates(
    names: tuple[str, ...], compiled: Compilers
) -> None:
    for name in names:
        setting = SETTINGS[name]
        learner = start(compiled[name], setting)
        learner.state.learning_rate.zero_()
        before = learner.state.online.clone()
        setting.feed(learner, 4)
        assert torch.equal(learner.state.online, before)
        learner.state.learning_rate.fill_(1e-2)
        setting.feed(learner, 4)
        assert (learner.state.online - before).abs().max() > 1e-3


def test_the_actor_sees_what_compiled_updates_write(compiled: Compilers) -> None:
    """No stale weights: rewards for one action make that action the greedy one."""
    learner = start(compiled[GIVEN], SETTINGS[GIVEN])
    policy, obs = Policy(learner.network), torch.randn(16, 4)
    learner.state.learning_rate.fill_(0.02)
    for wanted in (1, 0):
        for seed in range(60):
            batch = random_batch(seed, BATCH)
            reward = torch.where(batch.action == wanted, 3.0, -3.0)
            terminated = torch.ones_like(batch.terminated)
            learner.update(replace(batch, reward=reward, terminated=terminated))
        assert policy.act(obs, 0.0).tolist() == [wanted] * 16
        assert policy.greedy(obs).tolist() == [wanted] * 16


@pytest.mark.usefixtures("compiled")
def test_a_learner_can_change_its_execution_between_updates() -> None:
    setting = SETTINGS[RING]
    learner, eager = setting.build("eager"), setting.build("eager")
    index = torch.randint(64, (15, BATCH))
    eager.learn(REPLAY, index)
    learner.learn(REPLAY, index[:5])
    state, kept = learner.state, learner.state.online.clone()
    learner.execute_as("compile")
    assert learner.execution == "compile"
    assert learner.state is state
    assert torch.equal(state.online, kept)
    assert learner.compile_s == 0.0
    learner.learn(REPLAY, index[5:10])
    assert learner.compile_s > 0.0
    learner.execute_as("eager")
    learner.learn(REPLAY, index[10:])
    assert_alike(learner.state, eager.state, rtol=1e-4)
