"""Dueling heads, noisy layers, LayerNorm, activations and several numbers for each action."""

from __future__ import annotations

import copy
import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete
from torch import Tensor, nn

from fastdqn.errors import UsageError
from fastdqn.learner.learner import Learner
from fastdqn.networks.flat_network import FlatNetwork
from fastdqn.networks.mlp import ACTIVATIONS, MLP, mlp_for
from fastdqn.networks.mlp_options import parameter_shapes
from fastdqn.networks.network_check import refuse_unfit, why_not_sizes
from fastdqn.networks.noisy import NoisyLinear, inverse_erf, scaled_noise
from tests.small_learners import Descent, random_batch

pytestmark = pytest.mark.usefixtures("one_thread")

ALL: dict[str, Any] = {"dueling": True, "noisy": True, "layer_norm": True, "activation": "tanh"}
MODULES: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
}


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def every_option() -> list[dict[str, Any]]:
    names = ("dueling", "noisy", "layer_norm")
    return [
        dict(zip((*names, "num_atoms"), chosen, strict=True))
        for chosen in itertools.product((False, True), (False, True), (False, True), (None, 5))
    ]


@pytest.mark.parametrize("hidden", [(), (3,), (4, 5)], ids=str)
def test_shapes_from_settings_are_those_of_the_network(hidden: tuple[int, ...]) -> None:
    for options in every_option():
        network = MLP((2, 3), 4, hidden, **options)
        found = {name: tuple(tensor.shape) for name, tensor in network.named_parameters()}
        assert list(parameter_shapes(6, hidden, 4, **options).items()) == list(found.items())
        assert network.shapes == list(found.values())
        assert why_not_sizes(network) is None
        assert network.sizes == (6, *hidden, 4)


@pytest.mark.parametrize("hidden", [(), (4, 5)], ids=str)
def test_the_pure_function_is_the_forward_pass_with_all_options(hidden: tuple[int, ...]) -> None:
    obs = torch.randn(7, 2, 3)
    for options in every_option():
        network = MLP((2, 3), 4, hidden, activation="gelu", **options)
        twin = copy.deepcopy(network)
        random = torch.rand(network.num_random) if options["noisy"] else None
        flat = FlatNetwork(network)
        atoms = () if options["num_atoms"] is None else (options["num_atoms"],)
        found = flat(flat.views(flat.flat), obs, random)
        assert found.shape == (7, 4, *atoms)
        assert torch.equal(found, twin(obs, random))
        assert flat(flat.views(flat.flat), obs[:0]).shape == (0, 4, *atoms)
        assert bool(network.num_random) == options["noisy"]


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_layers_are_linear_then_normalised_then_activated(name: str) -> None:
    network = MLP((4,), 3, (6, 5), activation=name, layer_norm=True)
    norms: Any = network.norms
    for norm in norms:
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    activate, x = MODULES[name](), torch.randn(9, 4)
    expected = x
    for layer, norm in zip(network.layers[:2], norms, strict=True):
        expected = activate(norm(layer(expected)))
    torch.testing.assert_close(network(x), network.layers[2](expected))
    plain = MLP((4,), 3, (6,), activation=name)
    first, last = plain.layers
    torch.testing.assert_close(plain(x), last(activate(first(x))))


@pytest.mark.parametrize("units", [2, 5, 8])
def test_a_dueling_network_divides_its_last_hidden_layer(units: int) -> None:
    network = MLP((4,), 3, (7, units), dueling=True)
    half = units // 2
    hidden = network.layers[1](network.layers[0](obs := torch.randn(6, 4)).relu()).relu()
    value, advantage = network.value(hidden[:, :half]), network.layers[2](hidden[:, half:])
    torch.testing.assert_close(network(obs), value + advantage - advantage.mean(1, keepdim=True))
    linear = MLP((4,), 3, (), dueling=True)
    torch.testing.assert_close(linear(obs).mean(1, keepdim=True), linear.value(obs))


def test_advantages_of_each_number_are_about_their_own_mean() -> None:
    network = MLP((4,), 3, (8,), dueling=True, num_atoms=5)
    hidden = network.layers[0](obs := torch.randn(6, 4)).relu()
    advantages = network.layers[1](hidden[:, 4:]).view(6, 3, 5)
    value = network.value(hidden[:, :4]).view(6, 1, 5)
    expected = value + advantages - advantages.mean(1, keepdim=True)
    torch.testing.assert_close(network(obs), expected)


# Noise


