"""The sum tree against dense sums, in PyTorch and in C."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from fastdqn.replay.c_tree import CTree
from fastdqn.replay.sum_tree import SumTree, tree_bytes

NUMBERS = {"alpha": 1.0, "eps": 1e-30, "beta_start": 0.0, "beta_end": 0.0}
"""Of a tree in C whose leaves are the priorities as they are."""


def in_c(tree: SumTree) -> CTree:
    return CTree(tree, torch.tensor(0), torch.tensor(1), **NUMBERS)


@dataclass(frozen=True)
class Ways:
    """How a tree is drawn from and written into."""

    draw: Callable[[Tensor], Tensor]
    set: Callable[[Tensor, Tensor], None]
    fill: Callable[[int, int, float], None]


def torch_ways(tree: SumTree) -> Ways:
    def fill(first: int, count: int, value: float) -> None:
        tree.fill(torch.arange(first, first + count), torch.tensor(value))

    return Ways(tree.draw, tree.set, fill)


def c_ways(tree: SumTree) -> Ways:
    c = in_c(tree)
    return Ways(lambda bits: c.draw(bits)[0], c.feed, c.fill)


WAYS = pytest.mark.parametrize("ways_of", [torch_ways, c_ways], ids=["torch", "c"])


def bits_of(count: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(2**62, (count,), generator=generator)


def deviation(rows: Tensor, weights: Tensor) -> float:
    """Return how far a chi-square statistic lies above its mean, in standard deviations."""
    assert int(rows.max()) < len(weights)
    expected = weights / weights.sum() * len(rows)
    seen = torch.bincount(rows, minlength=len(weights)).double()
    cells = expected > 0
    assert int(seen[~cells].sum()) == 0
    statistic = ((seen - expected)[cells].square() / expected[cells]).sum()
    free = int(cells.sum()) - 1
    return float((statistic - free) / (2 * free) ** 0.5)


@WAYS
@pytest.mark.parametrize("size", [1, 63, 64, 65, 5_000, 300_000])
def test_sums_equal_dense_ones_after_a_hundred_thousand_changes(
    size: int, ways_of: Callable[[SumTree], Ways]
) -> None:
    """Rows are written one by one, many at a time with repeats, in stretches, and cut."""
    tree, generator = SumTree(size), torch.Generator().manual_seed(size)
    dense, ways = torch.zeros(size, dtype=torch.float64), ways_of(tree)
    for number in range(1_000):
        rows = torch.randint(size, (100,), generator=generator)
        values = torch.rand(100, generator=generator) * 10.0 ** (number % 7 - 3) + 1e-6
        ways.set(rows, values)
        dense.index_fill_(0, rows, 0.0).scatter_reduce_(0, rows, values.double(), "amax")
        if number % 10 == 0:
            first = int(torch.randint(size, (1,), generator=generator))
            count = min(size - first, 1 + number % 300)
            value = float(number % 20 == 0)
            ways.fill(first, count, value)
            dense[first : first + count] = value
    torch.testing.assert_close(tree.leaves[:size], dense.float(), rtol=1e-6, atol=0)
    dense = tree.leaves[:size].double()
    assert abs(float(tree.total()) / float(dense.sum()) - 1) < 1e-6
    assert float(tree.most()) == float(dense.max())
    for width, level in zip((16, tree.fan_out, 16 * tree.fan_out), tree.levels, strict=False):
        rows = torch.nn.functional.pad(dense, (0, -size % width)).view(-1, width)
        sums, largest = level[:, : len(rows)]
        torch.testing.assert_close(sums, rows.sum(1).float(), rtol=1e-6, atol=0)
        assert torch.equal(largest, rows.amax(1).float())
    assert not tree.leaves[size:].any()


@WAYS
def test_draws_follow_the_leaves_and_none_is_of_a_dead_one(
    ways_of: Callable[[SumTree], Ways],
) -> None:
    size = 2_000
    tree, generator = SumTree(size), torch.Generator().manual_seed(3)
    values = torch.rand(size, generator=generator).add(0.01)
    values[torch.rand(size, generator=generator) < 0.3] = 0.0
    values[500:600] = 0.0
    values[7] = 500.0
    tree.leaves[:size] = values
    tree.set(torch.arange(size), values)
    drawn = ways_of(tree).draw(bits_of(200_000))
    assert abs(deviation(drawn, values.double())) < 5
    swapped = values.roll(1).double().add(1e-3)
    assert deviation(drawn, swapped) > 100


@pytest.mark.parametrize(("ways_of", "count"), [(torch_ways, 50_000), (c_ways, 1_000_000)])
def test_every_row_of_a_large_ring_can_be_drawn(
    ways_of: Callable[[SumTree], Ways], count: int
) -> None:
    """A prefix of 24 bits over ten million rows would skip some: each level has its own bits."""
    size = 10_000_000
    tree = SumTree(size)
    tree.fill(torch.arange(size), torch.tensor(1.0))
    drawn = ways_of(tree).draw(bits_of(count))
    assert 0 <= int(drawn.min()) <= int(drawn.max()) < size
    for cells in (drawn % 1_000, drawn // 10_000):  # neighbours, and the whole
        assert abs(deviation(cells, torch.ones(1_000, dtype=torch.float64))) < 5
    expected = size * (1 - (1 - 1 / size) ** count)
    assert abs(len(set(drawn.tolist())) / expected - 1) < 0.002


def test_both_draw_the_same_rows_of_the_same_tree() -> None:
    size = 100_000
    tree = SumTree(size)
    tree.set(torch.arange(size), torch.rand(size, generator=torch.Generator().manual_seed(1)))
    bits = bits_of(100_000)
    assert (tree.draw(bits) != in_c(tree).draw(bits)[0]).float().mean() < 1e-4


@WAYS
@pytest.mark.parametrize("extreme", [0, 2**62 - 1])
def test_the_first_and_the_last_number_choose_rows_that_live(
    extreme: int, ways_of: Callable[[SumTree], Ways]
) -> None:
    tree = SumTree(1_000)
    tree.fill(torch.arange(300, 700), torch.tensor(0.1))
    row = int(ways_of(tree).draw(torch.tensor([extreme])))
    assert row == (300 if extreme == 0 else 699)


@pytest.mark.parametrize("size", [1, 16, 17, 64**3, 64**3 + 1, 300_000, 128**3 + 1])
def test_the_bytes_of_a_tree_are_known_before_it_is_built(size: int) -> None:
    tree = SumTree(size)
    assert tree_bytes(size) == sum(tensor.untyped_storage().nbytes() for tensor in tree.written())
    assert tree.fan_out**3 >= size
    assert tree.fan_out == 64 or (tree.fan_out - 64) ** 3 < size


def test_the_bytes_of_a_tree_of_any_size_are_counted_at_once() -> None:
    assert 4 * 10**30 < tree_bytes(10**30) < 5 * 10**30
