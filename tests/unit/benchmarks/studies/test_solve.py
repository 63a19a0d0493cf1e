"""The benchmark of solving: a real command, caches of its own, seconds that sum up."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.studies import solve
from benchmarks.studies.solve import CACHES, COLUMNS, first_update_s, main, row, split, summary

RESULT: dict[str, Any] = {
    "status": "solved",
    "env_steps": 12_345,
    "wall_s": {"total": 20.0, "startup": 2.0, "compile": 5.0, "train": 9.0},
    "return": {"eval_mean": 221.0},
}
METRICS = """\
{"env_steps": 500, "wall_s": 2.5, "loss": null}
{"env_steps": 1000, "wall_s": 7.5, "loss": 0.25}
{"env_steps": 1500, "wall_s": 8.5, "loss": 0.5}
"""


class Command:
    """Stands in for the command: writes what a run leaves, and remembers how it was called."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[tuple[list[str], dict[str, str]]] = []
        self.full_caches: list[bool] = []
        monkeypatch.setattr(solve, "timed", self)
        monkeypatch.setattr(solve, "_fresh_mean", lambda run_dir, seed: 200.0 + seed)

    def __call__(self, command: list[str], env: dict[str, str]) -> float:
        self.calls.append((command, env))
        cache = Path(env[CACHES[0]])
        self.full_caches.append(cache.exists())
        cache.mkdir(parents=True, exist_ok=True)
        run_dir = Path(command[command.index("--run-dir") + 1])
        run_dir.mkdir()
        seed = int(command[command.index("--seed") + 1])
        (run_dir / "result.json").write_text(json.dumps({"seed": seed, **RESULT}))
        (run_dir / "metrics.jsonl").write_text(METRICS)
        return 24.0


def test_cold_runs_have_empty_caches_of_their_own(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = Command(monkeypatch)
    assert main(["--seeds", "2", "--preset", "cartpole"]) == 0
    assert command.full_caches == [False, False]
    for words, env in command.calls:
        assert words[1:6] == ["-m", "fastdqn", "train", "--preset", "cartpole"]
        assert len({env[name] for name in CACHES}) == len(CACHES)
    first, second = (env[CACHES[0]] for _, env in command.calls)
    assert first != second
    message = capsys.readouterr().out
    assert "Caches cold" in message
    assert "2 of 2 solved" in message
    assert "fresh greedy mean 200.5" in message


def test_warm_runs_share_caches_that_a_run_not_counted_fills(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = Command(monkeypatch)
    assert main(["--seeds", "2", "--warm", "--train-args=--execution compile"]) == 0
    assert command.full_caches == [False, True, True]
    assert all(words[-2:] == ["--execution", "compile"] for words, _ in command.calls)
    assert "2 of 2 solved" in capsys.readouterr().out


def test_seeds_begin_at_the_first_one(monkeypatch: pytest.MonkeyPatch) -> None:
    command = Command(monkeypatch)
    assert main(["--seeds", "2", "--first-seed", "5", "--warm"]) == 0
    seeds = [int(words[words.index("--seed") + 1]) for words, _ in command.calls]
    assert seeds == [solve.UNCOUNTED_SEED, 5, 6]


def test_a_seed_that_was_not_solved_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    Command(monkeypatch)
    monkeypatch.setitem(RESULT, "status", "completed")
    assert main(["--seeds", "1"]) == 1


def test_a_command_is_started_with_the_environment_and_must_succeed(tmp_path: Path) -> None:
    place = tmp_path / "written"
    code = f"import os, pathlib; pathlib.Path({str(place)!r}).write_text(os.environ['GREETING'])"
    assert solve.timed([sys.executable, "-c", code], {"GREETING": "hello"}) > 0.0
    assert place.read_text() == "hello"
    with pytest.raises(subprocess.CalledProcessError):
        solve.timed([sys.executable, "-c", "raise SystemExit(3)"], {})


def test_cold_and_warm_exclude_each_other() -> None:
    with pytest.raises(SystemExit):
        main(["--cold", "--warm"])


def test_the_seconds_sum_up_to_the_command() -> None:
    seconds = split(RESULT["wall_s"], 24.0, 7.5)
    assert seconds == {
        "command": 24.0,
        "startup": 2.0,
        "compile": 5.0,
        "train": 9.0,
        "evaluate": 4.0,
        "around": 4.0,
        "first_update": 7.5,
    }


def test_the_first_update_is_before_the_first_report_that_knows_a_loss() -> None:
    assert first_update_s(METRICS) == 7.5
    assert first_update_s(METRICS.splitlines()[0]) is None


def test_a_row_has_a_cell_for_every_column() -> None:
    run = {"seed": 3, **RESULT, "seconds": split(RESULT["wall_s"], 24.0, None), "fresh_mean": 210}
    cells = row(run).strip("| ").split(" | ")
    message = dict(zip(COLUMNS, cells, strict=True))
    assert message["seed"] == "3"
    assert message["command s"] == "24.0"
    assert message["first update within s"] == "-"
    assert message["fresh greedy mean"] == "210.0"
    assert summary([run]).startswith("1 of 1 solved; medians: 24.0 s from the command")
