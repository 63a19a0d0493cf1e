"""Seeds that no two environments share, not even over neighbouring run seeds."""

from __future__ import annotations

from enum import IntEnum

import numpy as np

__all__ = ["Stream", "seeds_of"]


class Stream(IntEnum):
    """What a run draws seeds for; each has its own branch of the SeedSequence."""

    TRAINING_ENVS = 0
    EVALUATION_ENVS = 1
    NETWORK = 2
    EXPLORATION = 3
    REPLAY = 4
    BEST_POLICY_ENVS = 5
    LAST_POLICY_ENVS = 6


def seeds_of(
    run_seed: int, stream: Stream, count: int, round_: int = 0, call: int = 0
) -> list[int]:
    """Return `count` seeds below 2^31 for one stream of a run.

    Args:
        run_seed: The run's seed, >= 0.
        stream: Their use.
        count: How many.
        round_: Serial number of the draw, e.g. of the evaluation; each gives other seeds.
        call: Serial number of the call of `learn` that counts the rounds from 1; likewise.
    """
    place = (stream, round_, call) if call else (stream, round_)
    sequence = np.random.SeedSequence(run_seed, spawn_key=place)
    return [int(seed) for seed in sequence.generate_state(count, np.uint32) >> np.uint32(1)]
