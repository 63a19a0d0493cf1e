"""Objectives: a network's outputs become Q-values, and outputs and a batch become losses.

An objective knows no network. It names the forward passes that it reads and receives their outputs;
a new one is a class of its own, passed to `DQN(objective=...)` or `Learner(objective=...)`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from fastdqn.algorithms.td_losses import (
    LOSSES,
    bootstrapped,
    double_value,
    largest_value,
    td_error,
)
from fastdqn.errors import UsageError
from fastdqn.foundation.scalars import refuse_unless_bool, whole
from fastdqn.transition import Transitions

__all__ = [
    "ONLINE_NEXT",
    "TARGET_NEXT",
    "DQNObjective",
    "DoubleDQNObjective",
    "Objective",
    "Pass",
    "objective_of",
    "q_values_of",
    "refuse_other_rows",
]


class Pass(NamedTuple):
    """One forward pass without a gradient.

    Attributes:
        network: Whose parameters; without a target network both are the online ones.
        sees: The field of the batch that is its input.
    """

    network: Literal["online", "target"]
    sees: Literal["obs", "next_obs"]


class Objective(Protocol):
    """What an update minimizes; pure functions of tensors that draw nothing and never wait.

    The update runs the online network on `obs`, with a gradient, and the other passes that the
    objective names. It weights the losses of the rows, averages them, and feeds the priorities
    back to the sampler.
    """

    @property
    def passes(self) -> tuple[Pass, ...]:
        """The passes that `loss` reads besides that of the online network over `obs`."""
        ...

    @property
    def num_random(self) -> int:
        """Uniform numbers that `loss` reads for each row; 0 costs nothing."""
        ...

    def q_values(self, outputs: Tensor, /) -> Tensor:
        """Return Q-values [B, A] of the network's outputs [B, ...]; the largest one acts."""
        ...

    def loss(
        self, outputs: Tensor, passes: Sequence[Tensor], batch: Transitions, random: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Return the loss and the priority of each row.

        Args:
            outputs: [B, ...] of the online network over `obs`; carries the gradient.
            passes: The outputs of `passes`, in that order; no gradient flows into them.
            batch: B transitions with their `discount`; the update applies their `weight`.
            random: [B, num_random] float32 in [0, 1), or None for 0.

        Returns:
            [B] float32, the loss, and [B] float32 without a gradient, the priority: large where
            there is much to learn. A DQN's is |TD error|.
        """
        ...


TARGET_NEXT, ONLINE_NEXT = Pass("target", "next_obs"), Pass("online", "next_obs")
PASSES = (TARGET_NEXT, ONLINE_NEXT, Pass("target", "obs"), Pass("online", "obs"))


BY_NAME = {
    "dqn": "DoubleDQNObjective()",
    "munchausen": "MunchausenObjective(...)",
    "c51": "C51Objective(...)",
    "qr": "QRObjective(...)",
    "iqn": "IQNObjective(...)",
}
"""Name of an objective -> what builds it, for messages."""


@dataclass(frozen=True)
class DQNObjective:
    """DQN: the error against the target network's own best value.

    Args:
        error_loss: `huber` or `mse`, of the TD error.

    Raises:
        UsageError: There is no such loss.

    Source:
        Mnih et al. (2015), Human-level control through deep reinforcement learning,
        Nature 518, algorithm 1.
    """

    error_loss: str = "huber"
    passes: ClassVar[tuple[Pass, ...]] = (TARGET_NEXT,)
    num_random: ClassVar[int] = 0

    def __post_init__(self) -> None:
        if self.error_loss not in LOSSES:
            got, way_out = f"--loss {self.error_loss}", f"Choose {', '.join(LOSSES)}."
            raise UsageError(got, "there is no such loss", way_out)

    def q_values(self, outputs: Tensor, /) -> Tensor:
        """Return the outputs [B, A] themselves."""
        return outputs

    def loss(
        self, outputs: Tensor, passes: Sequence[Tensor], batch: Transitions, _: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Return the loss of the TD error and its magnitude; see `Objective`."""
        value = self._next_value(passes, batch.next_action_mask)
        assert batch.discount is not None
        error = td_error(outputs, batch.action, bootstrapped(batch.reward, batch.discount, value))
        return LOSSES[self.error_loss](error), error.detach().abs()

    def _next_value(self, passes: Sequence[Tensor], action_mask: Tensor | None) -> Tensor:
        (next_q,) = passes
        return largest_value(next_q, action_mask)


@dataclass(frozen=True)
class DoubleDQNObjective(DQNObjective):
    """Double DQN: the online network chooses the next action, the target network values it.

    Source:
        van Hasselt, Guez, Silver (2016), Deep reinforcement learning with double Q-learning,
        arXiv:1509.06461, equation 4.
    """

    passes: ClassVar[tuple[Pass, ...]] = (TARGET_NEXT, ONLINE_NEXT)

    def _next_value(self, passes: Sequence[Tensor], action_mask: Tensor | None) -> Tensor:
        next_q_target, next_q_online = passes
        return double_value(next_q_online, next_q_target, action_mask)


def objective_of(objective: Objective | None, double: bool | None, loss: str | None) -> Objective:
    """Return the caller's objective, or that of the two settings.

    Args:
        objective: The caller's own, or None.
        double: Double DQN or DQN; None is Double DQN.
        loss: See `DQNObjective`; None is `huber`.

    Raises:
        UsageError: An objective beside a setting that it decides, or a value that cannot be used;
            an objective without what `Objective` names.
    """
    if objective is not None:
        _refuse_unfit(objective)
        for name, value in {"double": double, "loss": loss}.items():
            if value is not None:
                got, reason = f"{name}={value!r} beside an objective", "the objective decides it"
                raise UsageError(got, reason, "Leave it out.")
        return objective
    if double is not None:
        refuse_unless_bool("--double", double, "Try True.")
    kind = DQNObjective if double is not None and not double else DoubleDQNObjective
    return kind("huber" if loss is None else loss)


def _refuse_unfit(objective: Any) -> None:
    """Refuse what is no objective, before anything is built with it."""
    if isinstance(objective, str):
        got, reason = f"objective {objective!r}", "a learner takes an object, and no name"
        objects = BY_NAME.get(objective, ", ".join(BY_NAME.values()))
        raise UsageError(got, reason, f"Pass {objects} of fastdqn.")
    if isinstance(objective, type):
        name = objective.__name__
        raise UsageError(f"objective {name}", "it is a class", f"Pass an instance: {name}(...).")
    name = f"objective {type(objective).__name__}"
    for part in ("passes", "num_random", "q_values", "loss"):
        if not hasattr(objective, part) or (
            part in {"q_values", "loss"} and not callable(getattr(objective, part))
        ):
            raise UsageError(name, f"it has no {part}", "Write what fastdqn.Objective names.")
    passes = objective.passes
    if not isinstance(passes, tuple | list) or any(each not in PASSES for each in passes):
        way_out = 'Name each as Pass("online" or "target", "obs" or "next_obs"), in a tuple.'
        raise UsageError(f"passes {passes!r} of {name}", "there are no such passes", way_out)
    whole(f"num_random of {name}", objective.num_random, way_out="It is per row; 0 is none.")


def q_values_of(objective: Objective) -> Callable[[Tensor], Tensor] | None:
    """Return what turns outputs into Q-values for an objective; None where they are Q-values."""
    plain = getattr(type(objective), "q_values", None) is DQNObjective.q_values
    return None if plain else objective.q_values


def refuse_other_rows(
    objective: object, batch: Transitions, losses: Tensor, priority: Tensor
) -> None:
    """Refuse losses, priorities and weights that are not one number for each row of a batch.

    Raises:
        UsageError: Another shape, which would broadcast or weigh the rows otherwise.
    """
    name, rows = type(objective).__name__, batch.action.shape
    found = {"losses": losses, "priorities": priority, "weights": batch.weight}
    for what, tensor in found.items():
        if tensor is None and what == "weights":
            continue
        if not isinstance(tensor, Tensor) or tensor.dtype is not torch.float32:
            kind = getattr(tensor, "dtype", type(tensor).__name__)
            got = f"{what} of {kind}, objective {name}"
            raise UsageError(got, "each row has a number of float32", "Return tensors [B] float32.")
        if tensor.shape != rows:
            got = f"{what} {list(tensor.shape)} for {rows[0]} rows, objective {name}"
            way_out = "Let `loss` return [B], [B]; let `draw` return weights [B]."
            raise UsageError(got, "each row has one number", way_out)
