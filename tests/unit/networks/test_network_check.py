"""A network is tried on what it will be shown, before anything is learned, and leaves no trace."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete, MultiBinary, MultiDiscrete, Space
from gymnasium.vector import SyncVectorEnv
from torch import Tensor, nn
from torch.nn import functional

from fastdqn import DQN, MLP, UsageError
from fastdqn.networks.flat_network import FlatNetwork
from fastdqn.networks.mlp import mlp_for
from fastdqn.networks.network_check import observations_of, refuse_unfit
from tests.small_learners import Branches

CARTPOLE = "CartPole-v1"
BOX = Box(-1, 1, (4,), np.float32)


class Net(nn.Module):
    """A linear layer from four numbers to two, with something done before or after it."""

    def __init__(
        self,
        after: Callable[[Tensor], Any] = lambda q: q,
        before: Callable[[Tensor], Tensor] = lambda obs: obs,
    ) -> None:
        super().__init__()
        self.layer, self.before, self.after = nn.Linear(4, 2), before, after

    def forward(self, obs: Tensor) -> Any:
        return self.after(self.layer(self.before(obs)))


def unfit(module: nn.Module, space: Space[Any] = BOX, num_actions: int = 2) -> None:
    refuse_unfit(FlatNetwork(module), space, num_actions, "some-env")


def of_several(q: Tensor) -> Tensor:
    """Refuse a batch of one row, as batch statistics do."""
    assert len(q) > 1
    return q


# What is refused


WRONG: dict[str, tuple[Callable[[], Any], str]] = {
    "too wide": (lambda: MLP((5,), 2), "takes 5 numbers, and an observation has 4"),
    "much too wide": (lambda: MLP((50_000,), 2, (2,)), "takes 50000 numbers"),
    "too narrow": (lambda: MLP((3,), 2), "takes 3 numbers"),
    "an action too few": (lambda: MLP((4,), 1), "gives 1 Q-values, and .* has 2 actions"),
    "an action too many": (lambda: MLP((4,), 3), "gives 3 Q-values, and .* has 2 actions"),
    "one-hot": (lambda: MLP((), 2, one_hot=4), "takes one number"),
    "a function": (lambda: functional.relu, "no torch.nn.Module"),
    "a class": (lambda: Branches, "no torch.nn.Module"),
    "lazy": (lambda: nn.Sequential(nn.LazyLinear(2)), "lazy layers"),
    "raises": (lambda: nn.Linear(5, 2), "raises on observations .3, 4. .*shapes"),
    "a tuple": (lambda: Net(lambda q: (q, None)), "gives a tuple"),
    "a dict": (lambda: Net(lambda q: {"q": q}), "gives a dict"),
    "[B, 1, A]": (lambda: Net(lambda q: q.unsqueeze(1)), r"gives \[3, 1, 2\]"),
    "[A]": (lambda: Net(lambda q: q[0]), r"gives \[2\]"),
    "[B]": (lambda: Net(lambda q: q.amax(1)), r"gives \[3\]"),
    "[1, A]": (lambda: Net(lambda q: q[:1]), r"gives \[1, 2\]"),
    "[B, A + 1]": (lambda: Net(lambda q: functional.pad(q, (0, 1))), "gives 3 Q-values"),
    "whole numbers": (lambda: Net(lambda q: q.argsort(1)), "torch.int64"),
    "no gradient": (lambda: Net(lambda q: q.detach()), "no gradient"),
    "writes": (lambda: Net(before=lambda obs: obs.mul_(0.5)), "writes into the observations"),
    "batches only": (lambda: Net(of_several), "raises on a single observation"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_network_that_does_not_fit_is_refused_at_construction(name: str) -> None:
    make, reason = WRONG[name]
    with pytest.raises(UsageError, match=reason) as message:
        DQN(CARTPOLE, network=make(), vectorizer="sync", execution="native")
    assert message.value.way_out


@pytest.mark.parametrize("make", [WRONG["too wide"][0], WRONG["a tuple"][0]])
def test_it_is_refused_for_whatever_environments(make: Callable[[], nn.Module]) -> None:
    own = SyncVectorEnv([lambda: gym.make(CARTPOLE)])
    given: tuple[tuple[Any, dict[str, Any]], ...] = (
        (CARTPOLE, {"vectorizer": "tensor"}),
        (lambda: gym.make(CARTPOLE), {}),
        (own, {}),
    )
    for env, settings in given:
        with pytest.raises(UsageError, match="network"):
            DQN(env, network=make(), **settings)
    own.close()


def test_one_hot_vectors_that_are_too_short_for_a_space_are_refused() -> None:
    for space in (Discrete(7), Discrete(5, start=-1), Box(0, 6, (), np.int64)):
        with pytest.raises(UsageError, match="one-hot vectors stand for 0 to 4"):
            unfit(MLP((), 2, one_hot=5), space)
    unfit(MLP((), 2, one_hot=5, offset=-1), Discrete(5, start=-1))


def test_layers_that_were_exchanged_are_found() -> None:
    module = MLP((4,), 2, (8,))
    module.layers[0] = nn.Linear(4, 8, bias=False)
    with pytest.raises(UsageError, match="not linear ones with biases"):
        unfit(module)


def test_a_saved_policy_is_loaded_into_no_other_network(tmp_path: Any) -> None:
    DQN(CARTPOLE, hidden_sizes=(8,)).save(tmp_path / "saved")
    with pytest.raises(UsageError, match="takes 5 numbers"):
        DQN.load(tmp_path / "saved", network=MLP((5,), 2, (8,)))


# What is welcome


SPACES: list[Space[Any]] = [
    Box(-np.inf, np.inf, (3,), np.float64),
    Box(-3e38, 3e38, (2, 3), np.float32),
    Box(100.0, 200.0, (), np.float32),
    Box(0, 255, (2, 2, 1), np.uint8),
    Discrete(5, start=3),
    MultiBinary(4),
    MultiDiscrete([3, 7]),
]


@pytest.mark.parametrize("space", SPACES, ids=str)
def test_observations_of_a_trial_are_of_the_space_and_finite(space: Space[Any]) -> None:
    shown = observations_of(space, torch.device("cpu"))
    assert shown.shape == (3, *(space.shape or ()))
    assert shown.double().isfinite().all()
    for row in shown:
        value = np.asarray(row.numpy(), space.dtype)
        assert space.contains(value[()] if isinstance(space, Discrete) else value)
    unfit(mlp_for(space, 3, (4,)), space, 3)


class Embedded(nn.Module):
    """Takes whole numbers as indices, which zeros or random floats are none of."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(5, 6), nn.Linear(6, 2)

    def forward(self, obs: Tensor) -> Tensor:
        assert obs.dtype is torch.int64
        q: Tensor = self.head(self.embedding(obs))
        return q


