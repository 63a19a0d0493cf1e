"""Noisy layers and dueling heads by plain loops; a wrong equation is wrong by far."""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import Any

import pytest
import torch
from torch import Tensor

from fastdqn.networks.mlp import MLP
from fastdqn.networks.noisy import NoisyLinear

pytestmark = pytest.mark.usefixtures("one_thread")

Numbers = list[float]


def scaled(uniform: float) -> float:
    """f(e) = sign(e) sqrt(|e|) of the normal number e at this place of its distribution."""
    e = NormalDist().inv_cdf(uniform)
    return math.copysign(math.sqrt(abs(e)), e)


def by_loops(layer: NoisyLinear, x: Tensor, noise: list[Numbers], of_outputs: Numbers) -> Tensor:
    """Equation 9 with the noise [q][p] of each weight and [q] of each bias."""
    rows = []
    for row in x.tolist():
        outputs = []
        for i in range(layer.out_features):
            total = float(layer.bias[i]) + float(layer.bias_sigma[i]) * of_outputs[i]
            for j in range(layer.in_features):
                sigma = float(layer.weight_sigma[i, j])
                total += (float(layer.weight[i, j]) + sigma * noise[i][j]) * row[j]
            outputs.append(total)
        rows.append(outputs)
    return torch.tensor(rows)


def test_factorised_noise_is_that_of_a_plain_loop() -> None:
    """Decoys: independent noise for each weight, numbers of inputs and outputs swapped, no root."""
    torch.manual_seed(0)
    layer = NoisyLinear(3, 2).requires_grad_(False)
    layer.weight_sigma.uniform_(1.0, 2.0)
    layer.bias_sigma.uniform_(1.0, 2.0)
    x = torch.tensor([[1.0, -2.0, 3.0], [4.0, 5.0, -6.0]])
    uniform = [0.03, 0.7, 0.99, 0.2, 0.85]
    found = layer(x, torch.tensor(uniform))
    f = [scaled(number) for number in uniform]
    inputs, outputs = f[:3], f[3:]
    expected = by_loops(layer, x, [[o * i for i in inputs] for o in outputs], outputs)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    e = [NormalDist().inv_cdf(number) for number in uniform]
    independent = [scaled(number) for number in (0.1, 0.9, 0.35, 0.75, 0.6, 0.25)]
    swapped = f[:2], f[2:]
    for noise, of_outputs in (
        ([independent[:3], independent[3:]], outputs),
        ([[o * i for i in swapped[1]] for o in swapped[0]], swapped[0]),
        ([[o * i for i in e[:3]] for o in e[3:]], e[3:]),
    ):
        decoy = by_loops(layer, x, noise, of_outputs)
        assert (decoy - expected).abs().max() > 1.0


def test_noise_starts_at_half_of_one_by_the_root_of_the_inputs() -> None:
    torch.manual_seed(0)
    layer = NoisyLinear(16, 500).requires_grad_(False)
    for sigma in (layer.weight_sigma, layer.bias_sigma):
        assert torch.equal(sigma, torch.full_like(sigma, 0.5 / 4))
    for mean in (layer.weight, layer.bias):
        assert 0.24 < float(mean.abs().max()) <= 0.25  # U[-1/4, 1/4]
        assert abs(float(mean.abs().mean()) - 0.125) < 0.015


def test_a_dueling_head_adds_the_value_to_advantages_about_their_mean() -> None:
    """Q by equation 9. Decoys: about the largest advantage (equation 8), and about nothing."""
    network: Any = MLP((2,), 3, (4,), dueling=True)
    with torch.no_grad():
        network.layers[0].weight.copy_(torch.tensor([[1.0, 0], [0, 1], [1, 1], [2, 0]]))
        network.layers[0].bias.copy_(torch.tensor([0.0, -1, 0, 1]))
        network.value.weight.copy_(torch.tensor([[10.0, 100]]))
        network.value.bias.fill_(1000.0)
        network.layers[1].weight.copy_(torch.tensor([[1.0, 0], [0, 2], [30, 0]]))
        network.layers[1].bias.copy_(torch.tensor([0.0, 0, 3]))
    # Hidden units of (1, 3): 1, 2 for the value, and 4, 3 for the advantages.
    # V = 10 + 200 + 1000 = 1210; A = 4, 6, 123, of mean 133 / 3.
    q = network(torch.tensor([[1.0, 3.0]]))[0]
    mean = 133 / 3
    torch.testing.assert_close(q, torch.tensor([1214 - mean, 1216 - mean, 1333 - mean]))
    for decoy in ([1091.0, 1093, 1210], [1214.0, 1216, 1333]):
        assert (q - torch.tensor(decoy)).abs().min() > 10
