"""Signals and failures from outside: what they leave, and what they leave behind."""

from __future__ import annotations

import csv
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import gymnasium
import numpy as np
import pytest

from fastdqn import DQN
from fastdqn.cli.commands import main

SOON_S = 30.0
TINY = (
    "--num-envs 4 --num-workers 2 --learning-starts 100 --batch-size 16 --hidden-sizes 16 "
    "--execution eager --eval-episodes 4 --log-interval 200"
)
ENDLESS = f"--env-id CartPole-v1 --total-timesteps 100000000 {TINY}"
FAULTY_ENVS = '''
import time
import gymnasium
from gymnasium.envs.classic_control import CartPoleEnv


class Faulty(CartPoleEnv):
    """Instance 2 of its process does what the name says in its 60th step."""

    instances = 0

    def __init__(self, fault):
        super().__init__()
        self.index, self.steps_taken, self.fault = Faulty.instances, 0, fault
        Faulty.instances += 1

    def step(self, action):
        self.steps_taken += 1
        obs, reward, *rest = super().step(action)
        if (self.index, self.steps_taken) == (2, 60):
            if self.fault == "raises":
                raise RuntimeError("the wheel came off")
            if self.fault == "hangs":
                time.sleep(600)
            reward = float("nan")
        return obs, reward, *rest


for fault in ("raises", "hangs", "nan"):
    gymnasium.register(f"{fault.capitalize()}-v0", Faulty, kwargs={"fault": fault})
'''


