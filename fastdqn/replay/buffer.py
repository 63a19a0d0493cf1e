"""The replay ring: circular tensors on the device, written by whole vector steps.

Memory is time-major. A row of the ring holds one vector step of one group of environments, [M]
transitions; with one group, as usual, M is N. G groups take turns: row r is of group r % G, and
the same environments come again in row r + G. The observations of row r are its frames, and its
next observations are the frames of row r + G, so that each observation is stored once. Where an
episode ends within a step, row r + G already shows the next episode: the true last observation
then lies in a second, smaller ring of frames behind the first, and `next_index` points there.

    frames      [ row 0 | row 1 | ... | row T-1 || final observations ]      (T * M + F) x O
    next_index  flat transition -> the frame of its next observation         T * M
    continues   flat transition -> does the column's next transition begin where it ends  T * M

`ValidTransitions` lists the flat transitions that may be drawn, oldest first; rows that are no
transitions are not in it, nor are the G rows at the write head, which have no successor yet.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fastdqn.errors import UsageError
from fastdqn.foundation.copying import Whole, copied
from fastdqn.replay.row_writer import Rows, writer_for
from fastdqn.replay.sizes import RingSizes
from fastdqn.replay.storage import Values, allocate, gather, refuse_gamma
from fastdqn.replay.valid_transitions import ValidTransitions
from fastdqn.transition import Transitions

if TYPE_CHECKING:
    from tensordict import TensorDict

__all__ = ["MAX_DRAW", "ReplayBuffer"]

MAX_DRAW = 2**62
NONE_ENDED = np.zeros(0, np.int64)


class ReplayBuffer(Whole):
    """The last `capacity` transitions of N environments, drawn uniformly.

    Everything is allocated at the start. Writing copies into the ring; sampling copies out of it.

    Args:
        capacity: Transitions to hold; rounded up to whole vector steps of a group.
        num_envs: Environments, N.
        obs_shape: Shape of one observation.
        obs_dtype: Dtype in which observations are stored.
        device: Where the tensors live.
        seed: Seed of the draws.
        final_capacity: Final observations to hold, F; None is one per transition for small
            observations and one per eight for images. If episodes end more often than that, the
            ring holds fewer transitions, never wrong ones.
        num_masked: Actions of a mask, A; 0 stores no masks.
        num_groups: Groups of M = N / G neighbouring environments that are stepped in turn, G.
        n_step: Rewards that a drawn transition adds up, n; see `fastdqn.replay.gather`.

    Attributes:
        ring: The tensors.
        generator: Source of the draws.
        window: [2] int64 on the device: the number of the oldest transition that may be drawn, and
            how many there are, as `publish` or the last row left it; for graphs.

    Raises:
        UsageError: A size below 1, environments that do not split into equal groups, more steps
            than an environment has room for, or more bytes than the device has left.
    """

    kept_by = "Save the tensors of `replay.ring`."

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
        num_masked: int = 0,
        num_groups: int = 1,
        n_step: int = 1,
    ) -> None:
        self.device = torch.device(device)
        shape = (capacity, num_envs, obs_shape, obs_dtype, final_capacity)
        sizes = RingSizes(*shape, num_masked, num_groups, n_step)
        sizes.refuse_unless_fits(self.device)
        self.num_envs, self.num_groups = sizes.num_envs, sizes.num_groups
        self.num_rows, self.row_size = sizes.rows, sizes.row_size
        self.capacity = sizes.slots - sizes.num_envs
        self.ring = allocate(sizes, self.device)
        self._rows = Rows(self.ring, self.num_rows, self.num_groups)
        self.valid = ValidTransitions(self.num_rows, self.row_size, self.device)
        self.window = self.valid.window
        self._writer = writer_for(self.ring, self.window)
        self.generator = torch.Generator(self.device).manual_seed(seed)
        self._row = 0  # rows so far; row r lies at r % num_rows

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Copy everything; both go on alike."""
        twin = copied(self, memo, anew=("_writer",))
        twin._writer = writer_for(twin.ring, twin.window)
        return twin

    def __len__(self) -> int:
        """Return the transitions that can be drawn now."""
        return len(self.valid)

    # Writing

    def begin(self, obs: Values, action_mask: Values | None = None, group: int = 0) -> None:
        """Set what a group shows before its next `write`, e.g. after a reset.

        Args:
            obs: [M, *O] copied.
            action_mask: [M, A] bool, what may be done in `obs`; None allows everything.
            group: Which environments, counted from 0.

        Raises:
            UsageError: There is no such group, or a mask for a ring without masks.
        """
        self._rows.show(self._next_row(group), obs, action_mask)

    def write(
        self,
        action: Values,
        reward: Values,
        terminated: Values,
        truncated: Values,
        obs: Values,
        *,
        final_obs: Values | None = None,
        ended: npt.NDArray[np.int64] | None = None,
        real: npt.NDArray[np.bool_] | None = None,
        action_mask: Values | None = None,
        final_action_mask: Values | None = None,
    ) -> None:
        """Append one vector step of the group whose turn it is.

        Hot path: copies in place, waits for nothing. Values are tensors on the device; on the
        CPU arrays do as well, and are copied in a third of the time.

        Args:
            action: [M] int64, what was done in the frames that the group showed last.
            reward: [M] any float dtype.
            terminated: [M] bool.
            truncated: [M] bool.
            obs: [M, *O] what the environments show now.
            final_obs: [M, *O] true last observations; read at `ended` only.
            ended: Environments that ended and were reset within this step, on the host; counted
                from 0 within the group, and real.
            real: [M] False where the step was no transition, e.g. only a reset; None is True
                everywhere. Of such environments nothing but `obs` and its mask is ever read.
            action_mask: [M, A] bool, what may be done in `obs`; None allows everything.
            final_action_mask: [M, A] bool, of `final_obs`; read at `ended` only.

        Raises:
            UsageError: A mask for a ring without masks.
        """
        finished = NONE_ENDED if final_obs is None or ended is None else ended
        masks = action_mask, final_action_mask
        step = (action, reward, terminated, truncated, obs, final_obs, *masks)
        self._append(step, finished, None if real is None or real.all() else real)

    def _append(self, step: tuple[Any, ...], finished: npt.NDArray[np.int64], real: Any) -> None:
        row, rows, valid, writer = self._row, self._rows, self.valid, self._writer
        valid.forget(row + self.num_groups - self.num_rows)
        if writer is not None and writer.takes(step, len(finished), self.row_size):
            places, lost = rows.final_places(row, len(finished))
            valid.forget(lost)
            valid.append(row, real)
            window = valid.published = valid.first, len(valid)
            writer(step, rows.around(row), window, finished, places)
        else:
            rows.write(row, step)
            if finished.size:
                valid.forget(rows.store_final(row, finished, step[5], step[7]))
            valid.append(row, real)
        if real is not None or rows.apart[row % self.num_groups] is not None:
            rows.join(row, real)
        self._row += 1

    def extend(self, data: TensorDict) -> None:
        """Append one vector step of complete transitions, batch size [N].

        For loops that are not fastdqn's. If `obs` is not what the previous call named as
        `next_obs` (an episode ended, or the caller jumped), both are stored. Waits for the device.

        Args:
            data: Keys obs, action, reward, next_obs, terminated, truncated; copied. A ring with
                masks also takes next_action_mask [N, A] bool; without it everything is allowed.

        Raises:
            UsageError: The batch size is not [N], the environments are in groups, or a mask for
                a ring without masks.
        """
        new, shown = Transitions.from_tensordict(data), self.shown()
        if self.num_groups > 1:
            got, reason = f"extend with {self.num_groups} groups", "its rows are those of one group"
            raise UsageError(got, reason, "Build the ring with num_groups=1.")
        if new.action.shape != (self.num_envs,) or new.obs.shape != shown.shape:
            raise UsageError(
                f"batch size {list(data.batch_size)} with obs {list(new.obs.shape)}",
                f"this ring takes one transition per environment, obs {list(shown.shape)}",
                "Extend it by one vector step at a time.",
            )
        self._store_shown(self._row - 1, (shown != new.obs).reshape(self.num_envs, -1).any(1))
        shown.copy_(new.obs)  # the mask stays: it is that of the last step's next observation
        step = (new.action, new.reward, new.terminated, new.truncated, new.next_obs)
        self.write(*step, action_mask=new.next_action_mask)

    def cut(self, envs: npt.NDArray[np.bool_] | None = None) -> None:
        """Cut the episodes: the next `begin` of each group does not continue its last `write`.

        Stores what the environments `envs` [N] bool show now as final observations; None is all of
        them. Waits for the device.
        """
        chosen = torch.from_numpy(np.ones(self.num_envs, np.bool_) if envs is None else envs)
        cut = chosen.to(self.device).reshape(self.num_groups, self.row_size)
        for row in range(self._row - self.num_groups, self._row):
            self._store_shown(row, cut[row % self.num_groups])

    def _store_shown(self, row: int, left: Tensor) -> None:
        """Store what the environments in `left` [M] show since `row`; nothing continues it."""
        if row < 0:
            return
        group = row % self.num_groups
        self._rows.part(row, left.cpu().numpy())
        left = left & (self.ring.next_index[self._rows.place(row)] < len(self.ring.action))
        envs = np.flatnonzero(left.cpu().numpy())
        if envs.size:
            shown = self.shown(group), self.shown_mask(group)
            self.valid.forget(self._rows.store_final(row, envs, *shown))

    @property
    def next_group(self) -> int:
        """The group whose vector step `write` appends next."""
        return self._row % self.num_groups

    def _next_row(self, group: int) -> int:
        """Return the row that will be written for a group next."""
        if not 0 <= group < self.num_groups:
            raise UsageError(f"group {group}", f"there are {self.num_groups}", "Count from 0.")
        return self._row + (group - self._row) % self.num_groups

    def shown(self, group: int = 0) -> Tensor:
        """Return what a group shows now, [M, *O] on the device; a view that `write` moves on."""
        return self.ring.frames[self._rows.place(self._next_row(group))]

    def shown_mask(self, group: int = 0) -> Tensor | None:
        """Return what may be done in `shown`, [M, A] bool, a view; None without masks."""
        masks = self.ring.masks
        return None if masks is None else masks[self._rows.place(self._next_row(group))]

    # Reading

    def span(self) -> tuple[Tensor, Tensor]:
        """Return the two numbers of `window`, as they are when this runs on the device."""
        first, count = self.window.unbind(0)
        return first, count

    def nth(self, n: Tensor, first: Tensor) -> Tensor:
        """Return the flat index of the n-th transition from number `first` on; see `span`."""
        return self.valid.nth(n, first)

    def draw(self, num_batches: int, batch_size: int) -> Tensor:
        """Draw flat indices uniformly over the stored transitions, with replacement.

        Returns:
            [num_batches, batch_size] int64 on the device, for `gather(replay.ring, index)`.

        Raises:
            UsageError: The buffer is empty.
        """
        self.refuse_empty()
        shape = (num_batches, batch_size)
        draws = torch.randint(MAX_DRAW, shape, generator=self.generator, device=self.device)
        return self.valid.nth(draws.remainder_(len(self)))

    def newest(self, num_batches: int, batch_size: int) -> Tensor:
        """Return the newest transitions, in every batch; see `draw`. Where few they repeat."""
        self.refuse_empty()
        back = torch.arange(batch_size, device=self.device) % len(self)
        return self.valid.nth(len(self) - 1 - back).repeat(num_batches, 1)

    def sample(self, batch_size: int, gamma: float | None = None) -> TensorDict:
        """Draw a batch uniformly as a TensorDict of batch size [B]; see `draw` and `gather`."""
        refuse_gamma(gamma)
        return gather(self.ring, self.draw(1, batch_size)[0], gamma).to_tensordict()

    def refuse_empty(self) -> None:
        """Refuse to draw from a ring that holds nothing, by a UsageError."""
        if len(self) == 0:
            raise UsageError("replay buffer", "it is empty", "Write a vector step first.")
