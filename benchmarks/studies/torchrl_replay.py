"""`python -m benchmarks.studies.torchrl_replay`: sampling, in turns with TorchRL's replay buffer.

TorchRL's buffer is the nearest relative of fastdqn's. It is no dependency of the project: install
it in an environment of its own, and run this there with this checkout on PYTHONPATH.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

import torch
import tyro
from tensordict import TensorDict

from benchmarks.guards import Measured, slower, summed_up
from benchmarks.measure import Effort, interleave, medians, rate_of
from benchmarks.random_replay import CAPACITY, NUM_ACTIONS, OBS_SIZE, random_replay
from benchmarks.saved import shown
from fastdqn.device import resolve_device
from fastdqn.replay import gather

__all__ = ["compare", "has_torchrl", "torchrl_sample"]

BATCH = 256
ONE_THIRD = 1 / 3
"""A batch should take at most this fraction of TorchRL's time."""


@dataclass(frozen=True)
class Arguments:
    """Time the drawing of batches in turns with TorchRL's replay buffer."""

    device: str = "auto"
    """Where both buffers live: auto, cpu, cuda, cuda:N or mps."""
    rounds: int = 5
    """Rounds in which everything is timed in turn."""
    seconds: float = 3.0
    """Seconds of a round."""
    save: Annotated[str, tyro.conf.arg(metavar="NAME")] = ""
    """Write benchmarks/results/NAME.md and NAME.json."""


def compare(device: torch.device, effort: Effort) -> Measured:
    """Time `sample` and `gather` of a full ring in turns with the `sample` of TorchRL's buffer."""
    replay = random_replay(device)
    calls: dict[str, Callable[[], object]] = {
        "sample": lambda: replay.sample(BATCH),
        "gather": lambda: gather(replay.ring, replay.draw(1, BATCH)[0]),
        "torchrl": torchrl_sample(BATCH, device),
    }
    for call in calls.values():
        for _ in range(3):
            call()
    timers = {name: rate_of(call, device) for name, call in calls.items()}
    rounds = interleave(timers, effort.small, "replay beside TorchRL")
    guards = [
        slower(f"{part}({BATCH}) / torchrl", rounds, part, "torchrl", ONE_THIRD)
        for part in ("sample", "gather")
    ]
    rates = medians(rounds)
    rows = [f"| {name} | {1e6 / rate:,.1f} |" for name, rate in rates.items()]
    table = "\n".join(["| part | us |", "|---|---|", *rows])
    text = f"### Drawing {BATCH} transitions, {device}\n\n{table}\n\n{summed_up(guards)}"
    return Measured("replay beside TorchRL", text, guards, {"rates": rates})


def has_torchrl() -> bool:
    """Return whether TorchRL is installed."""
    return importlib.util.find_spec("torchrl") is not None


def torchrl_sample(batch_size: int, device: torch.device) -> Callable[[], Any]:
    """Return the `sample` of a full TorchRL buffer that holds the same fields as fastdqn's."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about features that are not used here
        data: Any = importlib.import_module("torchrl.data")
    storage = data.LazyTensorStorage(CAPACITY, device=device)
    buffer = data.TensorDictReplayBuffer(storage=storage, batch_size=batch_size)
    buffer.extend(_transitions(CAPACITY).to(device))
    sample: Callable[[], Any] = buffer.sample
    return sample


def _transitions(count: int) -> TensorDict:
    flags = torch.zeros(2, count, dtype=torch.bool)
    fields = {
        "obs": torch.randn(count, OBS_SIZE),
        "action": torch.randint(NUM_ACTIONS, (count,)),
        "reward": torch.randn(count),
        "next_obs": torch.randn(count, OBS_SIZE),
        "terminated": flags[0],
        "truncated": flags[1],
    }
    return TensorDict(fields, batch_size=[count])


def main() -> int:
    """Measure, print, save; return the exit status: 0, or 2 where TorchRL is not installed."""
    arguments = tyro.cli(Arguments, description=Arguments.__doc__)
    if not has_torchrl():
        sys.stderr.write("TorchRL is not installed here: pip install torchrl\n")
        return 2
    torch.set_num_threads(1)
    effort = Effort(arguments.rounds, arguments.seconds)
    measured = compare(resolve_device(arguments.device), effort)
    return shown("python -m benchmarks.studies.torchrl_replay", measured, arguments.save)


if __name__ == "__main__":
    sys.exit(main())
