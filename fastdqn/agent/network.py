"""The network of an agent: built from settings, or the caller's own, and checked."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import nn

from fastdqn.agent.memory_parts import atoms_of
from fastdqn.algorithms.named_objectives import named_objective
from fastdqn.algorithms.objectives import Objective, objective_of, q_values_of
from fastdqn.algorithms.quantiles import IQNObjective
from fastdqn.config import Config
from fastdqn.envs.description import EnvDescription
from fastdqn.envs.seeding import Stream, seeds_of
from fastdqn.foundation.objective_checks import ARGUMENTS
from fastdqn.learner.outputs_check import refuse_no_fractions
from fastdqn.networks.flat_network import FlatNetwork
from fastdqn.networks.iqn import iqn_for
from fastdqn.networks.mlp import mlp_for
from fastdqn.networks.mlp_options import OPTIONS
from fastdqn.networks.network_check import observations_of, refuse_unfit

__all__ = ["build_flat", "objective_for"]


def objective_for(config: Config, objective: Objective | None) -> Objective:
    """Return the caller's own objective, or that which the settings name.

    Raises:
        UsageError: It is no objective.
    """
    if objective is None:
        settings = {name: getattr(config, name) for name in ARGUMENTS}
        objective = named_objective(config.objective, **settings)
    return objective_of(objective, None, None)


def _maker_for(objective: Objective) -> Callable[..., nn.Module]:
    """Return what builds the network that gives what an objective reads."""
    if isinstance(objective, IQNObjective):
        return partial(iqn_for, num_quantiles=objective.num_quantiles)
    return partial(mlp_for, num_atoms=atoms_of(objective))


def _new_network(config: Config, env: EnvDescription, objective: Objective) -> nn.Module:
    """Build the network of an objective; its initial weights depend on the run's seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seeds_of(config.seed, Stream.NETWORK, 1)[0])
        options = {name: getattr(config, name) for name in OPTIONS}
        make = _maker_for(objective)
        return make(env.obs_space, env.num_actions, config.hidden_sizes, **options)


def build_flat(
    config: Config,
    env: EnvDescription,
    network: nn.Module | None,
    objective: Objective,
    device: torch.device,
    *,
    stacklevel: int,
) -> FlatNetwork:
    """Build the online network on its device, or take the caller's, and check that it fits.

    Args:
        config: Settings of a network that is built.
        env: Its observations and actions.
        network: The caller's own, or None.
        objective: Says which of its outputs are Q-values.
        device: Where it will live.
        stacklevel: Of a warning about it, as `warnings.warn` takes it.

    Raises:
        UsageError: It does not turn the environment's observations into Q-values of its actions.
    """
    module = _new_network(config, env, objective) if network is None else network
    flat = FlatNetwork(module, device, q_values_of(objective))
    refuse_unfit(flat, env.obs_space, env.num_actions, env.env_id, stacklevel=stacklevel + 1)
    if network is not None:
        refuse_no_fractions(flat, objective, observations_of(env.obs_space, device))
    return flat
