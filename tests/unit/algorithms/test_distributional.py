"""C51: what the projection keeps for any numbers, and what is refused."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastdqn.algorithms.distributional import (
    C51Objective,
    DistributionalObjective,
    moved_atoms,
    of_action,
    project,
    relative_entropy,
)
from fastdqn.algorithms.objectives import Pass
from fastdqn.errors import UsageError

numbers = st.floats(-500, 500, width=32)


@settings(max_examples=80, deadline=None)
@given(
    reward=numbers,
    discount=st.floats(0, 1, width=32),
    atoms=st.integers(2, 60),
    low=st.floats(-300, 300, width=32),
    width=st.floats(0.5, 400, width=32),
    seed=st.integers(0, 2**16),
)
def test_mass_stays_1_and_the_mean_moves_where_nothing_is_clipped(
    *, reward: float, discount: float, atoms: int, low: float, width: float, seed: int
) -> None:
    generator, high = torch.Generator().manual_seed(seed), low + width
    probs = torch.rand(3, atoms, generator=generator).softmax(1)
    r, d = torch.full((3,), reward), torch.full((3,), discount)
    found = project(r, d, probs, low, high)
    assert (found >= 0).all()
    torch.testing.assert_close(found.sum(1), torch.ones(3), rtol=1e-4, atol=1e-4)
    support = torch.linspace(low, high, atoms, dtype=torch.float64)
    clipped = (reward + discount * support).clamp(low, high)
    expected = (probs.double() * clipped).sum(1)
    mean = (found.double() * support).sum(1)
    torch.testing.assert_close(mean, expected, rtol=1e-4, atol=1e-4 * (abs(low) + width))


@pytest.mark.parametrize("reward", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("discount", [0.0, 0.9])
def test_a_reward_that_is_not_finite_has_no_distribution(reward: float, discount: float) -> None:
    rewards, discounts = torch.tensor([1.0, reward]), torch.tensor([0.9, discount])
    found = project(rewards, discounts, torch.full((2, 5), 0.2), -3.0, 3.0)
    assert found[1].isnan().all()
    assert found[0].isfinite().all()


@settings(max_examples=30, deadline=None)
@given(atoms=st.integers(2, 40), shift=st.integers(-45, 45), seed=st.integers(0, 2**16))
def test_atoms_that_are_hit_keep_their_mass_to_the_bit(atoms: int, shift: int, seed: int) -> None:
    """Whole numbers and a discount of 1, so that every atom hits another one or an end."""
    probs = torch.rand(1, atoms, generator=torch.Generator().manual_seed(seed))
    found = project(torch.tensor([float(shift)]), torch.ones(1), probs, 0.0, atoms - 1.0)
    expected = torch.zeros(atoms, dtype=torch.float64)
    for number, mass in enumerate(probs[0].double()):
        expected[min(max(number + shift, 0), atoms - 1)] += mass
    inner = slice(1, atoms - 1)
    assert torch.equal(found[0, inner].double(), expected[inner])
    torch.testing.assert_close(found[0].double(), expected, rtol=1e-5, atol=1e-6)


def test_without_a_future_all_mass_lies_around_the_reward() -> None:
    probs = torch.full((3, 5), torch.nan)
    found = project(torch.tensor([0.25, -7.0, 9.0]), torch.zeros(3), probs, -2.0, 2.0)
    assert found.tolist() == [[0, 0, 0.75, 0.25, 0], [1, 0, 0, 0, 0], [0, 0, 0, 0, 1]]


def test_a_target_that_is_met_has_no_relative_entropy_whatever_its_own_is() -> None:
    target = torch.tensor([[0.25, 0.75, 0.0], [1.0, 0.0, 0.0]])
    cross = -(target * target.clamp(min=1e-38).log()).sum(1)
    assert relative_entropy(target, cross).tolist() == [0.0, 0.0]
    assert relative_entropy(target, cross + 0.5).tolist() == pytest.approx([0.5, 0.5])


def test_the_online_network_runs_at_the_next_state_only_where_it_chooses() -> None:
    next_obs: Any = [Pass(name, "next_obs") for name in ("target", "online")]
    assert list(C51Objective().passes) == next_obs
    assert list(C51Objective(double=False).passes) == next_obs[:1]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"num_atoms": 1}, "--num-atoms 1"),
        ({"v_min": 1.0, "v_max": 1.0}, "--v-min 1.0 and --v-max 1.0"),
        ({"v_min": 3, "v_max": 2}, "Choose --v-min below --v-max"),
        ({"v_min": math.nan}, "--v-min nan"),
        ({"v_max": math.inf}, "--v-max inf"),
        ({"v_min": 1e8, "v_max": 1e8 + 50}, "float32 does not keep 51 atoms"),
        ({"v_min": -1e35, "v_max": 1e35}, "float32 does not keep 51 atoms"),
    ],
)
def test_supports_that_cannot_be_are_refused(given: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        C51Objective(**given)


@pytest.mark.parametrize("shape", [(4, 3), (4, 3, 6), (4, 7)], ids=str)
def test_other_outputs_are_refused_by_their_shape(shape: tuple[int, ...]) -> None:
    with pytest.raises(UsageError, match=r"C51Objective reads 7 numbers for an action"):
        C51Objective(num_atoms=7).q_values(torch.zeros(shape))


def test_shapes_that_would_broadcast_are_refused() -> None:
    one = torch.zeros(4)
    with pytest.raises(ValueError, match="want"):
        of_action(torch.zeros(4, 2, 3), torch.zeros(4, 1, dtype=torch.int64))
    with pytest.raises(ValueError, match="want"):
        moved_atoms(one, one.unsqueeze(1), torch.zeros(4, 3))
    with pytest.raises(ValueError, match="want"):
        moved_atoms(one, one, torch.zeros(1, 3))
    with pytest.raises(ValueError, match="want"):
        project(one, one, torch.zeros(3), 0.0, 1.0)


def test_what_says_no_numbers_and_no_q_values_is_no_objective() -> None:
    class Half(DistributionalObjective):
        numbers = 3

    kinds: dict[type[Any], str] = {DistributionalObjective: "numbers", Half: "q_values"}
    for kind, missing in kinds.items():
        with pytest.raises(TypeError, match=missing):
            kind()
