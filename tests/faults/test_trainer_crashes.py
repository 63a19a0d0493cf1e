"""Runs whose workers crash: what they say, what they leave, and how they are stopped."""

from __future__ import annotations

import re
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import gymnasium
import pytest

from fastdqn.cli.commands import main
from tests.faults.test_stopping import TINY, assert_complete, result_in, started

DOOMED_ENVS = '''
import multiprocessing
import os
import signal
import time
from pathlib import Path

import gymnasium
from gymnasium.envs.classic_control import CartPoleEnv

FALLEN = Path(__file__).with_name("fallen")


class TwoPartsError(Exception):
    """Pickles, and cannot be read."""

    def __init__(self, code, message):
        super().__init__(message)


class Doomed(CartPoleEnv):
    """In its 80th step the first environment of a worker does what the fate says.

    Fates with `once` befall one worker alone; after those with `stuck` no worker can be built.
    """

    instances = 0

    def __init__(self, fate):
        super().__init__()
        self.fate, self.steps_taken, self.index = fate, 0, Doomed.instances
        Doomed.instances += 1
        if "stuck" in fate and FALLEN.exists() and multiprocessing.parent_process():
            time.sleep(1000)
        if "broken" in fate and FALLEN.exists() and multiprocessing.parent_process():
            raise TwoPartsError(7, "no parts left")

    def step(self, action):
        self.steps_taken += 1
        if self.index == 0 and self.steps_taken == 80:
            self.meet_fate()
        return super().step(action)

    def meet_fate(self):
        if "once" in self.fate:
            try:
                FALLEN.touch(exist_ok=False)
            except FileExistsError:
                return
        FALLEN.touch()
        if "raises" in self.fate:
            raise TwoPartsError(7, "the wheel came off\\nand rolled away")
        os.kill(os.getpid(), signal.SIGKILL)


for fate in ("once", "always", "raises", "raises-once", "broken-once", "stuck", "stuck-once"):
    gymnasium.register(f"{fate.title()}-v0", Doomed, kwargs={"fate": fate}, max_episode_steps=500)
'''
IDS = ("Once", "Always", "Raises", "Raises-Once", "Broken-Once", "Stuck", "Stuck-Once")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder whose doomed environments can be imported."""
    (tmp_path / "doomed_envs.py").write_text(DOOMED_ENVS)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    sys.modules.pop("doomed_envs", None)
    for name in IDS:
        gymnasium.registry.pop(f"{name}-v0", None)


def words_for(env_id: str, total: int, more: str = "") -> str:
    return f"--env-id doomed_envs:{env_id} --total-timesteps {total} {TINY} {more}"


def train(folder: Path, env_id: str, more: str = "", total: int = 1500) -> int:
    words = words_for(env_id, total, more).split()
    return main(["train", *words, "--run-dir", str(folder / "run")])


WORKER = r"worker \d \(pid \d+, environments \d to \d\):?"


@pytest.mark.usefixtures("nothing_left")
@pytest.mark.parametrize(
    ("env_id", "what"),
    [
        ("Once-v0", r"ended with SIGKILL \(often out of memory\)"),
        (
            "Raises-Once-v0",
            r"environment \d raised on action \d: TwoPartsError: the wheel came off",
        ),
    ],
)
def test_a_run_goes_on_after_a_crash_and_says_so_in_one_line(
    folder: Path, env_id: str, what: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(folder, env_id) == 0
    out, err = capsys.readouterr()
    assert err == ""
    (message,) = (line for line in out.splitlines() if "estart" in line)
    line = rf"Restarted at env step [\d,]+: {WORKER} {what}; in vector step 80, seeds? [\d, ]+"
    assert re.search(line, message)
    assert "Traceback" not in out
    assert ("Traceback" in (folder / "run" / "log.txt").read_text()) == ("Raises" in env_id)
    result = result_in(folder / "run")
    assert (result["worker_restarts"], result["env_steps"] in range(1500, 1504)) == (1, True)
    assert_complete(folder / "run", "completed")


@pytest.mark.usefixtures("nothing_left")
@pytest.mark.parametrize(
    ("env_id", "allowed", "what"),
    [
        ("Always-v0", 2, r"ended with SIGKILL \(often out of memory\); in vector step \d+, .*"),
        (
            "Raises-v0",
            0,
            r"environment \d raised on action \d: TwoPartsError: the wheel came off; .*",
        ),
        ("Broken-Once-v0", 2, r"environment \d raised: TwoPartsError: no parts left; .*"),
    ],
)
def test_a_run_with_too_many_crashes_fails_in_one_line_and_saves(
    folder: Path, env_id: str, allowed: int, what: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(folder, env_id, f"--max-worker-restarts {allowed}", 100_000) == 1
    out, err = capsys.readouterr()
    assert err == ""
    (message,) = (line for line in out.splitlines() if "Failed: " in line)
    assert re.search(rf"Failed: {WORKER} {what}\. .*\(--max-worker-restarts {allowed}\)\.", message)
    assert "Traceback" not in out
    log = (folder / "run" / "log.txt").read_text()
    assert "Traceback" in log
    assert "fastdqn.errors.WorkerError: worker " in log
    assert result_in(folder / "run")["worker_restarts"] == allowed
    assert_complete(folder / "run", "failed")


# Stopped in the middle


@pytest.mark.parametrize(
    ("env_id", "number", "code"),
    [
        ("Stuck-Once-v0", signal.SIGINT, 130),  # the other worker goes on
        ("Stuck-v0", signal.SIGTERM, 143),  # no process is left
    ],
)
def test_a_signal_ends_a_run_whose_workers_are_being_restarted(
    folder: Path, env_id: str, number: signal.Signals, code: int
) -> None:
    fallen = 2 if env_id == "Stuck-v0" else 1
    with started(words_for(env_id, 100_000_000), folder) as command:
        command.wait_until(lambda: command.out.read_text().count("Restarted") == fallen)
        command.send_signal(number, group=True)
        assert command.process.wait(15.0) == code
    assert command.err.read_text() == ""
    said = command.out.read_text()
    assert "Stopped after " in said
    assert "Failed" not in said
    assert_complete(command.run_dir, "stopped", "CartPole-v1")  # no file has a module imported
