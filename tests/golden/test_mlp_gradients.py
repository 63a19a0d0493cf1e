"""Gradients of dueling heads and of LayerNorm by hand, of eager updates and of those in C.

Numbers are such that the wrong half, the wrong mean or a missing eps gives another one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from fastdqn.learner.learner import Learner
from fastdqn.networks.mlp import MLP
from fastdqn.transition import Transitions

Parts = Sequence[Sequence[float]]

pytestmark = pytest.mark.usefixtures("one_thread")


def slopes_of(
    module: MLP, parameters: Parts, obs: Sequence[float], reward: float, execution: str
) -> tuple[list[list[float]], list[float]]:
    """Return the gradient by each parameter and the metrics of one update by (Q(s, 1) - r)^2.

    Adam's first moment after its first update is a tenth of the gradient.
    """
    numbers = torch.tensor([float(number) for part in parameters for number in part])
    torch.nn.utils.vector_to_parameters(numbers, module.parameters())
    learner = Learner(module, loss="mse", clip_norm=None, target="none", execution=execution)
    end, none = torch.tensor([True]), torch.tensor([False])
    last = module.num_actions - 1
    shown, action = torch.tensor([obs]), torch.tensor([min(1, last)])
    learner.update(Transitions(shown, action, torch.tensor([reward]), shown, end, none))
    parts: list[Tensor] = learner.network.views(learner.state.slots[0] * 10)
    return [part.flatten().tolist() for part in parts], learner.state.metrics.tolist()


def assert_close(mine: Parts, expected: Parts) -> None:
    assert len(mine) == len(expected)
    for part, wanted in zip(mine, expected, strict=True):
        assert part == pytest.approx(wanted, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("execution", ["eager", "native"])
def test_the_gradient_of_dueling_heads(execution: str) -> None:
    """Hidden units (2, 1, 4): V = 3 x 2 + 1 = 7; A = (5, -3, 4), their mean 2; Q = (10, 2, 9).

    The error of action 1 is 2, its slope 4: by V 4, by A 4 (-1/3, 2/3, -1/3).
    """
    third = 4 / 3
    parameters: Parts = [
        [1, 0, 0, 0, 1, 0, 0, 0, 1],
        [0, 0, 0],
        [1, 1, 1, -1, 2, 0.5],  # the advantages, of units 1 and 2
        [0, 0, 0],
        [3],  # the value, of unit 0
        [1],
    ]
    slopes, metrics = slopes_of(
        MLP((3,), 3, (3,), dueling=True), parameters, [2, 1, 4], 0.0, execution
    )
    by_units = [12, -third + 2 * third - 2 * third, -third - 2 * third - third / 2]
    expected: Parts = [
        [slope * unit for slope in by_units for unit in (2, 1, 4)],
        by_units,
        [-third, -4 * third, 2 * third, 8 * third, -third, -4 * third],
        [-third, 2 * third, -third],
        [4 * 2],
        [4],
    ]
    assert_close(slopes, expected)
    assert metrics[:3] == pytest.approx([4.0, 2.0, 2.0])


@pytest.mark.parametrize("execution", ["eager", "native"])
def test_the_gradient_of_dueling_heads_without_a_hidden_layer(execution: str) -> None:
    """Both heads read (2, 1): V = 2 + 3 = 5; A = (2, 6), their mean 4; Q = (3, 7), error 2."""
    parameters: Parts = [[1, 0, 2, 2], [0, 0], [1, 3], [0]]
    slopes, metrics = slopes_of(MLP((2,), 2, (), dueling=True), parameters, [2, 1], 5.0, execution)
    assert_close(slopes, [[-4, -2, 4, 2], [-2, 2], [8, 4], [4]])
    assert metrics[:3] == pytest.approx([4.0, 2.0, 7.0])


@pytest.mark.parametrize("execution", ["eager", "native"])
def test_the_gradient_of_layer_norm(execution: str) -> None:
    """Units (-3, -1, 1, 3) / 1000 of variance 5e-6: with eps h = (-3, -1, 1, 3) / sqrt(15).

    Without it they would be (-3, -1, 1, 3) / sqrt(5). The last unit is silent. y = gamma h + beta;
    Q = y0 + 2 y1 - y2 = 4 - 11 / sqrt(15), and the reward is 1/2 less, so that the slope is 1.
    """
    u, rate = 1 / math.sqrt(15), 1000 / math.sqrt(15)
    parameters: Parts = [
        [-0.003, -0.001, 0.001, 0.003],
        [0, 0, 0, 0],
        [1, 2, -1, 7],
        [0],
        [2, 1, 3, 1],  # gamma
        [4, 0.5, 1, -5],  # beta
    ]
    slopes, metrics = slopes_of(
        MLP((1,), 1, (4,), layer_norm=True), parameters, [1], 3.5 - 11 * u, execution
    )
    # by h (2, 2, -3, 0): mean 1/4, mean of its products with h -11 u / 4
    by_x = [rate * 1.2, rate * (1.75 - 11 / 60), rate * (-3.25 + 11 / 60), rate * 0.3]
    expected: Parts = [
        by_x,
        by_x,
        [4 - 6 * u, 0.5 - u, 1 + 3 * u, 0],
        [1],
        [-3 * u, -2 * u, -u, 0],
        [1, 2, -1, 0],
    ]
    assert_close(slopes, expected)
    assert metrics[:3] == pytest.approx([0.25, 0.5, 4 - 11 * u], rel=1e-4)