QUIET: dict[str, tuple[Callable[[], nn.Module], Space[Any]]] = {
    "an MLP": (lambda: MLP((4,), 2), BOX),
    "branches": (Branches, BOX),
    "no dropout": (lambda: Net(lambda q: functional.dropout(q, 0.5, training=False)), BOX),
    "dropout of nothing": (lambda: Net(lambda q: functional.dropout(q, 0.0)), BOX),
    "in evaluation mode": (lambda: Noisy().eval(), BOX),
    "NaN": (lambda: Net(lambda q: q / 0 * 0), BOX),
    "an embedding": (Embedded, Discrete(5)),
    "normalised rows": (lambda: Net(lambda q: functional.layer_norm(q, (2,))), BOX),
    "attention": (lambda: Attention(0.0), BOX),
    "half": (lambda: Net(lambda q: q.to(torch.bfloat16)), BOX),
}


@pytest.mark.parametrize("name", QUIET)
def test_of_a_network_that_always_answers_alike_there_is_no_word(name: str) -> None:
    make, space = QUIET[name]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        unfit(make(), space)


# What is warned of


class Noisy(nn.Module):
    """Drops units by a functional call while it is in training mode."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 2)

    def forward(self, obs: Tensor) -> Tensor:
        return functional.dropout(self.layer(obs), 0.5, self.training)


class Attention(nn.Module):
    """Attends over the numbers of an observation."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(1, 1, dropout=dropout, batch_first=True)
        self.head = nn.Linear(4, 2)

    def forward(self, obs: Tensor) -> Tensor:
        tokens = obs.unsqueeze(2)
        q: Tensor = self.head(self.attention(tokens, tokens, tokens)[0].squeeze(2))
        return q


