"""Learning that moves from one graph to another equals eager learning, whenever it moves.

The graphs are stand-ins that record real operations (`tests.fake_cuda`), and the compiler is one
that waits until the test lets it end: a call that waited for it would never return.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch

from fastdqn.execution.cuda_graph import CudaGraphStep
from fastdqn.execution.modes import mode_of
from fastdqn.execution.step import EagerStep, PlainUntilCompiled, PureStep, Step, StepGroup
from fastdqn.learner.learner import Learner
from fastdqn.networks.mlp import MLP
from fastdqn.policies.policy import Policy
from fastdqn.replay import UniformSampler
from fastdqn.training import autotune
from fastdqn.training.autotune import tune
from fastdqn.training.tensor.block_runner import BlockRunner
from fastdqn.training.tensor.blocks import Block
from fastdqn.training.tensor.rollout import TensorRollout
from tests.clock import Clock
from tests.compilers import HeldInductor
from tests.fake_cuda import RecordingCuda
from tests.learner_modes import learning_step, run_by, run_by_graphs
from tests.learner_settings import BATCH, SETTINGS, written
from tests.oracles import CounterRules
from tests.small_learners import random_batch
from tests.tensor_oracles import PureCounter, TensorCounter

pytestmark = pytest.mark.usefixtures("one_thread")

MODE = "compile+cudagraph"
OWN = SETTINGS["a user's module, weight decay, no clip"]
TRIED = ("a user's module, weight decay, no clip", "convolutions, hard", "masks, plain, newest")
PLAN = (4, 1, 16, 5, 1, 4, 16, 5)


@pytest.fixture
def inductor(monkeypatch: pytest.MonkeyPatch) -> HeldInductor:
    return HeldInductor(monkeypatch)


def moving(learner: Learner, *, background: bool = True) -> RecordingCuda:
    """Let a learner run by graphs of the stand-in, compiled when that is done."""
    cuda = RecordingCuda()
    run_by_graphs(learner, cuda, MODE, background=background)
    learner.execute_as(MODE)
    return cuda


def assert_alike(learner: Learner, other: Learner) -> None:
    for mine, theirs in zip(written(learner.state), written(other.state), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)


def captures(step: Any) -> tuple[int, int]:
    """Return how many graphs were recorded of the step as it is, and of the compiled one."""
    assert isinstance(step, PlainUntilCompiled)
    assert isinstance(step.plain, CudaGraphStep)
    assert isinstance(step.fast, CudaGraphStep)
    return len(step.plain._graphs), len(step.fast._graphs)


@pytest.mark.parametrize("name", TRIED)
@pytest.mark.parametrize("moves_at", [0, 3])
def test_what_is_learned_does_not_depend_on_when_it_moves(
    name: str, moves_at: int, inductor: HeldInductor
) -> None:
    setting = SETTINGS[name]
    learner, eager = setting.build(), setting.build()
    cuda = moving(learner)
    mine, theirs = setting.sampler(), setting.sampler()
    born = eager.state.online.clone()
    for number, updates in enumerate(PLAN):
        learner.learn(mine, updates)
        eager.learn(theirs, updates)
        assert_alike(learner, eager)
        if number <= moves_at:
            assert captures(learning_step(learner))[1] == inductor.calls == 0
        if number == moves_at:
            inductor.finish()
    (step,) = learner.compiling
    assert (step.failure, step.ready) == (None, True)
    assert (step.ready_after_s or 0.0) > 0
    assert captures(step)[1] == 3  # of 16, 4 and 1, once each
    recorded = cuda.captures()
    for updates in PLAN:
        learner.learn(mine, updates)
        eager.learn(theirs, updates)
    assert cuda.captures() == recorded
    assert_alike(learner, eager)
    assert (eager.state.online - born).abs().max() > 0.01
    assert torch.equal(mine.fill(3), theirs.fill(3))
    assert len(inductor.traces) == 1


@pytest.mark.slow
def test_batches_and_indices_of_the_caller_move_too(inductor: HeldInductor) -> None:
    """However they lie in the caller's memory."""
    learner, eager = OWN.build(), OWN.build()
    moving(learner)
    replay = OWN.replay()
    for seed in range(6):
        batch = replace(random_batch(seed, BATCH), obs=torch.randn(4, BATCH).t())
        index = replay.draw(BATCH, 5).t()
        for one in (learner, eager):
            one.update(batch)
            one.learn(replay, index)
        assert_alike(learner, eager)
        inductor.finish()
    for step in learner._steps.all:
        assert isinstance(step, PlainUntilCompiled)
        assert (step.failure, step.ready) == (None, True)
        assert step.ready_after_s
    assert len(inductor.traces) == 2


