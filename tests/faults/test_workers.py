"""What happens when workers die, hang, raise, or lose their parent."""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from gymnasium.error import ClosedEnvironmentError
from gymnasium.vector import AutoresetMode

from fastdqn.envs.grouped import GroupedVectorEnv
from fastdqn.envs.sources import source
from fastdqn.envs.sources.source import source_of
from fastdqn.errors import WorkerError
from tests.oracles import (
    ChattyEnv,
    CrashError,
    CrashingEnv,
    HalfPicklableError,
    HangingEnv,
    UnpicklableError,
    counters,
    one_of,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from fastdqn.envs.sources.source import EnvSource

pytestmark = [
    pytest.mark.usefixtures("nothing_left"),
    pytest.mark.filterwarnings("ignore:.*ERROR"),  # Gymnasium's class logs each error twice
]

ROOT = Path(__file__).parents[2]
SECONDS_TO_NOTICE = 5.0


# Killed


def _kill(envs: GroupedVectorEnv, worker: int) -> str:
    """Kill a worker and return what must be said of it."""
    process = envs.processes[worker]
    os.kill(process.pid, signal.SIGKILL)
    return rf"worker {worker} \(pid {process.pid}, environments {{}}\) ended with SIGKILL"


def test_a_killed_worker_is_named_at_once_and_close_works() -> None:
    envs = GroupedVectorEnv(counters(4), num_workers=2)
    envs.reset()
    envs.step([0] * 4)
    said = _kill(envs, 1).format("2 to 3")
    start = time.monotonic()
    with pytest.raises(WorkerError, match=said):
        _step_until_it_fails(envs)
    for method, arguments in (("reset", ()), ("step", ([0] * 4,)), ("get_attr", ("t",))):
        with pytest.raises(WorkerError, match=said):
            getattr(envs, method)(*arguments)
    envs.close()
    assert time.monotonic() - start < SECONDS_TO_NOTICE


def _step_until_it_fails(envs: GroupedVectorEnv) -> None:
    """A message may still fit into the pipe of a process that is just dying."""
    for _ in range(100):
        envs.step([0] * envs.num_envs)


@pytest.mark.parametrize("timeout", [None, 60.0])
def test_a_worker_killed_within_a_step_is_named(timeout: float | None) -> None:
    envs = GroupedVectorEnv(one_of(partial(HangingEnv, 1), 1, 2), num_workers=2)
    envs.reset()
    envs.step_async([0, 0])
    said = _kill(envs, 1).format("1 to 1")
    start = time.monotonic()
    with pytest.raises(WorkerError, match=said):
        envs.step_wait(timeout)
    envs.close()
    assert time.monotonic() - start < SECONDS_TO_NOTICE


def test_a_killed_worker_is_named_though_another_one_hangs() -> None:
    """The hanging worker is asked first; it might wait for a permit that the dead one held."""
    envs = GroupedVectorEnv(one_of(partial(HangingEnv, 0), 0, 2), num_workers=2)
    envs.reset()
    envs.step_async([0, 0])
    said = _kill(envs, 1).format("1 to 1")
    start = time.monotonic()
    with pytest.raises(WorkerError, match=said):
        envs.step_wait()
    envs.close(terminate=True)
    assert time.monotonic() - start < SECONDS_TO_NOTICE


def test_a_killed_worker_fails_a_rollout_source_too() -> None:
    envs = GroupedVectorEnv(counters(2), num_workers=2, autoreset_mode=AutoresetMode.SAME_STEP)
    rows = source_of(envs)
    rows.reset([1, 2])
    said = _kill(envs, 0).format("0 to 0")
    with pytest.raises(WorkerError, match=said):
        _step_source(rows)
    rows.close()


def _step_source(rows: EnvSource) -> None:
    for _ in range(100):
        rows.send(np.zeros(2, np.int64))
        rows.recv()


def test_the_exit_code_of_a_worker_that_left_is_reported() -> None:
    factories = one_of(partial(CrashingEnv, 1, error=SystemExit), 1, 2)
    envs = GroupedVectorEnv(factories, num_workers=2)
    envs.reset()
    with pytest.raises(WorkerError, match=r"worker 1 .* ended with exit code 1"):
        envs.step([0, 0])
    envs.close()


# Hanging


def test_a_hanging_environment_ends_a_rollout_with_a_named_timeout(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    envs = GroupedVectorEnv(
        one_of(partial(HangingEnv, 1), 1, 2),
        num_workers=2,
        autoreset_mode=AutoresetMode.SAME_STEP,
    )
    rows = source_of(envs)
    rows.reset([1, 2])
    monkeypatch.setattr(source, "REPLY_DEADLINE_S", 0.2)
    rows.send(np.zeros(2, np.int64))
    said = r"worker 1 \(pid \d+, environments 1 to 1\) has not answered within 0.2 s"
    with pytest.raises(multiprocessing.TimeoutError, match=said):
        rows.recv()
    with pytest.warns(UserWarning, match="while waiting for a pending call to `step`"):
        envs.close(timeout=0.1)


# Raising


def _crashing(**kwargs: Any) -> list[Callable[[], Any]]:
    """Four counters; the third raises."""
    return one_of(partial(CrashingEnv, 2, **kwargs), 2, 4)


def _assert_named(error: BaseException) -> None:
    message = str(error)
    assert re.match(r"environment 2 raised( on action \d)?:\nTraceback", message)
    assert "oracles.py" in message
    assert "out of luck" in message


@pytest.mark.parametrize("where", ["step", "reset"])
def test_what_an_environment_raises_comes_through_with_its_index_and_traceback(
    where: str,
) -> None:
    envs = GroupedVectorEnv(_crashing(where=where, at=2), num_workers=2)
    envs.reset()
    with pytest.raises(CrashError, match=r"^out of luck$") as raised:
        _step_until_it_fails(envs)
    assert isinstance(raised.value.__cause__, WorkerError)
    _assert_named(raised.value.__cause__)
    obs, _ = envs.reset()
    assert obs[:, 2].tolist() == [0] * 4
    assert envs.step([0] * 4)[0][:, 2].tolist() == [1] * 4
    envs.close()


def test_what_a_constructor_raises_comes_through_and_no_worker_stays() -> None:
    with pytest.raises(CrashError, match=r"^out of luck$") as raised:
        GroupedVectorEnv(_crashing(where="constructor"), num_workers=2)
    assert isinstance(raised.value.__cause__, WorkerError)
    _assert_named(raised.value.__cause__)


def test_a_constructor_that_leaves_the_worker_is_named() -> None:
    with pytest.raises(WorkerError, match=r"worker 1 .* environments 2 to 3.* exit code 1"):
        GroupedVectorEnv(_crashing(where="constructor", error=SystemExit), num_workers=2)


def test_a_factory_that_cannot_be_sent_leaves_no_worker_behind() -> None:
    """The first worker has been started when the second one's factories are pickled."""
    generator = (i for i in range(3))
    with pytest.raises(TypeError, match="pickle"):
        GroupedVectorEnv([*counters(1), lambda: next(generator)], num_workers=2)  # type: ignore[arg-type]


@pytest.mark.parametrize("error", [UnpicklableError, partial(HalfPicklableError, 7)])
@pytest.mark.parametrize("where", ["step", "constructor"])
def test_an_exception_that_cannot_travel_becomes_a_worker_error(where: str, error: Any) -> None:
    envs = None
    with pytest.raises(WorkerError) as raised:  # noqa: PT012 - either line may raise
        envs = GroupedVectorEnv(_crashing(where=where, error=error), num_workers=2)
        envs.reset()
        envs.step([0] * 4)
    _assert_named(raised.value)
    if envs is not None:
        with pytest.raises(ClosedEnvironmentError, match="raised and was shut down: reset it"):
            envs.call("now")
        envs.reset()
        assert envs.call("now") == (0, 0, 0, 0)
        envs.close()


def test_an_info_that_cannot_travel_is_an_error_of_this_step_only() -> None:
    envs = GroupedVectorEnv(one_of(partial(ChattyEnv, 1), 1, 2), num_workers=2)
    envs.reset()
    with pytest.raises(TypeError, match="pickle"):
        envs.step([0, 0])
    assert envs.get_attr("t") == (1, 1)
    envs.close()


def test_an_environment_that_raises_in_close_does_not_keep_the_vector_open() -> None:
    envs = GroupedVectorEnv(one_of(partial(CrashingEnv, 1, where="close"), 1, 2), num_workers=1)
    envs.reset()
    start = time.monotonic()
    envs.close()
    assert time.monotonic() - start < SECONDS_TO_NOTICE


# Leaving nothing behind


def test_ten_vectors_leave_no_process_no_file_descriptor_and_no_shared_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    prefix = f"fastdqn-test-{os.getpid()}"
    config = multiprocessing.current_process()._config  # type: ignore[attr-defined]
    monkeypatch.setitem(config, "semprefix", f"/{prefix}")
    _open_and_close()  # starts the resource tracker, which may stay
    before, children = _descriptors(), multiprocessing.active_children()
    for _ in range(9):
        _open_and_close()
    assert _descriptors() == before
    assert multiprocessing.active_children() == children
    assert not list(Path("/dev/shm").glob(f"*{prefix}*"))


def _open_and_close() -> None:
    envs = GroupedVectorEnv(counters(2), num_workers=1, max_concurrency=1)
    envs.reset()
    envs.step([0, 0])
    envs.close()


def _descriptors() -> int:
    return len(os.listdir("/dev/fd"))  # noqa: PTH208 - the directory's own descriptor counts too


# Scripts


def _script(text: str, tmp_path: Path) -> subprocess.Popen[str]:
    """Start a script as the leader of a process group of its own."""
    path = tmp_path / "script.py"
    path.write_text(text)
    return subprocess.Popen(
        [sys.executable, str(path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


def _is_running(pid: int) -> bool:
    """Return whether a process lives; one that is dead and not yet waited for does not."""
    answer = subprocess.run(
        ["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False
    )
    return answer.stdout.strip()[:1] not in {"", "Z"}


LOSES_ITS_PARENT = """
import time
from fastdqn.envs.grouped import GroupedVectorEnv
from tests.oracles import counters

if __name__ == "__main__":
    all_envs = [
        GroupedVectorEnv(counters(2), num_workers=2, context=context)
        for context in ("spawn", "forkserver", "fork", "fork")
    ]
    for envs in all_envs:
        envs.reset()
    print(*(process.pid for envs in all_envs for process in envs.processes), flush=True)
    while {stepping}:
        for envs in all_envs:
            envs.step([0, 0])
    time.sleep(60)
"""


@pytest.mark.parametrize(
    "stepping",
    [pytest.param(False, id="idle", marks=pytest.mark.slow), pytest.param(True, id="stepping")],
)
def test_workers_leave_when_their_parent_is_killed(stepping: bool, tmp_path: Path) -> None:
    with _script(LOSES_ITS_PARENT.format(stepping=stepping), tmp_path) as parent:
        assert parent.stdout is not None
        pids = [int(pid) for pid in parent.stdout.readline().split()]
        assert len(pids) == 8
        assert all(map(_is_running, pids))
        parent.kill()
        deadline = time.monotonic() + SECONDS_TO_NOTICE
        while any(map(_is_running, pids)) and time.monotonic() < deadline:
            time.sleep(0.05)
        left = [pid for pid in pids if _is_running(pid)]
        for pid in left:
            os.kill(pid, signal.SIGKILL)
    assert left == []


NO_GUARD = """
import warnings
import gymnasium as gym
from fastdqn import GroupedVectorEnv
from fastdqn.envs.specs.ids import factory_of
from tests.oracles import CounterEnv

print("the script runs", flush=True)
warnings.simplefilter("ignore")

class Trouble(Exception):
    pass

class Local(CounterEnv):
    def step(self, action):
        if action == 2:
            raise Trouble(self.env_id)
        return super().step(action)

gym.register("Local-v0", entry_point=Local, kwargs={"env_id": 6})
gym.register("ByName-v0", entry_point="__main__:Local", kwargs={"env_id": 7})
factories = [Local, lambda: Local(5), factory_of("Local-v0"), factory_of("ByName-v0")]
envs = GroupedVectorEnv(factories, num_workers=2)
envs.reset(seed=0)
print(envs.step([0, 1, 0, 1])[0].tolist())
try:
    envs.step([0, 0, 0, 2])
except Trouble as trouble:
    print("in trouble:", trouble)
"""


@pytest.mark.slow
def test_a_script_without_a_guard_runs_once_and_may_define_anything(tmp_path: Path) -> None:
    """And it may forget to close."""
    with _script(NO_GUARD, tmp_path) as script:
        out, err = script.communicate(timeout=60)
    assert out.splitlines() == [
        "the script runs",
        "[[0.0, 0.0, 1.0], [5.0, 0.0, 1.0], [6.0, 0.0, 1.0], [7.0, 0.0, 1.0]]",
        "in trouble: 7",
    ]
    assert (err, script.returncode) == ("", 0)


CTRL_C = """
import os, signal, time
from functools import partial
from fastdqn.envs.grouped import GroupedVectorEnv
from tests.oracles import HangingEnv

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell ignores it after `&`
envs = GroupedVectorEnv([partial(HangingEnv, i, at=1, sleep_s=0.3) for i in (0, 1)], num_workers=2)
envs.reset()
try:
    envs.step_async([1, 2])
    os.killpg(0, signal.SIGINT)
    time.sleep(10)
except KeyboardInterrupt:
    print("interrupted")
print((envs.step_wait()[1] % 4).tolist(), [process.is_alive() for process in envs.processes])
print((envs.step([2, 0])[1] % 4).tolist())
envs.close()
"""


def test_ctrl_c_reaches_the_parent_alone_and_the_step_is_not_lost(tmp_path: Path) -> None:
    with _script(CTRL_C, tmp_path) as script:
        out, err = script.communicate(timeout=60)
    assert out.splitlines() == [
        "interrupted",
        "[1.0, 2.0] [True, True]",
        "[2.0, 0.0]",
    ]
    assert (err, script.returncode) == ("", 0)
