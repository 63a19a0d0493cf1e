"""Objectives: which passes they read, what they return, and how settings choose one."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import fastdqn
from fastdqn.agent.dqn import DQN
from fastdqn.algorithms.distributional import C51Objective
from fastdqn.algorithms.named_objectives import named_objective
from fastdqn.algorithms.objectives import (
    DoubleDQNObjective,
    DQNObjective,
    Objective,
    Pass,
    objective_of,
    q_values_of,
)
from fastdqn.algorithms.quantiles import IQNObjective, QRObjective
from fastdqn.config import Config, choices_of
from fastdqn.errors import UsageError
from fastdqn.foundation.objective_checks import OF_OBJECTIVES
from fastdqn.learner.learner import Learner
from fastdqn.networks.mlp import MLP
from tests.small_learners import Looking, random_batch, with_factors


def test_each_names_the_passes_that_its_equation_reads() -> None:
    assert DQNObjective().passes == (Pass("target", "next_obs"),)
    assert set(DoubleDQNObjective().passes) == {
        Pass("target", "next_obs"),
        Pass("online", "next_obs"),
    }
    assert DQNObjective.num_random == DoubleDQNObjective.num_random == 0


@pytest.mark.parametrize("loss", ["huber", "mse"])
@pytest.mark.parametrize("kind", [DQNObjective, DoubleDQNObjective])
def test_a_row_has_a_loss_with_a_gradient_and_a_priority_without(
    kind: type[DQNObjective], loss: str
) -> None:
    objective, batch = kind(loss), with_factors(random_batch())
    outputs = torch.randn(8, 2, requires_grad=True)
    passes = [torch.randn(8, 2) for _ in objective.passes]
    losses, priority = objective.loss(outputs, passes, batch, None)
    assert losses.shape == priority.shape == (8,)
    assert losses.requires_grad
    assert not priority.requires_grad
    huber = torch.where(priority < 1, priority**2 / 2, priority - 0.5)
    torch.testing.assert_close(losses.detach(), priority**2 if loss == "mse" else huber)


@pytest.mark.parametrize(
    ("double", "loss", "expected"),
    [
        (None, None, DoubleDQNObjective("huber")),
        (False, None, DQNObjective("huber")),
        (np.True_, "mse", DoubleDQNObjective("mse")),
        (0, "mse", DQNObjective("mse")),
    ],
)
def test_two_settings_choose_one(double: Any, loss: str | None, expected: Objective) -> None:
    assert objective_of(None, double, loss) == expected
    assert Learner(MLP((4,), 2), double=double, loss=loss).objective == expected


@pytest.mark.parametrize("given", [{"double": True}, {"double": False}, {"loss": "huber"}])
def test_an_objective_beside_a_setting_that_it_decides_is_refused(given: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=f"{next(iter(given))}.*the objective decides it"):
        Learner(MLP((4,), 2), objective=DQNObjective(), **given)


def test_what_there_is_not_is_refused() -> None:
    with pytest.raises(UsageError, match="Choose huber, mse"):
        DQNObjective("cubic")
    with pytest.raises(UsageError, match="must be True or False"):
        objective_of(None, "yes", None)  # type: ignore[arg-type]


class Halved(DQNObjective):
    """Acts by half of the outputs."""

    def q_values(self, outputs: Tensor, /) -> Tensor:
        return outputs / 2


def test_outputs_that_are_q_values_are_reported_from_those_that_are_not() -> None:
    assert q_values_of(DQNObjective()) is q_values_of(Looking()) is None
    halve = q_values_of(Halved())
    assert halve is not None
    assert halve(torch.ones(2, 3)).tolist() == [[0.5] * 3] * 2
    learner = Learner(MLP((4,), 2), objective=Halved())
    network, obs = learner.network, torch.randn(3, 4)
    views = network.views(network.flat)
    assert torch.equal(network.q(views, obs), network(views, obs) / 2)


def like_one(**parts: Any) -> Any:
    fine = {"passes": (Pass("target", "next_obs"),), "num_random": 0}
    methods = {"q_values": DQNObjective.q_values, "loss": DQNObjective.loss}
    own = {name: part for name, part in {**fine, **methods, **parts}.items() if part is not None}
    return type("Own", (), own)()


@pytest.mark.parametrize(
    ("own", "message"),
    [
        (DQNObjective, "objective DQNObjective: it is a class"),
        (like_one(loss=None), "objective Own: it has no loss"),
        (like_one(q_values=None), "objective Own: it has no q_values"),
        (like_one(loss=3), "objective Own: it has no loss"),
        (like_one(passes=None), "it has no passes"),
        (like_one(num_random=None), "it has no num_random"),
        (like_one(passes=(Pass("targt", "obs"),)), "passes .*targt.* of objective Own"),  # type: ignore[arg-type]
        (like_one(passes=(("online", "next"),)), "passes .*next.* there are no such passes"),
        (like_one(passes=Pass("target", "obs")), "passes .*in a tuple"),
        (like_one(num_random=2.7), "num_random of objective Own 2.7"),
        (like_one(num_random=True), "num_random of objective Own True"),
        (like_one(num_random="3"), "num_random of objective Own '3'"),
        (like_one(num_random=-1), "num_random of objective Own -1"),
    ],
)
def test_what_is_no_objective_is_refused_at_construction(own: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Learner(MLP((4,), 2), objective=own)
    with pytest.raises(UsageError, match=message):
        DQN("CartPole-v1", objective=own)


@pytest.mark.parametrize("name", choices_of(Config.__dataclass_fields__["objective"]))
def test_a_learner_says_which_object_stands_for_a_name(name: str) -> None:
    named: Any = name
    with pytest.raises(UsageError, match=f"objective '{name}': a learner takes an object") as found:
        Learner(MLP((4,), 2), objective=named)
    (kind,) = re.findall(r"Pass (\w+)\(", str(found.value))
    settings: Any = {"double": True, "loss": "huber"} | {
        setting: Config.__dataclass_fields__[setting].default for setting in OF_OBJECTIVES
    }
    assert type(named_objective(name, **settings)) is getattr(fastdqn, kind)


def test_a_name_that_there_is_not_is_answered_with_all_objects() -> None:
    named: Any = "c52"
    with pytest.raises(
        UsageError, match=r"DoubleDQNObjective\(\), .*, IQNObjective\(...\) of fastdqn"
    ):
        Learner(MLP((4,), 2), objective=named)


@pytest.mark.parametrize("kind", [C51Objective, QRObjective, IQNObjective])
def test_a_choice_of_the_next_action_that_is_no_bool_is_refused(kind: Any) -> None:
    for wrong in ("no", None, 2, 0.5):
        with pytest.raises(UsageError, match=f"--double {wrong!r}: it must be True or False"):
            kind(double=wrong)
    assert len(kind(double=np.bool_(False)).passes) == 1


def test_whole_numbers_of_numpy_are_taken() -> None:
    own = like_one(num_random=np.int64(3), passes=[("online", "obs")])
    learner = Learner(MLP((4,), 2), objective=own)
    assert learner.num_random(8) == 24
    assert type(learner.num_random(8)) is int
