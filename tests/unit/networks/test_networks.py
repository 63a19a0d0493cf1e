"""Q-networks and the flat view of any module."""

from __future__ import annotations

import copy
import gc

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete, MultiBinary, MultiDiscrete, Space
from torch import Tensor, nn

from fastdqn.errors import UsageError
from fastdqn.networks.flat_network import FlatNetwork
from fastdqn.networks.mlp import MLP, mlp_for
from tests.small_learners import Branches, Table


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("hidden", [(), (5,), (7, 3, 4)])
@pytest.mark.parametrize("shape", [(), (4,), (2, 3), (1, 2, 2)])
def test_an_mlp_maps_observations_of_any_shape_to_one_value_per_action(
    shape: tuple[int, ...], hidden: tuple[int, ...]
) -> None:
    network = MLP(shape, 3, hidden)
    q = network(torch.randn(6, *shape))
    assert q.shape == (6, 3)
    assert q.dtype is torch.float32
    assert [layer.out_features for layer in _linears(network)] == [*hidden, 3]


def _linears(network: MLP) -> list[nn.Linear]:
    return [layer for layer in network.layers if isinstance(layer, nn.Linear)]


def test_an_mlp_is_linear_layers_with_relu_between_and_none_at_the_end() -> None:
    network = MLP((4,), 2, (5, 6))
    first, second, last = _linears(network)
    nn.init.constant_(last.bias, -10.0)
    obs = torch.randn(9, 4)
    expected = last(second(first(obs).relu()).relu())
    assert torch.equal(network(obs), expected)
    assert network(obs).max() < 0


def test_without_hidden_layers_the_q_function_is_linear() -> None:
    network = MLP((4,), 2, ())
    a, b = torch.randn(1, 4), torch.randn(1, 4)
    middle = network((a + b) / 2)
    torch.testing.assert_close(middle, (network(a) + network(b)) / 2)


@pytest.mark.parametrize("hidden", [(0,), (8, -1)])
def test_a_layer_without_units_is_refused(hidden: tuple[int, ...]) -> None:
    with pytest.raises(UsageError, match="--hidden-sizes"):
        MLP((4,), 2, hidden)


def test_a_discrete_space_becomes_one_hot_counted_from_its_start() -> None:
    network = mlp_for(Discrete(3, start=5), 2, ())
    (layer,) = _linears(network)
    q = network(torch.tensor([5, 7, 6, 5]))
    torch.testing.assert_close(q, layer.weight.T[[0, 2, 1, 0]] + layer.bias)
    assert layer.in_features == 3


def test_images_are_scaled_by_255_exactly_once() -> None:
    network = mlp_for(Box(0, 255, (2, 3), np.uint8), 2, (4,))
    image = torch.randint(256, (5, 2, 3), dtype=torch.uint8)
    plain = MLP((2, 3), 2, (4,))
    plain.load_state_dict(network.state_dict())
    torch.testing.assert_close(network(image), plain(image.float() / 255))


@pytest.mark.parametrize(
    ("space", "inputs"),
    [
        (Box(0, 255, (7,), np.uint8), 7),
        (Box(-1, 1, (2, 3), np.float32), 6),
        (Box(-1, 1, (), np.float32), 1),
        (MultiBinary(5), 5),
        (MultiDiscrete([3, 4]), 2),
    ],
)
def test_other_spaces_are_flattened_and_not_scaled(space: Space[object], inputs: int) -> None:
    network = mlp_for(space, 2, ())
    (layer,) = _linears(network)
    obs = torch.randint(2, (4, *(space.shape or ())))
    expected = layer(obs.reshape(4, inputs).float())
    torch.testing.assert_close(network(obs), expected)


def test_kaiming_sets_zero_biases_and_weights_of_he_variance() -> None:
    torch.manual_seed(0)
    for layer in _linears(MLP((100,), 50, (200,), kaiming=True)):
        assert torch.equal(layer.bias, torch.zeros_like(layer.bias))
        expected = (2 / layer.in_features) ** 0.5
        assert layer.weight.std().item() == pytest.approx(expected, rel=0.03)
    for layer in _linears(MLP((100,), 50, (200,))):
        assert layer.bias.abs().max() > 0
        assert layer.weight.std().item() < 0.7 * (2 / layer.in_features) ** 0.5


def test_kaiming_reaches_the_networks_of_all_spaces() -> None:
    for space in (Discrete(3), Box(-1, 1, (2,), np.float32)):
        for layer in _linears(mlp_for(space, 2, (4,), kaiming=True)):
            assert torch.equal(layer.bias, torch.zeros_like(layer.bias))


# Flat networks


class Doubled(MLP):
    """An MLP with a forward pass of its own."""

    def forward(self, obs: Tensor) -> Tensor:  # type: ignore[override]
        return 2.0 * super().forward(obs)


