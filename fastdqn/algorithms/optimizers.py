"""Optimizers on one flat parameter vector, as pure functions of tensors.

Each takes the parameters, the gradient and its own slots and returns new ones; the learner
writes them back in place. Written out, so that one compiled or recorded step holds them whole.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from fastdqn.errors import UsageError

__all__ = ["OPTIMIZERS", "Adam", "AdamW", "Optimizer", "RMSprop", "clip_by_norm", "clip_by_value"]


class Optimizer(Protocol):
    """Turns a gradient into new parameters."""

    @property
    def num_slots(self) -> int:
        """Tensors of the parameters' shape that it keeps between updates."""

    def __call__(
        self, flat: Tensor, grad: Tensor, slots: list[Tensor], step: Tensor, learning_rate: Tensor
    ) -> tuple[Tensor, list[Tensor]]:
        """Return new parameters and slots.

        Args:
            flat: [P] float32 parameters; read.
            grad: [P] float32 gradient; read.
            slots: `num_slots` tensors [P] float32, zero before the first update; read.
            step: Scalar float32, number of this update from 1.
            learning_rate: Scalar float32.
        """


@dataclass(frozen=True)
class Adam:
    """Adam, with weight decay added to the gradient.

    Args:
        beta1: Decay of the first moment.
        beta2: Decay of the second moment.
        eps: Added to the root of the second moment.
        weight_decay: Factor of the L2 penalty's gradient.
        amsgrad: Divide by the largest second moment so far.

    Source:
        Kingma, Ba (2015), Adam, arXiv:1412.6980, algorithm 1.
        Reddi, Kale, Kumar (2018), On the convergence of Adam and beyond, arXiv:1904.09237.
    """

    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.0
    amsgrad: bool = False

    @property
    def num_slots(self) -> int:
        """Return two moments, three with amsgrad."""
        return 3 if self.amsgrad else 2

    def __call__(
        self, flat: Tensor, grad: Tensor, slots: list[Tensor], step: Tensor, learning_rate: Tensor
    ) -> tuple[Tensor, list[Tensor]]:
        """Return new parameters and slots; see `Optimizer`."""
        if self.weight_decay:
            grad = grad + self.weight_decay * flat
        return self._move(flat, grad, slots, step, learning_rate)

    def _move(
        self, flat: Tensor, grad: Tensor, slots: list[Tensor], step: Tensor, learning_rate: Tensor
    ) -> tuple[Tensor, list[Tensor]]:
        first = slots[0].lerp(grad, 1 - self.beta1)
        second = slots[1].mul(self.beta2).addcmul(grad, grad, value=1 - self.beta2)
        new_slots = [first, second]
        if self.amsgrad:
            new_slots.append(torch.maximum(slots[2], second))
        scale = learning_rate / (1 - self.beta1**step)
        root = new_slots[-1].sqrt() / (1 - self.beta2**step).sqrt()
        return flat - scale * first / (root + self.eps), new_slots


@dataclass(frozen=True)
class AdamW(Adam):
    """Adam with weight decay apart from the gradient.

    Source:
        Loshchilov, Hutter (2019), Decoupled weight decay regularization, arXiv:1711.05101,
        algorithm 2.
    """

    weight_decay: float = 0.01

    def __call__(
        self, flat: Tensor, grad: Tensor, slots: list[Tensor], step: Tensor, learning_rate: Tensor
    ) -> tuple[Tensor, list[Tensor]]:
        """Return new parameters and slots; see `Optimizer`."""
        if self.weight_decay:
            flat = flat - learning_rate * self.weight_decay * flat
        return self._move(flat, grad, slots, step, learning_rate)


@dataclass(frozen=True)
class RMSprop:
    """RMSprop, not centred, without momentum.

    Args:
        alpha: Decay of the mean square.
        eps: Added to the root of the mean square.
        weight_decay: Factor of the L2 penalty's gradient.

    Source:
        Tieleman, Hinton (2012), Lecture 6.5, Coursera: Neural networks for machine learning.
    """

    alpha: float = 0.99
    eps: float = 1e-8
    weight_decay: float = 0.0

    @property
    def num_slots(self) -> int:
        """Return one: the mean square."""
        return 1

    def __call__(
        self,
        flat: Tensor,
        grad: Tensor,
        slots: list[Tensor],
        step: Tensor,  # noqa: ARG002 - RMSprop corrects no bias
        learning_rate: Tensor,
    ) -> tuple[Tensor, list[Tensor]]:
        """Return new parameters and slots; see `Optimizer`."""
        if self.weight_decay:
            grad = grad + self.weight_decay * flat
        square = slots[0].mul(self.alpha).addcmul(grad, grad, value=1 - self.alpha)
        return flat - learning_rate * grad / (square.sqrt() + self.eps), [square]


OPTIMIZERS: dict[str, type[Adam | AdamW | RMSprop]] = {
    "adam": Adam,
    "adamw": AdamW,
    "rmsprop": RMSprop,
}
"""Name on the command line -> class."""


def clip_by_norm(grad: Tensor, norm: Tensor, max_norm: float) -> Tensor:
    """Scale the gradient down so that its norm is at most `max_norm`.

    Args:
        grad: [P] float32.
        norm: Scalar, its norm.
        max_norm: Bound, > 0.

    Source:
        Pascanu, Mikolov, Bengio (2013), On the difficulty of training recurrent neural
        networks, arXiv:1211.5063, algorithm 1.
    """
    return grad * (max_norm / (norm + 1e-6)).clamp(max=1.0)


def clip_by_value(grad: Tensor, max_value: float) -> Tensor:
    """Clamp every element of the gradient to [-max_value, max_value].

    Args:
        grad: [P] float32.
        max_value: Bound, > 0.

    Raises:
        UsageError: The bound is not positive.
    """
    if not max_value > 0:
        raise UsageError(f"--clip-value {max_value}", "a bound is positive", "Try 1.0.")
    return grad.clamp(-max_value, max_value)
