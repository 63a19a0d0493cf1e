"""`python -m benchmarks`: measure the guarded ratios; print, save, compare with saved ones."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any

import torch
import tyro

from benchmarks.compare import WORSE, compare, conclusion, differences, table
from benchmarks.end_to_end import CPU_RATIOS, CUDA_RATIOS, EndToEndGroup, Setting
from benchmarks.env_ratios import SteppingGroup, TensorEnvGroup
from benchmarks.guards import Group, Guard, Measured, Selection
from benchmarks.loop_parts import PartsGroup
from benchmarks.measure import Effort
from benchmarks.network_options import NetworkOptionsGroup
from benchmarks.provenance import provenance
from benchmarks.replay_options import ReplayOptionsGroup
from benchmarks.saved import guards_of, load_base, report, save
from benchmarks.update_modes import UpdateGroup
from fastdqn.device import resolve_device
from fastdqn.errors import UsageError

__all__ = ["main"]

END_TO_END = (("LunarLander-v3", 512, 4), ("LunarLander-v3", 16, 1), ("CartPole-v1", 64, 1))
"""Environments, how many, and in how many groups: several where steps take long, and resets longer.
Rounds of 128 landers bridge moments in which one core of a shared machine is the slower one."""
CUDA_END_TO_END = (("LunarLander-v3", 512, 2), ("CartPole-v1", 512, 2))
"""The same beside a card, where there are many cores, and each vector step is a few launches."""
QUICK_RATIOS = ("lander@*", "update * 64-64 b64 K4")
QUICK_EFFORT = Effort(5, 1.5)
CPU_UPDATES = ((64, 64), (64, 128), (128, 64), (128, 128))
CUDA_UPDATES = (*CPU_UPDATES, (256, 256), (256, 512))
"""Units of both hidden layers, and batch sizes."""


@dataclass(frozen=True)
class Arguments:
    """Time fastdqn in turns with what it is compared with, and print the guarded ratios."""

    rounds: int = 5
    """Rounds in which everything is timed in turn; twice as many for what is short."""
    seconds: float = 3.0
    """Seconds of each thing in a round end to end; what is short takes a twentieth of it."""
    quick: bool = False
    """Take three minutes at most: LunarLander-v3 and one update, 5 rounds of 1.5 s."""
    only: tuple[str, ...] = ()
    """Patterns of ratios to measure, e.g. 'update *'; a word stands anywhere in the name."""
    skip: tuple[str, ...] = ()
    """Patterns of ratios to leave out."""
    device: str = "auto"
    """Where fastdqn learns: auto, cpu, cuda, cuda:N or mps."""
    execution: str = "auto"
    """How the updates of end-to-end runs are executed."""
    save: Annotated[str, tyro.conf.arg(metavar="NAME")] = ""
    """Write benchmarks/results/NAME.json and NAME.md; or a path that ends in .json."""
    compare: bool = False
    """Compare with saved ratios; exit status 1 if one is more than 10 % worse."""
    base: Annotated[str, tyro.conf.arg(metavar="NAME")] = ""
    """What to compare with; the default is named in benchmarks/results/baseline, or the newest."""
    list: bool = False
    """Print the names of the ratios and measure nothing."""

    @property
    def effort(self) -> Effort:
        """How long the measurement takes."""
        return QUICK_EFFORT if self.quick else Effort(self.rounds, self.seconds)

    @property
    def selection(self) -> Selection:
        """Which ratios are asked for."""
        quick = QUICK_RATIOS if self.quick and not self.only else ()
        return Selection(quick + self.only, self.skip)


def groups_for(arguments: Arguments) -> list[Group]:
    """Return everything that can be measured on the device."""
    device, execution = arguments.device, arguments.execution
    on_cuda = resolve_device(device).type == "cuda"
    ratios = CUDA_RATIOS if on_cuda else CPU_RATIOS
    sizes = CUDA_UPDATES if on_cuda else CPU_UPDATES
    settings = [
        Setting(env_id, 64, 64, num_envs, ratios, device, execution, env_groups)
        for env_id, num_envs, env_groups in (CUDA_END_TO_END if on_cuda else END_TO_END)
    ]
    groups: list[Group] = [EndToEndGroup(setting) for setting in settings]
    groups += [UpdateGroup(hidden, batch, device) for hidden, batch in sizes]
    groups += [PartsGroup(device), TensorEnvGroup(device)]
    groups += [] if on_cuda else [ReplayOptionsGroup(), NetworkOptionsGroup()]
    groups += [SteppingGroup(env_id, 64) for env_id in ("LunarLander-v3", "CartPole-v1")]
    return groups


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, save, compare; return the exit status: 0, 1 worse, 2 wrong arguments."""
    arguments = tyro.cli(Arguments, description=Arguments.__doc__, args=argv)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _run(arguments)
    except UsageError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    finally:
        torch.set_num_threads(threads)


def _run(arguments: Arguments) -> int:
    kind, selection = resolve_device(arguments.device).type, arguments.selection
    comparing = arguments.compare or bool(arguments.base)
    name, base = load_base(arguments.base, kind) if comparing else ("", {})
    groups = [group for group in groups_for(arguments) if selection.any_of(group.ratios())]
    if arguments.list:
        names = [ratio for group in groups for ratio in group.ratios() if selection.takes(ratio)]
        return _say("\n".join(names))
    if not groups:
        raise UsageError("--only and --skip", "no ratio is left", "See them all with --list.")
    measured = [group.measure(arguments.effort, selection) for group in groups]
    header = provenance("python -m benchmarks")
    _say(report(header, measured))
    code = 0
    if comparing:
        saved = selection.among(guards_of(base))
        measured = remeasured(groups, measured, saved, arguments.effort)
        code = _conclude(f"### Against {name}", base["provenance"], header, saved, measured)
    if arguments.save:
        paths = save(arguments.save, kind, header, measured)
        sys.stderr.write(f"Saved {' and '.join(map(str, paths))}\n")
    return code


def remeasured(
    groups: Sequence[Group], measured: Sequence[Measured], saved: Sequence[Guard], effort: Effort
) -> list[Measured]:
    """Measure what seems worse a second time, with twice the rounds: that counts, not the first.

    Args:
        groups: What was measured, in order.
        measured: What each group came to.
        saved: Ratios to compare with.
        effort: Of the first measurement.
    """
    result = []
    for group, found in zip(groups, measured, strict=True):
        verdicts = compare(saved, found.guards)
        suspects = frozenset(verdict.name for verdict in verdicts if verdict.word == WORSE)
        if suspects:
            sys.stderr.write(f"Measured again: {', '.join(sorted(suspects))}\n")
            second = group.measure(effort.doubled, Selection(names=suspects))
            again = {guard.name: guard.measured_again() for guard in second.guards}
            guards = [again.get(guard.name, guard) for guard in found.guards]
            result.append(replace(found, guards=guards))
        else:
            result.append(found)
    return result


def _conclude(
    title: str,
    base: dict[str, Any],
    header: dict[str, Any],
    saved: Sequence[Guard],
    measured: Sequence[Measured],
) -> int:
    """Print the comparison and return the exit status."""
    not_run = {what: why for found in measured for what, why in found.not_run.items()}
    verdicts = compare(saved, [guard for found in measured for guard in found.guards], not_run)
    message = differences(base, header)
    _say("\n".join(["", title, "", *message, *([""] if message else []), table(verdicts), ""]))
    _say(conclusion(verdicts))
    return int(any(verdict.fails for verdict in verdicts))


def _say(text: str) -> int:
    sys.stdout.write(text + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
