"""Everything that an update reads and writes."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

__all__ = ["METRICS", "LearnerState"]

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

    def written(self) -> tuple[Tensor, ...]:
        """Return the tensors that an update writes."""
        return (
            *(self.online, self.target, *self.slots),
            *(self.updates, self.skipped, self.metrics),
        )
