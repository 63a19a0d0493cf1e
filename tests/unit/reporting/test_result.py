"""result.json: the exact schema, whole files, and what a full disk costs a run."""

from __future__ import annotations

import csv
import errno
import json
import math
import os
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from fastdqn.agent.dqn import DQN
from fastdqn.agent.resumed_run import lent_by
from fastdqn.config import Config
from fastdqn.foundation.saved_files import write_json_whole
from fastdqn.reporting.console import Console
from fastdqn.reporting.run_directory import result_of
from fastdqn.reporting.run_recorder import RunRecorder
from fastdqn.training.evaluation import Evaluation
from fastdqn.training.events import BestPolicy
from fastdqn.training.host.trainer import HostTrainer
from fastdqn.training.nonfinite import NonFiniteReports
from fastdqn.training.schedules import ReplayRatio
from fastdqn.training.stopwatch import Stopwatch

pytestmark = pytest.mark.usefixtures("no_plots")


def a_trainer(**changes: Any) -> HostTrainer:
    """Return a finished loop as far as result_of looks at it."""
    ratio = ReplayRatio(0.5, start=100)
    ratio.pay(449)
    watch = Stopwatch()
    watch.seconds = {
        "act": 1.0,
        "env_wait": 2.0,
        "write": 0.5,
        "learn": 4.0,
        "other": 0.5,
        "compile": 3.0,
        "evaluate": 7.0,
    }
    not_finite = NonFiniteReports("skip")
    not_finite.transitions, not_finite.updates = 4, 2
    parts = {
        "rollout": SimpleNamespace(env_steps=1000, episodes=33, num_envs=8, num_workers=2),
        "learner": SimpleNamespace(device="cpu", execution="eager", precision="bf16"),
        "watch": watch,
        "ratio": ratio,
        "started": time.perf_counter() - 60.0,
        "startup_s": 2.5,
        "train_sps": 125.0,
        "peak_sps": 150.0,
        "worker_restarts": 3,
        "nonfinite": not_finite,
        "returns": deque([1.0, 2.0]),
        "return_mean_100": 1.5,
        "evaluation": Evaluation(np.array([10.0, 20.0]), np.array([3, 4])),
        "best_policy": BestPolicy(700, 17.0, 2.0, 2),
        "solved_train_s": 6.0,
        "solved_total_s": 9.0,
    }
    return cast("HostTrainer", SimpleNamespace(**{**parts, **changes}))


def test_a_solved_run_is_reported_in_full() -> None:
    result = result_of(a_trainer(), Config(seed=7, preset="cartpole"), "CartPole-v1", "solved")
    total = result["wall_s"].pop("total")
    assert 60.0 <= total < 70.0
    assert result == {
        "schema": 1,
        "env_id": "CartPole-v1",
        "seed": 7,
        "preset": "cartpole",
        "device": "cpu",
        "execution": "eager",
        "precision": "bf16",
        "num_envs": 8,
        "num_workers": 2,
        "env_steps": 1000,
        "updates": 449,
        "replay_ratio_measured": 449 / 900,
        "episodes": 33,
        "wall_s": {"startup": 2.5, "compile": 3.0, "train": 8.0},
        "sps": {"train": 125.0, "peak": 150.0},
        "time_share": {
            "act": 0.125,
            "env_wait": 0.25,
            "write": 0.0625,
            "learn": 0.5,
            "other": 0.0625,
        },
        "return": {
            "train_mean_100": 1.5,
            "eval_mean": 15.0,
            "eval_std": 5.0,
            "eval_episodes": 2,
            "best_mean": 17.0,
            "best_env_step": 700,
        },
        "time_to_target_s": {"train_wall": 6.0, "total_wall": 9.0},
        "worker_restarts": 3,
        "nonfinite": {"transitions": 4, "updates": 2},
        "status": "solved",
        "world_size": 1,
    }


def test_what_does_not_exist_yet_is_null() -> None:
    young = a_trainer(
        ratio=ReplayRatio(0.5, start=100),
        watch=Stopwatch(),
        train_sps=math.nan,
        peak_sps=0.0,
        return_mean_100=math.nan,
        evaluation=None,
        best_policy=None,
        solved_train_s=None,
        solved_total_s=None,
    )
    result = result_of(young, Config(), "CartPole-v1", "stopped")
    assert result["preset"] is None
    assert result["updates"] == 0
    assert result["replay_ratio_measured"] == 0.0
    assert result["sps"] == {"train": None, "peak": 0.0}
    assert result["return"] == {
        "train_mean_100": None,
        "eval_mean": None,
        "eval_std": None,
        "eval_episodes": None,
        "best_mean": None,
        "best_env_step": None,
    }
    assert result["time_to_target_s"] == {"train_wall": None, "total_wall": None}
    assert set(result["time_share"].values()) == {0.0}


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_numbers_that_json_lacks_become_null(value: float) -> None:
    trainer = a_trainer(
        train_sps=value,
        peak_sps=value,
        return_mean_100=value,
        evaluation=Evaluation(np.array([value]), np.array([1])),
        solved_train_s=value,
    )
    with np.errstate(invalid="ignore"):
        result = result_of(trainer, Config(), "CartPole-v1", "failed")
    text = json.dumps(result, allow_nan=False)
    assert json.loads(text)["return"]["eval_mean"] is None


