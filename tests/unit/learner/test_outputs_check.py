"""Networks whose outputs fit an objective in shape alone are refused; those that fit pass."""

from __future__ import annotations

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
    Objective,
    QRObjective,
    UsageError,
)

pytestmark = pytest.mark.usefixtures("one_thread")

N = 5
OBJECTIVES: dict[str, Callable[[], Objective]] = {
    "qr": lambda: QRObjective(num_quantiles=N),
    "c51": lambda: C51Objective(num_atoms=N, v_min=-1, v_max=1),
    "iqn": lambda: IQNObjective(num_quantiles=N),
}
SMALL: dict[str, Any] = {"num_envs": 1, "num_workers": 0, "execution": "eager", "buffer_size": 64}
SMALL |= {"learning_starts": 16, "batch_size": 8}
UNFIT: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "an IQN of one action": (lambda: IQN(MLP((4,), 1, (8,)), N), "qr"),
    "an IQN and atoms": (lambda: IQN(MLP((4,), 1, (8,)), N), "c51"),
    "an MLP of one action more": (lambda: MLP((4,), 3, (8,), num_atoms=N), "iqn"),
}


class Rows(nn.Module):
    """Quantiles of two actions, and a last row that is handed in."""

    def __init__(self, last: float) -> None:
        super().__init__()
        self.linear, self.last = nn.Linear(4, 2 * N), last

    def forward(self, obs: Tensor) -> Tensor:
        rows: Tensor = self.linear(obs).view(-1, 2, N)
        return torch.cat((rows, torch.full_like(rows[:, :1], self.last)), 1)


@pytest.mark.parametrize("case", UNFIT)
def test_outputs_that_would_be_taken_for_something_else_are_refused(case: str) -> None:
    network, name = UNFIT[case]
    with pytest.raises(UsageError, match=r"fractions.*(objective=\"iqn\"|fastdqn\.IQN)"):
        Learner(network(), objective=OBJECTIVES[name]())
    with pytest.raises(UsageError, match=r"fractions.*(objective=\"iqn\"|fastdqn\.IQN)"):
        DQN("CartPole-v1", network=network(), objective=OBJECTIVES[name](), **SMALL)


@pytest.mark.parametrize("last", [-0.1, 1.5, float("nan")])
def test_a_last_row_that_holds_no_fractions_is_refused(last: float) -> None:
    with pytest.raises(UsageError, match=r"network Rows with IQNObjective: .* no fractions"):
        DQN("CartPole-v1", network=Rows(last), objective=OBJECTIVES["iqn"](), **SMALL)


@pytest.mark.parametrize(
    ("network", "name"),
    [
        (lambda: IQN(MLP((4,), 2, (8,)), N), "iqn"),
        (lambda: Rows(0.5), "iqn"),
        (lambda: MLP((4,), 2, (8,), num_atoms=N), "qr"),
        (lambda: MLP((4,), 2, (8,), num_atoms=N), "c51"),
    ],
)
def test_networks_of_ones_own_that_fit_are_taken(network: Any, name: str) -> None:
    module = network()
    agent = DQN("CartPole-v1", network=module, objective=OBJECTIVES[name](), **SMALL)
    assert agent.learner.network.module is module


def test_an_objective_that_reads_the_fractions_in_its_own_way_is_taken() -> None:
    class Weighted(QRObjective):
        def q_values(self, outputs: Tensor, /) -> Tensor:
            return outputs[:, :-1].mean(2)

    Learner(IQN(MLP((4,), 2, (8,)), N), objective=Weighted(num_quantiles=N))
