"""Updates on a card: every mode learns the same, and none waits."""

from __future__ import annotations

import copy
import gc
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor, nn

from fastdqn.execution.cuda_graph import CudaGraphStep
from fastdqn.learner.learner import Learner
from fastdqn.networks.mlp import MLP
from fastdqn.replay import ReplayBuffer, UniformSampler
from fastdqn.training.autotune import fastest_mode
from tests.learner_modes import learning_step
from tests.learner_settings import BATCH, SETTINGS, nothing_left_in, written

pytestmark = pytest.mark.cuda

PLAN = (4, 1, 16, 8, 2, 4, 5, 16, 27, 1, 16, 100)
"""Updates of each call, 200 in all; after the first eight every graph has been recorded."""
FASTER = ("compile", "cudagraph", "compile+cudagraph", "native")
MANY_SHAPES = "huber, adam, soft, double, norm"
COMPILED = (MANY_SHAPES, "masks, double", "convolutions, hard")
"""Settings that are compiled as well; the others are only recorded, to save minutes."""
NOT_NATIVE = ("a user's module, weight decay, no clip", "convolutions, hard")
PAIRS = [
    (name, mode)
    for name in SETTINGS
    for mode in FASTER
    if mode == "cudagraph" or name not in (NOT_NATIVE if mode == "native" else ())
    if mode in {"cudagraph", "native"} or name in COMPILED
]


