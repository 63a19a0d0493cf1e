"""Output that cannot be written, disks that are full, evaluations without an end: runs go on."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from fastdqn import DQN
from tests.faults.test_stopping import TINY, started

SHORT = f"--env-id CartPole-v1 --total-timesteps 900 {TINY} --num-workers 0"
SAYING_ENVS = '''
import multiprocessing

import gymnasium
from gymnasium.envs.classic_control import CartPoleEnv


class Saying(CartPoleEnv):
    """Prints more than a buffer holds, where a worker hosts it."""

    def step(self, action):
        if multiprocessing.parent_process():
            print("x" * 1000)
        return super().step(action)


class Endless(CartPoleEnv):
    """Balances by itself."""

    def step(self, action):
        super().reset()
        return self.state.astype("float32"), 1.0, False, False, {}


gymnasium.register("Saying-v0", Saying, max_episode_steps=50)
gymnasium.register("Endless-v0", Endless)
'''


def run(
    words: str, plumbing: str, folder: Path, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run a command in a shell; its exit code is the last line of `ended`."""
    (folder / "saying_envs.py").write_text(SAYING_ENVS)
    line = f'"$PYTHON" -m fastdqn {words} {plumbing}; echo "${{PIPESTATUS[0]}}" > ended'
    return subprocess.run(
        ["bash", "-c", line],
        cwd=folder,
        env={**os.environ, "PYTHON": sys.executable, **variables},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )


def code(folder: Path) -> int:
    return int((folder / "ended").read_text())


QUIET, SAYING = "CartPole-v1", "saying_envs:Saying-v0 --num-workers 1"


@pytest.mark.parametrize(
    ("env", "plumbing"),
    [
        (SAYING, "| head -c 100"),
        *(
            pytest.param(env, plumbing, marks=pytest.mark.slow)
            for env, plumbing in (
                *((QUIET, plumbing) for plumbing in ("| head -c 100", "> /dev/full", ">&- 2>&-")),
                *((SAYING, plumbing) for plumbing in ("> /dev/full", ">&- 2>&-")),
            )
        ),
    ],
)
def test_a_console_that_is_not_read_costs_no_run(tmp_path: Path, plumbing: str, env: str) -> None:
    words = f"train {SHORT} --run-dir run --env-id {env}"
    done = run(words, plumbing, tmp_path, PYTHONPATH=f"{tmp_path}:{Path.cwd()}")
    assert (code(tmp_path), done.stderr) == (0, "")
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert (result["status"], result["worker_restarts"]) == ("completed", 0)
    assert DQN.load(tmp_path / "run", "CartPole-v1").predict([0.0] * 4).shape == ()
    assert "Completed after 900 env steps" in (tmp_path / "run" / "log.txt").read_text()


@pytest.mark.parametrize("words", ["presets", "train --help"])
@pytest.mark.parametrize("plumbing", ["| true", "> /dev/full", ">&-"])
def test_what_only_prints_ends_well_where_its_output_is_not_read(
    tmp_path: Path, words: str, plumbing: str
) -> None:
    assert run(words, plumbing, tmp_path).stderr == ""
    assert code(tmp_path) == 0


@pytest.mark.parametrize("plumbing", ["2> /dev/full", "2>&-"])
def test_a_complaint_that_cannot_be_written_keeps_its_exit_code(
    tmp_path: Path, plumbing: str
) -> None:
    run("train --nope", plumbing, tmp_path)
    assert code(tmp_path) == 2


@pytest.mark.slow
def test_names_that_an_encoding_lacks_are_escaped(tmp_path: Path) -> None:
    ascii_only = {"LC_ALL": "C", "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "1"}
    done = run(f"train {SHORT} --run-dir läuf", "", tmp_path, **ascii_only)
    assert (code(tmp_path), done.stderr) == (0, "")
    assert r"Results  l\xe4uf/result.json" in done.stdout
    assert "Results  läuf/result.json" in (tmp_path / "läuf" / "log.txt").read_text("utf-8")


# Full disks


def test_a_disk_that_is_full_at_the_start_is_refused(tmp_path: Path) -> None:
    words = f"{SHORT} --hidden-sizes 128 --checkpoint-interval 200 --run-dir run --tensorboard"
    done = subprocess.run(
        [sys.executable, "-m", "fastdqn", "train", *words.split()],
        cwd=tmp_path,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (3500, 3500)),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 2
    assert "--run-dir run: it cannot be written (File too large)" in done.stderr
    assert list((tmp_path / "run").iterdir()) == []
    assert not (tmp_path / "run" / "config.json").exists()


@pytest.mark.parametrize("limit", [pytest.param(4500, marks=pytest.mark.slow), 6000])
def test_files_that_cannot_grow_are_reported_once_each_and_hold_whole_lines(
    tmp_path: Path, limit: int
) -> None:
    words = f"{SHORT} --hidden-sizes 400 --checkpoint-interval 200 --log-interval 20 --run-dir run"
    done = subprocess.run(
        [sys.executable, "-m", "fastdqn", "train", *words.split(), "--tensorboard"],
        cwd=tmp_path,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")
    message = [line for line in done.stdout.splitlines() if line.startswith("Could not write")]
    assert [line for line in message if "File too large" not in line] == []
    for what in ("a checkpoint", "the best policy", "metrics.jsonl"):
        assert len([line for line in message if f"write {what}" in line]) == 1
    assert "Could write" not in done.stdout
    assert "Not written in run: " in done.stdout
    assert list((tmp_path / "run" / "checkpoints").iterdir()) == []
    assert list((tmp_path / "run").rglob(".*")) == []
    for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines():
        json.loads(line)
    assert json.loads((tmp_path / "run" / "result.json").read_text())["status"] == "completed"


# Evaluations without an end


@pytest.mark.slow
def test_an_evaluation_without_an_end_is_cut_and_said(tmp_path: Path) -> None:
    env = f"{tmp_path}:{Path.cwd()}"
    words = f"train {SHORT} --env-id saying_envs:Endless-v0 --run-dir run --eval-max-steps 70"
    done = run(words, "", tmp_path, PYTHONPATH=env)
    assert (code(tmp_path), done.stderr) == (0, "")
    cut = "70.0 (std 0.0) over 4 episodes, the best so far; 4 of 4 episodes were cut at 70 steps"
    assert cut in done.stdout
    assert cut in (tmp_path / "run" / "log.txt").read_text()


@pytest.mark.slow
def test_a_signal_in_the_midst_of_an_endless_evaluation_saves_and_ends_the_run(
    tmp_path: Path,
) -> None:
    (tmp_path / "saying_envs.py").write_text(SAYING_ENVS)
    words = (
        f"--env-id saying_envs:Endless-v0 --total-timesteps 100000 {TINY} --stop-at-return 9 "
        "--eval-interval 300 --eval-max-steps 0"
    )
    with started(words, tmp_path) as command:
        command.wait_until(lambda: "evaluating: 0 of 4" in command.out.read_text())
        command.send_signal(signal.SIGTERM, group=False)
        assert command.end() == 143
    assert command.err.read_text() == ""
    assert "Stopped after 300 env steps" in command.out.read_text()
    assert json.loads((command.run_dir / "result.json").read_text())["status"] == "stopped"
    assert [p.name for p in (command.run_dir / "checkpoints").iterdir()] == ["step-000000000300"]
