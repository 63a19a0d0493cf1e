"""The ring on the device: what can be drawn is right, nothing else can, and all of it equally."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fastdqn.errors import UsageError
from fastdqn.replay import gather
from fastdqn.replay.buffer import MAX_DRAW
from fastdqn.replay.functional_ring import FunctionalRing
from fastdqn.replay.sampler import UniformSampler
from tests.hotpath.test_hotpath import Calls, Operations


def drawn_from(ring: FunctionalRing, random_bits: Tensor) -> Tensor:
    rows, _ = UniformSampler(ring, len(random_bits)).draw(random_bits)
    return rows


@dataclass
class Reference:
    """A ring of plain tuples, fed alike. Observations are serial numbers, never used twice."""

    ring: FunctionalRing
    kept: list[list[tuple[Any, ...]]] = field(default_factory=list)
    serial: int = 0
    shown: list[int] = field(default_factory=list)

    def fresh(self) -> list[int]:
        numbers = list(range(self.serial + 1, self.serial + 1 + self.ring.num_envs))
        self.serial = numbers[-1]
        return numbers

    def begin(self) -> None:
        self.shown = self.fresh()
        self.ring.cut()
        self.ring.begin(column(self.shown))

    def write(self, ends: list[int]) -> None:
        """Write a row; `ends` says by environment 0: goes on, 1: terminated, 2: truncated."""
        final, action, reward = self.fresh(), self.fresh(), self.fresh()
        first = self.fresh()
        obs = [new if end else true for new, true, end in zip(first, final, ends, strict=True)]
        terminated, truncated = ([end == kind for end in ends] for kind in (1, 2))
        self.ring.write(
            torch.tensor(action),
            torch.tensor(reward).float(),
            torch.tensor(terminated),
            torch.tensor(truncated),
            column(obs),
            column(final),
        )
        rows = zip(self.shown, action, reward, final, terminated, truncated, strict=True)
        self.kept = [*self.kept, list(rows)][-(self.ring.num_rows - 1) :]
        self.shown = obs

    def continues(self) -> list[bool]:
        """Return of each transition whether the next row begins where it ends."""
        begun = [{step[0] for step in row} for row in self.kept[1:]] + [set()]
        return [
            step[3] in after and not (step[4] or step[5])
            for row, after in zip(self.kept, begun, strict=True)
            for step in row
        ]

    def all(self) -> list[tuple[Any, ...]]:
        return [transition for row in self.kept for transition in row]


def column(numbers: list[int]) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float32).unsqueeze(1)


def drawable(ring: FunctionalRing, count: int) -> list[tuple[Any, ...]]:
    """Return what the draw yields for the bits 0 ... count - 1."""
    batch = gather(ring.ring, drawn_from(ring, torch.arange(count)))
    columns = [field.reshape(count).tolist() for field in batch.tensors() if field is not None]
    return list(zip(*columns, strict=True))


@st.composite
def histories(draw: st.DrawFn) -> tuple[FunctionalRing, list[list[int] | None]]:
    """Draw a ring, and what happens to it: rows of ends, or None for a reset of all."""
    num_envs = draw(st.integers(1, 4))
    capacity = draw(st.integers(1, 6 * num_envs))
    row = st.lists(st.integers(0, 2), min_size=num_envs, max_size=num_envs)
    events = draw(st.lists(st.one_of(row, row, row, st.none()), max_size=20))
    return FunctionalRing(capacity, num_envs, (1,)), events


@given(histories())
@settings(max_examples=200, deadline=None, report_multiple_bugs=False)
def test_what_can_be_drawn_is_what_a_plain_list_would_hold_in_order(
    history: tuple[FunctionalRing, list[list[int] | None]],
) -> None:
    ring, events = history
    reference = Reference(ring)
    reference.begin()
    for event in events:
        if event is None:
            reference.begin()
        else:
            reference.write(event)
        want = reference.all()
        if want:
            assert drawable(ring, len(want)) == want
            index = drawn_from(ring, torch.arange(len(want)))
            assert ring.ring.continues[index].tolist() == reference.continues()
            head = ring._slots(ring.row)
            assert not ring.ring.continues[head].any()
            again = drawn_from(ring, torch.arange(len(want), 3 * len(want)))
            assert again.tolist() == drawn_from(ring, torch.arange(len(want))).tolist() * 2


@given(histories(), st.integers(1, 5))
@settings(max_examples=50, deadline=None)
def test_what_was_written_on_trial_can_be_undone(
    history: tuple[FunctionalRing, list[list[int] | None]], trial: int
) -> None:
    ring, events = history
    reference = Reference(ring)
    reference.begin()
    for event in events:
        if event is not None:
            reference.write(event)
    want, shown = reference.all(), reference.shown
    before = [tensor.clone() for tensor in tensors(ring)]
    restore = ring.snapshot(trial)
    for turn in range(trial):
        reference.write([turn % 3] * ring.num_envs)
    restore()
    for tensor, kept in zip(tensors(ring), before, strict=True):
        assert torch.equal(tensor, kept)
    reference.kept, reference.shown = [], shown
    reference.write([0] * ring.num_envs)
    held = want[ring.num_envs :] if len(want) == ring.capacity else want
    assert drawable(ring, len(held) + ring.num_envs) == [*held, *reference.all()]


def tensors(ring: FunctionalRing) -> list[Tensor]:
    return [ring.row, *ring.ring.cells().values()]


@pytest.mark.parametrize("rows", [3, 10])
def test_draws_are_uniform(rows: int) -> None:
    ring = FunctionalRing(12, 2, (1,))
    reference = Reference(ring)
    reference.begin()
    for _ in range(rows):
        reference.write([1, 0])
    places = min(2 * rows, 12)
    random_bits = torch.randint(MAX_DRAW, (20_000,), generator=torch.Generator().manual_seed(0))
    counts = Counter(drawn_from(ring, random_bits).tolist())
    expected = len(random_bits) / places
    chi_square = sum((count - expected) ** 2 / expected for count in counts.values())
    assert len(counts) == places
    assert chi_square < 35  # 0.999 quantile for 11 degrees of freedom: 31


def test_the_largest_bits_and_the_longest_runs_stay_in_range() -> None:
    ring = FunctionalRing(12, 2, (1,))
    ring.row.fill_(2**40)
    index = drawn_from(ring, torch.tensor([0, MAX_DRAW - 1, 2**53 + 1]))
    head = 2**40 % 7 * 2
    assert ((index >= 0) & (index < 14)).all()
    assert not {head, head + 1} & set(index.tolist())


def test_a_ring_that_does_not_fit_is_refused() -> None:
    with pytest.raises(UsageError, match=r"--buffer-size.* fits"):
        FunctionalRing(10**12, 4, (84, 84), torch.uint8)
    with pytest.raises(UsageError, match="--num-envs 0"):
        FunctionalRing(8, 0, (1,))


def test_capacity_is_rounded_up_to_whole_rows() -> None:
    ring = FunctionalRing(9, 4, (1,))
    assert (ring.capacity, ring.num_rows, len(ring.ring.frames)) == (12, 4, 32)


def test_nothing_looks_at_the_device_or_makes_float64() -> None:
    ring = FunctionalRing(8, 2, (1,))
    flags = torch.zeros(2, dtype=torch.bool)
    step = (torch.zeros(2, dtype=torch.int64), torch.zeros(2), flags, flags)
    with Operations() as operations, Calls() as calls:
        ring.begin(torch.zeros(2, 1))
        ring.write(*step, torch.zeros(2, 1), torch.zeros(2, 1))
        ring.cut()
        gather(ring.ring, drawn_from(ring, torch.arange(5)))
    assert operations.names["aten.index_put_"] > 0
    assert (operations.looks, operations.doubles) == ([], [])
    assert not calls.names


def test_writing_and_drawing_compile_whole_and_change_nothing_else() -> None:
    ring, twin = FunctionalRing(6, 2, (1,)), FunctionalRing(6, 2, (1,))
    drawn, sampler = torch.zeros(4, dtype=torch.int64), UniformSampler(ring, 4)

    def turn(obs: Tensor, flags: Tensor, random_bits: Tensor) -> None:
        ring.write(random_bits[:2], obs[:, 0], flags, flags, obs, obs + 0.5)
        drawn.copy_(sampler.draw(random_bits)[0])

    compiled = torch.compile(turn, fullgraph=True, dynamic=False, backend="aot_eager")
    for number in range(9):
        obs = column([4 * number, 4 * number + 2])
        flags, random_bits = (
            torch.tensor([number % 2 == 0, number % 3 == 0]),
            torch.arange(4) + number,
        )
        compiled(obs, flags, random_bits)
        twin.write(random_bits[:2], obs[:, 0], flags, flags, obs, obs + 0.5)
        assert torch.equal(drawn, drawn_from(twin, random_bits))
    for mine, theirs in zip(tensors(ring), tensors(twin), strict=True):
        assert torch.equal(mine, theirs)
    torch._dynamo.reset()
