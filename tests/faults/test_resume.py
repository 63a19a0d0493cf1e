"""Runs that are killed or stopped at random moments and go on: as if they had never been."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from fastdqn.reporting.run_lock import LOCK
from tests.resumed import assert_same_run, newest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

SOON_S, GONE_S = 120.0, 10.0
SLOW, FAST, FASTEST = 4_000, 60_000, 300_000
"""Env steps of a run that does some hundred a second, ten thousand, or a hundred thousand."""
SMALL = (
    "--num-envs 4 --num-workers 2 --learning-starts 200 "
    "--batch-size 16 --hidden-sizes 16 --eval-episodes 4 --buffer-size 1500"
)
CASES = {
    "native": (FAST, "--env-id CartPole-v1 --execution native"),
    "groups": (SLOW, "--env-id CartPole-v1 --execution eager --env-groups 2"),
    "compile": (SLOW, "--env-id CartPole-v1 --execution compile"),
    "n-step priorities": (
        SLOW,
        "--env-id FrozenLake-v1 --replay prioritized --n-step 3 --execution eager",
    ),
    "wind c51": (
        SLOW,
        "--env-id LunarLander-v3 --env-kwargs enable_wind=true --objective c51 --num-atoms 11 "
        "--execution eager",
    ),
    "wind native": (
        FAST // 4,
        "--env-id LunarLander-v3 --env-kwargs enable_wind=true --execution native",
    ),
    "noisy": (SLOW, "--env-id CartPole-v1 --noisy --execution eager"),
    "tensor": (SLOW, "--env-id CartPole-v1 --vectorizer tensor --execution eager"),
    "tensor native": (FASTEST, "--env-id CartPole-v1 --vectorizer tensor --execution native"),
    "annealed": (
        SLOW,
        "--env-id CartPole-v1 --lr-schedule cosine --epsilon-schedule multiplicative "
        "--replay prioritized --execution eager",
    ),
}
"""Env steps and flags."""


SEEDED = """
import random, runpy, sys, numpy, torch
seed = int(sys.argv.pop(1))
random.seed(seed)
numpy.random.seed(seed)
torch.manual_seed(seed)
runpy.run_module("fastdqn", run_name="__main__", alter_sys=True)
"""
"""`python -m fastdqn`, once the global generators have a seed: in every process they begin
otherwise."""


class Process:
    """A running `fastdqn`, in a session of its own.

    Args:
        words: The command.
        folder: Where it runs.
        variables: Of its environment, beside those of this process.
        seed: Of the global generators; None lets them begin as they please.
    """

    def __init__(
        self,
        words: str,
        folder: Path,
        variables: Mapping[str, str] | None = None,
        *,
        seed: int | None = None,
    ) -> None:
        started = ["-m", "fastdqn"] if seed is None else ["-c", SEEDED, str(seed)]
        self.out = folder / "out"
        with self.out.open("a") as out:
            self.process = subprocess.Popen(
                [sys.executable, *started, *words.split()],
                stdout=out,
                stderr=subprocess.STDOUT,
                cwd=folder,
                env={**os.environ, **(variables or {})},
                start_new_session=True,
            )

    def wait_until(self, what: Callable[[], bool]) -> bool:
        """Wait until something holds; return False where the process ended first."""
        deadline = time.monotonic() + SOON_S
        while not what():
            if self.process.poll() is not None:
                return False
            assert time.monotonic() < deadline, self.out.read_text()
            time.sleep(0.005)
        return True

    def end(self, number: signal.Signals | None = None, within_s: float = SOON_S) -> int:
        """Send a signal, wait for the end, and check that nothing is left."""
        if number is not None and self.process.poll() is None:
            self.process.send_signal(number)
        code = self.process.wait(within_s)
        deadline = time.monotonic() + GONE_S
        while self._has_left_something():
            assert time.monotonic() < deadline, "a process or its shared memory is still there"
            time.sleep(0.01)
        return code

    def _has_left_something(self) -> bool:
        try:
            os.killpg(self.process.pid, 0)
        except ProcessLookupError:
            return bool(list(Path("/dev/shm").glob(f"*-{self.process.pid}-*")))
        return True


def env_steps_of(run_dir: Path) -> int:
    """Return the env steps of the last report."""
    path = run_dir / "metrics.jsonl"
    *whole, _ = path.read_text().split("\n") if path.exists() else [""]
    return int(json.loads(whole[-1])["env_steps"]) if whole else 0


def lines_in(run_dir: Path) -> int:
    """Return how many lines the log has."""
    path = run_dir / "log.txt"
    return len(path.read_text().splitlines()) if path.exists() else 0


def completed(run_dir: Path) -> bool:
    path = run_dir / "result.json"
    return path.exists() and json.loads(path.read_text())["status"] == "completed"


def flags_of(total: int) -> str:
    """Return the flags of a run that reports 40 times, and is evaluated four times."""
    intervals = f"--log-interval {total // 40} --eval-interval {total // 4}"
    return f"{SMALL} --total-timesteps {total} {intervals}"


@pytest.mark.parametrize("case", CASES)
def test_a_run_that_is_killed_and_stopped_again_and_again_equals_one_that_never_was(
    tmp_path: Path, case: str
) -> None:
    """And one that saves every few hundred steps one that saves at its end alone."""
    (total, flags), chance = CASES[case], random.Random(case)
    words = f"train {flags} {flags_of(total)}"
    whole = Process(f"{words} --run-dir whole", tmp_path, seed=0)
    assert whole.end() == 0, whole.out.read_text()
    often = f"{words} --run-dir run --checkpoint-interval {total // 13} --resume auto"
    run, attempts, stopped = tmp_path / "run", 0, 0
    while not completed(run) and attempts < 12:
        attempts += 1
        goes_on = any((run / "checkpoints").glob("step-*"))
        process = Process(often, tmp_path, seed=attempts if goes_on else 0)
        after = env_steps_of(run) + chance.randrange(total // 20, total // 4)
        if not process.wait_until(lambda least=after: env_steps_of(run) >= least):  # type: ignore[misc]
            assert process.end() == 0, process.out.read_text()
            break
        time.sleep(chance.random() * 0.1)
        number = chance.choice([signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
        code = {signal.SIGTERM: 143, signal.SIGINT: 130}.get(number, -number)
        assert process.end(number) in {0, code}, process.out.read_text()
        stopped += 1
    assert completed(run), (tmp_path / "out").read_text()
    assert stopped >= 2
    assert_same_run(run, tmp_path / "whole")
    assert not (run / LOCK).exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("when", ["evaluating", "compiling", "saving", "resuming"])
def test_a_signal_at_any_moment_leaves_a_checkpoint_that_loads(
    tmp_path: Path, when: str, number: signal.Signals
) -> None:
    words, variables = f"{flags_of(SLOW)} --env-id CartPole-v1", dict[str, str]()
    words += " --total-timesteps 1000000"  # no moment is that of the end
    run, code = tmp_path / "run", {signal.SIGTERM: 143, signal.SIGINT: 130}[number]
    if when == "evaluating":
        words += " --execution eager --eval-episodes 5000 --eval-interval 400"
    if when == "compiling":
        words += " --execution compile --hidden-sizes 17"
        variables["XDG_CACHE_HOME"] = str(tmp_path / "cache")
    if when in {"saving", "resuming"}:
        words += " --execution eager --checkpoint-interval 50"
    process = Process(f"train {words} --run-dir run", tmp_path, variables)
    assert process.wait_until((run / "episodes.csv").exists)
    if when != "compiling":
        assert process.wait_until(lambda: env_steps_of(run) >= 400)
    time.sleep(1.0 if when in {"evaluating", "compiling"} else 0.0)
    began = time.monotonic()
    assert process.end(number) == code, process.out.read_text()
    assert time.monotonic() - began < GONE_S
    assert not (run / LOCK).exists()
    if when == "resuming":
        before = newest(run)
        process = Process("resume run", tmp_path)
        time.sleep(random.Random(number).uniform(3.0, 5.0))
        assert process.end(number) in {code, -number}, process.out.read_text()
        assert newest(run) >= before
    if (run / "checkpoints").exists():
        assert not list((run / "checkpoints").glob(".tmp-*"))
    begun = lines_in(run)
    process = Process(f"train {words} --run-dir run --resume auto", tmp_path, variables)
    assert process.wait_until(lambda: lines_in(run) > begun + 1), process.out.read_text()
    assert process.end(signal.SIGTERM) == 143
