"""How many rows, final frames and bytes a replay ring takes; refused before it is allocated."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Self

import torch

from fastdqn.device import available_bytes
from fastdqn.errors import UsageError
from fastdqn.foundation.pair_checks import refuse_too_many_steps
from fastdqn.foundation.scalars import whole, whole_numbers
from fastdqn.foundation.search import largest_that

__all__ = ["FunctionalSizes", "RingSizes", "SkippingSizes", "ring_bytes"]

SMALL_OBS_BYTES = 4096
"""Observations up to here get a final frame for every transition, larger ones for one in eight."""
BYTES_BESIDE_FRAMES = 8 + 8 + 4 + 1 + 1 + 1
"""Per transition: next index, action, reward, both end flags, `continues`."""
BYTES_OF_DRAW = 8
"""Per transition: its place in the list of those that may be drawn."""
BYTES_BESIDE_ROWS = 8
"""Per environment of a row: its number."""
BYTES_OF_FINAL, BYTES_OF_ROW = 8, 8 + 8
"""On the host, per final frame: the row that it serves; per row: two entries of lists."""
FLAGS = {
    **{"capacity": "--buffer-size", "num_envs": "--num-envs"},
    **{"num_groups": "--env-groups", "n_step": "--n-step"},
}
"""Whole numbers of at least 1 -> their flags."""
BYTES_OF_COUNT = 8
"""The rows written so far, on the device."""
MARGIN = 0.9
"""Part of the free memory that an advised capacity may take."""


@dataclass(frozen=True)
class RingSizes:
    """What a ring of `capacity` transitions of N environments comes to.

    The arguments are those of `ReplayBuffer`.

    Raises:
        UsageError: A size below 1, environments that do not split into equal groups, or more steps
            than an environment has room for.
    """

    capacity: int
    num_envs: int
    obs_shape: tuple[int, ...]
    obs_dtype: torch.dtype
    final_capacity: int | None = None
    num_masked: int = 0
    num_groups: int = 1
    n_step: int = 1

    def __post_init__(self) -> None:
        for name, flag in FLAGS.items():
            way_out = "Pass a larger number."
            number = whole(flag, getattr(self, name), least=1, way_out=way_out)
            object.__setattr__(self, name, number)
        shape = whole_numbers("obs_shape", self.obs_shape, way_out="Try (4,).")
        object.__setattr__(self, "obs_shape", shape)
        refuse_too_many_steps(self.n_step, self.capacity, self.num_envs)
        if self.num_envs % self.num_groups:
            raise UsageError(
                f"--env-groups {self.num_groups}",
                f"--num-envs {self.num_envs} does not split into that many equal groups",
                f"Choose a divisor of {self.num_envs}.",
            )

    @property
    def row_size(self) -> int:
        """Transitions of a row, M: one for each environment of a group."""
        return self.num_envs // self.num_groups

    @property
    def rows(self) -> int:
        """Rows of the ring, T: those of the capacity and one per group at the write head."""
        return -(-self.capacity // self.row_size) + self.num_groups

    @property
    def slots(self) -> int:
        """Places for transitions, T * M."""
        return self.rows * self.row_size

    @property
    def finals(self) -> int:
        """Final frames, F; at least one per environment."""
        if self.final_capacity is not None:
            return max(self.final_capacity, self.num_envs)
        most = self.slots - self.row_size  # all that may be drawn, and what a cut stores late
        small = self._frame_bytes <= SMALL_OBS_BYTES
        return max(most if small else most // 8, self.num_envs)

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors of the ring."""
        return sum(self.parts().values())

    def parts(self) -> dict[str, int]:
        """Return the bytes of the ring's tensors by what they hold."""
        masks = (self.slots + self.finals) * self.num_masked
        beside = self.slots * (BYTES_BESIDE_FRAMES + BYTES_OF_DRAW)
        return {
            "observations": self.slots * self._frame_bytes,
            "final observations": self.finals * self._frame_bytes,
            **({"action masks": masks} if masks else {}),
            "actions, rewards, indices": beside + self.row_size * BYTES_BESIDE_ROWS,
        }

    @property
    def host_nbytes(self) -> int:
        """Bytes of what the host keeps of the ring beside its tensors, wherever these are."""
        return self.finals * BYTES_OF_FINAL + self.rows * BYTES_OF_ROW

    @property
    def _frame_bytes(self) -> int:
        return math.prod(self.obs_shape) * self.obs_dtype.itemsize

    def refuse_unless_fits(self, device: torch.device) -> None:
        """Compare the bytes with what the device has left.

        Raises:
            UsageError: They do not fit; names both and the largest capacity that does.
        """
        free = available_bytes(device)
        if self.nbytes > free:
            fits = self._largest_within(int(free * MARGIN))
            fits *= self.n_step == 1 or fits > self.n_step * self.num_envs
            raise UsageError(
                f"--buffer-size {self.capacity:,}",
                f"it needs {self.nbytes / 2**30:,.1f} GiB and {device} has "
                f"{free / 2**30:,.1f} GiB left",
                f"At most --buffer-size {fits} fits."
                if fits
                else f"Give fewer than --num-envs {self.num_envs}.",
            )

    def _largest_within(self, nbytes: int) -> int:
        """Return the largest capacity whose ring takes at most `nbytes`, or 0."""
        return largest_that(lambda c: self.holding(c).nbytes <= nbytes, self.capacity - 1)

    def holding(self, capacity: int) -> Self:
        """Return the sizes of a ring of another capacity; its steps count for nothing."""
        return replace(self, capacity=capacity, n_step=1)


class FunctionalSizes(RingSizes):
    """Sizes of a `FunctionalRing`: a final observation for every place, and no list of draws."""

    @property
    def finals(self) -> int:
        """Final frames, F."""
        return self.slots

    def parts(self) -> dict[str, int]:
        """Return the bytes of the ring's tensors by what they hold."""
        beside = self.slots * BYTES_BESIDE_FRAMES + self.row_size * BYTES_BESIDE_ROWS
        return {**super().parts(), "actions, rewards, indices": beside + BYTES_OF_COUNT}

    @property
    def host_nbytes(self) -> int:
        """Nothing: its cursor is on the device."""
        return 0


class SkippingSizes(FunctionalSizes):
    """Sizes of a `SkippingRing`: a list of draws, and a count for each row."""

    def parts(self) -> dict[str, int]:
        """Return the bytes of the ring's tensors by what they hold."""
        listed = (self.slots + 1) * BYTES_OF_DRAW + (self.rows + 2) * BYTES_OF_COUNT
        name, parts = "actions, rewards, indices", super().parts()
        return {**parts, name: parts[name] + listed + self.row_size}


def ring_bytes(
    capacity: int,
    num_envs: int,
    obs_shape: tuple[int, ...],
    obs_dtype: torch.dtype,
    *,
    num_masked: int = 0,
    num_groups: int = 1,
) -> int:
    """Return the bytes that a ReplayBuffer of these sizes allocates on its device."""
    shape = (capacity, num_envs, obs_shape, obs_dtype)
    return RingSizes(*shape, num_masked=num_masked, num_groups=num_groups).nbytes
