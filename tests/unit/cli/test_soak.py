"""A soak disturbs a training and finds what was lost; the training here is a small program."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from fastdqn.cli import soak as soak_file
from fastdqn.cli.commands import main
from fastdqn.cli.soak import Soak
from fastdqn.cli.soak_checks import (
    Growth,
    losses_of_result,
    losses_of_resume,
    losses_of_table,
    newest_step,
    return_of,
    slope,
)
from fastdqn.cli.soak_faults import FAULTS, Fault, Victim, alive, descendants, full_disk

PROGRAM = """
import json, os, signal, sys, time
from pathlib import Path

fault, command, *words = sys.argv[1:]
run = Path(words[0] if command == "resume" else words[words.index("--run-dir") + 1])
folder, table, log = run / "checkpoints", run / "episodes.csv", run / "log.txt"
folder.mkdir(parents=True, exist_ok=True)
steps = max((int(p.name[5:]) for p in folder.glob("step-*")), default=0)
kept = [f"{n},{n},1.0" for n in range(1, steps + 1)]
if command == "resume" and fault != "silent":
    said = steps - 1 if fault == "older" else steps
    with log.open("a") as file:
        file.write(f"Resumed at env step {said:,} from step-x\\n")
if fault == "twice":
    kept += kept[-1:]
stop = []
signal.signal(signal.SIGTERM, lambda *_: stop.append(1))
while not stop:
    steps += 1
    kept.append(f"{steps},{steps},1.0")
    table.write_text("\\n".join(["episode,env_step,return", *kept, ""]))
    (folder / ".tmp-now").mkdir(exist_ok=True)
    time.sleep(0.03)
    (folder / ".tmp-now").rename(folder / f"step-{steps:012}")
