"""`python -m benchmarks.studies.tensor_cartpole`: env steps per second of tensor CartPole.

Each vector step is followed by an update, in the settings of PureJaxRL's DQN: 120-84 units, batch
128, plain DQN, 10 and 64 environments. There is a row for each number of environments: eager and
the fast mode, timed in turns in one process. With `--beside COMMAND` that program is timed in the
same turns: it reads a line with seconds, works for so long, and answers with its env steps per
second.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any

import torch
import tyro

from benchmarks.guards import faster
from benchmarks.measure import Effort, Timer, interleave, medians
from benchmarks.provenance import as_markdown, provenance, save_result
from benchmarks.tensor_rollout import build, rate
from fastdqn.device import resolve_device
from fastdqn.training.tensor.blocks import plan

WARM_UP_S = 0.5
BESIDE = "beside"


@dataclass(frozen=True)
class Arguments:
    """Time tensor CartPole with its updates, eager and fast in turns."""

    device: str = "auto"
    """cpu, cuda or auto."""
    execution: str = "auto"
    """The fast mode: native, compile, cudagraph, compile+cudagraph; auto is native."""
    envs: tuple[int, ...] = (10, 64)
    """Numbers of environments."""
    repeats: int = 16
    """Iterations of one call."""
    rounds: int = 5
    """Rounds in which everything is timed in turn, ten times."""
    seconds: float = 3.0
    """Seconds of each thing in a round."""
    beside: str = ""
    """A program to time in the same turns; {envs} in it is the number of environments."""
    save: Annotated[str, tyro.conf.arg(metavar="NAME")] = ""
    """Write benchmarks/results/NAME.md and NAME.json."""


def compare(num_envs: int, arguments: Arguments) -> dict[str, Any]:
    """Time eager, the fast mode and the program of `--beside`, in turns.

    Returns:
        `num_envs`, `execution`, `compile_s`, median `rates` by name, and `ratios` of the fast
        mode to the others, each the median over rounds.
    """
    device = resolve_device(arguments.device)
    fast = arguments.execution
    if fast == "auto":
        fast = "native"
    block = plan(1 / num_envs, num_envs, unrolled=arguments.repeats)
    rollouts = {execution: build(num_envs, execution, device) for execution in ("eager", fast)}
    timers: dict[str, Timer] = {
        name: partial(rate, rollout, block) for name, rollout in rollouts.items()
    }
    with beside(arguments.beside.format(envs=num_envs)) as others:
        timers |= others
        for timer in timers.values():
            timer(WARM_UP_S)
        effort = Effort(arguments.rounds, arguments.seconds).loops
        rounds = interleave(timers, effort, f"{num_envs} environments")
    ratios = [faster(f"{fast} / {name}", rounds, fast, name) for name in timers if name != fast]
    return {
        "num_envs": num_envs,
        "execution": fast,
        "compile_s": rollouts[fast].compile_s,
        "rates": medians(rounds),
        "ratios": {guard.name: guard.as_json() for guard in ratios},
        "spreads": {guard.name: guard.spread for guard in ratios},
    }


@contextmanager
def beside(command: str) -> Iterator[dict[str, Timer]]:
    """Start a program that times itself for as long as it is asked to; no command starts none."""
    if not command:
        yield {}
        return
    pipe = subprocess.PIPE
    with subprocess.Popen(shlex.split(command), stdin=pipe, stdout=pipe, text=True) as process:
        given, answers = process.stdin, process.stdout
        assert given is not None
        assert answers is not None

        def timer(seconds: float) -> float:
            given.write(f"{seconds}\n")
            given.flush()
            return float(answers.readline())

        try:
            yield {BESIDE: timer}
        finally:
            process.kill()


def table(measured: list[dict[str, Any]]) -> str:
    """Return a row for each number of environments."""
    names, ratios = (
        list(dict.fromkeys(name for entry in measured for name in entry[part]))
        for part in ("rates", "spreads")
    )
    head = ["envs", *(f"{name}, env steps/s" for name in names), "us per iteration", *ratios]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for entry in measured:
        each_s = entry["num_envs"] / entry["rates"][entry["execution"]]
        cells = [str(entry["num_envs"]), *(f"{entry['rates'][name]:,.0f}" for name in names)]
        cells += [f"{each_s * 1e6:.0f}", *(entry["spreads"][name] for name in ratios)]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Measure, print, save."""
    arguments = tyro.cli(Arguments, description=Arguments.__doc__)
    torch.set_num_threads(1)
    header = provenance("python -m benchmarks.studies.tensor_cartpole")
    measured = [compare(num_envs, arguments) for num_envs in arguments.envs]
    legend = "Medians over all turns; a ratio is the median of the rounds' (lowest to highest)."
    text = "\n\n".join([as_markdown(header), legend, table(measured)])
    sys.stdout.write(text + "\n")
    save_result(arguments.save, {"provenance": header, "settings": measured}, text)


if __name__ == "__main__":
    main()
