"""The replay ring: circular tensors on the device, written by whole vector steps.

Memory is time-major. Row t of the ring holds one vector step, [N] transitions; its
observations are the frames of row t and its next observations are the frames of row t + 1, so
that each observation is stored once. Where an episode ends within a step, row t + 1 already
shows the next episode: the true last observation then lies in a second, smaller ring of frames
behind the first, and `next_index` points there.

    frames      [ row 0 | row 1 | ... | row T-1 || final observations ]      (T * N + F) x O
    next_index  flat transition -> the frame of its next observation         T * N

`starts` lists the flat transitions that may be drawn, oldest first, itself in a circle. A
vector step in which some environments only reset adds fewer of them. The row at the write head
has no successor yet and is never in the list.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from tensordict import TensorDict
from torch import Tensor

from fastdqn.errors import UsageError
from fastdqn.replay.sizes import RingSizes
from fastdqn.replay.storage import allocate, gather
from fastdqn.transition import Transitions

__all__ = ["ReplayBuffer"]

MAX_DRAW = 2**62


class ReplayBuffer:
    """The last `capacity` transitions of N environments, drawn uniformly.

    Everything is allocated at birth. Writing copies into the ring; sampling copies out of it.

    Args:
        capacity: Transitions to hold; rounded up to whole vector steps.
        num_envs: Environments, N.
        obs_shape: Shape of one observation.
        obs_dtype: Dtype in which observations are stored.
        device: Where the tensors live.
        seed: Seed of the draws.
        final_capacity: Final observations to hold, F; None is one per transition for small
            observations and one per eight for images. If episodes end more often than that, the
            ring holds fewer transitions, never wrong ones.

    Raises:
        UsageError: A size below 1, or more bytes than the device has left.
    """

    def __init__(
        self,
        capacity: int,
        num_envs: int,
        obs_shape: tuple[int, ...],
        obs_dtype: torch.dtype = torch.float32,
        *,
        device: torch.device | str = "cpu",
        seed: int = 0,
        final_capacity: int | None = None,
    ) -> None:
        self.device = torch.device(device)
        sizes = RingSizes(capacity, num_envs, obs_shape, obs_dtype, final_capacity)
        sizes.refuse_unless_fits(self.device)
        self.num_envs, self.num_rows = num_envs, sizes.rows
        self.capacity = sizes.slots - num_envs
        self._finals, slots = sizes.finals, sizes.slots
        self.ring = allocate(slots, self._finals, num_envs, obs_shape, obs_dtype, self.device)
        self._columns = torch.arange(num_envs, device=self.device)
        self._starts = torch.arange(slots, device=self.device)
        self._in_order = True  # no row was partial yet, so `starts` already holds what it will
        self._generator = torch.Generator(self.device).manual_seed(seed)
        self._row = 0  # vector steps written so far; row r lies at r % num_rows
        self._oldest = 0  # the oldest row whose transitions may be drawn
        self._first = 0  # transitions that have left `starts`
        self._last = 0  # transitions that ever entered `starts`
        self._counts = np.zeros(self.num_rows, np.int64)  # transitions in `starts` by row
        self._points_away = np.zeros(self.num_rows, np.bool_)  # rows with a final observation
        self._final_head = 0
        self._final_row = np.full(self._finals, -1, np.int64)  # row that a final frame serves

    def __len__(self) -> int:
        """Return the transitions that can be drawn now."""
        return self._last - self._first

    # Writing

    def begin(self, obs: Tensor) -> None:
        """Set what the environments show before the next `write`, e.g. after a reset.

        Args:
            obs: [N, *O] copied.
        """
        self.shown.copy_(obs)

    def write(
        self,
        action: Tensor,
        reward: Tensor,
        terminated: Tensor,
        truncated: Tensor,
        obs: Tensor,
        *,
        final_obs: Tensor | None = None,
        ended: npt.NDArray[np.int64] | None = None,
        real: npt.NDArray[np.bool_] | None = None,
    ) -> None:
        """Append one vector step. Hot path: copies in place, waits for nothing.

        Args:
            action: [N] int64, what was done in the frames shown last.
            reward: [N] any float dtype.
            terminated: [N] bool.
            truncated: [N] bool.
            obs: [N, *O] what the environments show now.
            final_obs: [N, *O] true last observations; read at `ended` only.
            ended: Environments that ended and were reset within this step, on the host.
            real: [N] False where the step was only a reset; None is True everywhere.
        """
        self._forget(self._row + 1 - self.num_rows)
        here = self._slots(self._row)
        self.ring.action[here] = action
        self.ring.reward[here] = reward
        self.ring.terminated[here] = terminated
        self.ring.truncated[here] = truncated
        self._frame_row(self._row + 1).copy_(obs)
        self._point_to_next_row(here)
        if final_obs is not None and ended is not None and ended.size:
            self._keep_final(self._row, ended, final_obs)
        self._list_starts(here.start, real)
        self._row += 1

    def extend(self, data: TensorDict) -> None:
        """Append one vector step given as complete transitions, batch size [N].

        For loops that are not fastdqn's. If `obs` is not what the previous call named as
        `next_obs` (an episode ended, or the caller jumped), both are kept. Waits for the device.

        Args:
            data: Keys obs, action, reward, next_obs, terminated, truncated; copied.

        Raises:
            UsageError: The batch size is not [N].
        """
        new = Transitions.from_tensordict(data)
        if new.action.shape != (self.num_envs,) or new.obs.shape != self.shown.shape:
            raise UsageError(
                f"batch size {list(data.batch_size)} with obs {list(new.obs.shape)}",
                f"this ring takes one transition per environment, obs {list(self.shown.shape)}",
                "Extend it by one vector step at a time.",
            )
        self._keep_shown((self.shown != new.obs).reshape(self.num_envs, -1).any(1))
        self.begin(new.obs)
        self.write(new.action, new.reward, new.terminated, new.truncated, new.next_obs)

    def cut(self) -> None:
        """Tell that the next `begin` does not continue the last `write`.

        Keeps what the environments show now, which `begin` will overwrite, as final
        observations of the episodes that were still running. Waits for the device.
        """
        self._keep_shown(torch.ones_like(self._columns, dtype=torch.bool))

    def _keep_shown(self, left: Tensor) -> None:
        """Keep what the environments in `left` [N] bool show, if the last row points there."""
        if self._row > 0:
            following = self.ring.next_index[self._slots(self._row - 1)]
            left = left & (following < self.num_rows * self.num_envs)
            envs = np.flatnonzero(left.cpu().numpy())
            if envs.size:
                self._keep_final(self._row - 1, envs, self.shown)

    def _slots(self, row: int) -> slice:
        start = row % self.num_rows * self.num_envs
        return slice(start, start + self.num_envs)

    def _frame_row(self, row: int) -> Tensor:
        return self.ring.frames[self._slots(row)]

    def _point_to_next_row(self, here: slice) -> None:
        """Let a row point to the frames of the next one, if an older use of it did not."""
        if self._points_away[self._row % self.num_rows]:
            following = self._slots(self._row + 1).start
            torch.add(self._columns, following, out=self.ring.next_index[here])
            self._points_away[self._row % self.num_rows] = False

    def _list_starts(self, start: int, real: npt.NDArray[np.bool_] | None) -> None:
        columns = self._columns
        if real is not None and not real.all():
            columns = self._queued(np.flatnonzero(real))
            self._in_order = False
        count = len(columns)
        if not self._in_order:
            self._append_starts(columns, start)
        self._counts[self._row % self.num_rows] = count
        self._last += count

    def _append_starts(self, columns: Tensor, start: int) -> None:
        count = len(columns)
        head = self._last % len(self._starts)
        tail = min(count, len(self._starts) - head)
        self._starts[head : head + tail] = columns[:tail] + start
        self._starts[: count - tail] = columns[tail:] + start

    def _forget(self, row: int) -> None:
        """Take `row` and all rows before it out of the draw."""
        while self._oldest <= row:
            self._first += int(self._counts[self._oldest % self.num_rows])
            self._oldest += 1

    def _keep_final(self, row: int, envs: npt.NDArray[np.int64], frames: Tensor) -> None:
        """Copy the frames of `envs` behind the ring and let the transitions of `row` point there.

        The copies take the places of the oldest ones; rows that still needed those are forgotten.
        """
        places = (self._final_head + np.arange(len(envs))) % self._finals
        self._forget(int(self._final_row[places].max()))
        self._final_row[places] = row
        self._points_away[row % self.num_rows] = True
        self._final_head += len(envs)
        index, target = self._queued(envs), self._queued(places + self.num_rows * self.num_envs)
        self.ring.frames[target] = frames[index].to(self.ring.frames.dtype)
        self.ring.next_index[index + self._slots(row).start] = target

    def _queued(self, indices: npt.NDArray[np.int64]) -> Tensor:
        """Send indices without waiting for the device; only MPS reads the host's memory later."""
        host = torch.from_numpy(indices)
        return host.to(self.device, non_blocking=self.device.type != "mps")

    @property
    def shown(self) -> Tensor:
        """What the environments show now, [N, *O] on the device; a view that `write` moves on."""
        return self._frame_row(self._row)

    # Reading

    def draw(self, num_batches: int, batch_size: int) -> Tensor:
        """Draw flat indices uniformly over the stored transitions, with replacement.

        Returns:
            [num_batches, batch_size] int64 on the device, for `gather(replay.ring, index)`.

        Raises:
            UsageError: The buffer is empty.
        """
        self._refuse_empty()
        shape = (num_batches, batch_size)
        draws = torch.randint(MAX_DRAW, shape, generator=self._generator, device=self.device)
        return self._nth(draws.remainder_(len(self)))

    def newest(self, num_batches: int, batch_size: int) -> Tensor:
        """Return the newest `batch_size` transitions, the same ones in every batch.

        This is learning without replay; see `draw` for shape and errors. While fewer are
        stored, the newest ones repeat.
        """
        self._refuse_empty()
        back = torch.arange(batch_size, device=self.device) % len(self)
        return self._nth(len(self) - 1 - back).repeat(num_batches, 1)

    def sample(self, batch_size: int) -> TensorDict:
        """Draw a batch uniformly as a TensorDict of batch size [B]; see `draw`."""
        return gather(self.ring, self.draw(1, batch_size)[0]).to_tensordict()

    def _nth(self, n: Tensor) -> Tensor:
        return self._starts[(n + self._first).remainder_(len(self._starts))]

    def _refuse_empty(self) -> None:
        if len(self) == 0:
            raise UsageError("replay buffer", "it is empty", "Write a vector step first.")