@contextmanager
def no_waits() -> Iterator[None]:
    """Fail where the host waits for the device."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def captures(learner: Learner) -> int:
    step = learning_step(learner)
    return len(step._graphs) if isinstance(step, CudaGraphStep) else 0


@pytest.mark.parametrize(("name", "mode"), PAIRS)
def test_every_mode_learns_what_eager_learning_does(name: str, mode: str) -> None:
    setting = SETTINGS[name]
    learners = [setting.build(mode, "cuda"), setting.build("eager", "cuda")]
    samplers = [setting.sampler("cuda") for _ in learners]
    born = learners[1].state.online.clone()
    for learner, sampler in zip(learners, samplers, strict=True):
        for updates in PLAN:
            learner.learn(sampler, updates)
    fast, eager = (written(learner.state) for learner in learners)
    assert int(learners[0].state.updates) == sum(PLAN) == 200
    assert (learners[1].state.online - born).abs().max() > 0.01
    for mine, theirs in zip(fast, eager, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=5e-4, atol=2e-6)
    assert torch.equal(samplers[0].fill(3), samplers[1].fill(3))
    assert captures(learners[0]) == (0 if mode == "compile" else 7)


@pytest.mark.parametrize("mode", ["eager", *FASTER])
def test_updates_never_wait_and_nothing_is_compiled_or_recorded_again(mode: str) -> None:
    setting = SETTINGS[MANY_SHAPES]
    learner, sampler = setting.build(mode, "cuda"), setting.sampler("cuda")
    for updates in (27, 4):
        learner.learn(sampler, updates)
    seconds, recorded = learner.compile_s, captures(learner)
    with no_waits(), torch.compiler.set_stance("fail_on_recompile"):
        for step in range(20):
            learner.state.learning_rate.fill_(1e-3 * 0.9**step)
            learner.learn(sampler, (27, 4)[step % 2])
        learner.sync_target()
    assert (learner.compile_s, captures(learner)) == (seconds, recorded)
    with pytest.raises(RuntimeError, match="synchronizing"), no_waits():
        learner.state.metrics.tolist()


@pytest.mark.parametrize("mode", ["cudagraph", "compile+cudagraph", "native"])
def test_schedules_go_through_graphs(mode: str) -> None:
    setting = SETTINGS[MANY_SHAPES]
    learner, sampler = setting.build(mode, "cuda"), setting.sampler("cuda")
    learner.learn(sampler, 4)
    before = learner.state.online.clone()
    learner.state.learning_rate.zero_()
    learner.learn(sampler, 4)
    assert torch.equal(learner.state.online, before)
    learner.state.learning_rate.fill_(1e-2)
    learner.learn(sampler, 4)
    assert (learner.state.online - before).abs().max() > 1e-3


def test_memory_is_steady_over_a_thousand_updates() -> None:
    setting = SETTINGS[MANY_SHAPES]
    for mode in ("eager", "cudagraph", "native"):
        learner, sampler = setting.build(mode, "cuda"), setting.sampler("cuda")
        for updates in (16, 4, 16):
            learner.learn(sampler, updates)
        gc.collect()  # of earlier learners
        torch.cuda.synchronize()
        allocated, reserved = torch.cuda.memory_allocated(), torch.cuda.memory_reserved()
        for _ in range(50):
            learner.learn(sampler, 16)
            learner.learn(sampler, 4)
        torch.cuda.synchronize()
        assert torch.cuda.memory_allocated() == allocated, mode
        assert torch.cuda.memory_reserved() == reserved, mode


def test_batches_and_indices_of_the_caller_go_through_graphs() -> None:
    setting = SETTINGS["masks, double"]
    learners = [setting.build(mode, "cuda") for mode in ("cudagraph", "eager")]
    replay = setting.replay("cuda")
    for _ in range(40):
        index = replay.draw(5, BATCH)
        batch = replay.sample(BATCH)
        for learner in learners:
            learner.learn(replay, index)
            learner.update(batch)
    for mine, theirs in zip(*(written(learner.state) for learner in learners), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)


# Precision


@pytest.mark.parametrize("precision", ["tf32", "bf16"])
@pytest.mark.parametrize("mode", ["eager", "cudagraph", "compile+cudagraph"])
def test_lower_precisions_learn_about_the_same_in_every_way(precision: str, mode: str) -> None:
    setting = SETTINGS[MANY_SHAPES]
    learners = [
        setting.build(mode, "cuda", precision=precision),
        setting.build("eager", "cuda", precision=precision),
        setting.build("eager", "cuda"),
    ]
    born = learners[2].state.online.clone()
    for learner in learners:
        sampler = setting.sampler("cuda")
        for _ in range(25):
            learner.learn(sampler, 4)
    fast, eager, full = (learner.state.online for learner in learners)
    moved = (full - born).norm()
    assert (fast - eager).norm() < 0.1 * moved
    assert (eager - full).norm() < 0.3 * moved
    assert fast.dtype is torch.float32


def _wide() -> nn.Module:
    return nn.Sequential(
        nn.Unflatten(1, (32, 8, 8)), nn.Conv2d(32, 32, 3), nn.Flatten(), nn.Linear(32 * 36, 2)
    )


def test_float32_keeps_all_bits_of_convolutions_and_products() -> None:
    """PyTorch would let convolutions drop bits, an error of 1e-3 here."""
    torch.manual_seed(0)
    replay = ReplayBuffer(64, 2, (2048,), device="cuda")
    obs, module = torch.randn(2, 2048, device="cuda"), _wide()
    replay.begin(obs)
    over = torch.tensor([True, True], device="cuda")
    action = torch.zeros(2, dtype=torch.int64, device="cuda")
    replay.write(action, torch.zeros(2, device="cuda"), over, ~over, obs)
    exact = copy.deepcopy(module).double()
    wanted = float(exact(obs.cpu().double()).detach()[:, 0].mean())
    learner = Learner(module, device="cuda")
    learner.learn(replay, torch.tensor([[0, 1]], device="cuda"))
    assert abs(float(learner.state.metrics[2]) - wanted) < 1e-5


# Choosing


def test_a_measurement_on_the_card_leaves_no_trace() -> None:
    setting = SETTINGS[MANY_SHAPES]
    learner = setting.build("eager", "cuda")
    sampler = UniformSampler(setting.replay("cuda"), BATCH, due=4)
    before = written(learner.state)
    default = torch.cuda.get_rng_state()
    with nothing_left_in(sampler):
        best, message = fastest_mode(learner, sampler, 4, ["eager", "cudagraph"])
    assert best == learner.execution
    assert "eager" in message
    assert "cudagraph" in message
    assert torch.equal(torch.cuda.get_rng_state(), default)
    for kept, now in zip(before, written(learner.state), strict=True):
        assert torch.equal(kept.nan_to_num(), now.nan_to_num())


def test_a_module_that_waits_is_reported_and_left_out_and_the_learner_still_learns() -> None:
    """A capture that fails on a card must not spoil what runs after it."""

    class Waiting(MLP):
        def forward(self, obs: Tensor) -> Tensor:  # type: ignore[override]
            return super().forward(obs) * (1.0 if float(obs.sum()) < 1e9 else 2.0)

    torch.manual_seed(0)
    learner = Learner(Waiting((4,), 2, (8,)), device="cuda")
    sampler = UniformSampler(SETTINGS[MANY_SHAPES].replay("cuda"), BATCH)
    best, message = fastest_mode(learner, sampler, 2, ["eager", "cudagraph"])
    assert best == "eager"
    assert "cudagraph cannot run" in message
    before = learner.state.online.clone()
    learner.learn(sampler, 4)
    assert int(learner.state.updates) == 4
    assert (learner.state.online - before).abs().max() > 0
