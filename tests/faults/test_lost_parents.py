"""A trainer that is killed leaves no worker, and vectors that come and go leave nothing at all."""

from __future__ import annotations

import ast
import gc
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from fastdqn.envs.grouped import GroupedVectorEnv
from fastdqn.envs.workers.parent_watch import GROUP_SIGNALS
from fastdqn.envs.workers.supervision import Supervision
from tests.frail import FailsOnce, Keeper
from tests.oracles import CrashError, CrashingEnv, counters

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
SECONDS_TO_NOTICE = 5.0
TRAINER = """
import os, signal, sys, threading, time
from functools import partial
from fastdqn.envs.grouped import GroupedVectorEnv
from fastdqn.envs.workers.supervision import Supervision
from tests.frail import FailsOnce, Keeper

HANGING = {"hanging": "sleep", "hanging in C": "lock"}

def make(context, state):
    keeper = partial(Keeper, 0, sys.argv[1], HANGING.get(state, ""))
    envs = GroupedVectorEnv([keeper] * 2, num_workers=1, context=context, supervision=Supervision())
    envs.reset(seed=1)
    return envs

made = {}
for context in ("spawn", "forkserver"):
    for state in ("idle", "stepping", *HANGING, "stopped", "restarted"):
        made[context, state] = make(context, state)
for state in ("idle", "hanging", "stopped"):
    made["fork", state] = make("fork", state)
for state in ("idle", "hanging", "hanging in C", "stopped"):  # made by a thread that ends
    thread = threading.Thread(target=lambda: made.update({("thread", state): make("spawn", state)}))
    thread.start()
    thread.join()
time.sleep(0.3)
for (context, state), envs in made.items():
    assert all(process.is_alive() for process in envs.processes), (context, state)
    if state == "restarted":
        os.kill(envs.processes[0].pid, signal.SIGKILL)
        while envs.num_restarts == 0 or envs._pool.restarted.any():
            envs.step([0, 0])
    if state in HANGING:
        envs.step([0, 0])
        envs.step_async([0, 0])
    if state == "stopped":
        os.kill(envs.processes[0].pid, signal.SIGSTOP)
time.sleep(0.1)
for (context, state), envs in made.items():
    print(envs.processes[0].pid, context, state, sep=",", end=";")
print(flush=True)
while True:
    for (context, state), envs in made.items():
        if state == "stepping":
            envs.step([0, 0])
"""