@pytest.mark.parametrize("hidden", [(), (6,), (6, 5)], ids=str)
@pytest.mark.parametrize("dueling", [False, True])
def test_all_layers_but_the_first_hidden_one_are_noisy(
    hidden: tuple[int, ...], dueling: bool
) -> None:
    network = MLP((4,), 3, hidden, noisy=True, dueling=dueling)
    noisy = [isinstance(layer, NoisyLinear) for layer in network.layers]
    assert noisy == [not hidden, *([True] * len(hidden))]
    assert not dueling or isinstance(network.value, NoisyLinear)
    layers = [layer for layer in network.modules() if isinstance(layer, NoisyLinear)]
    assert network.num_random == sum(layer.in_features + layer.out_features for layer in layers)


def test_one_half_everywhere_is_exactly_no_noise() -> None:
    network, obs = MLP((4,), 3, (6, 5), **ALL), torch.randn(8, 4)
    half = torch.full((network.num_random,), 0.5)
    assert torch.equal(scaled_noise(half), torch.zeros_like(half))
    assert torch.equal(network(obs, half), network(obs))
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if "sigma" in name:
                parameter.zero_()
    silent = network(obs, torch.rand(network.num_random))
    assert torch.equal(silent, network(obs))


def test_every_number_moves_the_outputs_and_is_read_once() -> None:
    network, obs = MLP((4,), 3, (6, 5), noisy=True, dueling=True), torch.randn(8, 4)
    random = torch.rand(network.num_random)
    network._activate = torch.tanh  # so that no unit is idle
    before = network(obs, random)
    for number in range(network.num_random):
        other = random.clone()
        other[number] = (other[number] + 0.5) % 1.0
        assert not torch.equal(network(obs, other), before), number


def test_all_rows_share_the_noise() -> None:
    network, obs = MLP((4,), 3, (6, 5), **ALL), torch.randn(1, 4).expand(5, 4)
    random = torch.rand(2, network.num_random)
    one, other = (network(obs, numbers) for numbers in random)
    torch.testing.assert_close(one, one[:1].expand_as(one), rtol=1e-5, atol=1e-6)
    assert (one - other).abs().min() > 1e-4


def test_numbers_become_normal_ones_and_are_finite_at_both_ends() -> None:
    noise = scaled_noise(torch.rand(200_000))
    normal = noise.sign() * noise.square()
    assert abs(float(normal.mean())) < 0.01
    assert float(normal.var()) == pytest.approx(1.0, abs=0.02)
    assert float((normal.abs() < 1).float().mean()) == pytest.approx(0.6827, abs=0.005)
    ends = scaled_noise(torch.tensor([0.0, 2.0**-24, 1 - 2.0**-24]))
    assert bool(torch.isfinite(ends).all())
    assert 5.0 < float(-normal_of(ends[0])) < 6.0
    assert 5.0 < float(normal_of(ends[2])) < 6.0


def test_the_inverse_of_erf_is_within_a_hundred_thousandth_on_both_sides_of_its_split() -> None:
    x = torch.cat([torch.linspace(-1.0, 1.0, 100_001)[1:-1], 1.0 - 2.0 ** -torch.arange(9.0, 25.0)])
    wanted = torch.erfinv(x.double())
    found = inverse_erf(x)
    torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=0.0)
    assert torch.equal(inverse_erf(-x), -found)
    assert bool((found.abs() > 2.1).any())  # where the other polynomial counts
    assert float(inverse_erf(torch.zeros(1))) == 0.0


def normal_of(noise: Tensor) -> Tensor:
    return noise.sign() * noise.square()


def test_sigma_is_learned_and_its_gradient_is_the_noise() -> None:
    layer, x = NoisyLinear(3, 2), torch.randn(1, 3)
    random = torch.rand(5)
    layer(x, random)[0, 1].backward()
    noise = scaled_noise(random)
    expected = torch.stack((torch.zeros(3), noise[4] * noise[:3] * x[0]))
    torch.testing.assert_close(layer.weight_sigma.grad, expected)
    torch.testing.assert_close(layer.bias_sigma.grad, torch.tensor([0.0, float(noise[4])]))
    network = MLP((4,), 2, (6,), noisy=True)
    learner = Learner(network, optimizer=Descent(), learning_rate=0.1)
    born = copy.deepcopy(network)
    learner.update(random_batch())
    for name, parameter in network.named_parameters():
        assert not torch.equal(parameter, born.get_parameter(name)), name


# Refusals


@pytest.mark.parametrize("activation", ["mish", "", None, 3, ["relu"]])
def test_an_activation_that_there_is_not_is_refused(activation: Any) -> None:
    with pytest.raises(UsageError, match=r"--activation .*no such activation.*leaky_relu"):
        MLP((4,), 2, activation=activation)


