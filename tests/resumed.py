"""Runs that are killed and go on, and what must be as if they had never been stopped."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from fastdqn.cli.commands import main
from fastdqn.foundation.trial_env import generators_restored
from fastdqn.reporting.run_recorder import RunRecorder
from fastdqn.training.events import Report

__all__ = ["Killed", "assert_same_run", "killed_at", "metrics_of", "newest", "run", "state_of"]

WALL = {"sps", "wall_s", "time_left_s", "time_share"}
"""Figures of a report that depend on the machine."""


class Killed(BaseException):
    """Ends a run as a kill does: nothing is saved any more."""


def run(*words: str, generators: int = 0) -> int:
    """Run a command in this process.

    Args:
        words: Each text holds one or several of them.
        generators: Seed of the global generators, which begin in every process as they please.
            Afterwards they are as they were.
    """
    with generators_restored():
        random.seed(generators)
        np.random.seed(generators)
        torch.manual_seed(generators)
        return main([word for text in words for word in text.split()])


@contextmanager
def killed_at(env_steps: int) -> Iterator[None]:
    """Kill a run at its first report from so many env steps on."""
    right = RunRecorder.on_report

    def on_report(self: RunRecorder, report: Report) -> None:
        right(self, report)
        if report.env_steps >= env_steps:
            self.checkpoints._writer.finish()  # so that its thread is not what is tested
            raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunRecorder, "on_report", on_report)
        with pytest.raises(Killed):
            yield


def newest(run_dir: Path) -> Path:
    return max((run_dir / "checkpoints").glob("step-*"))


def state_of(run_dir: Path) -> dict[str, Tensor]:
    """Return all tensors of the newest checkpoint, by file and name."""
    folder = newest(run_dir)
    return {
        f"{path.relative_to(folder)} {name}": tensor
        for path in sorted(folder.rglob("*.safetensors"))
        for name, tensor in load_file(path).items()
    }


def metrics_of(run_dir: Path) -> list[dict[str, Any]]:
    """Return the reports of a run without what depends on the machine."""
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    reports: Sequence[dict[str, Any]] = list(map(json.loads, lines))
    return [{name: each[name] for name in each.keys() - WALL} for each in reports]


def assert_same_run(one: Path, other: Path) -> None:
    """Compare episodes, reports and all tensors of two runs, bit for bit."""
    assert (one / "episodes.csv").read_bytes() == (other / "episodes.csv").read_bytes()
    assert metrics_of(one) == metrics_of(other)
    assert newest(one).name == newest(other).name
    here, there = state_of(one), state_of(other)
    assert here.keys() == there.keys()
    assert [name for name in here if not here[name].equal(there[name])] == []
