"""Each objective learns in every mode what it learns eagerly, with all options at once."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastdqn import (
    DQN,
    IQN,
    MLP,
    C51Objective,
    IQNObjective,
    Learner,
    MunchausenObjective,
    PrioritizedSampler,
    QRObjective,
    UniformSampler,
    UsageError,
    make_tensor_env,
)
from fastdqn.algorithms.objectives import Objective
from tests.learner_modes import assert_from_a_library
from tests.small_learners import filled_ring, random_batch
from tests.twins import Twins

pytestmark = pytest.mark.usefixtures("one_thread")

UPDATES = 200
NUM_MASKED = 3
NAMES = ("munchausen", "c51", "qr", "iqn")
MADE: dict[str, tuple[Callable[..., Objective], Callable[[MLP], nn.Module], int | None]] = {
    "munchausen": (MunchausenObjective, lambda mlp: mlp, None),
    "c51": (lambda: C51Objective(num_atoms=7, v_min=-3.0, v_max=3.0), lambda mlp: mlp, 7),
    "c51, plain": (
        lambda: C51Objective(num_atoms=7, v_min=-3.0, v_max=3.0, double=False),
        lambda mlp: mlp,
        7,
    ),
    "qr": (lambda: QRObjective(num_quantiles=5), lambda mlp: mlp, 5),
    "iqn": (lambda: IQNObjective(num_quantiles=5), lambda mlp: IQN(mlp, 5), None),
}
"""Objective -> what makes it, what makes its network of an MLP, and the MLP's atoms."""


def learner_of(name: str, *, noisy: bool = False, actions: int = NUM_MASKED) -> Learner:
    torch.manual_seed(0)
    objective, network, atoms = MADE[name]
    options: dict[str, Any] = {"dueling": noisy, "noisy": noisy, "num_atoms": atoms}
    module = network(MLP((4,), actions, (16,), **options))
    return Learner(module, objective=objective(), learning_rate=1e-3)


def sampler_of(name: str) -> Any:
    """Return a sampler of three steps with masks; by priorities for all but one."""
    kind = UniformSampler if name == "c51, plain" else PrioritizedSampler
    return kind(filled_ring(n_step=3, num_masked=NUM_MASKED), 8)


def twins_of(mode: str, name: str, *, noisy: bool) -> Twins:
    return Twins(mode, lambda: learner_of(name, noisy=noisy), lambda: sampler_of(name))


def written(learner: Learner, sampler: Any) -> list[Tensor]:
    return [*learner.state.written(), *sampler.written()]


CALLS = (4, 1, 16, 64, 4, 16, 27, 4, 64)
LONG = [pytest.param(CALLS, noisy, marks=pytest.mark.slow) for noisy in (False, True)]


@pytest.mark.parametrize(("calls", "noisy"), [((2, 1, 2, 3), True), *LONG])
@pytest.mark.parametrize("name", MADE)
def test_graphs_learn_what_eager_learning_does_to_the_bit(
    name: str, calls: tuple[int, ...], noisy: bool
) -> None:
    twins = twins_of("cudagraph", name, noisy=noisy)
    for updates in calls:
        twins.learn(updates)
    twins.assert_learned(sum(calls), 5e-3)
    assert twins.cuda.captures() > 0
    twins.assert_equal()


@pytest.mark.slow
@pytest.mark.parametrize("name", MADE)
def test_two_hundred_compiled_updates_are_the_eager_ones(name: str) -> None:
    twins = twins_of("compile", name, noisy=name != "qr")
    for _ in range(UPDATES // 2):
        twins.learn(2)
        for mine, theirs in twins.pairs():
            torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-4)
            mine.copy_(theirs)
    twins.assert_learned(UPDATES, 5e-3)
    assert_from_a_library(twins.learners[0])


@pytest.mark.parametrize("name", MADE)
def test_native_refuses_each_by_its_name(name: str) -> None:
    with pytest.raises(UsageError, match=r"--execution native.* the objective is .*Objective"):
        learner_of(name).execute_as("native")


@pytest.mark.parametrize("name", MADE)
def test_half_precision_leaves_the_losses_in_float32(name: str) -> None:
    torch.manual_seed(0)
    objective, network, atoms = MADE[name]
    module = network(MLP((4,), 2, (16,), num_atoms=atoms))
    learners = [
        Learner(copy.deepcopy(module), objective=objective(), precision=precision)
        for precision in ("bf16", "float32")
    ]
    for seed in range(5):
        half, whole = (learner.update(random_batch(seed)).clone() for learner in learners)
        torch.testing.assert_close(half, whole, rtol=0.1, atol=0.05)
    assert all(int(learner.state.skipped) == 0 for learner in learners)


@pytest.mark.parametrize("reward", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("discounted", [True, False])
@pytest.mark.parametrize("name", MADE)
def test_a_reward_that_is_not_finite_is_not_learned(
    name: str, discounted: bool, reward: float
) -> None:
    learner, batch = learner_of(name), random_batch(0, actions=NUM_MASKED)
    batch.reward[2] = reward
    batch.terminated[2] = not discounted
    before = learner.state.online.clone()
    learner.update(batch)
    assert int(learner.state.skipped) == 1
    assert torch.equal(learner.state.online, before)


@pytest.mark.parametrize("name", MADE)
def test_a_copied_learner_learns_as_the_original(name: str) -> None:
    learner, sampler = learner_of(name, noisy=True), sampler_of(name)
    learner.learn(sampler, 3)
    twin, other = copy.deepcopy((learner, sampler))
    for each, source in ((learner, sampler), (twin, other)):
        each.learn(source, 5)
        each.update(random_batch(1, actions=NUM_MASKED, masked=True))
    pairs = zip(written(learner, sampler), written(twin, other), strict=True)
    assert all(torch.equal(mine, theirs) for mine, theirs in pairs)


SMALL: dict[str, Any] = {
    "batch_size": 8,
    "buffer_size": 64,
    "learning_starts": 16,
    "replay_ratio": 1.0,
    "hidden_sizes": (8,),
    "replay": "prioritized",
    "n_step": 3,
    "quiet": True,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_tensor_environments_train_compiled_as_eagerly(name: str) -> None:
    found = []
    for execution in ("eager", "compile"):
        env = make_tensor_env("CartPole-v1", 2, "cpu")
        agent = DQN(env, objective=name, execution=execution, **SMALL)
        agent.learn(60)
        assert int(agent.learner.state.skipped) == 0
        found.append(agent.learner.state.online.clone())
    torch.testing.assert_close(*found, rtol=1e-2, atol=1e-3)
