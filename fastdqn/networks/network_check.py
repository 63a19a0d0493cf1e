"""Checks that a network fits its observations and actions, before anything is learned."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from gymnasium.spaces import Box, Discrete, Space
from torch import Tensor

from fastdqn.errors import UsageError
from fastdqn.networks.flat_network import FlatNetwork
from fastdqn.networks.mlp import MLP
from fastdqn.networks.network_trial import tried, warn_if_random
from fastdqn.transition import Transitions, storage_dtype

__all__ = [
    "kind_of",
    "num_actions_of",
    "observations_of",
    "refuse_batch",
    "refuse_frames",
    "refuse_unfit",
    "why_not_sizes",
]

ROWS = 3
"""Observations of a trial; more than one, so that a batch differs from an observation."""
FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
LARGEST = 1e3
"""Magnitude of a trial's numbers where the space has no closer bounds."""


def refuse_unfit(
    network: FlatNetwork, space: Space[Any], num_actions: int, env_id: str, *, stacklevel: int = 2
) -> None:
    """Refuse a network that cannot learn in an environment; warn of one that acts at random.

    Args:
        network: On its device.
        space: Of one observation.
        num_actions: Actions of the environment, A.
        env_id: Its name, for the message.
        stacklevel: Of the warnings, as `warnings.warn` takes it.

    Raises:
        UsageError: It does not turn observations [B, *O] into Q-values [B, A].
    """
    shown = observations_of(space, network.flat.device)
    name, outputs = type(network.module).__name__, num_actions_of(network, shown, env_id)
    if outputs != num_actions:
        raise UsageError(
            f"network {name}",
            f"it gives {outputs} Q-values, and {env_id} has {num_actions} actions",
            f"Let it have {num_actions} outputs.",
        )
    if type(network.module) is not MLP:
        warn_if_random(network, shown, stacklevel + 1)
    elif network.module.one_hot:
        _refuse_values_beyond(network.module, space, env_id)


def refuse_frames(network: FlatNetwork, frames: Tensor, masks: Tensor | None, where: str) -> None:
    """Refuse observations that a network does not take, or masks of other actions than its own.

    Args:
        network: On its device.
        frames: [F, *O]; the first few are passed to networks other than MLPs.
        masks: [F, A] bool, or None.
        where: Their origin, for the message.

    Raises:
        UsageError: They do not fit.
    """
    if frames.device != network.flat.device:
        raise UsageError(
            f"{where} on {frames.device}",
            f"the network is on {network.flat.device}",
            "Build both with the same device.",
        )
    outputs = num_actions_of(network, frames[:ROWS], where)
    if masks is not None and (masks.shape != (len(frames), outputs) or masks.dtype != torch.bool):
        raise UsageError(
            f"{where} with action masks {list(masks.shape)} {masks.dtype}",
            f"the network has {outputs} actions, and {len(frames)} masks [A] bool go with them",
            f"Build masks of {outputs} actions (num_masked={outputs}).",
        )


def kind_of(batch: Transitions) -> tuple[Any, ...]:
    """Return what `refuse_batch` checks, to compare it with the last batch. Hot path."""
    return tuple([t if t is None else (t.shape, t.dtype, t.is_cpu) for t in batch.tensors()])


