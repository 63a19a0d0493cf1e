"""Compiling beside a training on a card: it starts with graphs, and moves when it is compiled."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from fastdqn import DQN
from fastdqn.execution import modes
from fastdqn.execution.cuda_graph import CudaGraphStep
from fastdqn.execution.step import EagerStep, PlainUntilCompiled, Progress
from fastdqn.training.callbacks import Callback
from fastdqn.training.trainer import Trainer
from tests.gpu.test_tensor_iteration import BLOCK, build, same_from_the_same_state
from tests.gpu.test_training import SMALL
from tests.gpu.test_updates import no_waits
from tests.learner_settings import SETTINGS, written
from tests.small_learners import Branches

pytestmark = pytest.mark.cuda

MODE = "compile+cudagraph"
PATIENCE_S = 100.0


def until(done: Callable[[], object], work: Callable[[], object]) -> None:
    """Do work until it is done, within the patience of a test."""
    start = time.perf_counter()
    while not done():
        assert time.perf_counter() - start < PATIENCE_S
        work()


def rest() -> None:
    time.sleep(0.01)


@pytest.mark.parametrize(
    "name", ["a user's module, weight decay, no clip", "convolutions, hard", "masks, double"]
)
def test_updates_start_recorded_and_move_with_the_same_numbers(name: str) -> None:
    setting = SETTINGS[name]
    learner, eager = (setting.build("eager", "cuda") for _ in range(2))
    learner.execute_as(MODE, background=True)
    mine, theirs = (setting.sampler("cuda") for _ in range(2))
    learner.prepare(mine, 1)
    (step,) = learner.compiling
    assert isinstance(step, PlainUntilCompiled)
    for number, updates in enumerate((4, 16, 4, 1, 16, 4, 5, 50)):
        learner.learn(mine, updates)
        eager.learn(theirs, updates)
        if number == 0:
            assert step.ready_after_s is None
            until(lambda: step.ready, rest)
    assert step.failure is None
    assert step.ready_after_s is not None
    for one, other in zip(written(learner.state), written(eager.state), strict=True):
        torch.testing.assert_close(one, other, rtol=5e-4, atol=2e-6)
    seconds = learner.compile_s
    with no_waits(), torch.compiler.set_stance("fail_on_recompile"):
        for updates in (4, 16):
            learner.learn(mine, updates)
    assert learner.compile_s == seconds


def test_other_recordings_succeed_while_something_compiles() -> None:
    """As when an evaluation acts by a graph of its own."""
    setting = SETTINGS["convolutions, hard"]
    learner, sampler = setting.build("eager", "cuda"), setting.sampler("cuda")
    learner.execute_as(MODE, background=True)
    learner.learn(sampler, 4)
    (step,) = learner.compiling
    recorded: list[float] = []

    def record() -> None:
        total = torch.zeros(1000, device="cuda")

        def add(total: Tensor) -> None:
            total.add_(torch.ones_like(total))

        CudaGraphStep(EagerStep(add), lambda total: total.zero_)(total)
        recorded.append(float(total[0]))

    until(lambda: step.ready, record)
    assert step.failure is None
    assert set(recorded) == {1.0}
    learner.learn(sampler, 4)
    assert step.ready_after_s is not None


@pytest.mark.parametrize("mode", [MODE, "native"])
@pytest.mark.parametrize("env_id", ["CartPole-v1", "Acrobot-v1"])
def test_blocks_start_recorded_and_move_with_the_same_numbers(env_id: str, mode: str) -> None:
    (fast, learner), (plain, eager) = build(env_id, "eager"), build(env_id, "eager")
    fast.execute_as(mode, background=True)
    (step,) = fast.compiling
    for number in range(4):
        assert fast.advance(BLOCK, 0.5) == plain.advance(BLOCK, 0.5)
        if number == 0:
            assert step.ready_after_s is None
            until(lambda: step.ready, rest)
    assert step.failure is None
    assert step.ready_after_s is not None
    same_from_the_same_state(fast, plain)
    assert int(learner.state.updates) == int(eager.state.updates) == 16
    torch.testing.assert_close(learner.state.online, eager.state.online, rtol=1e-3, atol=1e-5)


def moves(trainer: Trainer, step: Progress) -> None:
    """Train until the first update, which waits for no compiler, and until the step has moved."""
    updates = trainer.learner.state.updates
    until(lambda: int(updates), trainer.vector_step)
    assert step.ready_after_s is None
    until(lambda: step.ready_after_s or step.failure, trainer.vector_step)
    assert step.failure is None
    before = int(updates)
    until(lambda: int(updates) > before + 100, trainer.vector_step)
    assert int(trainer.learner.state.skipped) == 0


def test_auto_trains_a_network_of_ones_own_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(modes, "WORTH_COMPILING_UPDATES", 1)
    agent = DQN("CartPole-v1", network=Branches(), **SMALL)
    with agent.trainer(10**7, Callback()) as trainer:
        assert agent.learner.execution == MODE
        assert "cudagraph" in agent.execution_reason
        (step,) = agent.learner.compiling
        trainer.begin(agent.env_seeds())
        moves(trainer, step)
        trainer.stop()


@pytest.mark.parametrize("native", [True, False])
def test_auto_trains_in_tensor_environments_at_once(native: bool) -> None:
    given: dict[str, Any] = {**SMALL, "vectorizer": "tensor"}
    agent = DQN("CartPole-v1", network=None if native else Branches(), **given)
    with agent.trainer(10**8, Callback()) as trainer:
        assert agent.learner.execution == ("native" if native else MODE)
        rollout: Any = trainer.rollout
        trainer.begin(agent.env_seeds())
        moves(trainer, rollout.compiling[0])
        trainer.stop()
