"""The command line: parse, build, run, exit code."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from dataclasses import field as field_of
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fastdqn import __version__
from fastdqn.cli.arguments import fields_in, parse, words_after
from fastdqn.cli.resuming import (
    AUTO,
    MISSING,
    Asked,
    ResumeArguments,
    ResumeHelp,
    TrainArguments,
    asked_by_auto,
    asked_by_flags,
)
from fastdqn.cli.soak import soak
from fastdqn.config import Config, refuse_epsilon, with_named
from fastdqn.errors import FastDQNError, UsageError
from fastdqn.execution.modes import may_be_native
from fastdqn.foundation.formatting import format_return
from fastdqn.foundation.streams import forgiving_streams
from fastdqn.presets import PRESETS, preset_config
from fastdqn.reporting.panel import cut_words, evaluating_line, mean_words
from fastdqn.toolchain.cc import MLP, begin_to_compile

__all__ = ["main"]

WRONG_ARGUMENTS, FAILED, INTERRUPTED = 2, 1, 130
PLAIN: dict[str, Any] = {"execution": "eager", "precision": "float32"}
SMALLEST: dict[str, Any] = {
    "buffer_size": 1,
    "batch_size": 1,
    "n_step": 1,
    "num_envs": 1,
    "env_groups": 1,
}
"""Settings of an agent that only acts."""


@dataclass(frozen=True)
class EvaluateArguments:
    """Play greedy episodes with a saved policy and print their returns."""

    path: Annotated[Path, tyro.conf.Positional]
    """Run directory, or a folder that `agent.save` wrote."""
    policy: Literal["last", "best"] = "last"
    """Which one of a run: the last one, or the best one, by full evaluations while it was
    trained."""
    episodes: int = 100
    """Fresh episodes."""
    seed: int = 0
    """Seed of the environments."""
    env_id: str = ""
    """Environment to play in, where the saved one cannot be built from the file."""
    env_kwargs: dict[str, Any] = field_of(default_factory=dict)
    """Its arguments, KEY=VALUE each, instead of the saved ones."""
    wrapper: tuple[str, ...] = ()
    """Wrappers around it, instead of the saved ones; see fastdqn train --help."""
    eval_max_steps: int | None = None
    """Env steps after which an episode is cut, and counted as it is; 0 is never, None is what the
    policy was trained with: as a rule 10,000, or the environment's own time limit if longer."""

    def __post_init__(self) -> None:
        for name, value, least in (("episodes", self.episodes, 1), ("seed", self.seed, 0)):
            if value < least:
                raise UsageError(f"--{name} {value}", f"it must be at least {least}", "Try 100.")
        if self.eval_max_steps is not None and self.eval_max_steps < 0:
            got = f"--eval-max-steps {self.eval_max_steps}"
            raise UsageError(got, "it must not be negative", "0 is no bound.")


@dataclass(frozen=True)
class PlotArguments:
    """Draw the plots of a run again."""

    path: Annotated[Path, tyro.conf.Positional]
    """Run directory."""


@dataclass(frozen=True)
class PresetsArguments:
    """List the presets."""


@dataclass(frozen=True)
class DoctorArguments:
    """Print what this machine has: versions, devices, cores, shared memory, limits."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0, 1, 2, 130 or 143."""
    started = time.perf_counter()
    argv = list(sys.argv[1:] if arguments is None else arguments)
    with forgiving_streams():
        return _run(argv, started)


def _run(argv: list[str], started: float) -> int:
    try:
        return _dispatch(argv, started)
    except UsageError as error:
        return _complain(error, WRONG_ARGUMENTS)
    except (FastDQNError, OSError) as error:
        return _complain(error, FAILED)
    except KeyboardInterrupt:
        return INTERRUPTED
    except SystemExit as stop:
        if stop.code in {0, None} and {"-h", "--help"} & set(argv):
            return 0  # tyro has printed the help
        return _complain(FastDQNError(f"the program was made to exit ({stop.code!r})"), FAILED)


def _dispatch(argv: list[str], started: float) -> int:
    if not argv or argv[0] in {"-h", "--help"}:
        return _help()
    name, rest = argv[0], argv[1:]
    if name == "--version":
        return _say(f"fastdqn {__version__}")
    if name in TRAINING:
        return TRAINING[name](rest, started)
    if name in COMMANDS:
        return COMMANDS[name](rest)
    raise UsageError(
        f"fastdqn {name}", "there is no such command", f"Choose {', '.join(_SUMMARIES)}."
    )


# The commands


def _train(argv: list[str], started: float) -> int:
    if words_after(argv, "--run-dir") == [""]:
        raise UsageError("--run-dir ''", "it is no path", "Name a folder, or leave it out.")
    preset, named = _preset_of(argv), fields_in(Config, argv)
    filled = parse(TrainArguments, "train", argv, default=TrainArguments(**vars(preset)))
    if filled.resume not in {None, AUTO}:
        return _resume_by(asked_by_flags(Path(filled.resume), filled, named), started)
    config = with_named(preset, {name: getattr(filled, name) for name in named})
    if config.noisy:
        refuse_epsilon(named, "add --no-noisy")
    _begin_to_compile(config)
    if filled.resume == AUTO:
        return _resume_by(asked_by_auto(config, named), started)
    from fastdqn.cli.train import train  # noqa: PLC0415 - PyTorch is loaded only where it is needed

    return train(config, started)


