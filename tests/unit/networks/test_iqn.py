"""IQN: the network of quantiles at given fractions, with all options of the MLP."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete
from torch import nn

from fastdqn import IQN, MLP, IQNObjective, UsageError
from fastdqn.networks.flat_network import FlatNetwork
from fastdqn.networks.iqn import cosines, iqn_for, stratified


def test_each_fraction_lies_in_its_part_and_one_half_is_the_midpoint() -> None:
    random = torch.rand(50, 8)
    found = stratified(random)
    part = torch.arange(8) / 8
    assert ((found >= part) & (found < part + 1 / 8 + 1e-6)).all()
    torch.testing.assert_close(stratified(torch.full((1, 2), 0.5)), torch.tensor([[0.25, 0.75]]))


@pytest.mark.parametrize("noisy", [False, True])
def test_a_pass_over_no_rows_gives_none(noisy: bool) -> None:
    network = IQN(MLP((4,), 2, (8,), noisy=noisy), 4)
    found = network(torch.zeros(0, 4), torch.rand(network.num_random(0)))
    assert found.shape == (0, 3, 4)
    flat = FlatNetwork(network)
    assert flat(flat.views(flat.flat), torch.zeros(0, 4)).shape == (0, 3, 4)


def test_expectations_over_the_fractions_are_those_of_independent_ones() -> None:
    """Of tau^2: 1/3. Decoy: midpoints alone, 0.3125 for two parts."""
    random = torch.rand(40_000, 2, generator=torch.Generator().manual_seed(0))
    assert stratified(random).square().mean().item() == pytest.approx(1 / 3, abs=4e-3)


def test_the_embedding_is_that_of_the_paper() -> None:
    """Decoys: frequencies from 1 on, or without pi."""
    found = cosines(torch.tensor([[0.3, 0.8]]))
    assert found.shape == (1, 2, 64)
    for place, fraction in enumerate((0.3, 0.8)):
        expected = [math.cos(math.pi * k * fraction) for k in range(64)]
        assert found[0, place].tolist() == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("hidden", [(), (6,), (5, 6)], ids=str)
@pytest.mark.parametrize("dueling", [False, True])
def test_quantiles_are_the_head_of_features_times_embedding(
    hidden: tuple[int, ...], dueling: bool
) -> None:
    torch.manual_seed(0)
    network = IQN(MLP((4,), 3, hidden, dueling=dueling), num_quantiles=2)
    obs, random = torch.randn(5, 4), torch.rand(10)
    found = network(obs, random)
    fractions = (torch.arange(2) + random.view(5, 2)) / 2
    torch.testing.assert_close(found[:, 3], fractions)
    parameters = list(network.mlp.parameters())
    for row in range(5):
        for place in range(2):
            cosine = torch.cos(math.pi * torch.arange(64) * fractions[row, place])
            phi = torch.relu(network.embedding(cosine))
            joined = network.mlp.features(parameters, obs[row : row + 1]) * phi
            expected = network.mlp.head(parameters, joined)[0]
            torch.testing.assert_close(found[row, :3, place], expected)


@pytest.mark.parametrize("options", [{}, {"noisy": True}, {"dueling": True, "layer_norm": True}])
@pytest.mark.parametrize("space", [Box(-1, 1, (3,), np.float32), Discrete(5, start=2)])
def test_a_flat_network_hands_it_its_numbers(space: Any, options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    module = iqn_for(space, 2, (8,), num_quantiles=4, **options)
    network = FlatNetwork(module, q_values=IQNObjective(num_quantiles=4).q_values)
    obs = torch.as_tensor(np.stack([space.sample() for _ in range(6)]))
    views, noise = network.views(network.flat), module.mlp.num_random
    assert network.num_random(6) == 6 * 4 + noise
    assert (noise > 0) == bool(options.get("noisy"))
    outputs = network(views, obs)
    torch.testing.assert_close(outputs[:, 2], ((torch.arange(4) + 0.5) / 4).expand(6, 4))
    torch.testing.assert_close(network.q(views, obs), outputs[:, :2].mean(2))
    random = torch.rand(network.num_random(6))
    assert not torch.equal(network(views, obs, random), outputs)
    one = torch.cat((random[8:12], random[24:]))
    torch.testing.assert_close(network(views, obs[2:3], one), network(views, obs, random)[2:3])


def test_what_it_cannot_be_built_of_is_refused() -> None:
    wrong: Any
    for wrong, name in ((nn.Linear(4, 2), "Linear"), (None, "None"), ("x", "str"), (MLP, "type")):
        with pytest.raises(UsageError, match=f"IQN of {name}: it reads an MLP"):
            IQN(wrong, 4)
    with pytest.raises(UsageError, match="num_atoms=3"):
        IQN(MLP((4,), 2, num_atoms=3))
    with pytest.raises(UsageError, match="--num-quantiles 0"):
        IQN(MLP((4,), 2), 0)
