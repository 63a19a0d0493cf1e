"""The replay ring whose cursor lives on the device, for iterations that are one pure function.

The same tensors as those of the ring (`fastdqn.replay.storage`), so that `gather` reads both. Here
the final observation of every transition has a place of its own, written at every step whether the
episode ended or not: no row is partial, nothing needs the host, and all shapes are static.

    frames      [ row 0 | row 1 | ... | row T-1 || finals of row 0 | ... | finals of row T-1 ]
    next_index  flat transition -> its final observation where it ended, else row t + 1
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fastdqn.replay.sizes import FunctionalSizes
from fastdqn.replay.storage import allocate

__all__ = ["FunctionalRing"]

ROW_FIELDS = ("next_index", "action", "reward", "terminated", "truncated", "continues")
"""Fields of the ring with one value per transition."""


class FunctionalRing:
    """The last `capacity` transitions of N environments, for compiled or recorded functions.

    Nothing here waits for the device or branches on a value; every method can be traced whole.

    Args:
        capacity, num_envs, obs_shape, obs_dtype, device, n_step: See `ReplayBuffer`.

    Attributes:
        ring: The tensors, T * N transitions and twice as many frames; written in place.
        row: Scalar int64 on the device, vector steps written so far; row r lies at r % T.
        num_rows: Rows, T, one more than can be drawn from.

    Raises:
        UsageError: A size below 1, or more bytes than the device has left.
    """

    sizes: type[FunctionalSizes] = FunctionalSizes
    """Of the ring."""

    def __init__(
        self,
        capacity: int,
        num_envs: int,
        obs_shape: tuple[int, ...],
        obs_dtype: torch.dtype = torch.float32,
        *,
        device: torch.device | str = "cpu",
        n_step: int = 1,
    ) -> None:
        place = torch.device(device)
        sizes = self.sizes(capacity, num_envs, obs_shape, obs_dtype, n_step=n_step)
        sizes.refuse_unless_fits(place)
        self.num_envs, self.num_rows, slots = num_envs, sizes.rows, sizes.slots
        self.capacity = slots - num_envs
        self.ring = allocate(sizes, place)
        self.row = torch.zeros((), dtype=torch.int64, device=place)
        self._columns = torch.arange(num_envs, device=place)

    def begin(self, obs: Tensor) -> None:
        """Set what the environments show before the next `write`.

        After a reset in the middle of episodes, call `cut` first.

        Args:
            obs: [N, *O] copied.
        """
        self.ring.frames[self._slots(self.row)] = obs

    def write(  # noqa: PLR0917 - called in one place, with names that are its own
        self,
        action: Tensor,
        reward: Tensor,
        terminated: Tensor,
        truncated: Tensor,
        obs: Tensor,
        final_obs: Tensor,
    ) -> None:
        """Append one vector step of N real transitions, in place.

        Args:
            action: [N] int64, what was done in the frames shown last.
            reward: [N] float32.
            terminated: [N] bool.
            truncated: [N] bool.
            obs: [N, *O] what the environments show now.
            final_obs: [N, *O] the true next observations; stored for all, read where one ended.
        """
        ring, here, following = self.ring, self._slots(self.row), self._slots(self.row + 1)
        final = here + len(ring.action)
        if self.num_rows > 2:  # else the row before is gone already
            before = self._slots(self.row - 1)
            ring.continues[before] = (ring.next_index[before] == here) & (self.row > 0)
        ring.continues.index_fill_(0, following, False)
        ring.action[here] = action
        ring.reward[here] = reward
        ring.terminated[here] = terminated
        ring.truncated[here] = truncated
        ring.next_index[here] = torch.where(terminated | truncated, final, following)
        ring.frames[torch.cat((following, final))] = torch.cat((obs, final_obs))
        self.row.add_(1)

    def cut(self) -> None:
        """Cut the episodes: the next `begin` does not continue the last `write`.

        The last row then points to its own final observations, which `write` always stores.
        """
        last = self._slots(self.row - 1)
        pointed = torch.where(
            self.row > 0, last + len(self.ring.action), self.ring.next_index[last]
        )
        self.ring.next_index[last] = pointed

    def counts(self) -> tuple[int, int]:
        """Return the rows and the final observations written so far. Waits for the device."""
        rows = int(self.row)
        return rows, rows * self.num_envs

    def span(self) -> tuple[Tensor, Tensor]:
        """Return the number of the oldest transition that may be drawn, and how many there are.

        Scalars int64 on the device. The row at the write head is never among them: its frames
        already show what comes next.
        """
        rows = self.row.clamp(max=self.num_rows - 1)
        return (self.row - rows) * self.num_envs, rows * self.num_envs

    def drawable(self) -> Tensor:
        """Return which flat transitions may be drawn, [T * N] bool. Waits for the device."""
        flags = torch.zeros_like(self.ring.terminated)
        first, count = self.span()
        flags[self.nth(torch.arange(int(count), device=flags.device), first)] = True
        return flags

    def turnover(self) -> tuple[Tensor, Tensor]:
        """Return the flat transitions [N] that the last `write` let be drawn, and took out."""
        return self._slots(self.row - 1), self._slots(self.row)

    def nth(self, n: Tensor, first: Tensor) -> Tensor:
        """Return the flat index of the n-th transition from number `first` on, for `gather`."""
        return (first + n) % len(self.ring.action)

    def snapshot(self, num_rows: int) -> Callable[[], None]:
        """Copy the rows that the next `num_rows` calls of `write` change; return what undoes them.

        They are those to be written, the one before them, whose successor they bring, and the one
        after them, which shows what comes next. Nothing else may write in between.
        """
        steps = torch.arange(min(num_rows + 2, self.num_rows), device=self.row.device) - 1
        here = (
            ((self.row + steps) % self.num_rows * self.num_envs)[:, None] + self._columns
        ).ravel()
        frames = torch.cat((here, here + len(self.ring.action)))
        fields = [getattr(self.ring, field) for field in ROW_FIELDS]
        row, values = self.row.clone(), [field[here] for field in fields]
        saved_frames = self.ring.frames[frames]

        def restore() -> None:
            self.row.copy_(row)
            self.ring.frames[frames] = saved_frames
            for field, value in zip(fields, values, strict=True):
                field[here] = value

        return restore

    def _slots(self, row: Tensor) -> Tensor:
        return row % self.num_rows * self.num_envs + self._columns
