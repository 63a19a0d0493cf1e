"""Refuses networks and distributions that do not fit into memory, before they are built."""

from __future__ import annotations

import math
from typing import Any

import torch
from gymnasium.spaces import Discrete

from fastdqn.algorithms.distributional import C51Objective, DistributionalObjective
from fastdqn.algorithms.objectives import Objective
from fastdqn.algorithms.quantiles import IQNObjective, QRObjective
from fastdqn.config import Config, flag_of, spelled
from fastdqn.device import available_bytes
from fastdqn.envs.description import EnvDescription
from fastdqn.errors import UsageError
from fastdqn.networks.iqn import NUM_COSINES
from fastdqn.networks.mlp_options import OF_SHAPES, parameter_shapes

__all__ = ["floats_of_numbers", "inputs_of", "number_of", "refuse_many_numbers", "refuse_wide"]

COPIES = 5
"""Copies of the parameters in memory: online, target, two moments, gradient."""
FLOAT_BYTES = 4
PAIRS = {C51Objective: 2, QRObjective: 6}
"""Tensors [B, K, K] that an update holds at a time: the shares of a projection and their product
with the masses; the errors of quantiles with what their gradient needs."""


def refuse_wide(config: Config, env: EnvDescription, num_atoms: int | None) -> None:
    """Refuse hidden layers whose parameters, moments and target do not fit into memory.

    Args:
        config: Settings of the network.
        env: Its observations and actions.
        num_atoms: Numbers for each action; None is one.

    Raises:
        UsageError: Names the sizes.
    """
    options = {name: getattr(config, name) for name in OF_SHAPES}
    sizes = inputs_of(env), config.hidden_sizes, env.num_actions
    shapes = parameter_shapes(*sizes, num_atoms=num_atoms, **options)
    needed = COPIES * FLOAT_BYTES * sum(map(math.prod, shapes.values()))
    free = available_bytes(torch.device("cpu"))
    if needed > free:
        raise UsageError(
            f"--hidden-sizes {spelled(config.hidden_sizes)}",
            f"learning needs {_gib(needed)} for its parameters, and {_gib(free)} are left",
            "Choose smaller layers.",
        )


def refuse_many_numbers(
    config: Config, env: EnvDescription, objective: Objective, device: torch.device
) -> None:
    """Refuse more atoms or quantiles than an update or a step compares in memory.

    Args:
        config: Settings of the batch, the environments and the network.
        env: Its actions.
        objective: Of any class; those that learn no atoms or quantiles pass.
        device: Where the updates run.

    Raises:
        UsageError: Names the number of them.
    """
    if not isinstance(objective, C51Objective | QRObjective):
        return
    needed = FLOAT_BYTES * floats_of_numbers(config, env, objective)
    free = available_bytes(device)
    if needed > free:
        raise UsageError(
            f"{number_of(objective)} {objective.numbers}",
            f"an update of {config.batch_size} rows needs {_gib(needed)} to compare so many "
            f"numbers, and {_gib(free)} are left",
            f"Choose fewer, or a smaller {flag_of('batch_size')}.",
        )


def inputs_of(env: EnvDescription) -> int:
    """Return the inputs of an MLP: numbers of an observation, or values of a Discrete space."""
    space: Any = env.obs_space
    return int(space.n) if isinstance(space, Discrete) else math.prod(env.obs_shape)


def number_of(objective: DistributionalObjective) -> str:
    """Return the flag of the numbers that an objective learns for each action."""
    return flag_of("num_atoms" if isinstance(objective, C51Objective) else "num_quantiles")


def floats_of_numbers(
    config: Config, env: EnvDescription, objective: DistributionalObjective
) -> int:
    """Return the float32 numbers that an update or a step of atoms or quantiles holds, at least."""
    count, rows = objective.numbers, max(config.batch_size, config.num_envs)
    held = next(held for kind, held in PAIRS.items() if isinstance(objective, kind))
    pairs = held * config.batch_size * count**2
    width = env.num_actions
    if isinstance(objective, IQNObjective):
        features = config.hidden_sizes[-1] if config.hidden_sizes else 0
        width += NUM_COSINES + 2 * features  # the embedding, and its product with the features
    return max(pairs, rows * count * width)


def _gib(count: int) -> str:
    return f"{count / 2**30:,.1f} GiB"
