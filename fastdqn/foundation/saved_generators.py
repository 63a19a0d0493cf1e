"""Random generators as states of a training: PyTorch's own, and the global ones of the process."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastdqn.foundation.state import PartState

__all__ = [
    "generator_state",
    "global_generators",
    "restore_generator",
    "restore_global_generators",
]

WORDS, LAST_WORD = 624, 2**32 - 1
"""Of the Mersenne twister, which Python and NumPy share."""
LARGEST_SEED = 2**64 - 1
MOST_BYTES = 10_000
"""Of the state of a generator: 5,056 on the CPU, fewer elsewhere."""
cuda: Any = torch.cuda


def generator_state(generator: torch.Generator) -> PartState:
    """Return what a generator draws from next, copied to the host."""
    values = {"device": generator.device.type, "seed": generator.initial_seed()}
    return PartState(values, {"generator": generator.get_state()})


def restore_generator(generator: torch.Generator, state: PartState) -> None:
    """Let a generator draw what another one would draw next.

    Generators of two kinds of devices have nothing in common: then it is seeded by the other one's
    seed and state, so that its numbers are neither those nor the first ones again.

    Raises:
        CheckpointError: The state is none of such a generator.
    """
    device, seed = state.text("device"), state.whole("seed", 0, LARGEST_SEED)
    if device == generator.device.type:
        _set(state, generator.get_state(), generator.set_state)
        return
    found = state.tensors.get("generator")
    if found is None or found.dtype is not torch.uint8 or found.numel() > MOST_BYTES:
        raise state.refusal("generator", f"no tensor of at most {MOST_BYTES:,} bytes")
    digest = hashlib.sha256(str(seed).encode() + bytes(found.flatten().tolist())).digest()
    generator.manual_seed(int.from_bytes(digest[:4]) >> 1)


def _set(state: PartState, like: Tensor, write: Callable[[Tensor], object]) -> None:
    found = state.tensor("generator", like)
    try:
        write(found.cpu().clone())  # PyTorch crashes where bytes of a file are not aligned
    except RuntimeError as error:  # PyTorch looks at the numbers
        raise state.refusal("generator", f"none that can be: {error}") from error


def global_generators() -> PartState:
    """Return the states of the generators of `random`, NumPy and PyTorch, those of cards too."""
    parts = {"python": _python(), "torch": _torch(torch.get_rng_state())}
    numpy = np.random.get_state(legacy=False)
    if numpy["bit_generator"] == "MT19937":  # another one is the caller's own
        parts["numpy"] = _numpy(numpy)
    if cuda.is_initialized():
        for number, rng_state in enumerate(cuda.get_rng_state_all()):
            parts[f"cuda{number}"] = _torch(rng_state)
    if torch.backends.mps.is_available():
        parts["mps"] = _torch(torch.mps.get_rng_state())
    return PartState().with_parts(parts)


def restore_global_generators(state: PartState) -> None:
    """Restore them, as far as this process has them and the state does.

    Raises:
        CheckpointError: A state is none of such a generator.
    """
    writes = [_read_python(state.part("python"))]
    if "numpy" in state.values:
        writes.append(_read_numpy(state.part("numpy")))
    for write in writes:
        write()
    _set(state.part("torch"), torch.get_rng_state(), torch.set_rng_state)
    count = cuda.device_count() if cuda.is_initialized() else 0
    for number in range(count):
        if f"cuda{number}" in state.values:
            like = cuda.get_rng_state(number)
            own: Any = lambda found, card=number: cuda.set_rng_state(found, card)  # noqa: E731
            _set(state.part(f"cuda{number}"), like, own)
    if torch.backends.mps.is_available() and "mps" in state.values:
        _set(state.part("mps"), torch.mps.get_rng_state(), torch.mps.set_rng_state)


def _torch(rng_state: Tensor) -> PartState:
    return PartState({}, {"generator": rng_state})


def _python() -> PartState:
    version, words, gauss = random.getstate()
    return PartState({"version": version, "gauss": gauss}, {"words": torch.tensor(words)})


def _read_python(state: PartState) -> Callable[[], None]:
    version, *_ = random.getstate()
    version = state.whole("version", version, version)
    gauss = None if state.values.get("gauss") is None else state.number("gauss")
    *words, position = _words(state, WORDS + 1)
    if position > WORDS:
        raise state.refusal("position", f"{position}, behind the last of {WORDS} words")
    return lambda: random.setstate((version, (*words, position), gauss))


def _numpy(found: Any) -> PartState:
    inner = found["state"]
    values = {
        "position": int(inner["pos"]),
        "has_gauss": int(found["has_gauss"]),
        "gauss": float(found["gauss"]),
    }
    return PartState(values, {"words": torch.from_numpy(inner["key"].astype(np.int64))})


def _read_numpy(state: PartState) -> Callable[[], None]:
    key = np.array(_words(state, WORDS), np.uint32)
    position = state.whole("position", 0, WORDS)
    more = state.whole("has_gauss", 0, 1), state.number("gauss")
    return lambda: np.random.set_state(("MT19937", key, position, *more))


def _words(state: PartState, count: int) -> list[int]:
    words = state.tensor("words", torch.empty(count, dtype=torch.int64)).tolist()
    if not 0 <= min(words) <= max(words) <= LAST_WORD:
        raise state.refusal("words", f"not in [0, {LAST_WORD}] throughout")
    return list(words)
