"""`python -m benchmarks.studies.priorities`: draws by priorities, in turns with other libraries.

Each draws 256 rows of a full buffer and writes as many new priorities back, without copying any
transition. TorchRL and Tianshou are no dependencies of the project: install one or both in an
environment of their own, and run this there with this checkout on PYTHONPATH.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import torch
import tyro

from benchmarks.guards import Measured, slower, summed_up
from benchmarks.measure import Effort, interleave, medians, rate_of
from benchmarks.random_replay import OBS_SIZE, random_replay
from benchmarks.saved import shown
from fastdqn.replay import PrioritizedSampler

__all__ = ["PEERS", "compare"]

BATCH = 256
ALPHA, BETA = 0.6, 0.4
ONE_THIRD = 1 / 3
"""A draw with its write-back should take at most this fraction of another library's time."""

Call = Callable[[], object]


@dataclass(frozen=True)
class Arguments:
    """Time draws by priorities and their write-back in turns with other libraries."""

    capacity: int = 100_000
    """Transitions of each buffer."""
    rounds: int = 5
    """Rounds in which everything is timed in turn."""
    seconds: float = 3.0
    """Seconds of a round."""
    save: Annotated[str, tyro.conf.arg(metavar="NAME")] = ""
    """Write benchmarks/results/NAME.md and NAME.json."""


def fastdqn_call(capacity: int) -> Call:
    """Return a draw and its write-back by the tree in C, as the native update makes them."""
    sampler = PrioritizedSampler(random_replay(capacity=capacity), BATCH, alpha=ALPHA)
    tree = sampler.in_c
    assert tree is not None

    def call() -> None:
        rows, _ = tree.draw(sampler.fill(1))
        tree.feed(rows, torch.rand(BATCH))

    return call


def fastdqn_part(capacity: int) -> Call:
    """Return `sample` and `update_priorities`: the transitions are gathered, and rows checked."""
    sampler = PrioritizedSampler(random_replay(capacity=capacity), BATCH, alpha=ALPHA)

    def call() -> None:
        _, index = sampler.sample()
        sampler.update_priorities(index, torch.rand(BATCH))

    return call


def torchrl_call(capacity: int) -> Call:
    """Return the same of TorchRL's sampler, whose trees are in C++."""
    data: Any = importlib.import_module("torchrl.data")
    storage = data.LazyTensorStorage(capacity)
    storage.set(torch.arange(capacity), torch.zeros(capacity, OBS_SIZE))
    sampler = data.PrioritizedSampler(capacity, ALPHA, BETA)
    sampler.extend(torch.arange(capacity))
    sampler.update_priority(torch.arange(capacity), torch.rand(capacity))

    def call() -> None:
        index, _ = sampler.sample(storage, BATCH)
        sampler.update_priority(index, torch.rand(BATCH))

    return call


def tianshou_call(capacity: int) -> Call:
    """Return the same of Tianshou's buffer, whose tree is compiled by Numba."""
    data: Any = importlib.import_module("tianshou.data")
    buffer = data.PrioritizedReplayBuffer(capacity, alpha=ALPHA, beta=BETA)
    step = data.Batch(
        obs=np.zeros(OBS_SIZE, np.float32),
        act=0,
        rew=0.0,
        terminated=False,
        truncated=False,
        obs_next=np.zeros(OBS_SIZE, np.float32),
    )
    for _ in range(capacity):
        buffer.add(step)
    generator = np.random.default_rng(0)

    def call() -> None:
        index = buffer.sample_indices(BATCH)
        buffer.get_weight(index)
        buffer.update_weight(index, generator.random(BATCH))

    return call


PEERS: dict[str, Callable[[int], Call]] = {"torchrl": torchrl_call, "tianshou": tianshou_call}


def compare(capacity: int, effort: Effort) -> Measured:
    """Time draws and write-backs in turns with those of the peers that are installed."""
    peers = [name for name in PEERS if importlib.util.find_spec(name) is not None]
    calls = {"in C": fastdqn_call(capacity), "as a part": fastdqn_part(capacity)}
    calls |= {name: PEERS[name](capacity) for name in peers}
    for call in calls.values():
        for _ in range(3):
            call()
    timers = {name: rate_of(call, torch.device("cpu")) for name, call in calls.items()}
    rounds = interleave(timers, effort.small, "priorities beside other libraries")
    guards = [
        slower(f"draw and write back {BATCH}, {kind} / {peer}", rounds, kind, peer, goal)
        for peer in peers
        for kind, goal in (("in C", ONE_THIRD), ("as a part", None))
    ]
    rates = medians(rounds)
    rows = [f"| {name} | {1e6 / rate:,.1f} |" for name, rate in rates.items()]
    table = "\n".join(["| draw and write back | us |", "|---|---|", *rows])
    title = f"### {BATCH} rows of {capacity:,} transitions"
    text = f"{title}\n\n{table}\n\n{summed_up(guards)}"
    return Measured("priorities beside other libraries", text, guards, {"rates": rates})


def main() -> int:
    """Measure, print, save; return the exit status: 0, or 2 where no other library is installed."""
    arguments = tyro.cli(Arguments, description=Arguments.__doc__)
    if not any(map(importlib.util.find_spec, PEERS)):
        sys.stderr.write("Neither is installed here: pip install torchrl tianshou\n")
        return 2
    torch.set_num_threads(1)
    measured = compare(arguments.capacity, Effort(arguments.rounds, arguments.seconds))
    return shown("python -m benchmarks.studies.priorities", measured, arguments.save)


if __name__ == "__main__":
    sys.exit(main())
