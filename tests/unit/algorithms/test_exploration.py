"""The epsilon ladder: its exponents, and uniform numbers that explore by powers of epsilon."""

from __future__ import annotations

import pytest
import torch

from fastdqn.algorithms.exploration import bend_, explore, ladder_of

LARGEST = 1.0 - 2.0**-24
"""The largest uniform number of float32."""


def test_the_exponents_are_those_of_the_paper() -> None:
    """Eight actors of Ape-X: 0.4 ** (1 + i), since alpha is 7 and N - 1 too."""
    exponents = 1.0 / ladder_of(8, 7.0).double()
    assert exponents.tolist() == pytest.approx([1, 2, 3, 4, 5, 6, 7, 8], rel=1e-6)
    assert (0.4**exponents)[-1].item() == pytest.approx(0.00065536, rel=1e-5)
    assert (1.0 / ladder_of(3, 2.0)).tolist() == pytest.approx([1.0, 2.0, 3.0])


def test_a_single_environment_and_an_alpha_of_zero_explore_with_epsilon_itself() -> None:
    assert ladder_of(1, 7.0).tolist() == [1.0]
    assert ladder_of(4, 0.0).tolist() == [1.0] * 4


@pytest.mark.parametrize("epsilon", [0.9, 0.4, 0.02])
def test_a_bent_number_is_below_epsilon_where_the_number_is_below_its_power(epsilon: float) -> None:
    ladder = ladder_of(5, 7.0)
    power = epsilon ** (1.0 / ladder.double())
    uniform = torch.rand(4000, 5, 2, generator=torch.Generator().manual_seed(0))
    uniform[::2, :, 0] = (uniform[::2, :, 0] * 2.0 * power).float().clamp(max=LARGEST)
    given = uniform.clone()
    bend_(uniform, ladder)
    expected = given[..., 0].double() < power
    close = (given[..., 0].double() / power - 1.0).abs() < 1e-5  # where rounding may decide
    assert (expected & ~close).sum(0).min() > 500
    assert torch.equal((uniform[..., 0] < epsilon)[~close], expected[~close])
    assert torch.equal(uniform[..., 1], given[..., 1])


def test_bent_numbers_stay_below_one_so_that_an_epsilon_of_one_explores_everywhere() -> None:
    uniform = torch.full((6, 3), LARGEST)
    bend_(uniform, ladder_of(6, 7.0))
    assert uniform[:, 0].max() < 1.0
    q = torch.tensor([[1.0, 0.0]]).expand(6, -1)
    assert explore(q, 1.0, uniform).tolist() == [1] * 6


def test_the_first_number_of_a_view_is_bent_in_place_and_no_other() -> None:
    memory = torch.full((2, 3, 5), 0.25)
    bend_(memory[:, :, 1:], ladder_of(3, 2.0))
    assert torch.equal(memory[..., [0, 2, 3, 4]], torch.full((2, 3, 4), 0.25))
    assert memory[1, :, 1].tolist() == pytest.approx([0.25, 0.25**0.5, 0.25 ** (1 / 3)])
