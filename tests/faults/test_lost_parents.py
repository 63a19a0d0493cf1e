"""A trainer that is killed leaves no worker, and vectors that come and go leave nothing at all."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fastdqn.envs.grouped import GroupedVectorEnv
from fastdqn.envs.supervision import Supervision
from tests.oracles import counters

ROOT = Path(__file__).parents[2]
SECONDS_TO_NOTICE = 5.0
TRAINER = """
import os, signal, sys, threading, time
from functools import partial
from fastdqn.envs.grouped import GroupedVectorEnv
from fastdqn.envs.supervision import Supervision
from tests.oracles import HangingEnv, counters

STATES = ("idle", "hanging", "stopped", "restarted")

def make(context, state):
    hangs = partial(HangingEnv, 0, at=1 if state == "hanging" else -1, sleep_s=1000)
    envs = GroupedVectorEnv([hangs, *counters(2)[1:]], num_workers=2, context=context,
                            supervision=Supervision())
    envs.reset(seed=1)
    return envs

made = {}
for context in ("spawn", "forkserver"):
    for state in STATES:
        made[context, state] = make(context, state)
for state in ("idle", "hanging"):  # made by a thread that ends
    thread = threading.Thread(target=lambda: made.update({("thread", state): make("spawn", state)}))
    thread.start()
    thread.join()
time.sleep(0.3)
for (context, state), envs in made.items():
    assert all(process.is_alive() for process in envs.processes), (context, state)
    if state == "hanging":
        envs.step_async([0, 0])
    if state == "stopped":
        os.kill(envs.processes[0].pid, signal.SIGSTOP)
    if state == "restarted":
        os.kill(envs.processes[0].pid, signal.SIGKILL)
        while envs.num_restarts == 0 or envs._pool.restarted.any():
            envs.step([0, 0])
print(*(process.pid for envs in made.values() for process in envs.processes), flush=True)
while sys.argv[1] == "stepping":
    for (context, state), envs in made.items():
        if state in ("idle", "restarted"):
            envs.step([0, 0])
time.sleep(1000)
"""


def is_running(pid: int) -> bool:
    """Return whether a process lives; one that is dead and not yet waited for does not."""
    answer = subprocess.run(
        ["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False
    )
    return answer.stdout.strip()[:1] not in {"", "Z"}


@pytest.mark.parametrize("trainer_does", ["sleeping", "stepping"])
def test_nothing_is_left_five_seconds_after_the_trainer_was_killed(
    trainer_does: str, tmp_path: Path
) -> None:
    """Whether a worker is idle, stepping, hanging, stopped or fresh, whoever started it."""
    script = tmp_path / "trainer.py"
    script.write_text(TRAINER)
    with subprocess.Popen(
        [sys.executable, str(script), trainer_does],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    ) as trainer:
        assert trainer.stdout is not None
        pids = [int(pid) for pid in trainer.stdout.readline().split()]
        assert len(pids) == 20
        assert all(map(is_running, pids))
        trainer.kill()
        trainer.wait()
        deadline = time.monotonic() + SECONDS_TO_NOTICE
        while _group_lives(trainer.pid) and time.monotonic() < deadline:
            time.sleep(0.05)
        left = [index for index, pid in enumerate(pids) if is_running(pid)]
        others = _group_lives(trainer.pid)
        if others:
            os.killpg(trainer.pid, signal.SIGKILL)
    assert (left, others) == ([], False)
    assert not list(Path("/dev/shm").glob(f"*-{trainer.pid}-*"))


def _group_lives(leader: int) -> bool:
    """Return whether a worker, a fork server or a resource tracker of a dead trainer lives."""
    try:
        os.killpg(leader, 0)
    except ProcessLookupError:
        return False
    return True


# Opening and closing


@pytest.mark.usefixtures("nothing_left", "quick_starts")
def test_two_hundred_vectors_leave_files_children_and_shared_memory_as_they_were(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    prefix = f"fastdqn-test-{os.getpid()}"
    config = multiprocessing.current_process()._config  # type: ignore[attr-defined]
    monkeypatch.setitem(config, "semprefix", f"/{prefix}")
    open_and_drop(0)  # starts the fork server and the resource tracker, which may stay
    gc.collect()  # what earlier tests left behind is not to be counted
    before = descriptors()
    for turn in range(200):
        open_and_drop(turn)
    gc.collect()
    assert descriptors() == before
    assert multiprocessing.active_children() == []
    assert not list(Path("/dev/shm").glob(f"*{prefix}*"))


def open_and_drop(turn: int) -> None:
    """Open a vector, use it, and leave it in one of five ways."""
    envs = GroupedVectorEnv(
        counters(2), num_workers=1, context="forkserver", supervision=Supervision()
    )
    envs.reset(seed=turn)
    envs.step([0, 0])
    way = turn % 5
    if way == 1:  # in the middle of a restart
        envs.processes[0].kill()
        while envs.num_restarts == 0:
            envs.step([0, 0])
    if way == 2:  # after one
        envs.processes[0].kill()
        envs.reset(seed=turn)
    if way == 4:
        del envs
        return
    envs.close(terminate=way == 3)


def descriptors() -> int:
    return len(os.listdir("/dev/fd"))  # noqa: PTH208 - the directory's own descriptor counts too
