"""Whether a network fits what it will be shown: looked at, and tried, before anything is learned.

A trial leaves no trace: it is made with a copy of the network, and all generators are as before.
"""

from __future__ import annotations

import copy
import random
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from gymnasium.spaces import Box, Discrete, Space
from torch import Tensor

from fastdqn.errors import UsageError
from fastdqn.networks import MLP, FlatNetwork
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
"""Observations of a trial; more than one, so that a batch is told apart from an observation."""
FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
LARGEST = 1e3
"""Magnitude of a trial's numbers where the space has no closer bounds."""
TOLERANCE = 1e-2
"""Part of the largest Q-value by which rounding may move one that is computed in another batch."""


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
        _refuse_or_warn(network, shown, stacklevel + 1)
    elif network.module.one_hot:
        _refuse_values_beyond(network.module, space, env_id)


def refuse_frames(network: FlatNetwork, frames: Tensor, masks: Tensor | None, where: str) -> None:
    """Refuse observations that a network does not take, or masks of other actions than its own.

    Args:
        network: On its device.
        frames: [F, *O]; the first few are shown to networks that are no MLP.
        masks: [F, A] bool, or None.
        where: Whose they are, for the message.

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
    """Return what `refuse_batch` looks at, to be compared. Hot path: two batches in a thousand
    differ, and looking at all of it takes as long as a small update.
    """
    return tuple([(t.shape, t.dtype, t.is_cpu) for t in batch.tensors()])


def refuse_batch(network: FlatNetwork, batch: Transitions) -> None:
    """Refuse transitions that a network cannot learn from.

    Args:
        network: On its device.
        batch: See `Transitions`.

    Raises:
        UsageError: A field has another shape, dtype or device than it is documented to have.
    """
    rows, device = batch.action.shape[:1], network.flat.device
    fields: dict[str, tuple[Tensor, tuple[int, ...], tuple[torch.dtype, ...]]] = {
        "action": (batch.action, rows, (torch.int64,)),
        "reward": (batch.reward, rows, FLOATS),
        "terminated": (batch.terminated, rows, (torch.bool,)),
        "truncated": (batch.truncated, rows, (torch.bool,)),
        "next_obs": (batch.next_obs, tuple(batch.obs.shape), (batch.obs.dtype,)),
        "obs": (batch.obs, (*rows, *batch.obs.shape[1:]), (batch.obs.dtype,)),
    }
    for name, (tensor, shape, dtypes) in fields.items():
        if tensor.shape != shape or tensor.dtype not in dtypes or tensor.device != device:
            wanted = f"{list(shape)} {' or '.join(map(str, dtypes))} on {device}"
            raise UsageError(
                f"a batch with {name} {list(tensor.shape)} {tensor.dtype} on {tensor.device}",
                f"beside its action {list(batch.action.shape)} and obs it would be {wanted}",
                "Give transitions as `Transitions` has them.",
            )
    if not batch.action.numel():
        raise UsageError("a batch of no transitions", "there is nothing to learn", "Give some.")
    refuse_frames(network, batch.obs, batch.next_action_mask, "a batch")


def num_actions_of(network: FlatNetwork, shown: Tensor, where: str) -> int:
    """Return A of the Q-values [B, A] that a network gives for `shown` [B, *O].

    Raises:
        UsageError: It gives something else, or raises.
    """
    module, name = network.module, f"network {type(network.module).__name__}"
    if type(module) is MLP:
        why_not = why_not_sizes(module) or _why_not_shown(module, shown)
        if why_not:
            raise UsageError(name, f"{why_not} ({where})", "Build it for what it will be shown.")
        return module.sizes[-1]
    with _generators_kept(network.flat.device):
        return _tried(_twin(network), shown, where)


def observations_of(space: Space[Any], device: torch.device, rows: int = ROWS) -> Tensor:
    """Return observations [rows, *O] of a space as they are stored; no generator is moved.

    They are drawn, each from another part of the space; where it cannot be drawn from, zeros.
    """
    dtype = storage_dtype(space.dtype)
    try:
        own: Any = copy.deepcopy(space)
        own.seed(0)
        drawn = np.stack([np.asarray(own.sample()) for _ in range(rows)])
    except Exception:  # a space of the caller's may raise anything
        drawn = np.zeros((rows, *(space.shape or ())))
    if isinstance(space, Box) and drawn.dtype.kind == "f":
        drawn = np.clip(np.clip(drawn, -LARGEST, LARGEST), space.low, space.high)
    return torch.as_tensor(drawn, dtype=dtype, device=device)


# Multilayer perceptrons are known by their sizes


def why_not_sizes(module: MLP) -> str | None:
    """Return what of an MLP is not as it was built, or None: its layers may have been exchanged."""
    parameters = list(module.parameters())
    shapes = [shape for k, n in module.steps for shape in ((n, k), (n,))]
    if [tuple(parameter.shape) for parameter in parameters] != shapes:
        return "its layers are not linear ones with biases, each as wide as the one before"
    if module.one_hot not in {0, module.sizes[0]}:
        return f"its one-hot vectors have {module.one_hot} numbers, its first layer {module.sizes[0]}"
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


# Others are tried


def _tried(network: FlatNetwork, shown: Tensor, where: str) -> int:
    """Return A of what a network gives for `shown` [B, *O], as a learner would ask it."""
    name, before = f"network {type(network.module).__name__}", shown.clone()
    fed = f"observations {list(shown.shape)} {shown.dtype} of {where}"
    leaves = [view.detach().requires_grad_() for view in network.views(network.flat)]
    try:
        with torch.enable_grad():
            q: Any = network(leaves, shown)
    except Exception as error:  # a network of the caller's may raise anything
        first = (str(error).strip() or "no reason").splitlines()[0].rstrip(".")
        reason = f"it raises on {fed} ({type(error).__name__}: {first})"
        raise UsageError(name, reason, "Build it for what it will be shown.") from error
    way_out = "Return one tensor of float numbers [B, A], a row per observation."
    if not isinstance(q, Tensor):
        raise UsageError(name, f"it gives a {type(q).__name__} for {fed}", way_out)
    if q.ndim != 2 or len(q) != len(shown) or not q.is_floating_point():
        raise UsageError(name, f"it gives {list(q.shape)} {q.dtype} for {fed}", way_out)
    if not q.requires_grad:
        reason = "its Q-values have no gradient by its parameters"
        raise UsageError(name, reason, "Leave out no_grad and detach.")
    if not torch.equal(shown.nan_to_num(), before.nan_to_num()):
        reason = "it writes into the observations that it is given"
        raise UsageError(name, reason, "Compute a new tensor: x = x / 255, not x /= 255.")
    return int(q.shape[1])


def _refuse_or_warn(network: FlatNetwork, shown: Tensor, stacklevel: int) -> None:
    """Warn of Q-values that change from call to call, or with the other rows of a batch."""
    name = type(network.module).__name__
    with _generators_kept(network.flat.device), torch.no_grad():
        twin = _twin(network)
        if _is_random(twin, shown):
            twin.module.eval()
            way_out = (
                "Take it out (functional.dropout draws unless training=False)"
                if _is_random(twin, shown)
                else "Call .eval() on the network before you pass it"
            )
            told = f"gives other Q-values for the same observations at each call. {way_out}"
        elif _minds_others(twin, shown):
            told = (
                "values an observation by the other rows of its batch, so that what it predicts "
                "depends on what is asked beside it. Use layers that look at one row (LayerNorm)"
            )
        else:
            return
    warnings.warn(f"network {name} {told}.", UserWarning, stacklevel=stacklevel + 1)


def _is_random(network: FlatNetwork, shown: Tensor) -> bool:
    """Return whether a network draws random numbers, or answers the same question differently."""
    views = network.views(network.flat)
    network(views, shown)  # what is drawn once, and kept, is drawn here
    first = network(views, shown)
    before = _states(network.flat.device)
    second = network(views, shown)
    return _states(network.flat.device) != before or not _alike(first, second)


def _minds_others(network: FlatNetwork, shown: Tensor) -> bool:
    """Return whether a row's Q-values depend on the rows beside it."""
    views = network.views(network.flat)
    together = network(views, shown)
    try:
        alone = torch.cat([network(views, row) for row in shown.split(1)])
    except Exception as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise UsageError(
            f"network {type(network.module).__name__}",
            f"it raises on a single observation ({type(error).__name__}: {first})",
            "Let it take batches of any size; predict asks for one row.",
        ) from error
    return not _alike(together, alone)


