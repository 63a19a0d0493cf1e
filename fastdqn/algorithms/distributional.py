"""C51: the distribution of the return over fixed atoms; and what all distributions share."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from fastdqn.algorithms.objectives import ONLINE_NEXT, TARGET_NEXT, Pass
from fastdqn.algorithms.td_losses import masked_q
from fastdqn.errors import UsageError
from fastdqn.foundation.objective_checks import refuse_support
from fastdqn.foundation.scalars import refuse_unless_bool, refuse_unless_finite, whole
from fastdqn.transition import Transitions

__all__ = [
    "C51Objective",
    "DistributionalObjective",
    "moved_atoms",
    "of_action",
    "project",
    "refuse_outputs",
    "relative_entropy",
]

SMALLEST = 1e-38
"""Probability below which a logarithm is cut: 0 times it is 0."""


def of_action(outputs: Tensor, action: Tensor) -> Tensor:
    """Return the numbers [B, K] of one action in each row of `outputs` [B, A, K].

    Args:
        outputs: [B, A, K] float32.
        action: [B] int64.

    Raises:
        ValueError: The shapes are others, which would broadcast silently.
    """
    if outputs.ndim != 3 or action.shape != outputs.shape[:1]:
        raise ValueError(
            f"outputs {tuple(outputs.shape)}, action {tuple(action.shape)}: want [B, A, K], [B]"
        )
    index = action.view(-1, 1, 1).expand(-1, 1, outputs.shape[2])
    return outputs.gather(1, index).squeeze(1)


def moved_atoms(reward: Tensor, discount: Tensor, atoms: Tensor) -> Tensor:
    """Return the Bellman target of every atom of the next return.

        r                      where the discount is 0, whatever the atoms are
        r + discount z_j       elsewhere

    Args:
        reward: [B] float32, of n steps discounted and summed.
        discount: [B] float32, gamma^n, or 0 where nothing follows.
        atoms: [B, K] float32, or [K] the same in every row.

    Returns:
        [B, K] float32.

    Raises:
        ValueError: The shapes are others, which would broadcast silently.
    """
    rows = reward.shape
    if len(rows) != 1 or discount.shape != rows or atoms.shape[:-1] not in {(), rows}:
        raise ValueError(
            f"reward {tuple(rows)}, discount {tuple(discount.shape)}, atoms "
            f"{tuple(atoms.shape)}: want [B], [B], [B, K] or [K]"
        )
    first, factor = reward.unsqueeze(1), discount.unsqueeze(1)
    return torch.where(factor == 0.0, first, first + factor * atoms)


def project(
    reward: Tensor, discount: Tensor, probabilities: Tensor, v_min: float, v_max: float
) -> Tensor:
    """Return the distribution of r + discount Z, projected onto the atoms of Z.

        m_i = sum_j max(0, 1 - |clip(r + discount z_j, v_min, v_max) - z_i| / dz) p_j

    The mass of each moved atom goes to its two neighbours, the nearer one getting more. Where the
    discount is 0 the return is r, whatever the probabilities are. A reward that is not finite is
    not clipped to the support: its row is NaN, and so is its loss.

    Args:
        reward: [B] float32.
        discount: [B] float32.
        probabilities: [B, K] float32, of the next return; each row sums to 1.
        v_min: The first atom.
        v_max: The last atom, above it.

    Returns:
        [B, K] float32; each row sums to 1, or is NaN.

    Raises:
        ValueError: The shapes are others, which would broadcast silently.

    Source:
        Bellemare, Dabney, Munos (2017), A distributional perspective on reinforcement learning,
        arXiv:1707.06887, equation 7 and algorithm 1.
    """
    if probabilities.ndim != 2 or len(probabilities) != len(reward):
        raise ValueError(f"probabilities {tuple(probabilities.shape)}: want [B, K]")
    count = probabilities.shape[1]
    number = torch.arange(count, device=reward.device, dtype=torch.float32)
    spacing = (v_max - v_min) / (count - 1)
    reward = reward.masked_fill(~reward.isfinite(), math.nan)
    moved = moved_atoms(reward, discount, v_min + spacing * number)
    place = ((moved - v_min) / spacing).clamp(0.0, count - 1.0)
    share = (1.0 - (place.unsqueeze(1) - number.view(1, -1, 1)).abs()).clamp(min=0.0)
    certain = (number == 0.0).float()  # all moved atoms are one: any probabilities do
    mass = torch.where(discount.unsqueeze(1) == 0.0, certain, probabilities)
    return (share * mass.unsqueeze(1)).sum(2)


def relative_entropy(target: Tensor, cross_entropy: Tensor) -> Tensor:
    """Return KL(m || p) [B], at least 0, of targets m [B, K] and their cross entropies [B]."""
    entropy = -(target * target.clamp(min=SMALLEST).log()).sum(1)
    return (cross_entropy - entropy).clamp(min=0.0)


@dataclass(frozen=True, kw_only=True)
class DistributionalObjective(ABC):
    """What objectives that learn a distribution share: the choice of the next action.

    Args:
        double: The online network chooses the next action, and the target network says what the
            return is then; else the target network does both, as in the papers.

    Source:
        Hessel et al. (2018), Rainbow, arXiv:1710.02298, section 3: the choice by the online
        network, for distributions.
    """

    double: bool = True
    num_random: ClassVar[int] = 0

    def __post_init__(self) -> None:
        refuse_unless_bool("--double", self.double, "Try True.")

    @property
    def passes(self) -> tuple[Pass, ...]:
        """The target network at the next state and, if it chooses there, the online one."""
        return (TARGET_NEXT, ONLINE_NEXT) if self.double else (TARGET_NEXT,)

    @property
    @abstractmethod
    def numbers(self) -> int:
        """Numbers for each action that the network gives, K."""

    @abstractmethod
    def q_values(self, outputs: Tensor, /) -> Tensor:
        """Return the means [B, A] of the distributions."""

    def _next(self, passes: Sequence[Tensor], batch: Transitions) -> Tensor:
        """Return the outputs [B, K] of the target network for the best allowed next action."""
        outputs, choosing = passes[0], passes[-1]
        best = masked_q(self.q_values(choosing), batch.next_action_mask).argmax(1)
        return of_action(outputs, best)


@dataclass(frozen=True, kw_only=True)
class C51Objective(DistributionalObjective):
    """C51: the network's outputs are logits of K atoms for each action.

        loss = - sum_i m_i log p_i(s, a),    m = project(r + discount Z(s', a*))
        Q(s, a) = sum_i z_i p_i(s, a)

    The priority of a row is KL(m || p), which this loss minimizes: the entropy of m, which cannot
    be learned away, does not count.

    Args:
        num_atoms: K, at least 2.
        v_min: The smallest return that is distinguished.
        v_max: The largest one.
        double: The online network chooses the next action, and the target network says what the
            return is then; else the target network does both, as in the paper.

    Raises:
        UsageError: One atom, a support of no width, or a `double` that is no bool.

    Source:
        Bellemare, Dabney, Munos (2017), A distributional perspective on reinforcement learning,
        arXiv:1707.06887, algorithm 1.
        Hessel et al. (2018), Rainbow, arXiv:1710.02298, section 4: priorities by the KL loss.
    """

    num_atoms: int = 51
    v_min: float = -200.0
    v_max: float = 200.0

    def __post_init__(self) -> None:
        super().__post_init__()
        whole("--num-atoms", self.num_atoms, least=2, way_out="Try 51.")
        for flag, value in {"--v-min": self.v_min, "--v-max": self.v_max}.items():
            refuse_unless_finite(flag, value, "Try -200 and 200.")
        refuse_support(self.v_min, self.v_max, self.num_atoms)

    @property
    def numbers(self) -> int:
        """Logits for each action, one for each atom."""
        return self.num_atoms

    def q_values(self, outputs: Tensor, /) -> Tensor:
        """Return the means [B, A] of the distributions with logits [B, A, K]."""
        refuse_outputs(self, outputs, self.num_atoms)
        spacing = (self.v_max - self.v_min) / (self.num_atoms - 1)
        number = torch.arange(self.num_atoms, device=outputs.device, dtype=torch.float32)
        probabilities = functional.softmax(outputs.float(), 2)
        return (probabilities * (self.v_min + spacing * number)).sum(2)

    def loss(
        self, outputs: Tensor, passes: Sequence[Tensor], batch: Transitions, _: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Return the cross entropy and the relative entropy of each row; see `Objective`."""
        assert batch.discount is not None
        following = functional.softmax(self._next(passes, batch), 1)
        target = project(batch.reward, batch.discount, following, self.v_min, self.v_max)
        log_prob = functional.log_softmax(of_action(outputs, batch.action), 1)
        loss = -(target * log_prob).sum(1)
        return loss, relative_entropy(target, loss.detach())


def refuse_outputs(objective: object, outputs: Tensor, numbers: int) -> None:
    """Refuse outputs of a network that are not [B, A, numbers].

    Raises:
        UsageError: Says what the objective reads.
    """
    if outputs.ndim != 3 or outputs.shape[2] != numbers:
        raise UsageError(
            f"outputs {list(outputs.shape)}",
            f"{type(objective).__name__} reads {numbers} numbers for an action, [B, A, {numbers}]",
            f"Let it return them, as MLP(..., num_atoms={numbers}) does.",
        )