def refuse_batch(network: FlatNetwork, batch: Transitions) -> None:
    """Refuse transitions that a network cannot learn from.

    Args:
        network: On its device.
        batch: See `Transitions`.

    Raises:
        UsageError: A field has another shape, dtype or device than documented.
    """
    shape, device = tuple(batch.obs.shape), network.flat.device
    one, flag = shape[:1], (torch.bool,)
    wanted = {
        "obs": (batch.obs, shape, (batch.obs.dtype,), "[B, *O]"),
        "next_obs": (batch.next_obs, shape, (batch.obs.dtype,), "[B, *O] as obs is"),
        "action": (batch.action, one, (torch.int64,), "[B] int64"),
        "reward": (batch.reward, one, FLOATS, "[B] float32"),
        "terminated": (batch.terminated, one, flag, "[B] bool"),
        "truncated": (batch.truncated, one, flag, "[B] bool"),
    }
    for name in ("discount", "weight"):
        if (optional := getattr(batch, name)) is not None:
            wanted[name] = (optional, one, (torch.float32,), "[B] float32")
    for name, (tensor, sizes, dtypes, message) in wanted.items():
        if tensor.shape != sizes or tensor.dtype not in dtypes or tensor.device != device:
            raise UsageError(
                f"a batch with {name} {list(tensor.shape)} {tensor.dtype} on {tensor.device}",
                f"want {message} on {device}, B being {len(batch.obs)} by its observations",
                "Pass transitions as `Transitions` has them.",
            )
    if not batch.action.numel():
        raise UsageError("a batch of no transitions", "there is nothing to learn", "Pass some.")
    refuse_frames(network, batch.obs, batch.next_action_mask, "a batch")
    if batch.action_mask is not None:
        refuse_frames(network, batch.obs, batch.action_mask, "a batch")


def num_actions_of(network: FlatNetwork, shown: Tensor, where: str) -> int:
    """Return A of the Q-values [B, A] that a network gives for `shown` [B, *O].

    Raises:
        UsageError: It gives something else, or raises.
    """
    module, name = network.module, f"network {type(network.module).__name__}"
    if type(module) is MLP and network.q_values is None and module.num_atoms is None:
        why_not = why_not_sizes(module) or _why_not_shown(module, shown)
        if why_not:
            raise UsageError(name, f"{why_not} ({where})", "Build it for what it will be shown.")
        return module.sizes[-1]
    return tried(network, shown, where)


def observations_of(space: Space[Any], device: torch.device, rows: int = ROWS) -> Tensor:
    """Return sample observations [rows, *O] of a space as they are stored; no generator advances.

    They come from different parts of the space; zeros if it cannot be sampled.
    """
    dtype = storage_dtype(np.dtype(space.dtype))
    try:
        own: Any = copy.deepcopy(space)
        own.seed(0)
        drawn = np.stack([np.asarray(own.sample()) for _ in range(rows)])
    except Exception:  # a space of the caller may raise any exception
        drawn = np.zeros((rows, *(space.shape or ())))
    if isinstance(space, Box) and drawn.dtype.kind == "f":
        drawn = np.clip(np.clip(drawn, -LARGEST, LARGEST), space.low, space.high)
    return torch.as_tensor(drawn, dtype=dtype, device=device)


# Multilayer perceptrons, by their sizes


def why_not_sizes(module: MLP) -> str | None:
    """Return how an MLP's layers differ from its sizes, or None: they may have been replaced."""
    parameters = list(module.parameters())
    if [tuple(parameter.shape) for parameter in parameters] != module.shapes:
        return "its layers are not linear ones with biases, each as wide as the one before"
    if module.one_hot not in {0, module.sizes[0]}:
        return (
            f"its one-hot vectors have {module.one_hot} numbers, its first layer {module.sizes[0]}"
        )
    return None


def _why_not_shown(module: MLP, shown: Tensor) -> str | None:
    """Return why an MLP does not take observations [B, *O], or None."""
    shape, inputs = tuple(shown.shape[1:]), module.sizes[0]
    if module.one_hot:
        return f"it takes one number, and an observation has shape {list(shape)}" if shape else None
    count = shown[0].numel() if len(shown) else inputs
    if count != inputs:
        return f"it takes {inputs} numbers, and an observation has {count}"
    return None


def _refuse_values_beyond(module: MLP, space: Space[Any], env_id: str) -> None:
    """Refuse one-hot vectors that are too short for an environment's whole numbers."""
    first, last = module.offset, module.offset + module.one_hot - 1
    if isinstance(space, Discrete):
        low, high = int(space.start), int(space.start + space.n) - 1
    elif isinstance(space, Box):
        low, high = int(space.low.min()), int(space.high.max())
    else:
        return
    if low < first or high > last:
        raise UsageError(
            "network MLP",
            f"its one-hot vectors stand for {first} to {last}, and {env_id} shows {low} to {high}",
            f"Build it with one_hot={high - low + 1}, offset={low}.",
        )
