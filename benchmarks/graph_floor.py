"""How near the CUDA graph of an update comes to the floor: a graph of as many empty nodes.

What the graph takes beyond that floor is arithmetic and memory; what sampling takes of it is
timed as a graph of its own. For CUDA only.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.guards import Guard, Measured, Selection, slower
from benchmarks.measure import Effort, interleave, medians, rate_of
from benchmarks.random_replay import random_replay
from benchmarks.update_modes import learner_of, possible_modes, updates_of
from fastdqn.device import resolve_device
from fastdqn.learner.learner import Learner
from fastdqn.native import CudaUpdate
from fastdqn.replay import Sampler, UniformSampler, gather

__all__ = ["GraphGroup", "count_nodes"]

UPDATES = 4
"""Updates of one call; modes with graphs make one graph of them."""
MAX_BITS = 2**62
RECORDED = ("cudagraph", "compile+cudagraph", "native")
"""Modes whose updates are CUDA graphs."""


@dataclass(frozen=True)
class GraphGroup:
    """The graphs of updates of one network and batch size.

    Attributes:
        hidden: Units of both hidden layers.
        batch_size: Transitions per update.
        device: A CUDA device.
    """

    hidden: int
    batch_size: int
    device: str = "auto"

    def ratios(self) -> list[str]:
        """Return the names of the ratios that it may measure here."""
        return [name for mode in self._modes() for name in self._names(mode)]

    def measure(self, effort: Effort, selection: Selection) -> Measured:
        """Time what the selected ratios need."""
        device, title = resolve_device(self.device), f"update graphs {self._sizes}"
        replay = random_replay(device)
        sampler = UniformSampler(replay, self.batch_size)
        guards: list[Guard] = []
        data: dict[str, Any] = {}
        for mode in self._modes():
            if not selection.any_of(self._names(mode)):
                continue
            learner = learner_of(mode, self.hidden, device)
            call = updates_of(learner, sampler, UPDATES)
            for _ in range(3):  # compiles, captures
                call()
            nodes = count_nodes(call)
            calls = {mode: call, "empty": empty_graph(nodes).replay}
            calls["sampling"] = sampling_graph(learner, sampler).replay
            timers = {name: rate_of(part, device) for name, part in calls.items()}
            rounds = interleave(timers, effort.small, f"{title} {mode}")
            floor, sampling = self._names(mode)
            found = [
                slower(floor, rounds, mode, "empty"),
                slower(sampling, rounds, "sampling", mode),
            ]
            guards += selection.among(found)
            data[mode] = {"nodes": nodes, "rates": medians(rounds)}
        return Measured(title, _text(title, data, guards), guards, data)

    @property
    def _sizes(self) -> str:
        return f"{self.hidden}-{self.hidden} b{self.batch_size} K{UPDATES}"

    def _modes(self) -> list[str]:
        possible, _ = possible_modes(resolve_device(self.device))
        return [mode for mode in possible if mode in RECORDED]

    def _names(self, mode: str) -> tuple[str, str]:
        return (
            f"graph {mode} / as many empty nodes, {self._sizes}",
            f"sampling alone / graph {mode}, {self._sizes}",
        )


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
        f"### {title[0].upper()}{title[1:]}",
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