class Command:
    """A running `python -m fastdqn train`, in a session of its own as under a terminal."""

    def __init__(self, words: str, folder: Path, *options: str) -> None:
        self.run_dir = folder / "run"
        self.err = folder / "err"
        command = [sys.executable, *options, "-m", "fastdqn", "train", *words.split()]
        path = os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")]))
        with (folder / "out").open("w") as out, self.err.open("w") as err:
            self.process = subprocess.Popen(
                [*command, "--run-dir", str(self.run_dir)],
                stdout=out,
                stderr=err,
                cwd=folder,
                env={**os.environ, "PYTHONPATH": path},
                start_new_session=True,
            )
        self.out = folder / "out"

    def wait_until(self, what: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 2 * SOON_S
        while not what():
            assert self.process.poll() is None, self.err.read_text()
            assert time.monotonic() < deadline, "it did not come so far"
            time.sleep(0.01)

    def wait_for_metrics(self) -> None:
        path = self.run_dir / "metrics.jsonl"
        self.wait_until(lambda: path.exists() and path.stat().st_size > 0)

    def send_signal(self, number: signal.Signals, *, group: bool) -> None:
        """Send a signal to the process alone, or to all of its group as a terminal does."""
        (os.killpg if group else os.kill)(self.process.pid, number)

    def end(self) -> int:
        return self.process.wait(SOON_S)

    def has_left_nothing(self) -> bool:
        try:
            os.killpg(self.process.pid, 0)
        except ProcessLookupError:
            return not list(Path("/dev/shm").glob(f"*-{self.process.pid}-*"))
        return False


@contextmanager
def started(words: str, folder: Path, *options: str) -> Iterator[Command]:
    command = Command(words, folder, *options)
    try:
        yield command
        deadline = time.monotonic() + SOON_S
        while not command.has_left_nothing():
            assert time.monotonic() < deadline, "a process or its shared memory is still there"
            time.sleep(0.01)
    finally:
        if command.process.poll() is None:
            os.killpg(command.process.pid, signal.SIGKILL)
            command.process.wait()


def result_in(run_dir: Path) -> dict[str, object]:
    result: dict[str, object] = json.loads((run_dir / "result.json").read_text())
    return result


def assert_complete(run_dir: Path, status: str, env: str | None = None) -> None:
    """Check that the folder holds a policy that acts, and files that agree with each other."""
    result = result_in(run_dir)
    assert result["status"] == status
    assert DQN.load(run_dir, env).predict(np.zeros((3, 4))).shape == (3,)
    with (run_dir / "episodes.csv").open() as stream:
        assert len(list(csv.DictReader(stream))) == result["episodes"]
    last = json.loads((run_dir / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["updates"] <= result["updates"]
    assert (run_dir / "plots" / "returns.png").exists()
    (newest,) = (run_dir / "checkpoints").glob("step-*")
    assert newest.name == f"step-{result['env_steps']:012d}"
    assert {path.name for path in (run_dir / "checkpoints").iterdir()} <= {newest.name, "best"}


# Signals


@pytest.mark.parametrize(
    ("number", "group", "code"),
    [
        pytest.param(signal.SIGINT, True, 130, id="Ctrl-C"),
        pytest.param(signal.SIGTERM, False, 143, id="kill", marks=pytest.mark.slow),
        pytest.param(signal.SIGTERM, True, 143, id="a batch system", marks=pytest.mark.slow),
    ],
)
def test_a_signal_saves_and_ends_the_run_within_seconds(
    tmp_path: Path, number: signal.Signals, group: bool, code: int
) -> None:
    with started(ENDLESS, tmp_path) as command:
        command.wait_for_metrics()
        command.send_signal(number, group=group)
        assert command.end() == code
    assert command.err.read_text() == ""
    said = command.out.read_text()
    assert "Stopped after " in said
    assert "Go on    fastdqn resume " in said
    assert "Failed" not in said
    assert_complete(command.run_dir, "stopped")


@pytest.mark.parametrize(
    "module",
    [
        "torch.nn",
        *(
            pytest.param(module, marks=pytest.mark.slow)
            for module in ("tyro", "numpy", "fastdqn.envs.sources.source")
        ),
    ],
)
def test_an_interrupt_while_modules_load_ends_it_without_a_word(
    tmp_path: Path, module: str
) -> None:
    loaded = re.compile(rf"\| +{re.escape(module)}$", re.MULTILINE)
    with started(ENDLESS, tmp_path, "-X", "importtime") as command:
        command.wait_until(lambda: loaded.search(command.err.read_text()) is not None)
        command.send_signal(signal.SIGINT, group=True)
        assert command.end() == 130
    assert {line[:12] for line in command.err.read_text().splitlines()} == {"import time:"}
    assert not command.run_dir.exists()


@pytest.mark.slow
def test_an_interrupt_while_workers_start_ends_them_too(tmp_path: Path) -> None:
    with started(ENDLESS, tmp_path) as command:
        command.wait_until((command.run_dir / "episodes.csv").exists)
        time.sleep(0.2)
        command.send_signal(signal.SIGINT, group=True)
        assert command.end() == 130
    assert command.err.read_text() == ""


# Environments that fail


@pytest.fixture
def run_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of a run, where the faulty environments can be imported."""
    (tmp_path / "faulty_envs.py").write_text(FAULTY_ENVS)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path / "run"
    sys.modules.pop("faulty_envs", None)
    for env_id in ("Raises-v0", "Hangs-v0", "Nan-v0"):
        gymnasium.registry.pop(env_id)


def train_faulty(env_id: str, run_dir: Path) -> int:
    words = f"--env-id faulty_envs:{env_id} --total-timesteps 9999 {TINY} --num-workers 1"
    words += " --max-worker-restarts 0"
    return main(["train", *words.split(), "--run-dir", str(run_dir)])


FAILURES = {
    "Raises-v0": "RuntimeError: the wheel came off",
    "Nan-v0": "environment 2 returned the reward nan after env step 236",
}


@pytest.mark.usefixtures("nothing_left")
@pytest.mark.parametrize("env_id", FAILURES)
def test_an_environment_that_fails_is_named_and_the_policy_is_saved(
    run_dir: Path, env_id: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train_faulty(env_id, run_dir) == 1
    out, err = capsys.readouterr()
    assert err == ""
    (message,) = (line for line in out.splitlines() if "Failed: " in line)
    assert FAILURES[env_id] in message
    assert "Traceback" not in out
    assert "Traceback" in (run_dir / "log.txt").read_text()
    assert "Failed after 236 env steps" in out
    assert_complete(run_dir, "failed")


@pytest.mark.usefixtures("nothing_left")
def test_a_second_interrupt_aborts_a_step_that_hangs_and_still_saves(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("fastdqn.envs.workers.pool.CLOSE_TIMEOUT_S", 0.2)
    metrics = run_dir / "metrics.jsonl"

    def interrupt_twice() -> None:
        while not (metrics.exists() and metrics.stat().st_size):
            time.sleep(0.01)
        for _ in range(2):
            time.sleep(0.3)
            os.kill(os.getpid(), signal.SIGINT)

    person = threading.Thread(target=interrupt_twice, daemon=True)
    person.start()
    assert train_faulty("Hangs-v0", run_dir) == 130
    assert not person.is_alive()
    assert "Stopped after 236 env steps" in capsys.readouterr().out
    assert_complete(run_dir, "stopped")
