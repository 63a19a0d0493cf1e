"""The ways into an update, each run in the same mode; and how CUDA graphs are made of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastdqn.execution.compiled import CompiledInside
from fastdqn.execution.cuda_graph import CudaGraphStep, StaticInputs
from fastdqn.execution.meanwhile import Meanwhile, Need
from fastdqn.execution.modes import COMPILING
from fastdqn.learner.update import LearnerState
from fastdqn.native import CudaUpdate, NativeUpdate
from fastdqn.replay import Ring, Sampler
from fastdqn.transition import Transitions

__all__ = ["Way", "graphs_of", "native_way", "recorded"]


class Way(NamedTuple):
    """The ways into the pure step, each run in the same mode.

    Attributes:
        replayed: On rows of a ring at given indices.
        given: On a batch.
        sampled: On rows of a ring that a graph chooses itself; None outside of graphs.
        chosen: On as many batches as are asked for, which the C chooses; None elsewhere.
    """

    replayed: Callable[..., None]
    given: Callable[..., None]
    sampled: Callable[..., None] | None = None
    chosen: Callable[[Sampler, int], None] | None = None


def recorded(
    state: LearnerState,
    replayed: Callable[[LearnerState, Ring, Tensor], None],
    given: Callable[..., None],
    sampled: Callable[[Sampler, Tensor], None] | None = None,
    cuda: Any = torch.cuda,
) -> Way:
    """Record each way into a step as graphs.

    Args:
        state: All that the step writes.
        replayed: See `Way`.
        given: See `Way`.
        sampled: See `Way`; None chooses rows for `replayed`.
        cuda: `torch.cuda`, or what stands in for it.
    """

    def captured(step: Callable[..., None]) -> CudaGraphStep:
        return CudaGraphStep(
            step, lambda *_: state.snapshot(), device=state.online.device, cuda=cuda
        )

    def choosing(sampler: Sampler, random_bits: Tensor) -> None:
        replayed(state, sampler.ring, sampler.draw(random_bits)[0])

    return Way(
        StaticInputs(captured(replayed)),
        StaticInputs(captured(given)),
        captured(sampled or choosing),
    )


def native_way(
    native: NativeUpdate | CudaUpdate, state: LearnerState, cuda: Any = torch.cuda
) -> Way:
    """Return the ways into a native update; a card's are recorded.

    Args:
        native: Updates the state.
        state: All that it writes.
        cuda: `torch.cuda`, or what stands in for it.
    """

    def replayed(_state: LearnerState, ring: Ring, index: Tensor) -> None:
        native(ring, index)

    def given(_state: LearnerState, *fields: Tensor) -> None:
        native.given(Transitions(*fields))

    if isinstance(native, NativeUpdate):
        return Way(replayed, given, chosen=native.sampled)
    return recorded(state, replayed, given, native.sampled, cuda)


def graphs_of(
    execution: str,
    state: LearnerState,
    replayed: Callable[[LearnerState, Ring, Tensor], None],
    given: Callable[..., None],
    plain: Way,
    *,
    background: bool,
    cuda: Any = torch.cuda,
) -> Way:
    """Return graphs of a step: of the step as it is, compiled, or the one until the other is there.

    Args:
        execution: One of GRAPHS.
        state: All that the step writes.
        replayed: See `Way`; does the same for each row of the index, one after another.
        given: See `Way`.
        plain: Graphs of the step as it is.
        background: Start with these, and move when the step has been compiled.
        cuda: `torch.cuda`, or what stands in for it.
    """
    if execution not in COMPILING:
        return plain
    device = state.online.device
    by_row = CompiledInside(replayed, device, by_row=True)
    whole = CompiledInside(given, device)
    fast = recorded(state, by_row, whole, cuda=cuda)
    if not background:
        return fast
    assert plain.sampled
    assert fast.sampled

    def choosing(sampler: Sampler, random_bits: Tensor) -> list[Need]:
        return [(by_row, (state, sampler.ring, random_bits))]

    return Way(
        Meanwhile(plain.replayed, fast.replayed, lambda *args: by_row.needs(*_fed(args))),
        Meanwhile(plain.given, fast.given, lambda *args: whole.needs(*_fed(args))),
        Meanwhile(plain.sampled, fast.sampled, choosing),
    )


def _fed(args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return arguments as they lie where `StaticInputs` puts them."""
    return tuple(arg.contiguous() if isinstance(arg, Tensor) else arg for arg in args)
