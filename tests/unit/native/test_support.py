"""What C and CUDA C know of MLPs, and what they refuse by name."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from fastdqn.errors import UsageError
from fastdqn.learner.learner import Learner
from fastdqn.native import CudaActor, CudaUpdate, NativeActor, why_not_act
from fastdqn.networks.flat_network import FlatNetwork
from fastdqn.networks.mlp import MLP
from tests.emulated.card import make

BOTH: dict[str, Any] = {"dueling": True, "layer_norm": True}
KNOWN: tuple[dict[str, Any], ...] = ({}, {"dueling": True}, {"layer_norm": True}, BOTH)


@pytest.mark.parametrize("options", KNOWN)
@pytest.mark.parametrize("sizes", [(), (2,), (7, 5)])
def test_dueling_mlps_and_those_with_layer_norm_are_known(
    options: dict[str, Any], sizes: tuple[int, ...]
) -> None:
    assert why_not_act(FlatNetwork(MLP((4,), 3, sizes, **options))) is None


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"noisy": True}, "--noisy"),
        ({"activation": "gelu"}, "--activation gelu"),
        ({"num_atoms": 5}, "several numbers for each action"),
    ],
)
def test_what_the_c_does_not_know_of_an_mlp_is_named(options: dict[str, Any], named: str) -> None:
    for known in KNOWN:
        assert named in str(why_not_act(FlatNetwork(MLP((4,), 3, (8,), **known, **options))))


def put(name: str, part: nn.Module | bool) -> Callable[[Any], None]:
    """Return what puts a part, or a flag, in the place of the network's own."""

    def change(module: Any) -> None:
        owner, _, last = name.rpartition(".")
        setattr(module.get_submodule(owner) if owner else module, last, part)

    return change


def move_value_behind_norms(module: Any) -> None:
    value = module.value
    del module.value
    module.value = value


WRONG: dict[str, Callable[[Any], None]] = {
    "a value of five units": put("value", nn.Linear(5, 1)),
    "two values": put("value", nn.Linear(4, 2)),
    "a value without a bias": put("value", nn.Linear(4, 1, bias=False)),
    "advantages of five units": put("layers.1", nn.Linear(5, 3)),
    "advantages of two actions": put("layers.1", nn.Linear(4, 2)),
    "a wider layer": put("layers.0", nn.Linear(4, 9)),
    "a wider norm": put("norms.0", nn.LayerNorm(9)),
    "a norm without beta": put("norms.0", nn.LayerNorm(8, bias=False)),
    "a norm without gamma and beta": put("norms.0", nn.LayerNorm(8, elementwise_affine=False)),
    "the value behind the norms": move_value_behind_norms,
    "no longer dueling": put("dueling", False),
    "no longer normalised": put("layer_norm", False),
}


@pytest.mark.parametrize("name", WRONG)
def test_parts_of_other_sizes_than_the_c_would_read_are_refused(name: str) -> None:
    module = MLP((4,), 3, (8,), **BOTH)
    WRONG[name](module)
    network = FlatNetwork(module)
    assert "its layers are not linear ones" in str(why_not_act(network))
    with pytest.raises(UsageError, match="acting in C"):
        NativeActor(network)
    with pytest.raises(UsageError):
        Learner(module, execution="native")


def test_parameters_that_are_not_those_of_the_vector_are_refused() -> None:
    network = FlatNetwork(MLP((4,), 3, (8,), **BOTH))
    network.flat = network.flat[:-1]
    assert "vector holds other parameters" in str(why_not_act(network))


@pytest.mark.parametrize("option", ["dueling", "layer_norm"])
def test_the_kernels_of_a_card_refuse_by_name_what_the_c_alone_knows(option: str) -> None:
    options: dict[str, Any] = {option: True}
    flag = "--" + option.replace("_", "-")
    module = MLP((4,), 3, (8,), **options)
    count = sum(parameter.numel() for parameter in module.parameters())
    flat = SimpleNamespace(device=torch.device("cuda"), shape=(count,))
    there: Any = SimpleNamespace(module=module, flat=flat, num_random=lambda _: 0, q_values=None)
    assert f"its kernels do not know multilayer perceptrons with {flag}" in str(why_not_act(there))
    learner = Learner(module)
    with pytest.raises(UsageError, match=rf"{flag}\. Use --execution cudagraph"):
        CudaActor(learner.network, make)
    how: Any = partial(CudaUpdate, make=make)
    with pytest.raises(UsageError, match=rf"{flag}\. Use --execution cudagraph"):
        learner.natively(learner.state, how)
