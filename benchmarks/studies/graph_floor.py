"""`python -m benchmarks.studies.graph_floor`: how near the CUDA graph of an update is to its floor.

The floor is a graph of as many empty nodes. What the graph takes beyond it is arithmetic and
memory; what sampling takes of it is timed as a graph of its own. For CUDA only.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

import torch
import tyro

from benchmarks.guards import Guard, Measured, slower
from benchmarks.measure import Effort, interleave, medians, rate_of
from benchmarks.provenance import as_markdown, provenance, save_result
from benchmarks.random_replay import random_replay
from benchmarks.update_modes import learner_of, possible_modes, updates_of
from fastdqn.device import resolve_device
from fastdqn.errors import UsageError
from fastdqn.learner.learner import Learner
from fastdqn.native import CudaUpdate
from fastdqn.replay import Sampler, UniformSampler, gather

__all__ = ["count_nodes", "measure"]

UPDATES = 4
"""Updates of one call; modes with graphs make one graph of them."""
MAX_BITS = 2**62
RECORDED = ("cudagraph", "compile+cudagraph", "native")
"""Modes whose updates are CUDA graphs."""
SIZES = ((64, 64), (256, 256))
"""Units of both hidden layers, and batch sizes."""


@dataclass(frozen=True)
class Arguments:
    """Time the graphs of updates in turns with graphs of as many empty nodes."""

    device: str = "cuda"
    """A CUDA device."""
    rounds: int = 5
    """Rounds in which everything is timed in turn."""
    seconds: float = 3.0
    """Seconds of a round."""
    save: Annotated[str, tyro.conf.arg(metavar="NAME")] = ""
    """Write benchmarks/results/NAME.md and NAME.json."""


def measure(hidden: int, batch_size: int, device: torch.device, effort: Effort) -> Measured:
    """Time the graph of every mode that records one, beside its floor and its sampling.

    Args:
        hidden: Units of both hidden layers.
        batch_size: Transitions per update.
        device: A CUDA device.
        effort: Rounds and seconds.
    """
    sizes = f"{hidden}-{hidden} b{batch_size} K{UPDATES}"
    sampler = UniformSampler(random_replay(device), batch_size)
    possible, refused = possible_modes(device)
    guards: list[Guard] = []
    data: dict[str, Any] = {}
    for mode in (mode for mode in possible if mode in RECORDED):
        learner = learner_of(mode, hidden, device)
        call = updates_of(learner, sampler, UPDATES)
        for _ in range(3):  # compiles, captures
            call()
        nodes = count_nodes(call)
        calls = {mode: call, "empty": empty_graph(nodes).replay}
        calls["sampling"] = sampling_graph(learner, sampler).replay
        timers = {name: rate_of(part, device) for name, part in calls.items()}
        rounds = interleave(timers, effort.small, f"update graphs {sizes} {mode}")
        floor, sampling = f"graph {mode} / as many empty nodes", f"sampling alone / graph {mode}"
        guards.append(slower(f"{floor}, {sizes}", rounds, mode, "empty"))
        guards.append(slower(f"{sampling}, {sizes}", rounds, "sampling", mode))
        data[mode] = {"nodes": nodes, "rates": medians(rounds)}
    text = _text(f"Update graphs {sizes}", data, guards)
    return Measured(f"update graphs {sizes}", text, guards, data, refused)


def count_nodes(call: Callable[[], object]) -> int:
    """Return how many kernels and copies the device runs in one call."""
    activities = [torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities, acc_events=True) as profile:
        call()
        torch.cuda.synchronize()
    events: Any = profile.events()
    return sum(event.device_type.name == "CUDA" for event in events)


def empty_graph(nodes: int) -> torch.cuda.CUDAGraph:
    """Record a graph of so many kernels that do nothing, one after the other."""
    cuda: Any = torch.cuda
    return _recorded(lambda: [cuda._sleep(0) for _ in range(nodes)])


def sampling_graph(learner: Learner, sampler: Sampler) -> torch.cuda.CUDAGraph:
    """Record a graph that draws and gathers what UPDATES updates learn from, as a mode does."""
    replay, batch_size = sampler.buffer, sampler.batch_size
    if learner.execution == "native":
        native, random_bits = learner.natively(learner.state), sampler.fill(UPDATES)
        assert isinstance(native, CudaUpdate)
        return _recorded(lambda: native.gather(sampler, random_bits))

    def sample() -> None:
        random_bits = torch.randint(MAX_BITS, (UPDATES, batch_size), device=replay.device)
        for index in random_bits.remainder_(len(replay)).unbind(0):
            gather(replay.ring, index)

    return _recorded(sample)


def _recorded(step: Callable[[], object]) -> torch.cuda.CUDAGraph:
    """Run a step aside, then record it."""
    cuda: Any = torch.cuda
    stream = cuda.Stream()
    stream.wait_stream(cuda.current_stream())
    with cuda.stream(stream):
        step()
    cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph


def _text(title: str, data: dict[str, Any], guards: list[Guard]) -> str:
    lines = [
        f"### {title}",
        "",
        "| graph | nodes | us | |",
        "|---|---|---|---|",
    ]
    for mode, found in data.items():
        for name, rate in found["rates"].items():
            nodes = "" if name == "sampling" else found["nodes"]
            lines.append(f"| {name}, beside {mode} | {nodes} | {1e6 / rate:,.1f} | |")
    lines += [f"| {guard.name} | | | {guard.spread} |" for guard in guards]
    return "\n".join(lines)


def main() -> int:
    """Measure, print, save; return the exit status: 0, or 2 without a CUDA device."""
    arguments = tyro.cli(Arguments, description=Arguments.__doc__)
    effort = Effort(arguments.rounds, arguments.seconds)
    try:
        device = resolve_device(arguments.device)
        if device.type != "cuda":
            reason = "updates are recorded as graphs on CUDA only"
            raise UsageError(f"--device {device}", reason, "Choose a CUDA device.")
    except UsageError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    measured = [measure(hidden, batch, device, effort) for hidden, batch in SIZES]
    header = provenance("python -m benchmarks.studies.graph_floor")
    text = "\n\n".join([as_markdown(header), *(found.text for found in measured)])
    sys.stdout.write(text + "\n")
    sizes = [{"title": found.title, **found.data} for found in measured]
    save_result(arguments.save, {"provenance": header, "sizes": sizes}, text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
