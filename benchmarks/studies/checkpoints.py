"""`python -m benchmarks.studies.checkpoints`: what checkpoints cost a training.

The pause of the loop per GB of ring and the memory beside the ring, with a ring that is written
row by row while it is saved, and then filled from the checkpoint; and env steps per second of a
training with checkpoints against one without, in turn.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro

from benchmarks.provenance import provenance
from fastdqn import DQN
from fastdqn.checkpoint.reader import newest_training
from fastdqn.checkpoint.writer import CheckpointWriter, Saved
from fastdqn.foundation.state import PartState
from fastdqn.replay import ReplayBuffer
from fastdqn.replay.chunks import RingChunks
from fastdqn.training.host.trainer import HostTrainer

GB = 10**9
PAGE_BYTES = 4096
SAMPLE_S = 0.002
POLICY: tuple[dict[str, torch.Tensor], dict[str, Any]] = {"weight": torch.zeros(1)}, {"config": {}}


@dataclass(frozen=True)
class Arguments:
    """Measure pauses, memory and throughput, and print them."""

    ring_gb: float = 2.0
    """Bytes of the ring, in GB."""
    num_envs: int = 16
    """Environments."""
    frame: int = 84
    """Height and width of an observation, uint8."""
    steps: int = 200_000
    """Env steps of each training."""
    every_s: float = 60.0
    """Seconds between two checkpoints of a training."""
    rounds: int = 3
    """Trainings of each kind."""
    folder: str = ""
    """Where checkpoints are written; a temporary folder by default."""


class Memory:
    """Samples the resident memory of this process (Linux), in a thread.

    Attributes:
        most_bytes: The largest sample.
    """

    def __init__(self) -> None:
        self.most_bytes, self._stop = resident_bytes(), threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> Memory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _sample(self) -> None:
        while not self._stop.wait(SAMPLE_S):
            self.most_bytes = max(self.most_bytes, resident_bytes())


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE_BYTES


def ring_of(arguments: Arguments) -> ReplayBuffer:
    """Allocate a ring of about so many bytes, and touch all of its memory."""
    shape = arguments.frame, arguments.frame
    transitions = int(arguments.ring_gb * GB / (arguments.frame**2 * 1.125 + 32))
    ring = ReplayBuffer(transitions, arguments.num_envs, shape, torch.uint8)
    for tensor in ring.ring.cells().values():
        if tensor is not ring.ring.next_index:
            tensor.fill_(1)
    return ring


def writes_into(ring: ReplayBuffer, arguments: Arguments) -> Callable[[], None]:
    """Return what appends a row."""
    count = arguments.num_envs
    zeros, flags = torch.zeros(count, dtype=torch.int64), torch.zeros(count, dtype=torch.bool)
    obs = torch.ones(count, arguments.frame, arguments.frame, dtype=torch.uint8)
    ring.begin(obs)
    return lambda: ring.write(zeros, zeros.float(), flags, flags, obs)


def saving(arguments: Arguments, folder: Path) -> dict[str, float]:
    """Save a full ring while rows are written, then fill it from the checkpoint."""
    ring = ring_of(arguments)
    write = writes_into(ring, arguments)
    for _ in range(ring.num_rows + 1):
        write()
    chunks, writer = RingChunks(ring), CheckpointWriter(folder / "checkpoints")
    before, steps, longest_s = resident_bytes(), 0, 0.0
    with Memory() as saved_in:
        writer.begin("step-000000000000", POLICY, PartState(), chunks)
        saved: list[Saved | OSError] = []
        while not saved:
            began = time.perf_counter()
            writer.advance()
            longest_s = max(longest_s, time.perf_counter() - began)
            write()
            steps += 1
            saved = writer.poll()
    done = saved[0]
    if isinstance(done, OSError):
        raise done
    writer.close()
    loaded_from = resident_bytes()
    with Memory() as loaded_in:
        newest_training(folder).fill(chunks)
    size = done.written_bytes
    return {
        "ring_gb": size / GB,
        "pause_s_per_gb": done.pause_s / size * GB,
        "longest_pause_ms": longest_s * 1000,
        "vector_steps_meanwhile": steps,
        "took_s": done.took_s,
        "memory_while_saving_of_ring": (saved_in.most_bytes - before) / size,
        "memory_while_loading_of_ring": (loaded_in.most_bytes - loaded_from) / size,
    }


@contextmanager
def checkpoints(every_s: float, folder: Path) -> Iterator[list[Saved | OSError]]:
    """Let every vector step of a training be followed by a checkpoint where one is due."""
    right, ended, known = HostTrainer.vector_step, list[Saved | OSError](), dict[str, Any]()

    def vector_step(self: HostTrainer) -> None:
        if not known:
            known["writer"] = CheckpointWriter(folder / "checkpoints")
            known["chunks"] = RingChunks(self.rollout.replay)
            known["last_s"] = time.perf_counter()
        writer: CheckpointWriter = known["writer"]
        if time.perf_counter() - known["last_s"] >= every_s:
            known["last_s"] = time.perf_counter()
            name = f"step-{self.rollout.env_steps:012d}"
            writer.begin(name, POLICY, PartState(), known["chunks"])
        writer.advance()
        ended.extend(writer.poll())
        right(self)

    setattr(HostTrainer, "vector_step", vector_step)  # noqa: B010 - for a measurement alone
    try:
        yield ended
    finally:
        setattr(HostTrainer, "vector_step", right)  # noqa: B010
        if known:
            known["writer"].close()


def steps_per_s(arguments: Arguments) -> float:
    """Train CartPole, and return its env steps per second."""
    agent = DQN("CartPole-v1", num_envs=arguments.num_envs, buffer_size=1_000_000)
    began = time.perf_counter()
    agent.learn(arguments.steps)
    return arguments.steps / (time.perf_counter() - began)


def throughput(arguments: Arguments, folder: Path) -> dict[str, float]:
    """Train with and without checkpoints in turn."""
    ratios, count = list[float](), 0
    for number in range(arguments.rounds):
        without = steps_per_s(arguments)
        with checkpoints(arguments.every_s, folder / str(number)) as ended:
            ratios.append(steps_per_s(arguments) / without)
        count += sum(isinstance(each, Saved) for each in ended)
    return {"sps_ratio": statistics.median(ratios), "checkpoints": count}


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print, one figure a line."""
    arguments = tyro.cli(Arguments, args=argv)
    with tempfile.TemporaryDirectory(dir=arguments.folder or None) as temporary:
        folder = Path(temporary)
        figures = saving(arguments, folder / "ring") | throughput(arguments, folder)
    for name, figure in figures.items():
        print(f"{name}: {figure:.4g}")
    print(provenance("python -m benchmarks.studies.checkpoints"))


if __name__ == "__main__":
    main(sys.argv[1:])
