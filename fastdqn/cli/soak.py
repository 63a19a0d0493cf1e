"""`fastdqn soak`: trains under injected faults, and says what was lost."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from fastdqn.cli.arguments import parse
from fastdqn.cli.soak_checks import (
    Growth,
    losses_of_result,
    losses_of_resume,
    losses_of_table,
    newest_step,
    return_of,
)
from fastdqn.cli.soak_faults import FAULTS, Fault, Victim, alive, descendants
from fastdqn.errors import UsageError
from fastdqn.foundation.policy_folders import CHECKPOINTS
from fastdqn.presets import preset_config
from fastdqn.training.signals import stop_on_signals

__all__ = ["Soak", "SoakArguments", "soak"]

FAILED = 1
BETWEEN_S = 1.0, 4.0
"""Seconds between two faults, drawn anew each time."""
START_S, END_S = 120.0, 60.0
"""Seconds that a training may take to its next checkpoint, and to end by a fault."""
ORPHAN_S = 10.0
LOOK_S = 0.25
SHARED = Path("/dev/shm")
ENDLESS = ("--total-timesteps", "1000000000", "--stop-at-return", "None", "--eval-interval", "0")
SETTINGS = ("--num-workers", "2", "--checkpoint-interval", "2000", "--log-interval", "2000")


@dataclass(frozen=True)
class SoakArguments:
    """Train under injected faults: killed workers, killed trainers, SIGTERM, a full disk.

    The exit code is 0 only if nothing was lost. Ctrl-C ends it early, with its report.
    """

    minutes: float = 10.0
    """Minutes of training; the last resume may take a little longer."""
    preset: str = "cartpole"
    """Preset of the training."""
    env_id: str = ""
    """Environment, where it is not that of the preset."""
    run_dir: Path | None = None
    """Folder of the run, new; None is a temporary one, which stays."""
    seed: int = 0
    """Seed of the training and of the faults."""

    def __post_init__(self) -> None:
        if not 0 < self.minutes <= 10_000:
            raise UsageError(f"--minutes {self.minutes:g}", "it must lie in (0, 10,000]", "Try 10.")
        if self.seed < 0:
            raise UsageError(f"--seed {self.seed}", "it must be at least 0", "Try 0.")
        path = self.run_dir
        if path is not None and path.exists() and not (path.is_dir() and not any(path.iterdir())):
            raise UsageError(f"--run-dir {path}", "it is no empty folder", "Name a new folder.")
        preset_config(self.preset)


def soak(argv: list[str]) -> int:
    """Run the command; return 0 only if faults were injected and nothing was lost."""
    asked = parse(SoakArguments, "soak", argv)
    run_dir = asked.run_dir or Path(tempfile.mkdtemp(prefix="fastdqn-soak-")) / "run"
    words = [*("--preset", asked.preset), *SETTINGS, *ENDLESS, "--seed", str(asked.seed)]
    words += ["--env-id", asked.env_id] if asked.env_id else []
    run = Soak(run_dir, words, random.Random(asked.seed))
    with stop_on_signals() as request, request.leads_to(run.stop):
        run.train_for(60 * asked.minutes)
    report = run.report()
    path = (run_dir if run_dir.is_dir() else run_dir.parent) / "soak.json"
    path.write_text(json.dumps(report, indent=2) + "\n")
    _print(report, path)
    if report["lost"] or not (any(report["injected"].values()) or request.received):
        return FAILED
    return request.exit_code


@dataclass
class Soak:
    """A training that is made to fail again and again.

    Attributes:
        run_dir: Its folder.
        words: Flags of its first command.
        draws: Chooses the faults and the seconds between them.
        faults: Those to choose from.
        command: The program.
        injected: Faults so far, by name.
        lost: What was lost, in words.
        growth: Memory and open files of the trainers.
        resumes: Commands that went on with the run.
    """

    run_dir: Path
    words: list[str]
    draws: random.Random
    faults: tuple[Fault, ...] = FAULTS
    command: tuple[str, ...] = (sys.executable, "-m", "fastdqn")
    clock: Callable[[], float] = time.monotonic
    injected: Counter[str] = field(default_factory=Counter)
    lost: list[str] = field(default_factory=list)
    growth: Growth = field(default_factory=Growth)
    resumes: int = 0

    def __post_init__(self) -> None:
        self._left: list[Fault] = []
        self._stopping = False
        self._shared = _names_in(SHARED)

    def stop(self) -> None:
        """Let `train_for` stop the training now."""
        self._stopping = True

    def train_for(self, seconds: float) -> None:
        """Start, disturb and resume the training until the time is over, then stop it.

        A loss that leaves nothing to go on from ends it early.
        """
        until = self.clock() + seconds
        ended = False
        while not ended and not self._stopping:
            victim = self._started()
            try:
                if not self._has_saved(victim):
                    return
                ended = self._disturb(victim, until)
            finally:  # a Ctrl-C here, or an error, leaves no training behind
                if victim.process.poll() is None:
                    self._end(victim, None)
        self.lost += losses_of_table(self.run_dir)
        self.lost += [f"left in {SHARED}: {name}" for name in _names_in(SHARED) - self._shared]

    def _started(self) -> Victim:
        begun = (self.run_dir / CHECKPOINTS).is_dir() and newest_step(self.run_dir) is not None
        words = ["resume", str(self.run_dir)] if begun else ["train", *self.words]
        words += [] if begun else ["--run-dir", str(self.run_dir)]
        self._before = newest_step(self.run_dir) if begun else None
        self.resumes += begun
        self.run_dir.parent.mkdir(parents=True, exist_ok=True)
        with (self.run_dir.parent / "soak-errors.txt").open("ab") as errors:
            self.growth.begin()
            process = subprocess.Popen(
                [*self.command, *words],
                stdout=subprocess.DEVNULL,
                stderr=errors,
                process_group=0,  # a Ctrl-C in the terminal reaches this process alone
            )
        return Victim(process, self.run_dir / CHECKPOINTS)

    def _has_saved(self, victim: Victim) -> bool:
        """Wait for the next checkpoint of a training; return whether there is one."""
        until = self.clock() + START_S
        while not self._over(until) and victim.process.poll() is None:
            newest = newest_step(self.run_dir)
            if newest is not None and (self._before is None or newest > self._before):
                if self._before is not None:
                    self.lost += losses_of_resume(self.run_dir, self.resumes, self._before)
                return True
            time.sleep(LOOK_S)
        code = victim.process.poll()
        if self._stopping and code is None:
            return False
        self.lost.append(
            f"no checkpoint after {'a resume' if self._before else 'the start'} ({code=})"
        )
        return False

    def _disturb(self, victim: Victim, until: float) -> bool:
        """Inject faults until the training ends by one; return whether the time is over."""
        while True:
            self._wait(victim, self.draws.uniform(*BETWEEN_S))
            over = self._over(until)
            fault = self.faults[-1] if over else self._next_fault()
            children = descendants(victim.pid)
            if victim.process.poll() is not None:
                self.lost.append(f"the training ended by itself ({victim.process.returncode})")
                return True
            if fault.inject(victim):
                self.injected[fault.name] += 1
                if fault.exit_code is not None:
                    self._end(victim, fault, children)
                    return over
            elif over:
                self._end(victim, None, children)
                return True

    def _next_fault(self) -> Fault:
        """Return a fault, each once before any comes again."""
        if not self._left:
            self._left = self.draws.sample(self.faults, len(self.faults))
        return self._left.pop()

    def _wait(self, victim: Victim, seconds: float) -> None:
        until = self.clock() + seconds
        while not self._over(until) and victim.process.poll() is None:
            self.growth.look(victim.pid, self.clock())
            time.sleep(LOOK_S)

    def _over(self, until: float) -> bool:
        return self._stopping or self.clock() >= until

    def _end(self, victim: Victim, fault: Fault | None, children: list[int] | None = None) -> None:
        """Wait for the end of a training and of all processes that it started."""
        if fault is None:
            victim.process.kill()
        try:
            code = victim.process.wait(END_S)
        except subprocess.TimeoutExpired:
            victim.process.kill()
            code = victim.process.wait()
            self.lost.append(f"it did not end within {END_S:.0f} s")
        until = self.clock() + ORPHAN_S
        while alive(children or []) and self.clock() < until:
            time.sleep(LOOK_S)
        if orphans := alive(children or []):
            self.lost.append(f"{len(orphans)} processes outlived the training")
        if fault is None:
            return
        if code != fault.exit_code:
            self.lost.append(f"{fault.name}: exit code {code} and not {fault.exit_code}")
        elif code > 0:  # it saved
            self.lost += losses_of_table(self.run_dir) + losses_of_result(self.run_dir)

    def report(self) -> dict[str, Any]:
        """Return what is written into soak.json."""
        return {
            "run_dir": str(self.run_dir),
            "injected": {fault.name: self.injected[fault.name] for fault in self.faults},
            "resumes": self.resumes,
            "lost": self.lost,
            "env_steps": newest_step(self.run_dir),
            "return_mean_100": return_of(self.run_dir),
            **self.growth.summary(),
        }


def _names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} if folder.is_dir() else set()


def _print(report: dict[str, Any], path: Path) -> None:
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, count in report["injected"].items():
        table.add_row(name, str(count))
    for name in ("resumes", "env_steps", "return_mean_100", *Growth().summary()):
        value = report[name]
        text = (
            "-" if value is None else f"{value:,.2f}" if isinstance(value, float) else f"{value:,}"
        )
        table.add_row(name.replace("_", " "), text)
    table.add_row("lost", "\n".join(report["lost"]) or "nothing")
    console = Console()
    console.print(table)
    console.print(f"Written to {path}", highlight=False, soft_wrap=True)