def _alike(one: Tensor, other: Tensor) -> bool:
    finite = one.abs().nan_to_num(0.0, 0.0, 0.0)
    atol = TOLERANCE * float(finite.max()) if finite.numel() else 0.0
    return torch.allclose(one, other, rtol=0.0, atol=atol, equal_nan=True)


def _twin(network: FlatNetwork) -> FlatNetwork:
    """Return a copy to try, or the network itself where it cannot be copied."""
    try:
        return copy.deepcopy(network)
    except Exception:  # a network of the caller's may hold anything
        return network


@contextmanager
def _generators_kept(device: torch.device) -> Iterator[None]:
    """Let the block draw from the global generators, and bring them back afterwards."""
    kept, drawn = random.getstate(), np.random.get_state()  # noqa: NPY002 - the caller's own
    mps = torch.mps.get_rng_state() if device.type == "mps" else None
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            yield
    finally:
        random.setstate(kept)
        np.random.set_state(drawn)  # noqa: NPY002
        if mps is not None:
            torch.mps.set_rng_state(mps)


def _states(device: torch.device) -> tuple[Any, ...]:
    """Return the states of the global generators, to be compared."""
    drawn: Any = np.random.get_state()  # noqa: NPY002
    states = [torch.get_rng_state()]
    if device.type in {"cuda", "mps"}:
        states.append(getattr(torch, device.type).get_rng_state())
    plain = tuple(state.cpu().numpy().tobytes() for state in states)
    return *plain, random.getstate(), drawn[1].tobytes(), drawn[2:]
