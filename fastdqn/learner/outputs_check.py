"""Outputs whose shape fits an objective by chance, and whose numbers mean something else."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastdqn.algorithms.distributional import C51Objective
from fastdqn.algorithms.objectives import Objective
from fastdqn.algorithms.quantiles import IQNObjective, QRObjective
from fastdqn.errors import UsageError
from fastdqn.foundation.trial_env import generators_restored
from fastdqn.networks.flat_network import FlatNetwork
from fastdqn.networks.iqn import IQN
from fastdqn.networks.mlp import MLP
from fastdqn.networks.network_trial import twin_of

__all__ = ["refuse_no_fractions", "refuse_other_outputs"]

WITH_FRACTIONS, WITHOUT = IQNObjective.q_values, (C51Objective.q_values, QRObjective.q_values)


def refuse_other_outputs(network: FlatNetwork, objective: Objective) -> None:
    """Refuse an IQN whose fractions would be taken for an action, or an MLP that has none.

    Args:
        network: Whose module is judged by its class.
        objective: A subclass that reads its Q-values in another way may read anything.

    Raises:
        UsageError: Names the objective that fits, or the network.
    """
    reads: Any = getattr(type(objective), "q_values", None)
    name = type(objective).__name__
    if isinstance(network.module, IQN) and reads in WITHOUT:
        raise UsageError(
            f"network IQN with {name}",
            "the last row of its outputs holds fractions, which would be taken for an action",
            'Use objective="iqn", or IQNObjective(num_quantiles=N).',
        )
    if type(network.module) is MLP and reads is WITH_FRACTIONS:
        _refuse_without("MLP", name)


def refuse_no_fractions(network: FlatNetwork, objective: Objective, shown: Tensor) -> None:
    """Refuse a network for IQN whose last row of outputs holds no fractions.

    Args:
        network: One that gives Q-values for `shown`.
        objective: Of another kind nothing is looked at.
        shown: [B, *O] observations of a trial.

    Raises:
        UsageError: A number of that row is outside [0, 1].
    """
    if getattr(type(objective), "q_values", None) is not WITH_FRACTIONS:
        return
    with generators_restored(), torch.no_grad():
        twin = twin_of(network)
        fractions = twin(twin.views(twin.flat), shown.clone())[:, -1]
    if not bool(((fractions >= 0.0) & (fractions <= 1.0)).all()):
        _refuse_without(type(network.module).__name__, type(objective).__name__)


def _refuse_without(network: str, objective: str) -> None:
    raise UsageError(
        f"network {network} with {objective}",
        "the last row of its outputs holds no fractions in [0, 1], which belong there",
        "Use fastdqn.IQN, or return the fractions of a pass in the last row.",
    )
