"""The network of IQN: an MLP that gives the quantile of the return at any fraction."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from gymnasium.spaces import Space
from torch import Tensor, nn

from fastdqn.errors import UsageError
from fastdqn.foundation.scalars import whole
from fastdqn.networks.mlp import MLP, mlp_for
from fastdqn.networks.noisy import scaled_noise

__all__ = ["IQN", "NUM_COSINES", "cosines", "embedding_shapes", "iqn_for", "stratified"]

NUM_COSINES = 64
"""Numbers that a fraction is embedded in."""


class IQN(nn.Module):
    """Quantiles of the return of each action, at fractions that a forward pass is handed.

        Z_tau(s, a) = f(psi(s) * phi(tau))_a,    phi(tau) = relu(W cos(pi k tau) + b), k < 64

    psi is all of an MLP's hidden layers, f its head, which may be dueling and noisy; the paper's f
    has a hidden layer of its own. The fractions are drawn one from each of N equal parts of [0, 1],

        tau_i = (i + u_i) / N

    so that each is uniform in its part, and every expectation over them is as with independent
    ones. Numbers of one half give the midpoints, which is how a greedy policy acts.

        iqn = IQN(MLP((4,), num_actions=2), num_quantiles=8)
        outputs = iqn(obs, torch.rand(iqn.num_random(len(obs))))

    Args:
        mlp: psi and f; one number for each action.
        num_quantiles: Fractions of a forward pass and row, N.

    Raises:
        UsageError: No quantile, no MLP, or one with several numbers for each action.

    Source:
        Dabney et al. (2018), Implicit quantile networks for distributional reinforcement learning,
        arXiv:1806.06923, equation 4 and section 3.1.
    """

    def __init__(self, mlp: MLP, num_quantiles: int = 51) -> None:
        super().__init__()
        self.num_quantiles = whole("--num-quantiles", num_quantiles, least=1, way_out="Try 51.")
        if not isinstance(mlp, MLP):
            got, reason = f"IQN of {mlp if mlp is None else type(mlp).__name__}", "it reads an MLP"
            raise UsageError(got, reason, "Try IQN(MLP((4,), num_actions=2)).")
        if mlp.num_atoms is not None:
            got, reason = f"num_atoms={mlp.num_atoms}", "a fraction gives one number for an action"
            raise UsageError(got, reason, "Build the MLP without it.")
        self.mlp = mlp
        *_, last = mlp.sizes[:-1]
        self.embedding = nn.Linear(NUM_COSINES, last)

    def num_random(self, rows: int) -> int:
        """Return the numbers of a pass: N for each of so many rows, then those of noisy layers."""
        return rows * self.num_quantiles + int(self.mlp.num_random)

    def forward(self, obs: Tensor, random: Tensor) -> Tensor:
        """Return quantiles and their fractions [B, A + 1, N] float32 of observations [B, *O].

        Args:
            obs: [B, *O].
            random: [num_random(B)] float32 in [0, 1).
        """
        rows, count = len(obs), self.num_quantiles
        fractions = stratified(random[: rows * count].view(rows, count))
        noise = scaled_noise(random[rows * count :]) if self.mlp.noisy else None
        parameters = list(self.mlp.parameters())
        features = self.mlp.features(parameters, obs, noise)
        embedded = torch.relu(self.embedding(cosines(fractions)))
        joined = (features.unsqueeze(1) * embedded).flatten(0, 1)
        quantiles = self.mlp.head(parameters, joined, noise)
        quantiles = quantiles.view(rows, count, self.mlp.num_actions)
        return torch.cat((quantiles.transpose(1, 2).float(), fractions.unsqueeze(1)), 1)


def stratified(random: Tensor) -> Tensor:
    """Return fractions (i + u) / N of uniform numbers u [B, N], in rising order."""
    count = random.shape[1]
    return (torch.arange(count, device=random.device, dtype=torch.float32) + random) / count


def cosines(fractions: Tensor) -> Tensor:
    """Return cos(pi k tau) [B, N, 64] for k = 0 to 63 of fractions tau [B, N]."""
    number = torch.arange(NUM_COSINES, device=fractions.device, dtype=torch.float32)
    return torch.cos(math.pi * number * fractions.unsqueeze(2))


def embedding_shapes(features: int) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the embedding's parameters by name, for so many units of psi."""
    return {"embedding.weight": (features, NUM_COSINES), "embedding.bias": (features,)}


def iqn_for(
    space: Space[Any], num_actions: int, hidden_sizes: Sequence[int], **options: Any
) -> IQN:
    """Build the IQN that suits an observation space; see `mlp_for`.

    Args:
        space: Of one observation.
        num_actions: A.
        hidden_sizes: Units of each hidden layer.
        options: `num_quantiles`, and those of `mlp_for`.
    """
    num_quantiles = options.pop("num_quantiles", 51)
    return IQN(mlp_for(space, num_actions, hidden_sizes, **options), num_quantiles)
