"""Networks that are tables, so that a test decides every output, and TorchRL's losses over them."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor, nn

from fastdqn.transition import Transitions

__all__ = ["Case", "Tabled", "case_of", "dqn_loss", "set_parameter", "tensordict_of"]


class Tabled(nn.Module):
    """Answers the number of a state by its row of a table: Q-values, or logarithms of shares.

    Args:
        table: [S, A], or [S, K, A] logits of K atoms.
    """

    def __init__(self, table: Tensor) -> None:
        super().__init__()
        self.table = nn.Parameter(table)

    def forward(self, state: Tensor) -> Tensor:
        outputs = self.table[state]
        return outputs if outputs.ndim == 2 else outputs.log_softmax(-2)


@dataclass(frozen=True)
class Case:
    """B transitions between 2 B states, 0 to B - 1 before and B to 2 B - 1 after the step.

    Attributes:
        online: Outputs [2 B, ...] of the online network for all states.
        target: Those of the target network.
        batch: Transitions; `obs` [B] int64 are states.
        gamma: Discount per env step.
        steps: [B] int64, of each transition.
    """

    online: Tensor
    target: Tensor
    batch: Transitions
    gamma: float
    steps: Tensor

    @property
    def passes(self) -> tuple[Tensor, Tensor]:
        """Outputs for the next states: of the target network, and of the online one."""
        rows = self.batch.next_obs
        return self.target[rows], self.online[rows]

    def outputs(self) -> Tensor:
        """Return the outputs of the online network for the states before, a leaf of autograd."""
        return self.online[self.batch.obs].clone().requires_grad_()


def case_of(
    seed: int, *, masked: bool = False, atoms: int = 0, weighted: bool = True, steps: int = 3
) -> Case:
    """Return a random case; a quarter terminates, another quarter is truncated, some both.

    Args:
        seed: Decides everything.
        masked: Masks allow some of the next actions, at least one.
        atoms: Outputs are [A, atoms]; 0 is [A].
        weighted: The batch has weights.
        steps: Transitions have 1 to so many steps.
    """
    made = torch.Generator().manual_seed(seed)
    size = int(torch.randint(1, 40, (), generator=made))
    actions = int(torch.randint(2, 7, (), generator=made))
    scale = float(torch.rand((), generator=made)) * 5
    shape = (2 * size, actions, atoms) if atoms else (2 * size, actions)
    online, target = (scale * torch.randn(shape, generator=made) for _ in range(2))
    gamma = float(torch.rand((), generator=made))
    terminated, truncated = torch.rand(2, size, generator=made) < 0.25
    lengths = torch.randint(1, steps + 1, (size,), generator=made)
    mask = torch.rand(size, actions, generator=made) < 0.5
    mask[torch.arange(size), torch.randint(actions, (size,), generator=made)] = True
    batch = Transitions(
        torch.arange(size),
        torch.randint(actions, (size,), generator=made),
        torch.randn(size, generator=made),
        torch.arange(size, 2 * size),
        terminated,
        truncated,
        mask if masked else None,
        torch.where(terminated, 0.0, gamma ** lengths.float()),
        torch.rand(size, generator=made) + 0.01 if weighted else None,
    )
    return Case(online, target, batch, gamma, lengths)


def tensordict_of(case: Case) -> TensorDict:
    """Return the transitions as TorchRL names them."""
    batch, size = case.batch, len(case.batch.action)
    following = {
        "observation": batch.next_obs,
        "reward": batch.reward.unsqueeze(1),
        "terminated": batch.terminated.unsqueeze(1),
        "done": (batch.terminated | batch.truncated).unsqueeze(1),
    }
    if (mask := batch.next_action_mask) is not None:
        following["action_mask"] = mask
    found = {
        "observation": batch.obs,
        "action": batch.action.unsqueeze(1),
        "steps_to_next_obs": case.steps.unsqueeze(1),
        "next": TensorDict(following, [size]),
    }
    if batch.next_action_mask is not None:
        found["action_mask"] = torch.ones_like(batch.next_action_mask)
    if batch.weight is not None:
        found["priority_weight"] = batch.weight
    return TensorDict(found, [size])


def set_parameter(parameters: Any, values: Tensor) -> Tensor:
    """Write the table among TorchRL's parameters of a network; return it."""
    (table,) = (tensor for key, tensor in parameters.items(True, True) if key[-1:] == ("table",))
    table.data.copy_(values)
    found: Tensor = table
    return found


def dqn_loss(torchrl: SimpleNamespace, case: Case, **settings: Any) -> tuple[Any, Tensor]:
    """Return TorchRL's loss of each row over the tables of a case, and its online table."""
    actions = case.online.shape[1]
    actor = torchrl.QValueActor(
        Tabled(case.target.clone()),
        in_keys=["observation"],
        spec=torchrl.Categorical(actions),
        action_mask_key=None if case.batch.next_action_mask is None else "action_mask",
    )
    loss = torchrl.DQNLoss(
        actor, action_space="categorical", delay_value=True, **{"reduction": "none"} | settings
    )
    loss.make_value_estimator(gamma=case.gamma)
    return loss, set_parameter(loss.value_network_params, case.online)
