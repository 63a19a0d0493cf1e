"""Bytes of what a training takes beside its ring: counted where possible, else estimated."""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from fastdqn.agent.memory_check import floats_of_numbers, inputs_of, number_of
from fastdqn.agent.memory_plan import MemoryItem
from fastdqn.algorithms.distributional import C51Objective
from fastdqn.algorithms.objectives import Objective
from fastdqn.algorithms.quantiles import IQNObjective, QRObjective
from fastdqn.build import build_optimizer
from fastdqn.config import Config, flag_of
from fastdqn.device import available_cores
from fastdqn.envs.description import EnvDescription
from fastdqn.envs.workers.shared_block import RowSpec
from fastdqn.networks.iqn import embedding_shapes
from fastdqn.networks.mlp_options import OF_SHAPES, parameter_shapes
from fastdqn.transition import storage_dtype

__all__ = ["EVALUATION_ENVS", "atoms_of", "items_beside_ring", "processes_for"]

EVALUATION_ENVS = 20
"""Environments of an evaluation, at most."""
FLOAT_BYTES = 4
FORWARD_PASSES = 4
"""Whose activations an update holds: of the online network and their gradient, and, of what comes
next, of the online and the target network."""
WORKER_BYTES = 32 * 2**20
"""Of a worker process beside what it shares with others: 24 MiB were measured with LunarLander, 21
with CartPole, and an environment of yours may load more."""
GRAPH_BYTES = 64 * 2**20
"""Of a pool of CUDA graphs beside their tensors: workspaces of matrix products, 32 MiB each on
large cards, for updating and for acting."""
RECORDED = ("auto", "cudagraph", "compile+cudagraph")
"""Values of `--execution` that may record CUDA graphs."""


def items_beside_ring(
    config: Config,
    env: EnvDescription,
    network: nn.Module | None,
    objective: Objective,
    device: torch.device,
    *,
    num_workers: tuple[int, int],
) -> list[MemoryItem]:
    """Return what a training takes beside its ring.

    Args:
        config: The settings.
        env: One environment.
        network: The caller's own; None is an MLP or an IQN. The activations between the inputs and
            the outputs of a network of the caller's own are not known, and not counted.
        objective: What is learned.
        device: Of the network.
        num_workers: Processes of the training and of the evaluations.
    """
    layers, slots = flag_of("hidden_sizes"), build_optimizer(config).num_slots
    values = FLOAT_BYTES * _num_parameters(config, env, network, objective)
    batch = _batch_bytes(config, env, objective, own=network is not None)
    batch_flag = flag_of("batch_size")
    items = [
        MemoryItem("network, target, moments, gradient", (3 + slots) * values, layers),
        MemoryItem("new parameters and moments", (1 + slots) * values, layers),
        MemoryItem("batch and activations (estimate)", batch, batch_flag),
    ]
    if device.type == "cuda" and config.execution in RECORDED:
        graphs = batch + GRAPH_BYTES
        items.append(MemoryItem("pool of CUDA graphs (estimate)", graphs, batch_flag))
    if isinstance(objective, C51Objective | QRObjective):
        compared = FLOAT_BYTES * floats_of_numbers(config, env, objective)
        items.append(MemoryItem("atoms or quantiles of a batch", compared, number_of(objective)))
    return items + _of_workers(config, env, num_workers)


def _of_workers(
    config: Config, env: EnvDescription, num_workers: tuple[int, int]
) -> list[MemoryItem]:
    envs = [config.num_envs, min(config.eval_episodes, EVALUATION_ENVS)]
    shared = sum(
        RowSpec(count, env.obs_shape, env.obs_dtype, num_masked=env.num_masked).nbytes
        for count, workers in zip(envs, num_workers, strict=True)
        if workers
    )
    if not sum(num_workers):
        return []
    return [
        MemoryItem("rows shared with workers", shared, "--num-envs", "processes"),
        MemoryItem(
            f"{sum(num_workers)} worker processes (estimate)",
            sum(num_workers) * WORKER_BYTES,
            "--num-workers",
            "processes",
        ),
    ]


def processes_for(config: Config, num_envs: int, *, most: bool, quick: bool) -> int:
    """Return the worker processes of so many environments.

    Args:
        config: The settings.
        num_envs: Environments that are built here; 0 are none.
        most: Where measurements will choose, return the most that they may choose; else the
            fewest.
        quick: Whether the environments are among those that a training measures.
    """
    kind, asked = config.vectorizer, config.num_workers
    if kind in {"sync", "envpool"}:
        return 0
    if kind == "async":
        return num_envs
    if asked is None:
        asked = max(available_cores() - 1, 0) if most or not quick else 0
    return min(asked, num_envs)


# The network and its batches


def atoms_of(objective: Objective) -> int | None:
    """Return the numbers for each action that an objective reads of an MLP; None is one."""
    if isinstance(objective, C51Objective):
        return objective.num_atoms
    if isinstance(objective, IQNObjective) or not isinstance(objective, QRObjective):
        return None
    return objective.num_quantiles


def _num_parameters(
    config: Config, env: EnvDescription, network: nn.Module | None, objective: Objective
) -> int:
    if network is not None:  # anything else than a module is refused when it is built
        named = network.state_dict() if isinstance(network, nn.Module) else {}
        return sum(tensor.numel() for tensor in named.values() if not is_lazy(tensor))
    options = {name: getattr(config, name) for name in OF_SHAPES}
    sizes = inputs_of(env), config.hidden_sizes, env.num_actions
    shapes = parameter_shapes(*sizes, num_atoms=atoms_of(objective), **options)
    if isinstance(objective, IQNObjective):
        shapes |= embedding_shapes((sizes[0], *config.hidden_sizes)[-1])
    return sum(map(math.prod, shapes.values()))


def _batch_bytes(config: Config, env: EnvDescription, objective: Objective, *, own: bool) -> int:
    """Return the bytes of a batch and of what an update and a step of all actors compute of it."""
    inputs = inputs_of(env)
    stored = math.prod(env.obs_shape) * storage_dtype(env.obs_dtype).itemsize
    hidden = () if own else config.hidden_sizes
    width = inputs + 2 * sum(hidden) + env.num_actions * (atoms_of(objective) or 1)
    update = config.batch_size * (2 * stored + FORWARD_PASSES * FLOAT_BYTES * width)
    acting = config.num_envs * FLOAT_BYTES * width
    return update + acting
