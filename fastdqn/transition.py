"""The schema of a transition: one env step as the replay stores it and the learner reads it."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

if TYPE_CHECKING:
    from tensordict import TensorDict

__all__ = ["STORAGE_DTYPES", "Transitions", "storage_dtype"]

STORAGE_DTYPES: dict[str, torch.dtype] = {
    "float64": torch.float32,
    "float32": torch.float32,
    "float16": torch.float16,
    "uint8": torch.uint8,
    "int8": torch.int8,
    "int16": torch.int16,
    "int32": torch.int32,
    "int64": torch.int64,
    "bool": torch.bool,
}
"""Dtype of an observation space -> dtype on the device. Only float64 changes."""


def storage_dtype(dtype: npt.DTypeLike) -> torch.dtype:
    """Return the dtype in which observations of `dtype` are stored on the device.

    Raises:
        KeyError: No tensor dtype holds it (strings, objects, unsigned 16 bits and wider).
    """
    return STORAGE_DTYPES[np.dtype(dtype).name]


@dataclass(frozen=True, slots=True)
class Transitions:
    """A batch of transitions, one tensor per field.

    Attributes:
        obs: [B, *O] dtype of the observation space (float64 as float32).
        action: [B] int64, counted from 0.
        reward: [B] float32.
        next_obs: [B, *O] like `obs`; at an episode's end its true last observation.
        terminated: [B] bool; cuts the bootstrap.
        truncated: [B] bool; does not.
        next_action_mask: [B, A] bool, actions allowed in `next_obs`; None allows all.
        discount: [B] float32, factor of the value of `next_obs`: gamma^n where the bootstrap
            counts, n steps later, and 0 where it does not; None lets the learner derive it from
            `terminated`.
        weight: [B] float32, factor of the row's loss; None is 1 everywhere.
        action_mask: [B, A] bool, actions allowed in `obs`; None allows all. Only an objective with
            a pass over `obs` reads it.
    """

    obs: Tensor
    action: Tensor
    reward: Tensor
    next_obs: Tensor
    terminated: Tensor
    truncated: Tensor
    next_action_mask: Tensor | None = None
    discount: Tensor | None = None
    weight: Tensor | None = None
    action_mask: Tensor | None = None

    def tensors(self) -> tuple[Tensor | None, ...]:
        """Return the fields in order; None for one that is missing."""
        return (
            *(self.obs, self.action, self.reward, self.next_obs, self.terminated, self.truncated),
            *(self.next_action_mask, self.discount, self.weight, self.action_mask),
        )

    def to_tensordict(self) -> TensorDict:
        """Return the same tensors, not copies, as a TensorDict of batch size [B]."""
        from tensordict import TensorDict  # noqa: PLC0415 - costs every program 1.4 s to load

        named = zip(_FIELDS, self.tensors(), strict=True)
        present = {name: tensor for name, tensor in named if tensor is not None}
        return TensorDict(present, batch_size=self.action.shape)

    @classmethod
    def from_tensordict(cls, data: TensorDict) -> Transitions:
        """Read the fields of a TensorDict; aliases its tensors. The last four may be missing.

        Raises:
            KeyError: Another field is missing.
        """
        needed = {name: data[name] for name in _FIELDS[:-NUM_OPTIONAL]}
        return cls(**needed, **{name: data.get(name, None) for name in _FIELDS[-NUM_OPTIONAL:]})


_FIELDS = tuple(field.name for field in fields(Transitions))
NUM_OPTIONAL = 4
"""Fields that a batch may lack: its last ones."""
