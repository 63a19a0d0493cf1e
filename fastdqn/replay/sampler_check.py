"""Checks that a sampler of the caller's own does what `Sampler` asks for, before it is used."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastdqn.errors import UsageError
from fastdqn.foundation.copying import snapshot
from fastdqn.replay.buffer import MAX_DRAW, ReplayBuffer
from fastdqn.replay.functional_ring import FunctionalRing
from fastdqn.replay.sampler import Sampler

__all__ = ["SamplerFactory", "refuse_unfit", "sampler_of"]

SamplerFactory = Callable[[ReplayBuffer | FunctionalRing, int], Sampler]
"""Builds a sampler for a ring and a batch size."""
MANY = 2
"""Batches of a trial draw of an independent sampler."""


def sampler_of(
    make: SamplerFactory, replay: ReplayBuffer | FunctionalRing, batch_size: int
) -> Sampler:
    """Build a sampler; refuse what is none, is of another ring, or unfit.

    Raises:
        UsageError: Says what was built.
    """
    built: object = make(replay, batch_size)
    way_out = "Pass DQN(sampler=...) what builds a Sampler from a ring and a batch size."
    if not isinstance(built, Sampler):
        raise UsageError(f"a sampler of {type(built).__name__}", "it is no Sampler", way_out)
    if built.replay is not replay or built.batch_size != batch_size:
        got = f"a {type(built).__name__} of batches of {built.batch_size}"
        reason = f"it is to draw batches of {batch_size} from the ring that it is handed"
        raise UsageError(got, reason, way_out)
    refuse_unfit(built)
    return built


def refuse_unfit(sampler: Sampler) -> None:
    """Refuse a sampler that breaks its contract, by a trial draw and feedback; waits.

    The ring looks full meanwhile; what the sampler has `written()` is restored.

    Raises:
        UsageError: What it draws or writes is not as `Sampler` says.
    """
    kind, replay, written = type(sampler), sampler.replay, sampler.written()
    if kind.feedback is not Sampler.feedback and not written:
        got, reason = f"the feedback of {kind.__name__}", "it writes no tensor that it names"
        raise UsageError(got, reason, "Let `written` return the tensors that it writes.")
    if isinstance(replay, ReplayBuffer):
        cursor, full = replay.window, [0, len(replay.ring.action)]
    else:
        cursor, full = replay.row.reshape(1), [replay.num_rows]
    restore = snapshot((*written, cursor))
    try:
        with torch.no_grad():
            cursor.copy_(torch.tensor(full))
            _try_feedback(sampler, written, _tried_rows(sampler))
    finally:
        restore()


def _tried_rows(sampler: Sampler) -> Tensor:
    """Return the rows [B] of a trial draw, or refuse what was drawn."""
    name, size, places = type(sampler).__name__, sampler.batch_size, sampler.ring.action
    shape = (MANY, size) if sampler.independent else (size,)
    bits = torch.arange(size, device=places.device).expand(shape) * (MAX_DRAW // size)
    rows, weight = sampler.draw(bits)
    if sampler.independent and weight is not None:
        got, reason = f"weights of {name}", "it is independent: all of its rows weigh alike"
        raise UsageError(got, reason, "Set independent = False, or return None for them.")
    _refuse_other(f"rows drawn by {name}", rows, bits, torch.int64)
    if rows.min() < 0 or rows.max() >= len(places):
        got = f"rows {int(rows.min())} to {int(rows.max())} drawn by {name}"
        raise UsageError(got, f"the ring has {len(places)}", "Return what `replay.nth` does.")
    if weight is not None:
        _refuse_other(f"weights drawn by {name}", weight, bits, torch.float32)
        if (weight < 0).any():
            got, reason = f"negative weights drawn by {name}", "a weight is a factor of a loss"
            raise UsageError(got, reason, "Return weights of at least 0.")
    return rows.reshape(-1)[:size]


def _refuse_other(what: str, found: Any, bits: Tensor, dtype: torch.dtype) -> None:
    if isinstance(found, Tensor):
        kind = found.shape, found.dtype, found.device, found.requires_grad
        if kind == (bits.shape, dtype, bits.device, False):
            return
        found = f"{list(found.shape)} {found.dtype} on {found.device}"
    want = f"want {list(bits.shape)} {dtype} on {bits.device} without a gradient"
    raise UsageError(f"{what}: {found}", want, "See `Sampler.draw`.")


def _try_feedback(sampler: Sampler, written: tuple[Tensor, ...], rows: Tensor) -> None:
    """Feed back what a skipped update does; refuse another place of memory, or other values."""
    name, before = type(sampler).__name__, [tensor.clone() for tensor in written]
    if written:
        sampler.feedback(rows, torch.full(rows.shape, torch.nan, device=rows.device))
    again = sampler.written()
    if len(again) != len(written) or not all(map(Tensor.is_set_to, again, written)):
        got, reason = f"the tensors that {name} has written()", "a later call returned others"
        raise UsageError(got, reason, "Allocate them once, and write into them in place.")
    if not all(map(_alike, written, before)):
        got, reason = f"the feedback of {name}", "it changed something after a skipped update"
        raise UsageError(got, reason, "Keep what there was where priority.isnan().")


def _alike(now: Tensor, before: Tensor) -> bool:
    """Return whether numbers are the same but for the rounding of a sum that was taken anew."""
    if not now.is_floating_point():
        return torch.equal(now, before)
    return torch.allclose(now, before, rtol=1e-5, atol=0.0, equal_nan=True)