def is_running(pid: int) -> bool:
    """Return whether a process lives; one that is dead and not yet waited for does not."""
    answer = subprocess.run(
        ["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False
    )
    return answer.stdout.strip()[:1] not in {"", "Z"}


@pytest.mark.slow
def test_nothing_is_left_five_seconds_after_the_trainer_was_killed(tmp_path: Path) -> None:
    """Whatever a worker does by then, and whatever started it; all that can, close what they hold.

    Those that hang with the lock of the interpreter, and those that were killed themselves, cannot
    close their two environments.
    """
    with _trainer(TRAINER, tmp_path) as trainer:
        assert trainer.stdout is not None
        message = [line.split(",") for line in trainer.stdout.readline().split(";")[:-1]]
        workers = {int(pid): f"{context} {state}" for pid, context, state in message}
        assert len(workers) == 19
        assert all(map(is_running, workers))
        trainer.kill()
        trainer.wait()
        deadline = time.monotonic() + SECONDS_TO_NOTICE
        while _group_lives(trainer.pid) and time.monotonic() < deadline:
            time.sleep(0.05)
        left = [name for pid, name in workers.items() if is_running(pid)]
        others, running = _group_lives(trainer.pid), _programs_that_run(tmp_path)
        if others:
            os.killpg(trainer.pid, signal.SIGKILL)
    assert (left, others) == ([], False)
    assert not list(Path("/dev/shm").glob(f"*-{trainer.pid}-*"))
    killed = sum(name.endswith("restarted") for name in workers.values())
    hanging = sum(name.endswith("in C") for name in workers.values())
    assert (killed, hanging) == (2, 3)
    assert len(running) == 2 * (killed + hanging)
    looked_at = len(workers)  # one environment of each vector was, and was closed then
    closed = list(tmp_path.glob("closed-*"))
    assert len(closed) == looked_at + 2 * (len(workers) - hanging)


@contextmanager
def _trainer(script: str, folder: Path, *words: str) -> Iterator[subprocess.Popen[str]]:
    """Run a script in a process group of its own; end all programs of its environments."""
    path = folder / "trainer.py"
    path.write_text(script)
    try:
        with subprocess.Popen(
            [sys.executable, str(path), str(folder), *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        ) as trainer:
            try:
                yield trainer
            finally:
                trainer.kill()  # or leaving would wait for one that goes on
    finally:
        for pid in _programs_that_run(folder):
            os.kill(pid, signal.SIGKILL)


def _programs_that_run(folder: Path) -> list[int]:
    """Return those programs of environments that run."""
    pids = [int(path.name.removeprefix("program-")) for path in folder.glob("program-*")]
    return [pid for pid in pids if is_running(pid)]


def _group_lives(leader: int) -> bool:
    """Return whether a worker, a fork server or a resource tracker of a dead trainer lives."""
    try:
        os.killpg(leader, 0)
    except ProcessLookupError:
        return False
    return True


# Signals to the whole group


GROUP = """
import signal, sys, time
from functools import partial
from fastdqn.envs.grouped import GroupedVectorEnv
from tests.frail import FailsOnce, Keeper

context, does = sys.argv[2:]
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell ignores both after `&`
signal.signal(signal.SIGQUIT, signal.SIG_DFL)
if does == "goes on":
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda number, _: received.append(number))
received = []
envs = GroupedVectorEnv([partial(Keeper, 0, sys.argv[1])] * 2, num_workers=2, context=context)
envs.reset(seed=1)
print(*envs.call("signals_of_program"), flush=True)
while not received:
    envs.step([0, 0])
pids = envs.call("pid")
until = time.monotonic() + 0.3
while time.monotonic() < until:
    envs.step([0, 0])
assert envs.call("pid") == pids
envs.close()
print("closed after", signal.Signals(received[0]).name)
"""


@pytest.mark.parametrize(
    ("number", "context"),
    [
        (signal.SIGTERM, "spawn"),
        *(
            pytest.param(number, context, marks=pytest.mark.slow)
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
            for context in ("spawn", "forkserver", "fork")
            if (number, context) != (signal.SIGTERM, "spawn")
        ),
    ],
)
def test_workers_serve_on_after_a_signal_to_all_while_their_parent_lives(
    number: signal.Signals, context: str, tmp_path: Path
) -> None:
    with _trainer(GROUP, tmp_path, context, "goes on") as trainer:
        assert trainer.stdout is not None
        trainer.stdout.readline()
        os.killpg(trainer.pid, number)
        out, err = trainer.communicate(timeout=20)
    assert (out, err) == (f"closed after {number.name}\n", "")
    assert (trainer.returncode, _programs_that_run(tmp_path)) == (0, [])
    assert len(list(tmp_path.glob("closed-*"))) >= 2


@pytest.mark.parametrize(
    "number",
    [
        signal.SIGTERM,
        *(
            pytest.param(number, marks=pytest.mark.slow)
            for number in (signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
        ),
    ],
)
def test_programs_of_environments_are_closed_where_a_signal_to_all_ends_the_parent(
    number: signal.Signals, tmp_path: Path
) -> None:
    with _trainer(GROUP, tmp_path, "spawn", "dies") as trainer:
        assert trainer.stdout is not None
        trainer.stdout.readline()
        assert len(_programs_that_run(tmp_path)) == 2
        os.killpg(trainer.pid, number)
        trainer.wait()
        deadline = time.monotonic() + SECONDS_TO_NOTICE
        while time.monotonic() < deadline and (
            _group_lives(trainer.pid) or _programs_that_run(tmp_path)
        ):
            time.sleep(0.02)
        assert not _group_lives(trainer.pid)
        assert _programs_that_run(tmp_path) == []


def test_programs_of_environments_inherit_no_signal_that_is_blocked_or_ignored(
    tmp_path: Path,
) -> None:
    with _trainer(GROUP, tmp_path, "spawn", "dies") as trainer:
        assert trainer.stdout is not None
        message = ast.literal_eval("[" + trainer.stdout.readline().replace(") (", "), (") + "]")
        trainer.kill()
    received = sum(1 << (number - 1) for number in GROUP_SIGNALS)
    assert [(blocked & received, ignored & received) for blocked, ignored in message] == [
        (0, 0)
    ] * 2


# Callers that forget to close


FORGETFUL = """
import sys, threading
from functools import partial
from fastdqn.envs.grouped import GroupedVectorEnv
from tests.frail import FailsOnce, Keeper

def make(kind):
    keepers = [partial(Keeper, 0, sys.argv[1])] * 2
    envs = GroupedVectorEnv(keepers, num_workers=0 if kind == "here" else 1,
                            daemon=kind != "no daemon", context=None if kind != "fork" else kind)
    envs.reset(seed=1)
    envs.step_async([0, 0])
    kept.append(envs)
    envs.myself = envs  # never collected

kept, kind = [], sys.argv[2]
if kind == "thread":
    thread = threading.Thread(target=make, args=(kind,))
    thread.start()
    thread.join()
else:
    make(kind)
print("ends", flush=True)
if kind == "raises":
    raise SystemExit("an error")
"""


@pytest.mark.parametrize(
    "kind",
    [
        "daemon",
        "raises",
        *(
            pytest.param(kind, marks=pytest.mark.slow)
            for kind in ("no daemon", "fork", "thread", "here")
        ),
    ],
)
def test_a_script_that_never_closes_its_vector_ends_at_once_and_closes_it(
    kind: str, tmp_path: Path
) -> None:
    with _trainer(FORGETFUL, tmp_path, kind) as trainer:
        assert trainer.stdout is not None
        assert trainer.stdout.readline() == "ends\n"
        start = time.monotonic()
        _, err = trainer.communicate(timeout=20)
        elapsed_s = time.monotonic() - start
        running = _programs_that_run(tmp_path)
    assert (err, running) == ("an error\n" if kind == "raises" else "", [])
    assert elapsed_s < 3.0


def test_a_vector_that_is_dropped_closes_its_environments(tmp_path: Path) -> None:
    envs = GroupedVectorEnv([partial(Keeper, 0, str(tmp_path))] * 2, num_workers=1)
    assert len(_programs_that_run(tmp_path)) == 2
    del envs
    gc.collect()
    assert _programs_that_run(tmp_path) == []


def test_a_factory_that_raises_costs_no_program_of_the_others(tmp_path: Path) -> None:
    keeper = partial(Keeper, 0, str(tmp_path))
    bad = partial(CrashingEnv, where="constructor")
    with pytest.raises(CrashError):
        GroupedVectorEnv([keeper, keeper, bad], num_workers=2)
    assert len(list(tmp_path.glob("program-*"))) == 3  # one of them is looked at and closed
    assert _programs_that_run(tmp_path) == []


def test_an_environment_that_raises_costs_no_program_of_its_neighbours(tmp_path: Path) -> None:
    """Its whole worker is restarted."""
    factories: list[Any] = [partial(Keeper, 0, str(tmp_path)), partial(FailsOnce, 1)]
    envs = GroupedVectorEnv(factories, num_workers=1, supervision=Supervision())
    envs.reset(seed=1)
    while envs.num_restarts == 0:
        envs.step([0, 0])
    running = _programs_that_run(tmp_path)
    envs.close()
    assert len(running) <= 1
    assert _programs_that_run(tmp_path) == []


# Opening and closing


@pytest.mark.slow
@pytest.mark.usefixtures("nothing_left", "quick_starts")
def test_a_hundred_vectors_leave_files_children_and_shared_memory_as_they_were(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    prefix = f"fastdqn-test-{os.getpid()}"
    config = multiprocessing.current_process()._config  # type: ignore[attr-defined]
    monkeypatch.setitem(config, "semprefix", f"/{prefix}")
    open_and_drop(0)  # starts the fork server and the resource tracker, which may stay
    gc.collect()  # what earlier tests left behind is not to be counted
    before = descriptors()
    for turn in range(100):
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