class Tied(nn.Module):
    """Uses one weight twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.second.weight = self.first.weight

    def forward(self, obs: Tensor) -> Tensor:
        q: Tensor = self.second(self.first(obs).relu())
        return q


MODULES = [
    lambda: MLP((4,), 2, (8,)),
    lambda: Doubled((4,), 2, (8,)),
    Branches,
    lambda: Table(4, 2),
    Tied,
    lambda: nn.Sequential(nn.Linear(4, 5), nn.GELU(), nn.Linear(5, 2)),
]


@pytest.mark.parametrize("make", MODULES)
def test_the_pure_function_of_a_module_equals_its_forward_pass(make: type[nn.Module]) -> None:
    module = make()
    obs = torch.randn(7, 4)
    before = module(obs)
    network = FlatNetwork(module)
    assert network.flat.shape == (sum(p.numel() for p in module.parameters()),)
    assert torch.equal(module(obs), before)
    assert torch.equal(network(network.views(network.flat), obs), before)


@pytest.mark.parametrize("make", MODULES)
def test_a_module_shows_what_is_written_into_its_flat_vector(make: type[nn.Module]) -> None:
    module = make()
    network = FlatNetwork(module)
    for parameter, view in zip(module.parameters(), network.views(network.flat), strict=True):
        assert parameter.data_ptr() == view.data_ptr()
    obs, other = torch.randn(3, 4), torch.randn_like(network.flat)
    predicted = network(network.views(other), obs)
    assert not torch.allclose(module(obs), predicted)
    network.flat.copy_(other)
    assert torch.equal(module(obs), predicted)
    module.load_state_dict({k: torch.ones_like(v) for k, v in module.state_dict().items()})
    assert torch.equal(network.flat, torch.ones_like(other))


def test_other_parameters_leave_the_module_alone() -> None:
    module = Branches()
    network = FlatNetwork(module)
    before = network.flat.clone()
    network(network.views(torch.zeros_like(before)), torch.randn(3, 4))
    assert torch.equal(network.flat, before)


class Frozen(nn.Sequential):
    """Its first layer asks not to be learned."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(4, 4), nn.Linear(4, 2))
        for parameter in self[0].parameters():
            parameter.requires_grad_(False)


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        (nn.ReLU(), "it has no parameters"),
        (nn.Linear(4, 2).double(), "its parameters are not float32"),
        (nn.Sequential(nn.Linear(4, 2), nn.Linear(2, 2).half()), "its parameters are not float32"),
        (Frozen(), "some of its parameters do not require a gradient"),
        (nn.Sequential(nn.Linear(4, 2), nn.BatchNorm1d(2)), "BatchNorm1d: its forward pass"),
        (
            nn.Sequential(nn.Linear(4, 2), nn.BatchNorm1d(2, track_running_stats=False)),
            "BatchNorm1d: its forward pass",
        ),
        (nn.Sequential(nn.Linear(4, 2), nn.Dropout(0.1)), "Dropout: its forward pass"),
        (nn.Sequential(nn.Linear(4, 2), nn.AlphaDropout(0.1)), "AlphaDropout: its forward pass"),
        (nn.Sequential(nn.Linear(4, 2), nn.RReLU()), "RReLU: its forward pass"),
        (
            nn.Sequential(nn.Linear(4, 2), nn.InstanceNorm1d(2, track_running_stats=True)),
            "InstanceNorm1d: its forward pass",
        ),
    ],
)
def test_modules_that_are_no_pure_function_are_refused(module: nn.Module, reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        FlatNetwork(module)


def test_layers_that_only_normalise_a_row_are_welcome() -> None:
    module = nn.Sequential(nn.Linear(4, 2), nn.LayerNorm(2), nn.InstanceNorm1d(2))
    assert FlatNetwork(module).flat.numel() == 10 + 4


def test_a_module_belongs_to_one_vector_at_a_time() -> None:
    module = MLP((4,), 2, (8,))
    first = FlatNetwork(module)
    with pytest.raises(UsageError, match=r"another agent or learner.*copy\.deepcopy"):
        FlatNetwork(module)
    twin = copy.deepcopy(first)
    with pytest.raises(UsageError, match="another agent or learner"):
        FlatNetwork(twin.module)
    assert FlatNetwork(copy.deepcopy(module)).flat.equal(first.flat)
    del first
    gc.collect()
    FlatNetwork(module)


def test_a_module_without_memory_is_refused() -> None:
    with pytest.raises(UsageError, match="device meta"):
        FlatNetwork(nn.Linear(4, 2, device="meta"))


class Reading(nn.Module):
    """Takes random numbers, as many as it says."""

    def __init__(self, num_random: object = None, layer: nn.Module | None = None) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 2) if layer is None else layer
        if num_random is not None:
            self.num_random = num_random

    def forward(self, obs: Tensor, random: Tensor) -> Tensor:
        q: Tensor = self.layer(obs) + random.mean()
        return q


@pytest.mark.parametrize("count", [2.7, True, "3", -1, float("nan")])
def test_a_count_of_random_numbers_that_is_none_is_refused(count: object) -> None:
    with pytest.raises(UsageError, match=f"num_random of network Reading .*{count}"):
        FlatNetwork(Reading(count))
    flat = FlatNetwork(Reading(lambda _: count))
    with pytest.raises(UsageError, match=f"num_random of network Reading .*{count}"):
        flat.num_random(8)


@pytest.mark.parametrize("count", [np.int64(3), 3.0, lambda rows: np.int64(rows // 2)])
def test_whole_numbers_of_numpy_count_random_numbers(count: object) -> None:
    found = FlatNetwork(Reading(count)).num_random(6)
    assert found == 3
    assert type(found) is int


def test_random_numbers_that_nothing_would_hand_down_are_refused() -> None:
    inner = Reading(3)
    with pytest.raises(UsageError, match="its layer Reading has num_random, and the outermost"):
        FlatNetwork(Reading(layer=inner))
    assert FlatNetwork(Reading(5, layer=inner)).num_random(8) == 5  # the outermost one counts
    mlp = MLP((4,), 2)
    vars(mlp)["num_random"] = 3
    with pytest.raises(UsageError, match="num_random of network MLP: its forward pass reads none"):
        FlatNetwork(mlp)
