"""Refuses, by a UsageError, tensors that C and CUDA C would read wrongly.

Native code reads by the network's sizes what others store by theirs: a width, a dtype or a stride
that differs would be read beyond its end. What only a call knows (whether an index lies in the
ring) is checked by the C itself.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from fastdqn.errors import UsageError
from fastdqn.native.c_library import DTYPES
from fastdqn.networks.flat_network import FlatNetwork
from fastdqn.networks.network_check import num_actions_of, refuse_frames
from fastdqn.replay import Ring

__all__ = [
    "ONE_STEP",
    "refuse_index",
    "refuse_masks",
    "refuse_obs",
    "refuse_ring",
    "refuse_tensor",
    "refuse_uniform",
]

ONE_STEP = "its kernels learn from single steps"
WAY_OUT = "Pass it as documented, or use --execution eager."


def refuse_tensor(
    name: str,
    tensor: Tensor,
    shape: Iterable[int],
    dtype: torch.dtype,
    device: torch.device,
) -> None:
    """Refuse a tensor that is not contiguous, or of another shape, dtype or device."""
    wanted = tuple(shape)
    if (
        tuple(tensor.shape) != wanted
        or tensor.dtype != dtype
        or tensor.device != device
        or not tensor.is_contiguous()
    ):
        raise UsageError(
            f"{name} {_described(tensor)}",
            f"native code reads {list(wanted)} {dtype} on {device}, contiguous",
            WAY_OUT,
        )


def refuse_ring(network: FlatNetwork, ring: Ring) -> None:
    """Refuse a ring that an update of a network cannot read.

    Args:
        network: Of an MLP.
        ring: What it would learn from.

    Raises:
        UsageError: A tensor of the ring is not as documented there, or of other widths than the
            network's.
    """
    device, count, frames = network.flat.device, len(ring.action), len(ring.frames)
    refuse_obs(network, ring.frames, "the ring's frames")
    for name, dtype in (
        ("action", torch.int64),
        ("next_index", torch.int64),
        ("reward", torch.float32),
        ("terminated", torch.bool),
        ("continues", torch.bool),
    ):
        refuse_tensor(f"the ring's {name}", getattr(ring, name), (count,), dtype, device)
    if ring.n_step > 1 and device.type != "cpu":
        raise UsageError(f"n-step {ring.n_step}", ONE_STEP, "Use --execution cudagraph.")
    if ring.n_step > 1 and not 0 < ring.stride < count:
        reason = f"the next one of a column lies {ring.stride} transitions further"
        raise UsageError(f"n-step {ring.n_step} of a ring of {count}", reason, WAY_OUT)
    if ring.masks is not None:
        refuse_frames(network, ring.frames, ring.masks, "a ring")
        shape = frames, ring.masks.shape[1]
        refuse_tensor("the ring's masks", ring.masks, shape, torch.bool, device)
    if not frames or not count:
        raise UsageError("a ring", "it has no transitions", "Write a vector step first.")


def refuse_index(numbers: Tensor, device: torch.device) -> None:
    """Refuse numbers that choose batches, unless they are [K, B] int64, contiguous."""
    if numbers.ndim != 2:
        raise UsageError(
            f"index {_described(numbers)}",
            "it has a row [B] for every update",
            "Pass [K, B] int64.",
        )
    refuse_tensor("index", numbers, numbers.shape, torch.int64, device)


def refuse_obs(network: FlatNetwork, frames: Tensor, name: str = "observations") -> None:
    """Refuse observations [N, *O] that native code cannot read as they lie."""
    if frames.dtype not in DTYPES:
        known = ", ".join(str(dtype).removeprefix("torch.") for dtype in DTYPES)
        raise UsageError(
            f"{name} {_described(frames)}",
            f"native code reads {known}",
            "Store them in one of these.",
        )
    num_actions_of(network, frames[:1], name)
    if getattr(network.module, "one_hot", 0) and frames.is_floating_point():
        reason = "one-hot vectors are made of whole numbers"
        raise UsageError(f"{name} {_described(frames)}", reason, "Store them as int64.")
    refuse_tensor(name, frames, frames.shape, frames.dtype, network.flat.device)


def refuse_masks(network: FlatNetwork, masks: Tensor | None, rows: int) -> None:
    """Refuse masks, unless they are [N, A] bool, contiguous."""
    if masks is not None:
        sizes: tuple[int, ...] = network.module.sizes  # type: ignore[assignment]
        refuse_tensor("action masks", masks, (rows, sizes[-1]), torch.bool, network.flat.device)


def refuse_uniform(uniform: Tensor, rows: int, device: torch.device) -> None:
    """Refuse random numbers, unless they are [N, 2 or more] float32 with contiguous rows."""
    fits = uniform.ndim == 2 and len(uniform) == rows and uniform.shape[1] >= 2
    fine = uniform.dtype == torch.float32 and uniform.device == device
    if not (fits and fine and uniform.stride(1) == 1):
        raise UsageError(
            f"uniform numbers {_described(uniform)}",
            f"acting reads [{rows}, 2] float32 on {device}, two in a row",
            "Draw them with torch.rand(len(obs), 2).",
        )


def _described(tensor: Tensor) -> str:
    apart = "" if tensor.is_contiguous() else f", strides {list(tensor.stride())}"
    dtype = str(tensor.dtype).removeprefix("torch.")
    return f"{list(tensor.shape)} {dtype} on {tensor.device}{apart}"