@pytest.mark.parametrize("name", ["dueling", "noisy", "layer_norm", "kaiming"])
def test_an_option_that_is_neither_on_nor_off_is_refused(name: str) -> None:
    wrong: list[Any] = ["yes", None, 2, 0.5]
    for value in wrong:
        with pytest.raises(UsageError, match=f"--{name.replace('_', '-')} .*True or False"):
            MLP((4,), 2, **{name: value})
    chosen: dict[str, Any] = {name: np.bool_(True)}
    assert getattr(MLP((4,), 2, **chosen), name, True) is True


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"one_hot": -1}, "one_hot -1: it must be at least 0"),
        ({"one_hot": 2.5}, "one_hot 2.5: it must be a whole number"),
        ({"offset": "a"}, "offset 'a': it must be a whole number"),
        ({"offset": 0.5}, "offset 0.5: it must be a whole number"),
        ({"scale": "x"}, "scale 'x': it must be a finite number"),
        ({"scale": math.nan}, "scale nan: it must be a finite number"),
        ({"scale": None}, "scale None: it must be a finite number"),
    ],
)
def test_what_an_observation_cannot_be_changed_by_is_refused(
    given: dict[str, Any], words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        MLP((4,), 2, **given)


def test_numbers_of_numpy_and_negative_offsets_change_an_observation() -> None:
    given: dict[str, Any] = {"one_hot": np.int64(3), "offset": np.int64(-2)}
    network, scaled = MLP((), 2, **given), MLP((4,), 2, scale=np.float32(0.5))  # type: ignore[arg-type]
    assert torch.equal(network._encode(torch.tensor([-1])), torch.tensor([[0.0, 1.0, 0.0]]))
    assert torch.equal(scaled._encode(torch.ones(1, 4)), torch.full((1, 4), 0.5))


def test_one_unit_is_not_divided() -> None:
    with pytest.raises(UsageError, match=r"--dueling.*1 unit.*2 or more"):
        MLP((4,), 2, (8, 1), dueling=True)


def test_several_numbers_for_each_action_are_no_q_values() -> None:
    space = Box(-1, 1, (4,), np.float32)
    network = FlatNetwork(MLP((4,), 2, (8,), num_atoms=5))
    with pytest.raises(UsageError, match=r"network MLP: it gives \[3, 2, 5\]"):
        refuse_unfit(network, space, 2, "CartPole-v1")
    odd = MLP((4,), 2, (5,), noisy=True, dueling=True)
    odd.num_random = 4
    with pytest.raises(UsageError, match=r"num_random of network MLP: its forward pass reads 8"):
        FlatNetwork(odd)


@pytest.mark.parametrize("options", [{}, ALL], ids=["plain", "all"])
def test_a_replaced_layer_is_seen(options: dict[str, Any]) -> None:
    network = MLP((4,), 2, (6, 5), **options)
    network.layers[1] = nn.Linear(6, 5, bias=False)
    assert "its layers are not linear ones" in str(why_not_sizes(network))


class OfItsOwn(MLP):
    """Reads a number of its own, which scales what it gives."""

    num_random = 1

    def forward(self, obs: Tensor, random: Tensor | None = None) -> Tensor:
        assert random is not None
        return random * super().forward(obs)


class Forgetful(MLP):
    """Holds a noisy layer and hands no numbers down."""

    def __init__(self) -> None:
        super().__init__((4,), 2, (6,))
        self.more = NoisyLinear(4, 2)


def test_a_subclass_has_its_own_number_of_random_numbers() -> None:
    network = OfItsOwn((4,), 2, (6,))
    assert FlatNetwork(network).num_random(8) == 1
    with pytest.raises(UsageError, match="layer NoisyLinear has num_random"):
        FlatNetwork(Forgetful())


def test_options_reach_the_networks_of_all_spaces() -> None:
    for space, shape in ((Discrete(5, start=2), ()), (Box(0, 255, (2, 3), np.uint8), (2, 3))):
        network = mlp_for(space, 3, (6,), **ALL, num_atoms=4)
        obs = torch.full((2, *shape), 3)
        assert network(obs, torch.rand(network.num_random)).shape == (2, 3, 4)
        assert all(getattr(network, name) == value for name, value in ALL.items())


@pytest.mark.parametrize("precision", ["float32", pytest.param("bf16", marks=pytest.mark.slow)])
def test_all_options_learn_a_constant(precision: str) -> None:
    """Rewards of 1 at the end of each episode: Q becomes 1, and the noise does not hinder it."""
    network = MLP((4,), 2, (16, 16), **ALL)
    learner = Learner(network, learning_rate=1e-2, precision=precision)
    batch = random_batch(size=32)
    batch.terminated.fill_(True)
    batch.reward.fill_(1.0)
    taken = []
    for _ in range(80):
        taken.append(network(batch.obs).detach().gather(1, batch.action.unsqueeze(1)))
        learner.update(batch)
    assert float((taken[0] - 1).abs().mean()) > 0.5
    assert float((taken[-1] - 1).abs().mean()) < 0.2
    assert int(learner.state.skipped) == 0
