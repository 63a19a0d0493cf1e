"""Everything that an update reads and writes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

__all__ = ["METRICS", "LearnerState", "why_skipped"]

METRICS = ("loss", "td_error_abs", "q_mean", "grad_norm")
"""What `LearnerState.metrics` holds, in order, of the last update."""


@dataclass(frozen=True, slots=True)
class LearnerState:
    """Everything that an update reads and writes; each tensor is written in place.

    Attributes:
        online: [P] float32, parameters of the online network.
        target: [P] float32, parameters of the target network.
        slots: The optimizer's own tensors, [P] float32 each.
        updates: Scalar int64, updates so far.
        skipped: Scalar int64, updates that changed nothing since their gradient was not finite.
        learning_rate: Scalar float32; write into it to change the rate.
        metrics: [4] float32, see METRICS.
    """

    online: Tensor
    target: Tensor
    slots: list[Tensor]
    updates: Tensor
    skipped: Tensor
    learning_rate: Tensor
    metrics: Tensor

    @classmethod
    def initial(cls, flat: Tensor, num_slots: int, learning_rate: float) -> Self:
        """Allocate the state before the first update; `online` is the network's vector `flat`."""
        device = flat.device
        return cls(
            online=flat,
            target=flat.clone(),
            slots=[torch.zeros_like(flat) for _ in range(num_slots)],
            updates=torch.zeros((), dtype=torch.int64, device=device),
            skipped=torch.zeros((), dtype=torch.int64, device=device),
            learning_rate=torch.tensor(learning_rate, dtype=torch.float32, device=device),
            metrics=torch.full((len(METRICS),), torch.nan, device=device),
        )

    def written(self) -> tuple[Tensor, ...]:
        """Return the tensors that an update writes."""
        return (
            *(self.online, self.target, *self.slots),
            *(self.updates, self.skipped, self.metrics),
        )


def why_skipped(metrics: Tensor) -> str:
    """Return what of an update was not finite, and the way out; waits for `metrics` [4]."""
    loss, priority, *_ = metrics.tolist()
    if math.isfinite(loss) and not math.isfinite(priority):
        what, way_out = "a priority", "Let the objective return finite priorities."
    else:
        what = "a loss or a gradient"
        way_out = (
            "Lower --learning-rate, bound the gradient with --clip-norm, or scale the rewards down."
        )
    return f"{what} that is not finite; they changed nothing. {way_out}"