# Whole or not at all


def test_a_file_is_written_whole_and_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    for content in ({"a": 1}, {"b": [1.5, None]}):
        write_json_whole(path, content)
        assert json.loads(path.read_text()) == content
        assert path.read_text().endswith("}\n")
    assert list(tmp_path.iterdir()) == [path]


def _half(content: Any, stream: Any, **kwargs: Any) -> None:
    stream.write(json.dumps(content)[:5])
    raise OSError(errno.ENOSPC, "No space left on device")


def _full(*args: Any, **kwargs: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


FAULTS: dict[str, tuple[Any, str, Callable[..., None]]] = {
    "open": (Path, "open", _full),
    "write": (json, "dump", _half),
    "sync": (os, "fsync", _full),
    "replace": (Path, "replace", _full),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("there", [True, False])
def test_a_full_disk_leaves_the_old_file_or_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str, there: bool
) -> None:
    path = tmp_path / "result.json"
    if there:
        write_json_whole(path, {"old": True})
    with monkeypatch.context() as patch:
        patch.setattr(*FAULTS[fault])
        with pytest.raises(OSError, match="No space"):
            write_json_whole(path, {"new": True})
    assert list(tmp_path.iterdir()) == [path] * there
    assert not there or json.loads(path.read_text()) == {"old": True}


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_crash_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """A crash runs no cleaning, so the file is read at the moment at which it would happen."""
    path = tmp_path / "result.json"
    write_json_whole(path, {"old": True})
    seen: list[Any] = []
    for target, name in ((os, "fsync"), (Path, "replace")):
        real = getattr(target, name)

        def touch(*args: Any, _name: str = name, _real: Any = real) -> Any:
            if _name == step:
                seen.append(json.loads(path.read_text()))
            return _real(*args)

        monkeypatch.setattr(target, name, touch)
    write_json_whole(path, {"new": True})
    assert seen == [{"old": True}]


def test_what_json_cannot_hold_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    write_json_whole(path, {"old": True})
    with pytest.raises(TypeError):
        write_json_whole(path, {"new": {"much": object()}})
    assert json.loads(path.read_text()) == {"old": True}
    assert list(tmp_path.iterdir()) == [path]


# A full disk costs a file, not the run


LOSSES = {
    "fastdqn.reporting.run_checkpoints.RunCheckpoints.save_last": (
        "checkpoints",
        "the checkpoint of env step 300",
    ),
    "fastdqn.reporting.run_recorder.write_json_whole": (
        "result.json",
        "result.json at env step 300",
    ),
    "fastdqn.reporting.tables.EpisodeLog.append": ("", "episodes.csv"),
    "fastdqn.reporting.metrics.MetricsLog.append": ("", "metrics.jsonl"),
}


@pytest.mark.parametrize("target", LOSSES)
def test_a_full_disk_costs_what_was_being_written_and_is_reported_once(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    target: str,
) -> None:
    lost, words = LOSSES[target]
    monkeypatch.setattr(target, _full)
    left = _run(tmp_path)
    expected = {
        "checkpoints",
        "result.json",
        "episodes.csv",
        "evaluations.csv",
        "metrics.jsonl",
        "log.txt",
    }
    assert left == expected - {lost}
    message = [line for line in capsys.readouterr().out.splitlines() if "Could not" in line]
    assert message == [f"Could not write {words}: [Errno 28] No space left on device"]


def test_a_run_reports_the_same_everywhere(tmp_path: Path) -> None:
    _run(tmp_path)
    result = json.loads((tmp_path / "result.json").read_text())
    reports = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    with (tmp_path / "episodes.csv").open() as stream:
        episodes = list(csv.DictReader(stream))
    assert result["status"] == "completed"
    assert result["env_steps"] == reports[-1]["env_steps"] == 300
    assert result["episodes"] == reports[-1]["episodes"] == len(episodes)
    assert result["updates"] == reports[-1]["updates"] == 50
    assert result["replay_ratio_measured"] == 0.25
    assert result["sps"]["peak"] == max(report["sps"] for report in reports[:-1])
    assert sum(result["time_share"].values()) == pytest.approx(1.0)


def _run(folder: Path) -> set[str]:
    """Train a little with a record of everything; return the names in its folder."""
    agent = DQN(
        "CartPole-v1",
        num_envs=2,
        vectorizer="sync",
        total_timesteps=300,
        learning_starts=100,
        batch_size=8,
        hidden_sizes=(8,),
        execution="eager",
        log_interval=80,
    )
    with Console(folder / "log.txt") as console, recording(agent, folder, console) as record:
        with agent.trainer(None, record) as trainer:
            trainer.saving = record.checkpoints
            status = trainer.run(agent.env_seeds())
        record.save(trainer, status)
    return {path.name for path in folder.iterdir()}


def recording(agent: DQN, folder: Path, console: Console) -> RunRecorder:
    return RunRecorder(
        folder,
        console,
        config=agent.config,
        env_id=agent.description.env_id,
        solved_at=agent.solved_at,
        lent=lent_by(agent),
        started=time.perf_counter(),
    )