class OwnGenerator(nn.Module):
    """Draws from a generator of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.generator = nn.Linear(4, 2), torch.Generator().manual_seed(0)

    def forward(self, obs: Tensor) -> Tensor:
        q: Tensor = self.layer(obs) + torch.rand(len(obs), 2, generator=self.generator)
        return q


class Counting(nn.Module):
    """Changes with every call, by a buffer that belongs to no layer."""

    calls: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 2)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, obs: Tensor) -> Tensor:
        self.calls += 1
        q: Tensor = self.layer(obs) * self.calls
        return q


RANDOM: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "functional dropout": (lambda: Net(lambda q: functional.dropout(q, 0.5)), "Take it out"),
    "rarely": (lambda: Net(lambda q: functional.dropout(q, 1e-6)), "Take it out"),
    "a little": (lambda: Net(lambda q: q + 1e-9 * torch.randn_like(q)), "Take it out"),
    "rand": (lambda: Net(lambda q: q + torch.rand(2)), "Take it out"),
    "gumbel": (lambda: Net(functional.gumbel_softmax), "Take it out"),
    "numpy": (lambda: Net(lambda q: q * float(np.random.rand())), "Take it out"),
    "random": (lambda: Net(lambda q: q * random.random()), "Take it out"),
    "a generator": (OwnGenerator, "Take it out"),
    "a count": (Counting, "Take it out"),
    "training mode": (Noisy, r"Call .eval\(\)"),
    "attention": (lambda: Attention(0.3), r"Call .eval\(\)"),
    "functional batch norm": (
        lambda: Net(lambda q: functional.batch_norm(q, None, None, training=True, eps=1.0) + q),
        "single observation|other rows",
    ),
    "batch mean": (lambda: Net(lambda q: q - q.mean(0)), "other rows of its batch"),
}


@pytest.fixture
def kept() -> Iterator[None]:
    """All global generators are as before."""
    drawn: Any = np.random.get_state()
    states = torch.get_rng_state(), random.getstate(), drawn[1]
    yield
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    drawn = np.random.get_state()
    assert np.array_equal(drawn[1], states[2])


@pytest.mark.parametrize("name", [name for name in RANDOM if name != "functional batch norm"])
def test_a_network_that_acts_at_random_is_warned_of(name: str, kept: None) -> None:
    state = torch.get_rng_state()
    make, way_out = RANDOM[name]
    module = make()
    torch.set_rng_state(state)  # building it draws, too
    mode, before = module.training, {k: v.clone() for k, v in module.state_dict().items()}
    with pytest.warns(UserWarning, match=f"network {type(module).__name__} .*{way_out}") as message:
        DQN(CARTPOLE, network=module, vectorizer="sync", num_workers=0)
    assert [warning.filename for warning in message] == [__file__]
    assert module.training is mode
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


def test_functional_batch_norm_is_refused_since_a_single_observation_has_no_spread() -> None:
    with pytest.raises(UsageError, match="raises on a single observation"):
        unfit(RANDOM["functional batch norm"][0]())


def test_a_trial_leaves_no_trace_in_a_network_that_keeps_what_it_sees(kept: None) -> None:
    state = torch.get_rng_state()
    module = Counting()
    torch.set_rng_state(state)
    with pytest.warns(UserWarning, match="Counting"):
        unfit(module)
    assert module.calls == 0
