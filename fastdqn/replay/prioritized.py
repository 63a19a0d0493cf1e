"""Prioritized experience replay: transitions with large errors are learned from more often."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Self

import torch
from torch import Tensor

from fastdqn.errors import UsageError
from fastdqn.foundation.copying import copied, snapshot
from fastdqn.foundation.scalars import is_finite, python_scalar, whole
from fastdqn.foundation.state import PartState
from fastdqn.replay.buffer import MAX_DRAW, ReplayBuffer
from fastdqn.replay.c_tree import CTree, c_tree_of
from fastdqn.replay.functional_ring import FunctionalRing
from fastdqn.replay.sampler import Sampler
from fastdqn.replay.saved_priorities import priorities_state, read_mark, refuse_other_priorities
from fastdqn.replay.skipping_ring import SkippingRing
from fastdqn.replay.storage import gather, refuse_gamma
from fastdqn.replay.sum_tree import SumTree
from fastdqn.transition import Transitions

__all__ = ["PrioritizedSampler"]

SMALLEST, LARGEST = 1e-30, 1e30
"""Bounds of a leaf, so that no sum overflows and no leaf that may be drawn is 0."""


class PrioritizedSampler(Sampler):
    """Draws transitions in proportion to their priorities, with replacement.

        P(i) = p_i^alpha / sum_k p_k^alpha,    p_i = |TD error| + eps
        w_i = (N P(i))^-beta / max_k w_k = (min_k P(k) / P(i))^beta,    k in the batch

    A new transition has the largest priority of the buffer, rows that leave it at the same time
    included, so that it is learned from soon. beta
    moves from its start to its end over the batches of the training, on the device. A row that was
    overwritten, cut or is no transition has the leaf 0 and is never drawn; a skipped update writes
    nothing. Draws are independent of each other, not stratified.

    Args:
        replay: Where transitions are stored.
        batch_size: Transitions of a batch, B.
        due: See `Sampler`.
        alpha: How much priorities count, in [0, 1]; 0 draws uniformly.
        beta_start: How far weights make up for it at first, in [0, 1].
        beta_end: How far at the end, in [0, 1].
        eps: Added to each |TD error|, above 0.
        anneal: Batches over which beta moves; a training sets it to the updates that it will make.

    Attributes:
        tree: [T * M] the leaves p^alpha, and their sums.
        draws: Scalar int64 on the device, batches so far.
        anneal: Scalar int64 on the device, see above; write into it.
        in_c: The tree in C; None on other devices than the CPU, or without a compiler.

    Raises:
        UsageError: A number that cannot be used, named with its flag.

    Source:
        Schaul et al. (2016), Prioritized Experience Replay, arXiv:1511.05952, section 3.
    """

    def __init__(
        self,
        replay: ReplayBuffer | FunctionalRing,
        batch_size: int,
        *,
        due: int = 1,
        alpha: float = 0.6,
        beta_start: float = 0.4,
        beta_end: float = 1.0,
        eps: float = 1e-6,
        anneal: int = 100_000,
    ) -> None:
        super().__init__(replay, batch_size, due=due)
        device = self.ring.action.device
        self.alpha, self.eps = _share("alpha", alpha), _refused("eps", eps, SMALLEST, LARGEST)
        self.beta_start, self.beta_end = (
            _share("beta-start", beta_start),
            _share("beta-end", beta_end),
        )
        self.tree = SumTree(len(self.ring.action), device)
        self.draws = torch.zeros((), dtype=torch.int64, device=device)
        batches = whole("anneal", anneal, least=1, way_out="Pass the updates of the training.")
        self.anneal = torch.tensor(min(batches, MAX_DRAW), device=device)
        self._mark = 0, 0
        self.in_c = self._tree_in_c()

    def _tree_in_c(self) -> CTree | None:
        numbers = {"alpha": self.alpha, "eps": self.eps}
        betas = {"beta_start": self.beta_start, "beta_end": self.beta_end}
        return c_tree_of(self.tree, self.draws, self.anneal, **numbers, **betas)

    @property
    def address(self) -> int:
        """Where the C finds the tree."""
        assert self.in_c is not None
        return self.in_c.address

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Copy the tree, the counts and the ring; both go on alike and apart."""
        twin = copied(self, memo, anew=("in_c",))
        twin.in_c = twin._tree_in_c()
        return twin

    def written(self) -> tuple[Tensor, ...]:
        """Return the tree's tensors and the count of batches."""
        return *self.tree.written(), self.draws

    # As a part of a training

    def state(self) -> PartState:
        """Return the tree, the counts, and up to where it has followed the ring."""
        return priorities_state(self.tree, self.draws, self.anneal, self._mark)

    def restore(self, state: PartState) -> None:
        """Go on from the state of a sampler of the same ring, which is restored; in place."""
        own = None if isinstance(self.replay, FunctionalRing) else self.buffer.valid
        mark = read_mark(state, own)
        refuse_other_priorities(state, self.tree, self.replay, mark, LARGEST)
        state.scalar("draws", self.draws)
        state.scalar("anneal", self.anneal, 1)
        state.copy_into(self.state().tensors)
        self._mark = mark

    # The pure half

    def draw(self, random_bits: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return rows by their priorities, and the weights that make up for it."""
        rows = self.tree.draw(random_bits)
        leaves = self.tree.leaves.index_select(0, rows)
        passed = (self.draws / (self.anneal - 1).clamp(min=1)).clamp(max=1.0)
        beta = self.beta_start + (self.beta_end - self.beta_start) * passed
        self.draws.add_(1)
        return rows, (leaves.amin() / leaves) ** beta

    def feedback(self, rows: Tensor, priority: Tensor) -> None:
        """Write (|priority| + eps)^alpha of the rows; NaN leaves them as they are."""
        kept = self.tree.leaves.index_select(0, rows)
        leaves = ((priority.abs() + self.eps) ** self.alpha).clamp(SMALLEST, LARGEST)
        self.tree.set(rows, torch.where(priority.isnan(), kept, leaves))

    def wrote(self) -> None:
        """Take the row that was just written in, and the one that it pushes out; pure."""
        assert isinstance(self.replay, FunctionalRing)
        new, old = self.replay.turnover()
        largest = self.tree.most()
        self.tree.fill(old, torch.zeros_like(largest))
        largest = torch.where(largest > 0, largest, 1.0)
        if isinstance(self.replay, SkippingRing):
            self.tree.set(new, torch.where(self.replay.real, largest, 0.0))
        else:
            self.tree.fill(new, largest)

    # The host's half

    def expect(self, drawn: int, total: int) -> None:
        """Anneal beta over so many batches, of which some were drawn."""
        self.draws.fill_(drawn)
        self.anneal.fill_(max(total, 1))

    def fill(self, updates: int, num_random: int = 0) -> Tensor:
        """Do the host's half for so many batches; see `Sampler.fill`."""
        self.follow()
        return super().fill(updates, num_random)

    def follow(self) -> None:
        """Bring the tree up to what has been written into the ring since the last call."""
        valid = self.buffer.valid
        if self._rehearsing or valid.mark == self._mark:
            return
        left, entered = valid.changes(self._mark)
        self._mark = valid.mark
        largest = self._largest()
        for places in left:
            self._write(places, torch.zeros_like(largest))
        for places in entered:
            self._write(places, largest)

    def _largest(self) -> Tensor:
        if self.in_c is not None:
            return torch.tensor(self.in_c.most() or 1.0)
        largest = self.tree.most()
        return torch.where(largest > 0, largest, 1.0)

    def _write(self, places: range | Tensor, value: Tensor) -> None:
        if isinstance(places, Tensor):
            self.tree.set(places, value.expand(len(places)))
        elif self.in_c is not None:
            self.in_c.fill(places.start, len(places), value.item())
        else:
            self.tree.fill(torch.arange(places.start, places.stop, device=value.device), value)

    @contextmanager
    def rehearsal(self) -> Iterator[None]:
        """Draw as if the ring were full of transitions of one priority; see `Sampler`."""
        with super().rehearsal():
            restore = snapshot(self.written())
            self._write(range(len(self.ring.action)), torch.ones((), device=self.draws.device))
            try:
                yield
            finally:
                restore()

    # As a part of other loops

    @torch.no_grad()
    def sample(self, gamma: float | None = None) -> tuple[Transitions, Tensor]:
        """Draw a batch for a loop of the caller's own.

        Args:
            gamma: Discount per env step in [0, 1], see `fastdqn.replay.gather`.

        Returns:
            B transitions with their `weight`, and [B] int64, their numbers for
            `update_priorities`: a number is that of one transition for ever, so that one that
            was overwritten meanwhile is known.

        Raises:
            UsageError: The buffer is empty.
        """
        refuse_gamma(gamma)
        bits = self.fill(1)[0]
        rows, weights = self.draw(bits) if self.in_c is None else self.in_c.draw(bits)
        assert weights is not None
        return gather(self.ring, rows, gamma, weights.clone()), self.buffer.valid.number_of(rows)

    @torch.no_grad()
    def update_priorities(self, index: Tensor, priority: Tensor) -> None:
        """Write the priorities of transitions that `sample` drew; waits for the device.

        Numbers that no transition in the buffer has are ignored: it has left since, for example.

        Args:
            index: [B] int64 from `sample`.
            priority: [B] real numbers, |TD error| or what takes its place; its sign does not count.

        Raises:
            UsageError: The shapes or dtypes are others, or a priority is not finite.
        """
        if not isinstance(index, Tensor) or not isinstance(priority, Tensor):
            got = f"index {type(index).__name__} and priority {type(priority).__name__}"
            raise UsageError(got, "both are tensors [B]", "Pass the index of `sample`.")
        if index.dtype is not torch.int64 or index.ndim != 1 or priority.shape != index.shape:
            got = f"index {list(index.shape)} {index.dtype} and priority {list(priority.shape)}"
            raise UsageError(got, "there is one of each for a row", "Pass both as [B].")
        self.follow()
        valid, device = self.buffer.valid, self.draws.device
        numbers = index.to(device).contiguous()
        priority = priority.detach().to(device, torch.float32).contiguous()
        if self.in_c is not None:
            ring = valid.mark[1] - 1, valid.num_rows, valid.row_size
            fine = self.in_c.feed_known(numbers, priority, ring)
        elif fine := bool(torch.isfinite(priority).all()):
            rows, there = valid.places_of(numbers)
            there &= self.tree.leaves.index_select(0, rows) > 0
            self.feedback(rows[there], priority[there])
        if not fine:
            got, way_out = f"priority {priority.tolist()}", "Leave the update out, or its rows."
            raise UsageError(got, "it is not finite", way_out)


def _share(name: str, value: Any) -> float:
    return _refused(name, value, 0.0, 1.0)


def _refused(name: str, value: Any, least: float, most: float) -> float:
    """Return a number, or refuse what is none between two bounds."""
    number = python_scalar(value)
    if not is_finite(number) or not least <= number <= most:
        reason = f"it is a number in [{least:g}, {most:g}]"
        raise UsageError(f"--priority-{name} {value!r}", reason, "Leave it out for the default.")
    return float(number)
