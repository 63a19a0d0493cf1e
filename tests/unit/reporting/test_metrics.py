"""Where reports are kept: JSON lines, TensorBoard, nowhere."""

from __future__ import annotations

import importlib
import json
import math
import sys
from typing import TYPE_CHECKING

import pytest

from fastdqn.errors import UsageError
from fastdqn.reporting.metrics import MetricsLog, TensorBoardMetrics, read_metrics
from fastdqn.training.events import Report

if TYPE_CHECKING:
    from pathlib import Path


def _report(env_steps: int = 1000, loss: float = 0.5) -> Report:
    return Report(
        env_steps=env_steps,
        total_env_steps=9000,
        updates=11,
        episodes=12,
        sps=13.5,
        return_mean_100=math.nan,
        epsilon=0.25,
        loss=loss,
        q_mean=1.5,
        grad_norm=math.inf,
        wall_s=2.5,
        time_left_s=20.0,
        time_share={"learn": 0.75, "act": 0.25},
        learning_rate=0.125,
    )


def test_a_report_becomes_one_json_line(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "run" / "metrics.jsonl")
    log.append(_report())
    log.close()
    text = (tmp_path / "run" / "metrics.jsonl").read_text()
    assert text.endswith("}\n")
    assert json.loads(text) == {
        "env_steps": 1000,
        "total_env_steps": 9000,
        "updates": 11,
        "episodes": 12,
        "sps": 13.5,
        "return_mean_100": None,
        "epsilon": 0.25,
        "loss": 0.5,
        "q_mean": 1.5,
        "grad_norm": None,
        "wall_s": 2.5,
        "time_left_s": 20.0,
        "time_share": {"learn": 0.75, "act": 0.25},
        "learning_rate": 0.125,
    }


def test_each_line_is_on_disk_before_close_and_a_second_log_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "m"
    first = MetricsLog(path)
    first.append(_report(1))
    assert [r["env_steps"] for r in read_metrics(path)] == [1]
    first.close()
    first.close()
    second = MetricsLog(path)
    second.append(_report(2))
    second.close()
    assert [r["env_steps"] for r in read_metrics(path)] == [1, 2]


def test_a_log_torn_at_any_byte_reads_as_its_whole_lines_and_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "m"
    log = MetricsLog(path)
    log.append(_report(1))
    log.close()
    content = path.read_bytes()
    for cut in range(0, len(content) + 1, 7):
        path.write_bytes(content[:cut])
        assert len(read_metrics(path)) == content[:cut].count(b"\n")
        log = MetricsLog(path)
        log.append(_report(2))
        log.close()
        assert read_metrics(path)[-1]["env_steps"] == 2


@pytest.mark.parametrize("line", ["{", "3", "", "[1]", "null"])
def test_a_broken_line_is_named_by_number(tmp_path: Path, line: str) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"a": 1}\n' + line + "\n")
    with pytest.raises(UsageError, match=r"metrics\.jsonl, line 2.*not a JSON object"):
        read_metrics(path)


def test_missing_tensorboard_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard.compat.proto.event_pb2", None)
    with pytest.raises(UsageError, match=r'pip install "fastdqn\[tensorboard\]"'):
        TensorBoardMetrics(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_tensorboard_holds_every_finite_figure_over_env_steps(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    metrics = TensorBoardMetrics(tmp_path / "events")
    metrics.append(_report(1000, loss=0.5))
    metrics.append(_report(2000, loss=0.25))
    metrics.close()
    metrics.close()
    module = importlib.import_module("tensorboard.backend.event_processing.event_accumulator")
    events = module.EventAccumulator(str(tmp_path / "events"))
    events.Reload()
    assert set(events.Tags()["scalars"]) == {
        *(f"train/{n}" for n in ("updates", "episodes", "sps", "epsilon", "loss", "q_mean")),
        *(f"train/{n}" for n in ("wall_s", "time_left_s", "learning_rate")),
        "time_share/learn",
        "time_share/act",
    }
    assert [(e.step, e.value) for e in events.Scalars("train/loss")] == [(1000, 0.5), (2000, 0.25)]
    assert [e.value for e in events.Scalars("time_share/learn")] == [0.75, 0.75]


def test_tensorboard_forgets_what_came_after_the_checkpoint_of_a_resumed_run(
    tmp_path: Path,
) -> None:
    pytest.importorskip("tensorboard")
    killed, resumed = (TensorBoardMetrics(tmp_path / "events") for _ in range(2))
    for step, loss in ((1000, 0.5), (2000, 0.25), (3000, 0.125)):
        killed.append(_report(step, loss=loss))
    killed.close()
    resumed.forget_after(1500)
    resumed.append(_report(2000, loss=4.0))
    resumed.close()
    module = importlib.import_module("tensorboard.backend.event_processing.event_accumulator")
    events = module.EventAccumulator(str(tmp_path / "events"))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("train/loss")] == [(1000, 0.5), (2000, 4.0)]
