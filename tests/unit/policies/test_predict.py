"""Greedy actions for arrays, lists and tensors of any layout, and refusals of what is none."""

from __future__ import annotations

from functools import cache, partial
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import pytest
import torch
from gymnasium.spaces import Box, Discrete, MultiBinary, MultiDiscrete, Space
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from fastdqn import DQN
from fastdqn.errors import UsageError

BOX = Box(-np.inf, np.inf, (4,), np.float32)
DOUBLE = Box(-np.inf, np.inf, (4,), np.float64)
HALF = Box(-np.inf, np.inf, (4,), np.float16)
BYTES = Box(0, 255, (4,), np.uint8)


class Shows(gym.Env[Any, Any]):
    """Shows nothing new: only its spaces matter."""

    action_space = Discrete(3, start=5)

    def __init__(self, space: Space[Any]) -> None:
        self.observation_space = space

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        return self._first(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return self._first(), 0.0, False, False, {}

    def _first(self) -> Any:
        space: Any = self.observation_space
        if isinstance(space, Discrete):
            return space.start
        return np.zeros(space.shape, space.dtype)


AGENTS: dict[str, DQN] = {}


def agent_for(space: Space[Any]) -> DQN:
    name = str(space)
    if name not in AGENTS:
        AGENTS[name] = DQN(lambda: Shows(space), num_envs=1, buffer_size=256)
    return AGENTS[name]


@cache
def observations() -> npt.NDArray[np.float32]:
    return np.random.default_rng(0).normal(size=(64, 4)).astype(np.float32) * 3


def read_only(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    array = array.copy()
    array.flags.writeable = False
    return array


TENSORS = [
    torch.zeros(4).to_sparse(),
    torch.zeros(4, device="meta"),
    torch.zeros(4).to(torch.float8_e4m3fn),
    torch.zeros(4, dtype=torch.complex64),
]
"""Tensors that are no plain arrays of real numbers."""
LAYOUTS: dict[str, Any] = {
    "a list": lambda obs: obs.tolist(),
    "negative strides": lambda obs: obs[::-1].copy()[::-1],
    "columns backwards": lambda obs: obs[:, ::-1].copy()[:, ::-1],
    "columns first": np.asfortranarray,
    "every second of more": lambda obs: np.repeat(obs, 2, axis=0)[::2],
    "read-only": read_only,
    "big-endian": lambda obs: obs.astype(">f4"),
    "float64": lambda obs: obs.astype(np.float64),
    "a tensor": torch.as_tensor,
    "a tensor with a gradient": lambda obs: torch.as_tensor(obs).clone().requires_grad_(),
    "a tensor of float64": lambda obs: torch.as_tensor(obs).double(),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_same_actions_for_every_layout(layout: str) -> None:
    agent, obs = agent_for(BOX), observations()
    expected = agent.predict(obs)
    assert len(set(expected.tolist())) > 1
    given_ = LAYOUTS[layout](obs)
    assert agent.predict(given_).tolist() == expected.tolist()
    assert [int(agent.predict(one)) for one in given_] == expected.tolist()


def test_a_tensor_of_sixteen_bits_is_taken_as_it_is() -> None:
    agent, obs = agent_for(BOX), torch.as_tensor(observations()).bfloat16()
    assert agent.predict(obs).tolist() == agent.predict(obs.float()).tolist()


def test_what_is_given_stays_as_it_was() -> None:
    obs = observations().copy()
    agent_for(BOX).predict(obs)
    assert (obs == observations()).all()


@pytest.mark.parametrize("space", [BOX, DOUBLE, HALF])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_not_finite_are_refused(space: Box, value: float) -> None:
    with pytest.raises(UsageError, match=f"observation with {value}"):
        agent_for(space).predict([0.0, value, 0.0, 0.0])


@pytest.mark.parametrize(("space", "value"), [(BOX, 1e39), (DOUBLE, 1e39), (HALF, 70_000.0)])
def test_numbers_larger_than_the_network_reads_are_refused(space: Box, value: float) -> None:
    with pytest.raises(UsageError, match="no finite number"):
        agent_for(space).predict([value, 0.0, 0.0, 0.0])


@pytest.mark.parametrize("value", [0.5, 300, -1, 256.0, np.nan, np.inf, 2**40, 255.0001])
def test_bytes_take_whole_numbers_that_fit(value: float) -> None:
    agent = agent_for(BYTES)
    with pytest.raises(UsageError, match="is none of Box"):
        agent.predict([0, value, 0, 0])
    assert agent.predict([0.0, 255.0, 1, True]) == agent.predict(np.array([0, 255, 1, 1], np.uint8))


@given(arrays.arrays(np.float64, 4, elements=st.floats(-300, 600)))
def test_bytes_are_refused_exactly_where_uint8_does_not_hold_them(obs: Any) -> None:
    holds = bool(((obs == np.floor(obs)) & (obs >= 0) & (obs <= 255)).all())
    try:
        agent_for(BYTES).predict(obs)
    except UsageError:
        assert not holds
    else:
        assert holds


@pytest.mark.parametrize(
    ("space", "fine", "wrong"),
    [
        (Discrete(4), [0, 3], [-1, 4, 1.5]),
        (Discrete(4, start=-2), [-2, 1], [-3, 2]),
        (MultiDiscrete([2, 5]), [[0, 0], [1, 4]], [[2, 0], [0, 5], [-1, 0]]),
        (MultiBinary(2), [[0, 1]], [[0, 2], [-1, 0]]),
    ],
)
def test_spaces_that_count_refuse_what_they_do_not_have(
    space: Space[Any], fine: list[Any], wrong: list[Any]
) -> None:
    agent = agent_for(space)
    for obs in fine:
        assert 5 <= int(agent.predict(obs)) <= 7
    for obs in wrong:
        with pytest.raises(UsageError, match="it is none of"):
            agent.predict(obs)


@pytest.mark.parametrize(
    "network",
    [{}, {"noisy": True}]
    + [{"objective": name, "noisy": noisy} for name in ("c51", "iqn") for noisy in (False, True)],
    ids=str,
)
@pytest.mark.parametrize("env", [partial(Shows, BOX), "CliffWalking-v1"], ids=["box", "discrete"])
def test_a_batch_of_no_observations_gets_no_actions(env: Any, network: dict[str, Any]) -> None:
    agent = DQN(env, num_envs=1, num_workers=0, buffer_size=256, hidden_sizes=(8,), **network)
    shape, count = agent.description.obs_shape, agent.description.num_actions
    empty = np.zeros((0, *shape), agent.description.obs_dtype)
    assert agent.predict(empty).shape == (0,)
    assert agent.predict(empty, np.ones((0, count), bool)).shape == (0,)
    assert agent.predict(np.zeros((2, *shape), empty.dtype)).shape == (2,)


@pytest.mark.parametrize(
    "obs",
    [
        ["a"] * 4,
        np.zeros(4, complex),
        [[1.0, 2.0], [3.0]],
        [None] * 4,
        {},
        np.zeros(4, object),
        *TENSORS,
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore:Sparse")
def test_what_holds_no_real_numbers_is_refused(obs: Any) -> None:
    with pytest.raises(UsageError, match="observation"):
        agent_for(BOX).predict(obs)


@pytest.mark.parametrize("mask", [[1, 0, 2], [0.5, 1, 1], [np.nan, 1, 1], ["a", "b", "c"]])
def test_masks_hold_nothing_but_yes_and_no(mask: Any) -> None:
    with pytest.raises(UsageError, match="action_mask"):
        agent_for(BOX).predict(np.zeros(4), mask)


@pytest.mark.parametrize(
    "mask", [[0, 1, 0], [False, True, False], np.array([0, 1, 0], np.int8), torch.tensor([0, 1, 0])]
)
def test_masks_of_any_make_are_obeyed(mask: Any) -> None:
    assert agent_for(BOX).predict(np.zeros(4), mask) == 6


def test_what_reset_returns_is_refused_with_how_to_take_it_apart() -> None:
    with pytest.raises(UsageError, match=r"obs, info = env\.reset\(\)"):
        agent_for(BOX).predict(Shows(BOX).reset())  # type: ignore[arg-type]
