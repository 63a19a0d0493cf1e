"""What a sampler must not do: each is refused by name at the trial draw, on both rings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from fastdqn.errors import UsageError
from fastdqn.learner.learner import Learner
from fastdqn.networks.mlp import MLP
from fastdqn.replay import NewestSampler, ReplayBuffer, Sampler, UniformSampler
from fastdqn.replay.functional_ring import FunctionalRing
from fastdqn.replay.sampler_check import refuse_unfit, sampler_of
from tests.small_learners import filled_ring

BATCH = 8
RINGS: dict[str, Callable[[], Any]] = {
    "buffer": lambda: ReplayBuffer(64, 2, (4,)),
    "functional ring": lambda: FunctionalRing(64, 2, (4,)),
}


class Weighted(Sampler):
    """Draws uniformly, with weights and a tensor that counts feedback; each part can go wrong."""

    def __init__(self, replay: Any, batch_size: int, **wrong: Any) -> None:
        super().__init__(replay, batch_size)
        self.independent = wrong.pop("independent", False)
        self.wrong, self.count = wrong, torch.zeros(3)

    def draw(self, random_bits: Tensor) -> tuple[Tensor, Tensor | None]:
        first, count = self.replay.span()
        rows = self.replay.nth(random_bits.remainder(count), first)
        weight = torch.ones(rows.shape)
        return self.wrong.get("rows", lambda x: x)(rows), self.wrong.get("weight", lambda x: x)(
            weight
        )

    def feedback(self, rows: Tensor, priority: Tensor) -> None:
        self.wrong.get("feedback", lambda *_: None)(self, priority)

    def written(self) -> tuple[Tensor, ...]:
        found: tuple[Tensor, ...] = self.wrong.get("written", lambda x: (x,))(self.count)
        return found


def moved(sampler: Weighted, priority: Tensor) -> None:
    sampler.count = sampler.count + 0 * priority.sum().nan_to_num()


def counted(sampler: Weighted, _: Tensor) -> None:
    sampler.count += 1


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "fewer rows": ({"rows": lambda x: x[1:]}, r"rows .*\[7\] torch.int64.*want \[8\]"),
    "more rows": ({"rows": lambda x: torch.cat((x, x))}, r"rows .*\[16\].*want \[8\]"),
    "short rows": ({"rows": lambda x: x.int()}, "rows .*int32.*want .*torch.int64"),
    "a list": ({"rows": lambda x: x.tolist()}, r"rows drawn by Weighted: \["),
    "low rows": ({"rows": lambda x: x - 1000}, "rows -.*the ring has"),
    "high rows": ({"rows": lambda x: x + 1000}, "rows 100. to .*the ring has"),
    "a weight": ({"weight": lambda x: x[0]}, r"weights .*\[\] torch.float32.*want \[8\]"),
    "wide weights": ({"weight": lambda x: x.double()}, "weights .*float64.*want .*float32"),
    "learned weights": ({"weight": lambda x: x.requires_grad_()}, "without a gradient"),
    "negative weights": ({"weight": lambda x: -x}, "negative weights drawn by Weighted"),
    "independent": ({"independent": True}, "weights of Weighted.*independent"),
    "moved": ({"feedback": moved}, "a later call returned others"),
    "copied": ({"written": lambda x: (x.clone(),)}, "a later call returned others"),
    "counted": ({"feedback": counted}, "it changed something after a skipped update"),
    "unnamed": ({"written": lambda _: ()}, "the feedback of Weighted"),
}


@pytest.mark.parametrize("ring", RINGS)
@pytest.mark.parametrize("name", WRONG)
def test_what_a_sampler_must_not_do_is_refused_by_name(name: str, ring: str) -> None:
    wrong, message = WRONG[name]
    with pytest.raises(UsageError, match=message):
        sampler_of(lambda *given: Weighted(*given, **wrong), RINGS[ring](), BATCH)


@pytest.mark.parametrize("ring", RINGS)
@pytest.mark.parametrize("kind", [Weighted, UniformSampler, NewestSampler])
def test_a_trial_draw_leaves_no_trace(kind: type[Sampler], ring: str) -> None:
    sampler = kind(RINGS[ring](), BATCH)
    replay: Any = sampler.replay
    before = replay.window.clone() if ring == "buffer" else replay.row.clone()
    refuse_unfit(sampler)
    assert torch.equal(before, replay.window if ring == "buffer" else replay.row)
    assert all(not tensor.any() for tensor in sampler.written())


def test_a_learner_tries_a_sampler_once_and_before_anything_is_learned() -> None:
    tried: list[Tensor] = []

    def noted(rows: Tensor) -> Tensor:
        tried.append(rows)
        return rows

    learner, sampler = Learner(MLP((4,), 2, (8,))), Weighted(filled_ring(), BATCH, rows=noted)
    for _ in range(3):
        learner.learn(sampler, 2)
    assert len(tried) == 1 + 6
    wrong = Weighted(filled_ring(), BATCH, weight=lambda x: x[1:])
    born = learner.state.online.clone()
    with pytest.raises(UsageError, match="weights drawn by Weighted"):
        learner.learn(wrong, 2)
    assert torch.equal(born, learner.state.online)
