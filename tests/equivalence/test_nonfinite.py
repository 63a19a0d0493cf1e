"""A run among numbers that are not finite: equal in every mode, and none is ever learned."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from fastdqn.envs.tensor import CartPole
from fastdqn.execution.modes import mode_of
from fastdqn.execution.step import EagerStep
from fastdqn.learner.learner import Learner
from fastdqn.networks.mlp import MLP
from fastdqn.replay import PrioritizedSampler, UniformSampler
from fastdqn.training.tensor import block_runner
from fastdqn.training.tensor.block_runner import BlockRunner
from fastdqn.training.tensor.blocks import Block
from fastdqn.training.tensor.rollout import TensorRollout
from tests.tensor_oracles import GlitchyCartPole
from tests.unit.execution.test_cuda_graph import FakeCuda

BLOCK, CALLS = Block(1, 1, 2), 60
SAMPLERS: dict[str, Any] = {"uniform": UniformSampler, "prioritized": PrioritizedSampler}
each_policy = pytest.mark.parametrize("on_nonfinite", ["skip", "replace"])


def _built(execution: str, on_nonfinite: str, kind: str, n_step: int = 1) -> TensorRollout:
    torch.manual_seed(0)
    learner = Learner(MLP((4,), 2, (8,), scale=0.1), learning_rate=1e-3)
    sizes: Any = {"capacity": 60, "batch_size": 8, "seed": 3, "n_step": n_step}
    how: Any = {"execution": execution, "sampler": SAMPLERS[kind], "on_nonfinite": on_nonfinite}
    return TensorRollout(GlitchyCartPole(3), learner, **sizes, **how)


def _run(rollout: TensorRollout) -> Iterator[list[Any]]:
    """Yield the episodes after each call, at most exploring: rounding cannot part two runs."""
    for _ in range(CALLS):
        yield rollout.advance(BLOCK, 1.0)
        state = rollout._learner.state
        for tensor in (state.online, state.target, *state.slots, rollout.ring.ring.frames):
            assert torch.isfinite(tensor).all()


def _assert_equal(mine: TensorRollout, theirs: TensorRollout) -> None:
    pairs = zip(mine.ring.ring.cells().items(), theirs.ring.ring.cells().values(), strict=True)
    for (name, cell), other in pairs:
        close: Any = {"rtol": 1e-3, "atol": 1e-4, "equal_nan": True}
        torch.testing.assert_close(cell, other, **close, msg=name)
    for field in ("online", "target"):
        states = mine._learner.state, theirs._learner.state
        torch.testing.assert_close(*(getattr(s, field) for s in states), rtol=2e-3, atol=1e-4)
    assert mine.nonfinite == theirs.nonfinite > 20
    assert int(mine._learner.state.skipped) == int(theirs._learner.state.skipped) == 0


@each_policy
@pytest.mark.parametrize(("kind", "n_step"), [("uniform", 1), ("prioritized", 3)])
@pytest.mark.parametrize("execution", ["native", "compile"])
@pytest.mark.slow
def test_a_run_is_that_of_the_eager_mode(
    execution: str, on_nonfinite: str, kind: str, n_step: int
) -> None:
    fast, eager = (_built(how, on_nonfinite, kind, n_step) for how in (execution, "eager"))
    for ended, expected in zip(_run(fast), _run(eager), strict=True):
        assert [(e.length, e.truncated) for e in ended] == [
            (e.length, e.truncated) for e in expected
        ]
    _assert_equal(fast, eager)
    torch._dynamo.reset()


@each_policy
@pytest.mark.parametrize("kind", SAMPLERS)
def test_a_recorded_run_is_that_of_the_eager_mode(
    kind: str, on_nonfinite: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the stand-in of a CUDA graph, whose warm-up is taken back."""
    graphs, eager = (_built("eager", on_nonfinite, kind, 3) for _ in range(2))
    device, cuda = torch.device("cpu"), FakeCuda()

    class Launched(EagerStep):
        def __call__(self, *tensors: Tensor) -> None:
            cuda.launch(partial(super().__call__, *tensors))

    monkeypatch.setattr(block_runner, "EagerStep", Launched)
    learned = *graphs._learner.state.written(), *graphs.sampler.written()
    mode = mode_of("cudagraph", torch.device("cuda"))
    parts = graphs._iteration, graphs.env, mode, learned, device
    graphs._blocks = BlockRunner(*parts, cuda=cuda)
    for ended, expected in zip(_run(graphs), _run(eager), strict=True):
        assert ended == expected
    _assert_equal(graphs, eager)
    assert cuda.tape.count("replay") == CALLS


@each_policy
def test_what_is_finite_is_learned_as_with_raise(on_nonfinite: str) -> None:
    """To the bit: guards change nothing where there is nothing to guard against."""
    torch.manual_seed(0)
    runs = []
    for policy in (on_nonfinite, "raise"):
        torch.manual_seed(0)
        learner = Learner(MLP((4,), 2, (8,)))
        given: Any = {"capacity": 60, "batch_size": 8, "seed": 3, "on_nonfinite": policy}
        rollout = TensorRollout(CartPole(3), learner, **given)
        episodes = [rollout.advance(BLOCK, 0.5) for _ in range(CALLS)]
        runs.append((rollout, learner, episodes))
    (mine, learner, ended), (theirs, other, expected) = runs
    assert ended == expected
    assert torch.equal(learner.state.online, other.state.online)
    pairs = zip(mine.ring.ring.cells().values(), theirs.ring.ring.cells().values(), strict=True)
    assert all(torch.equal(cell, same) for cell, same in pairs)