def test_where_compiling_fails_it_stays_recorded_and_says_so(inductor: HeldInductor) -> None:
    learner, eager = OWN.build(), OWN.build()
    moving(learner)
    mine, theirs = OWN.sampler(), OWN.sampler()
    for _ in range(4):
        learner.learn(mine, 4)
        eager.learn(theirs, 4)
        inductor.finish("no space left")
    assert_alike(learner, eager)
    (step,) = learner.compiling
    assert (step.failure, step.ready_after_s) == ("RuntimeError: no space left", None)
    assert captures(step) == (1, 0)
    assert len(inductor.traces) == 1


@pytest.mark.slow
def test_closed_a_learner_forgets_the_compile_and_goes_on_by_the_same_graphs(
    inductor: HeldInductor,
) -> None:
    learner, sampler = OWN.build(), OWN.sampler()
    cuda = moving(learner)
    learner.learn(sampler, 4)
    learner.close()
    assert learner.execution == "cudagraph"
    inductor.finish()
    learner.learn(sampler, 4)
    assert (cuda.captures(), inductor.calls) == (1, 0)
    moving(learner)  # a later training
    learner.learn(sampler, 4)
    inductor.finish()
    learner.learn(sampler, 4)
    learner.close()
    assert learner.execution == MODE  # which is there
    assert captures(learning_step(learner)) == (1, 1)
    assert int(learner.state.updates) == 16


def test_what_was_asked_for_by_name_is_waited_for(inductor: HeldInductor) -> None:
    learner, sampler = OWN.build(), OWN.sampler()
    moving(learner, background=False)
    inductor.go.set()
    learner.learn(sampler, 4)
    assert isinstance(step := learning_step(learner), CudaGraphStep)
    assert inductor.calls == 4 * 4  # four updates, in three warm-ups and a recording
    assert (len(inductor.traces), len(step._graphs)) == (1, 1)


@pytest.mark.slow
def test_auto_starts_without_a_compiler_and_records_nothing_twice(
    inductor: HeldInductor, monkeypatch: pytest.MonkeyPatch, clock: Clock
) -> None:
    monkeypatch.setattr(autotune, "synchronize", lambda device: None)
    monkeypatch.setattr(autotune, "fastest_actor", lambda *_: ("eager", "acting by eager"))
    learner, cuda = OWN.build(), RecordingCuda()
    learner.device = torch.device("cuda")  # so it says; its tensors are the CPU's
    monkeypatch.setattr(learner, "_steps_in", partial(learner._steps_in, cuda=cuda))

    def slow(step: PureStep) -> Step:
        def slowly(*given: Any) -> None:
            clock.now += 1e-3
            step(*given)

        return EagerStep(slowly)

    run_by(learner, "eager", slow)
    sampler = UniformSampler(OWN.replay(), BATCH, due=2)
    message = tune("auto", learner, Policy(learner.network), sampler, expected_updates=10**6)
    assert learner.execution == MODE
    assert message.startswith(
        "measured per update: cudagraph 0 us, eager 500 us; 1,000,000 updates"
    )
    learner.learn(sampler, 2)
    assert (cuda.captures(), inductor.calls) == (1, 0)
    inductor.finish()
    learner.learn(sampler, 2)
    assert (cuda.captures(), inductor.calls) == (2, 2 * 4)
    assert int(learner.state.updates) == 4