def _resume(argv: list[str], started: float) -> int:
    kind = ResumeHelp if {"-h", "--help"} & set(argv) else ResumeArguments
    filled, named = parse(kind, "resume", argv), fields_in(Config, argv)
    if filled.path == MISSING:
        raise UsageError("fastdqn resume", "PATH is missing", "Give a run directory, runs/...")
    asked = asked_by_flags(filled.path, filled, named, from_policy=filled.from_policy)
    return _resume_by(asked, started)


def _resume_by(asked: Asked, started: float) -> int:
    from fastdqn.cli.resume import resume  # noqa: PLC0415

    return resume(asked, started)


def _begin_to_compile(config: Config) -> None:
    if may_be_native(config.execution):
        begin_to_compile(MLP)  # while another core loads PyTorch


def _evaluate(argv: list[str]) -> int:
    asked = parse(EvaluateArguments, "evaluate", argv)
    if not asked.path.is_dir():
        raise UsageError(str(asked.path), "it is no folder", "Give a run directory, runs/...")
    from fastdqn.agent.dqn import DQN  # noqa: PLC0415
    from fastdqn.training.checkpoint import load_policy  # noqa: PLC0415

    saved = load_policy(asked.path, asked.policy)
    for reason in saved.skipped:
        Console(stderr=True).print(Text(f"skipped: {reason}", "yellow"), soft_wrap=True)
    named: dict[str, Any] = {"env_kwargs": asked.env_kwargs, "wrapper": asked.wrapper}
    named = {name: value for name, value in named.items() if value}
    agent = DQN.load(saved, asked.env_id or None, device="cpu", **PLAIN, **SMALLEST, **named)
    found = agent.evaluate(
        asked.episodes, seed=asked.seed, max_steps=asked.eval_max_steps, on_progress=_say_progress
    )
    mean, std = mean_words(found)
    lowest, highest = (format_return(x) for x in (found.returns.min(), found.returns.max()))
    return _say(
        f"{agent.description.env_id}: mean return {mean} +- {std} "
        f"over {found.episodes} fresh greedy episodes "
        f"(lowest {lowest}, highest {highest}, mean length {found.lengths.mean():,.0f})"
        f"{cut_words(found)}"
    )


def _say_progress(done: int, episodes: int, steps: int) -> None:
    _say(evaluating_line(done, episodes, steps))


def _plot(argv: list[str]) -> int:
    asked = parse(PlotArguments, "plot", argv)
    from fastdqn.reporting.plots import plot_run  # noqa: PLC0415

    return _say("\n".join(str(path) for path in plot_run(asked.path)))


def _presets(argv: list[str]) -> int:
    parse(PresetsArguments, "presets", argv)
    rows: list[tuple[str | Text, str]] = []
    for name, preset in PRESETS.items():
        rows += [(name, preset.summary), (Text("  expected", "not bold dim"), preset.expected)]
        rows += [(Text("  source", "not bold dim"), preset.source), ("", "")]
    _print_rows(rows[:-1], headers=("preset", "what it does"))
    return _say("\nfastdqn train --preset NAME; flags that follow change single settings.")


def _doctor(argv: list[str]) -> int:
    parse(DoctorArguments, "doctor", argv)
    from fastdqn.cli.doctor import diagnose  # noqa: PLC0415

    rows = diagnose()
    _print_rows([(what, Text(found, "" if fine else "yellow")) for what, found, fine in rows])
    return 0


TRAINING: dict[str, Callable[[list[str], float], int]] = {"train": _train, "resume": _resume}
COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "evaluate": _evaluate,
    "plot": _plot,
    "presets": _presets,
    "doctor": _doctor,
    "soak": soak,
}
_SUMMARIES = {
    "train": "Train an agent and leave a run directory.",
    "resume": "Go on with a run that was stopped, killed or has come to its end.",
    "evaluate": "Play greedy episodes with a saved policy.",
    "plot": "Draw the plots of a run again.",
    "presets": "List the named settings.",
    "doctor": "Print what this machine has.",
    "soak": "Train under injected faults, and say what was lost.",
}


def _help() -> int:
    Console().print(f"fastdqn {__version__}: fast, exact deep Q-learning.\n", highlight=False)
    _print_rows([(f"  fastdqn {name}", summary) for name, summary in _SUMMARIES.items()])
    return _say(
        "\nfastdqn COMMAND --help lists the flags. Start with: fastdqn train --preset cartpole"
    )


def _preset_of(argv: list[str]) -> Config:
    """Return the settings that later flags change: those of --preset, or the defaults."""
    named = words_after(argv, "--preset")
    return preset_config(named[0]) if named else Config()


# Output


def _print_rows(rows: Sequence[tuple[str | Text, str | Text]], headers: Sequence[str] = ()) -> None:
    """Print names and what is said of them as two columns."""
    name, said = headers or ("", "")
    table = Table(box=None, pad_edge=False, show_header=bool(headers))
    table.add_column(name, style="bold", no_wrap=True)
    table.add_column(said, overflow="fold")
    for row in rows:
        table.add_row(*row)
    Console().print(table)


def _say(text: str) -> int:
    Console().print(text, highlight=False, markup=False, soft_wrap=True)
    return 0


def _complain(error: Exception, code: int) -> int:
    console = Console(stderr=True)
    console.print(Text.assemble(("error: ", "bold red"), str(error)), soft_wrap=True)
    return code


if __name__ == "__main__":
    sys.exit(main())
