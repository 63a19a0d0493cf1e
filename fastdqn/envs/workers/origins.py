"""What an episode begins from: a seed, or the state of the environment's random generator.

An environment that begins an episode from the same state, and takes the same actions, does the
same again, unless something else decides what it does, too.
"""

from __future__ import annotations

import struct
from typing import Any, Self

import gymnasium as gym
import numpy as np
import numpy.typing as npt

from fastdqn.envs.workers.shared_block import SharedBlock

__all__ = [
    "GENERATOR",
    "KIND",
    "NUM_WORDS",
    "SEEDED",
    "STEP",
    "TOO_LONG",
    "UNKNOWN",
    "OriginColumn",
    "Origins",
    "begin_from",
    "is_origin",
    "known_in",
]

NUM_WORDS = 8
"""Of an origin: its kind, the vector step, and six of a seed or of a generator's state."""
KIND, STEP = 0, 1
UNKNOWN, SEEDED, GENERATOR, TOO_LONG = range(4)
"""Kinds: the environment has no such generator; a seed; the state of a PCG64; and, outside of the
block, an episode of more steps than are kept."""
WORD = 2**64
NOTHING = (UNKNOWN, 0, 0, 0, 0, 0, 0)
_packing = struct.Struct(f"={NUM_WORDS}Q")

Origins = npt.NDArray[np.uint64]
"""[N, 8] kind, vector steps of the group before the first one of the episode, then the seed; or
state (two words, the high one first), increment (likewise), has_uint32 and uinteger of a PCG64."""


class OriginColumn:
    """Writes into the block what the episodes of a host's environments begin from.

    Args:
        origin: [N, 8] of the block, written.
        steps_sent: [N, 1] of the block, written by the caller's process.
    """

    def __init__(self, origin: Origins, steps_sent: npt.NDArray[np.int64]) -> None:
        self._words = origin
        self._bytes = memoryview(origin).cast("B")  # type: ignore[arg-type]
        self._sent: Any = memoryview(steps_sent).cast("B").cast("q")  # type: ignore[arg-type]

    @classmethod
    def over(cls, rows: SharedBlock) -> Self | None:
        """Return the column of the block, or None where it has none."""
        return cls(rows.origin, rows.steps_sent) if rows.origin.size else None

    def note(
        self, i: int, env: gym.Env[Any, Any], seed: int | None, options: Any, origin: Any
    ) -> None:
        """Write what a reset of environment `i` is about to begin from; the environment is read.

        Args:
            i: Which environment of the host.
            env: Itself.
            seed: Of the reset, or None.
            options: Of the reset.
            origin: [8] What `begin_from` gets, or None.
        """
        if origin is None:
            kind, *rest = _origin_of(env, seed, options)
        else:
            kind, _, *rest = origin.tolist()
        _packing.pack_into(self._bytes, i * _packing.size, kind, self._sent[i], *rest)


def _origin_of(env: gym.Env[Any, Any], seed: int | None, options: Any) -> tuple[int, ...]:
    """Return the words of an origin, but for the vector step.

    The generator is read where Gymnasium's class keeps it: the property `np_random` would make
    one where there is none.
    """
    if options:
        return NOTHING
    if seed is not None:
        return (SEEDED, int(seed), 0, 0, 0, 0, 0) if 0 <= seed < WORD else NOTHING
    try:
        state = env.unwrapped._np_random.bit_generator.state  # type: ignore[union-attr]
        if state["bit_generator"] != "PCG64":
            return NOTHING
        (at, by), rest = state["state"].values(), (state["has_uint32"], state["uinteger"])
        return (GENERATOR, *divmod(at, WORD), *divmod(by, WORD), *rest)
    except Exception:  # any environment, and whatever it makes of these names
        return NOTHING


def begin_from(env: gym.Env[Any, Any], origin: Origins, seed: int | None) -> tuple[Any, Any]:
    """Reset an environment so that it begins the episode that began there.

    Args:
        env: Freshly built.
        origin: [8] SEEDED or GENERATOR.
        seed: Of the last reset with a seed before the episode, or None. It is repeated, since
            environments may do things in such a reset only.

    Returns:
        Observation and info of the reset.
    """
    kind, _, first, *rest = origin.tolist()
    if kind == SEEDED:
        return env.reset(seed=first)
    if seed is not None:
        env.reset(seed=seed)
    low, by_high, by_low, has_uint32, uinteger = rest
    core: Any = env.unwrapped
    generator = getattr(core, "_np_random", None)
    if generator is None or type(generator.bit_generator) is not np.random.PCG64:
        core.np_random = generator = np.random.Generator(np.random.PCG64(0))
    generator.bit_generator.state = {
        "bit_generator": "PCG64",
        "state": {"state": first * WORD + low, "inc": by_high * WORD + by_low},
        "has_uint32": has_uint32,
        "uinteger": uinteger,
    }
    return env.reset()


def known_in(origins: Origins | None, i: int) -> Origins | None:
    """Return [8] what an environment can begin from, or None."""
    if origins is None or int(origins[i, KIND]) not in {SEEDED, GENERATOR}:
        return None
    words: Origins = origins[i]
    return words


def is_origin(words: Origins) -> bool:
    """Return whether eight words, which may come from a file, can be an origin."""
    kind, _, *_, by_low, has_uint32, uinteger = words.tolist()
    if kind != GENERATOR:
        return bool(kind <= TOO_LONG)
    return bool(by_low % 2 == 1 and has_uint32 <= 1 and uinteger < 2**32)