counted = steps + (fault == "counts")
(run / "result.json").write_text(json.dumps({"episodes": counted, "env_steps": steps}))
sys.exit(0 if fault == "code" else 143)
"""
NAMED = {fault.name: fault for fault in FAULTS}
TERM, KILL = FAULTS[-1], NAMED["trainer killed (SIGKILL)"]


@pytest.fixture
def soaked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Soak]:
    """Soaks the small program, which has a fault of its own."""
    for name, value in {"BETWEEN_S": (0.0, 0.1), "LOOK_S": 0.01, "START_S": 20.0}.items():
        monkeypatch.setattr(soak_file, name, value)
    monkeypatch.setattr(soak_file, "SHARED", tmp_path / "shm")
    (tmp_path / "shm").mkdir()
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)

    def run(own: str, *faults: Fault, seconds: float = 0.5) -> Soak:
        command = (sys.executable, "-S", str(program), own)
        soak = Soak(tmp_path / "run", [], random.Random(0), faults=faults, command=command)
        soak.train_for(seconds)
        return soak

    return run


def test_nothing_is_lost_by_a_training_that_goes_on_rightly(soaked: Callable[..., Soak]) -> None:
    soak = soaked("none", KILL, NAMED["trainer killed while it saves"], TERM, seconds=1.5)
    assert soak.lost == []
    assert soak.injected["SIGTERM"] >= 1
    assert soak.resumes == sum(soak.injected.values()) - 1 >= 2
    report = soak.report()
    assert report["env_steps"] == newest_step(soak.run_dir)
    assert report["return_mean_100"] == 1.0
    assert report["resident_mib_max"] > 1


@pytest.mark.parametrize(
    ("own", "said"),
    [
        ("older", "it resumed at env step"),
        ("silent", "log.txt: 0 resumes of 1"),
        ("twice", "episodes.csv: row"),
        ("counts", "result.json has"),
        ("code", "SIGTERM: exit code 0 and not 143"),
    ],
)
def test_what_is_lost_is_found(own: str, said: str, soaked: Callable[..., Soak]) -> None:
    soak = soaked(own, TERM) if own in {"counts", "code"} else soaked(own, KILL, TERM, seconds=1.0)
    assert any(loss.startswith(said) for loss in soak.lost), soak.lost


def test_a_training_that_does_not_start_ends_the_soak(tmp_path: Path) -> None:
    command = (sys.executable, "-S", "-c", "raise SystemExit(2)")
    soak = Soak(tmp_path / "run", [], random.Random(0), command=command)
    soak.train_for(60)
    assert soak.lost == ["no checkpoint after the start (code=2)"]


@pytest.mark.parametrize("saves", [True, False])
def test_a_soak_that_is_stopped_ends_its_training_and_loses_nothing(
    saves: bool, soaked: Callable[..., Soak], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, right = list[int](), Soak._started

    def started(self: Soak) -> Victim:
        victim = right(self)
        begun.append(victim.pid)
        threading.Timer(0.3 if saves else 0.0, self.stop).start()
        return victim

    if not saves:
        monkeypatch.setattr(soak_file, "newest_step", lambda _: None)
    monkeypatch.setattr(Soak, "_started", started)
    monkeypatch.setattr(soak_file, "BETWEEN_S", (60.0, 60.0))
    began = time.monotonic()
    soak = soaked("none", TERM, seconds=100.0)
    assert time.monotonic() - began < 50
    assert soak.lost == []
    assert len(begun) == 1
    assert not alive(begun)
    assert soak.injected["SIGTERM"] == saves


def test_kinds_that_were_not_injected_are_reported_as_none(tmp_path: Path) -> None:
    report = Soak(tmp_path / "run", [], random.Random(0)).report()
    assert report["injected"] == dict.fromkeys(NAMED, 0)


@pytest.mark.parametrize(
    ("happens", "code"),
    [
        ((None, [], None), 1),  # nothing was tried
        ((TERM, [], None), 0),
        ((TERM, ["a row"], None), 1),
        ((None, [], signal.SIGINT), 130),
        ((TERM, [], signal.SIGTERM), 143),
        ((TERM, ["a row"], signal.SIGINT), 1),
    ],
)
def test_the_exit_code_says_whether_faults_were_injected_and_nothing_was_lost(
    happens: tuple[Fault | None, list[str], signal.Signals | None],
    code: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fault, lost, number = happens

    def train_for(self: Soak, seconds: float) -> None:
        self.lost += lost
        if fault is not None:
            self.injected[fault.name] += 1
        if number is not None:
            signal.raise_signal(number)

    monkeypatch.setattr(Soak, "train_for", train_for)
    assert soak_file.soak(["--run-dir", str(tmp_path / "run")]) == code
    assert (tmp_path / "soak.json").is_file()


def test_a_ctrl_c_in_the_terminal_does_not_reach_the_training(tmp_path: Path) -> None:
    """It is in a group of its own."""
    command = (sys.executable, "-S", "-c", "import time; time.sleep(60)")
    soak = Soak(tmp_path / "run", [], random.Random(0), command=command)
    victim = soak._started()
    try:
        assert os.getpgid(victim.pid) == victim.pid != os.getpgrp()
    finally:
        soak._end(victim, None)


def test_names_left_in_shared_memory_are_losses(
    soaked: Callable[..., Soak], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(soak_file, "return_of", lambda _: None)
    leaves = Fault("leaves", lambda _: bool((tmp_path / "shm" / "block").write_text("x")))
    assert soaked("none", leaves, TERM).lost == [f"left in {tmp_path / 'shm'}: block"]


def test_each_fault_comes_before_any_comes_again() -> None:
    soak = Soak(Path("nowhere"), [], random.Random(3))
    names = [soak._next_fault().name for _ in range(10)]
    assert set(names[:5]) == set(names[5:]) == set(NAMED)


# Processes


def test_descendants_are_children_and_theirs(tmp_path: Path) -> None:
    for pid, name, state, parent in (
        (7, "a b", "S", 1),
        (8, "x) R 1", "R", 7),
        (9, "c", "S", 8),
        (10, "d", "Z", 7),
        (11, "e", "S", 1),
    ):
        (tmp_path / str(pid)).mkdir()
        (tmp_path / str(pid) / "stat").write_text(f"{pid} ({name}) {state} {parent} 0 0\n")
    (tmp_path / "12").mkdir()
    (tmp_path / "self").mkdir()
    assert descendants(7, tmp_path) == [8, 9]
    assert alive([8, 10, 12, 13], tmp_path) == [8]


def test_a_full_disk_lets_no_file_grow_and_then_lets_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fastdqn.cli.soak_faults.FULL_S", 0.3)
    script = (
        "import time\nfull = written = False\nprint(flush=True)\nwhile not (full and written):\n"
        " try:\n  open('big', 'wb', 0).write(b'x' * 4096) == 4096 or 1 / 0\n  written = full\n"
        " except (OSError, ZeroDivisionError):\n  full = True\n time.sleep(0.01)"
    )
    with subprocess.Popen(
        [sys.executable, "-S", "-c", script], cwd=tmp_path, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert full_disk(Victim(process, tmp_path))
        assert process.wait(20) == 0
    assert not full_disk(Victim(process, tmp_path))


def test_a_worker_is_killed_and_the_tracker_is_not(tmp_path: Path) -> None:
    script = (
        "import subprocess, sys, time\n"
        "for name in ('multiprocessing.resource_tracker', 'multiprocessing.spawn'):\n"
        " subprocess.Popen([sys.executable, '-S', '-c', 'import time; time.sleep(60)', name])\n"
        "print(flush=True)\ntime.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-S", "-c", script], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        children = descendants(process.pid)
        until = time.monotonic() + 20
        while time.monotonic() < until and not NAMED["worker killed (SIGKILL)"].inject(
            Victim(process, tmp_path)
        ):
            time.sleep(0.01)
        while len(alive(children)) == 2 and time.monotonic() < until:
            time.sleep(0.01)
        (left,) = alive(children)
        assert b"resource_tracker" in Path(f"/proc/{left}/cmdline").read_bytes()
        os.kill(left, signal.SIGKILL)
        process.kill()


# Files


def run_of(folder: Path, rows: list[str], *, episodes: int = 2, env_steps: int = 20) -> Path:
    (folder / "checkpoints" / "step-000000000020").mkdir(parents=True)
    (folder / "checkpoints" / "step-12").mkdir()
    (folder / "episodes.csv").write_text("\n".join(["episode,env_step,return", *rows, ""]))
    result = {"episodes": episodes, "env_steps": env_steps}
    (folder / "result.json").write_text(json.dumps(result))
    (folder / "log.txt").write_text(
        "x  Resumed at env step 1,000 from a\nResumed at env step 20 from b\n"
    )
    return folder


def test_whole_files_have_no_losses(tmp_path: Path) -> None:
    run = run_of(tmp_path, ["1,10,3.0", "2,10,5.0"])
    assert losses_of_table(run) == losses_of_result(run) == losses_of_resume(run, 2, 20) == []
    assert newest_step(run) == 20
    assert return_of(run) == 4.0
    assert losses_of_table(tmp_path / "none") == []
    assert return_of(tmp_path / "none") is newest_step(tmp_path / "none") is None


@pytest.mark.parametrize(
    "rows", [["1,1,0", "1,2,0"], ["1,1,0", "3,2,0"], ["2,1,0"], ["1,2,0", "2,1,0"]]
)
def test_episodes_that_miss_or_come_twice_are_losses(rows: list[str], tmp_path: Path) -> None:
    assert len(losses_of_table(run_of(tmp_path, rows))) == 1


def test_counts_that_differ_are_losses(tmp_path: Path) -> None:
    run = run_of(tmp_path, ["1,1,0", "2,2,0"], episodes=3, env_steps=30)
    assert len(losses_of_result(run)) == 2
    (run / "result.json").unlink()
    assert losses_of_result(run) == ["result.json is missing"]
    assert len(losses_of_resume(run, 3, 20)) == len(losses_of_resume(run, 2, 1000)) == 1


def test_growth_is_that_of_the_process_that_ran_longest() -> None:
    growth = Growth([[(0, 900, 99)], [(t, 200 if t < 3 else 100 + t, 7) for t in range(9)]])
    summary = growth.summary()
    assert summary["resident_mib_per_min"] == pytest.approx(60)
    assert summary["open_files_per_min"] == 0
    assert (summary["resident_mib_max"], summary["open_files_max"]) == (900, 99)
    assert set(Growth().summary().values()) == {None}
    assert slope([(0, 1), (2, 5), (4, 9)]) == 2
    assert slope([(1, 1), (1, 2)]) is slope([]) is None


def test_a_process_that_runs_is_looked_at_and_one_that_has_ended_is_not() -> None:
    growth = Growth()
    growth.begin()
    growth.look(os.getpid(), 1.0)
    growth.look(2**30, 2.0)
    ((seconds, memory, files),) = growth.samples[0]
    assert seconds == 1.0
    assert memory > 10
    assert files > 2


# The command


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--minutes 0", "--minutes 0: it must lie in (0, 10,000]. Try 10."),
        ("--minutes nan", "--minutes nan: it must lie in"),
        ("--minutes x", "--minutes x: it takes a number."),
        ("--preset cartpol", "--preset cartpol: there is no such preset. Did you mean"),
        ("--run-dir .", "--run-dir .: it is no empty folder. Name a new folder."),
        (f"--run-dir {__file__}", "test_soak.py: it is no empty folder. Name a new folder."),
        ("--seed -1", "--seed -1: it must be at least 0. Try 0."),
    ],
)
def test_what_cannot_be_soaked_is_refused(
    words: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["soak", *words.split()]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_minute_of_faults_loses_nothing(tmp_path: Path) -> None:
    code = main(["soak", "--minutes", "1", "--run-dir", str(tmp_path / "run")])
    report = json.loads((tmp_path / "run" / "soak.json").read_text())
    assert report["lost"] == []
    assert code == 0
    assert sum(report["injected"].values()) >= 3
    assert report["resumes"] >= 1