# Tensor environments

KINDS: dict[str, Any] = {"whole": PureCounter, "around": TensorCounter}
RULES = CounterRules((2, 5, 1, 3), "alternating")
BLOCKS = (Block(1, 1, 2), Block(1, 2), Block(1, 1, 2), Block(1, 2), Block(3, 0))


def rollout_of(kind: str, mode: str = "eager", **given: Any) -> tuple[TensorRollout, Learner]:
    """Build a rollout on the CPU that runs its blocks as it would on a card."""
    torch.manual_seed(0)
    env = KINDS[kind](3, RULES)
    learner = Learner(MLP((3,), int(env.single_action_space.n), (8,), scale=0.1))
    rollout = TensorRollout(env, learner, capacity=40, batch_size=8, seed=3)
    if mode != "eager":
        cuda = torch.device("cuda")
        parts = rollout._iteration, env, mode_of(mode, cuda), learner.state.written(), cuda
        rollout._blocks = BlockRunner(*parts, **given)
    return rollout, learner


def assert_same_rollouts(mine: TensorRollout, theirs: TensorRollout) -> None:
    cells = mine.ring.ring.cells(), theirs.ring.ring.cells()
    for (name, one), other in zip(cells[0].items(), cells[1].values(), strict=True):
        assert torch.equal(one, other), name
    for one, other in zip(mine._iteration.state, theirs._iteration.state, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("moves_at", [0, pytest.param(7, marks=pytest.mark.slow)])
def test_blocks_do_what_eager_blocks_do_whenever_they_move(
    kind: str, moves_at: int, inductor: HeldInductor
) -> None:
    cuda = RecordingCuda()
    rollout, learner = rollout_of(kind, MODE, background=True, cuda=cuda)
    plain, eager = rollout_of(kind)
    for number in range(15):
        block = BLOCKS[number % len(BLOCKS)]
        assert rollout.advance(block, 0.6) == plain.advance(block, 0.6)
        assert_same_rollouts(rollout, plain)
        assert_alike(learner, eager)
        if number < moves_at:
            assert inductor.calls == 0
        else:
            inductor.finish()
    (steps,) = rollout.compiling
    assert isinstance(steps, StepGroup)
    assert len(steps.steps) == 3  # a whole block of each kind; or acting, recording and learning
    assert steps.ready_after_s
    assert steps.failure is None
    recorded, traced = cuda.captures(), len(inductor.traces)
    for block in BLOCKS:
        assert rollout.advance(block, 0.1) == plain.advance(block, 0.1)
    assert_same_rollouts(rollout, plain)
    assert_alike(learner, eager)
    assert (cuda.captures(), len(inductor.traces)) == (recorded, traced)


def test_blocks_that_were_asked_for_by_name_wait(inductor: HeldInductor) -> None:
    rollout, _ = rollout_of("whole", MODE, cuda=RecordingCuda())
    inductor.go.set()
    rollout.advance(BLOCKS[0], 0.5)
    (step,) = rollout._blocks.steps.steps
    assert isinstance(step, CudaGraphStep)
    assert inductor.calls == 2 * 4


def test_blocks_whose_compile_fails_stay_recorded_and_say_so(inductor: HeldInductor) -> None:
    cuda = RecordingCuda()
    rollout, learner = rollout_of("whole", MODE, background=True, cuda=cuda)
    plain, eager = rollout_of("whole")
    for _ in range(4):
        assert rollout.advance(BLOCKS[0], 0.5) == plain.advance(BLOCKS[0], 0.5)
        inductor.finish("no space left")
    assert_same_rollouts(rollout, plain)
    assert_alike(learner, eager)
    (step,) = rollout._blocks.steps.steps
    assert (step.failure, captures(step)) == ("RuntimeError: no space left", (1, 0))
