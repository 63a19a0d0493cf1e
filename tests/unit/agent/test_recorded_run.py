"""Training with a run directory from Python: what it leaves, says, refuses, and goes on with."""

from __future__ import annotations

import csv
import json
import shlex
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable
from contextlib import closing
from dataclasses import fields
from pathlib import Path
from typing import Any

import gymnasium
import gymnasium as gym
import pytest
import torch
from gymnasium.envs.classic_control import CartPoleEnv
from gymnasium.vector import SyncVectorEnv

from fastdqn import DQN, Config, UsageError
from fastdqn.cli.commands import main
from fastdqn.replay import UniformSampler
from fastdqn.reporting.plots import plot_run
from fastdqn.training.callbacks import Callback
from fastdqn.training.events import Report

pytestmark = pytest.mark.usefixtures("no_plots")

SMALL: dict[str, Any] = {
    "num_envs": 2,
    "num_workers": 0,
    "learning_starts": 64,
    "batch_size": 8,
    "execution": "eager",
    "eval_episodes": 2,
    "log_interval": 100,
}
FILES = {
    "config.json",
    "episodes.csv",
    "evaluations.csv",
    "log.txt",
    "metrics.jsonl",
    "result.json",
}


def small(env: Any = "CartPole-v1", **settings: Any) -> DQN:
    return DQN(env, **{**SMALL, **settings})


def result_in(run_dir: Path) -> dict[str, Any]:
    result: dict[str, Any] = json.loads((run_dir / "result.json").read_text())
    return result


def steps_in(run_dir: Path) -> list[str]:
    return sorted(path.name for path in (run_dir / "checkpoints").glob("step-*"))


def cartpole() -> gymnasium.Env[Any, Any]:
    return gymnasium.make("CartPole-v1")


def own_network() -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Linear(4, 7), torch.nn.ReLU(), torch.nn.Linear(7, 2))


# What is left


AGENTS: dict[str, Callable[[], tuple[DQN, list[str]]]] = {
    "an id": lambda: (small(), ["CartPole-v1", ""]),
    "a factory and a network": lambda: (
        small(cartpole, network=own_network()),
        [f"{__name__}.cartpole", "torch.nn.modules.container.Sequential"],
    ),
    "a vector": lambda: (
        small(SyncVectorEnv([cartpole] * 2)),
        ["gymnasium.vector.sync_vector_env.SyncVectorEnv", ""],
    ),
    "tensors": lambda: (small(vectorizer="tensor"), ["CartPole-v1", ""]),
}


@pytest.mark.plots
@pytest.mark.parametrize("kind", AGENTS)
def test_every_agent_can_leave_a_run_directory(
    tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    agent, origin = AGENTS[kind]()
    agent.learn(300, run_dir=tmp_path / "run")
    run = tmp_path / "run"
    assert {path.name for path in run.iterdir()} == {*FILES, "checkpoints", "plots"}
    assert (result_in(run)["status"], result_in(run)["env_steps"]) == ("completed", 300)
    config = json.loads((run / "config.json").read_text())
    resolved = config["resolved"]
    assert [resolved["environment"], resolved.get("network", "")] == origin
    assert resolved["num_parameters"] == sum(p.numel() for p in agent.parameters().values())
    network = own_network() if origin[1] else None
    env = "CartPole-v1" if kind == "tensors" else cartpole
    assert DQN.load(run, env, network=network).predict([0.0] * 4).shape == ()
    assert plot_run(run)[0].exists()
    out = capsys.readouterr().out
    assert "Completed after 300 env steps" in out
    logged = (run / "log.txt").read_text()
    assert all(line in logged for line in out.splitlines())


def test_settings_name_the_folder_and_what_lies_in_it(tmp_path: Path) -> None:
    agent = small(run_dir=tmp_path / "run", checkpoint_interval=100, tensorboard=True, quiet=True)
    agent.learn(300)
    run = tmp_path / "run"
    found = steps_in(run)  # but for one that was due while the one before was being written
    assert (found[0], found[-1]) == ("step-000000000100", "step-000000000300")
    assert set(found) <= {f"step-{n:012d}" for n in (100, 200, 300)}
    assert list((run / "tensorboard").glob("events.out.tfevents.*"))


def test_a_quiet_agent_prints_nothing_and_logs_all(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small(quiet=True).learn(300, run_dir=tmp_path)
    assert capsys.readouterr() == ("", "")
    logged = (tmp_path / "log.txt").read_text()
    assert "Completed after 300" in logged
    assert "evaluation at 300 steps" in logged


def test_an_agent_without_a_run_directory_prints_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    small().learn(200)
    assert capsys.readouterr() == ("", "")
    assert list(tmp_path.iterdir()) == []


def test_settings_without_effect_are_warned_of_where_they_are_written() -> None:
    with pytest.warns(UserWarning, match=r"hidden_sizes=\(9,\) \(the network was built by") as seen:
        small(network=own_network(), hidden_sizes=(9,))
    assert len(seen) == 1
    envs = SyncVectorEnv([lambda: gym.make("CartPole-v1")] * 2)
    words = r"num_workers=3 .*worker_deadline_s=5.0 .*num_envs=7 "
    with closing(envs), pytest.warns(UserWarning, match=words):
        DQN(envs, num_workers=3, worker_deadline_s=5.0, num_envs=7)


def test_what_a_file_says_beside_environments_of_the_caller_is_not_warned_of(
    tmp_path: Path,
) -> None:
    small(num_workers=0).save(tmp_path / "saved")
    envs = SyncVectorEnv([lambda: gym.make("CartPole-v1")] * 2)
    with closing(envs), warnings.catch_warnings():
        warnings.simplefilter("error")
        agent = DQN.load(tmp_path / "saved", envs)
    assert agent.config.num_envs == 2


TERMINATED = """
import os, signal, sys, threading, time
from fastdqn import DQN
agent = DQN("CartPole-v1", num_envs=2, num_workers=0, learning_starts=64, execution="eager",
            quiet=True, run_dir=sys.argv[1], log_interval=100)

def terminate():
    while agent.describe()["env_steps"] < 500:
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGTERM)

threading.Thread(target=terminate, daemon=True).start()
agent.learn(10**8)
"""


@pytest.mark.slow
def test_a_script_that_is_terminated_leaves_what_the_command_would(tmp_path: Path) -> None:
    command = [sys.executable, "-c", TERMINATED, str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (143, "")
    result = result_in(tmp_path / "run")
    assert result["status"] == "stopped"
    assert result["env_steps"] >= 500
    assert steps_in(tmp_path / "run") == [f"step-{result['env_steps']:012d}"]


def test_a_handler_of_the_callers_own_is_left_where_it_is(tmp_path: Path) -> None:
    seen: list[Any] = []

    class Looks(Callback):
        def on_report(self, report: Any) -> None:
            seen.append(signal.getsignal(signal.SIGTERM))

    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        small(quiet=True).learn(200, run_dir=tmp_path, callback=Looks())
        assert set(seen) == {signal.SIG_IGN} == {signal.getsignal(signal.SIGTERM)}
    finally:
        signal.signal(signal.SIGTERM, before)


class Leaving(CartPoleEnv):
    """Ends the program, as it thinks, in step 50."""

    steps = 0

    def step(self, action: Any) -> Any:
        type(self).steps += 1
        if self.steps > 50:
            raise SystemExit(3)
        return super().step(action)  # type: ignore[no-untyped-call]


def test_an_environment_that_leaves_the_program_does_not_cost_the_policy(tmp_path: Path) -> None:
    agent = DQN(Leaving, **{**SMALL, "num_envs": 1, "learning_starts": 8, "quiet": True})
    Leaving.steps = 0
    with pytest.raises(SystemExit, match="3"):
        agent.learn(200, run_dir=tmp_path / "run")
    assert result_in(tmp_path / "run")["status"] == "failed"
    assert steps_in(tmp_path / "run") == ["step-000000000050"]


def test_what_evaluates_a_run_names_what_no_file_may(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    module = "import gymnasium\nclass Own(gymnasium.Wrapper): pass"
    (tmp_path / "wrapped_here.py").write_text(module)
    monkeypatch.syspath_prepend(tmp_path)
    settings = {
        "wrapper": ("TimeLimit(9)", "wrapped_here:Own"),
        "env_kwargs": {"sutton_barto_reward": True},
    }
    small(**settings).learn(200, run_dir="run")
    tried = capsys.readouterr().out.splitlines()[-1].partition("fastdqn ")[2]
    assert main(shlex.split(tried)) == 0
    assert "mean length 9" in capsys.readouterr().out


# Going on


def test_a_later_call_goes_on_in_the_same_folder(tmp_path: Path) -> None:
    agent = small(quiet=True)
    agent.learn(300, run_dir=tmp_path / "a")
    agent.learn(200)
    agent.learn(100, run_dir=tmp_path / "a")
    result = result_in(tmp_path / "a")
    assert (result["env_steps"], result["updates"]) == (600, 134)
    with (tmp_path / "a" / "episodes.csv").open() as stream:
        numbers = [int(row["episode"]) for row in csv.DictReader(stream)]
    assert numbers == list(range(1, result["episodes"] + 1))
    lines = (tmp_path / "a" / "metrics.jsonl").read_text().splitlines()
    env_steps = [json.loads(line)["env_steps"] for line in lines]
    assert env_steps == sorted(env_steps)
    assert env_steps[-1] == 600
    assert len((tmp_path / "a" / "evaluations.csv").read_text().splitlines()) == 4
    agent.learn(100, run_dir=tmp_path / "b")
    agent.learn(100)
    assert result_in(tmp_path / "b")["env_steps"] == 800
    assert result_in(tmp_path / "a")["env_steps"] == 600


def test_another_agent_does_not_go_on_in_a_folder(tmp_path: Path) -> None:
    small(quiet=True).learn(200, run_dir=tmp_path)
    with pytest.raises(UsageError, match="already holds a run"):
        small(quiet=True).learn(200, run_dir=tmp_path)


# Ends before its time


class Raises(Callback):
    def __init__(self, error: BaseException) -> None:
        self.error = error

    def on_report(self, report: Report) -> None:
        if report.env_steps >= 200:
            raise self.error


@pytest.mark.parametrize(
    ("error", "status"), [(KeyboardInterrupt(), "stopped"), (RuntimeError("oh"), "failed")]
)
def test_what_ends_a_run_leaves_a_policy_and_goes_to_the_caller(
    tmp_path: Path, error: BaseException, status: str
) -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with pytest.raises(type(error)) as caught:
        small(quiet=True).learn(900, run_dir=tmp_path, callback=Raises(error))
    assert caught.value is error
    assert (result_in(tmp_path)["status"], steps_in(tmp_path)) == (status, ["step-000000000200"])
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


# Refused


@pytest.mark.parametrize(
    ("settings", "calls", "words"),
    [
        ({"tensorboard": True}, {}, "tensorboard=True without a run directory.*Pass run_dir"),
        ({"checkpoint_interval": 100}, {}, "checkpoint_interval=100 without a run directory"),
        ({"checkpoint_interval": 50_000}, {}, "checkpoint_interval=50000 without a run"),
        ({"quiet": False}, {}, "quiet=False without a run directory"),
        ({}, {"run_dir": 7}, "run_dir=7: it is no path"),
        ({}, {"run_dir": ""}, "run_dir='': it is no path"),
        ({}, {"run_dir": "new", "total_timesteps": 10}, "learning starts after 64"),
    ],
)
def test_what_cannot_apply_is_refused_and_leaves_nothing(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    settings: dict[str, Any],
    calls: dict[str, Any],
    words: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=words):
        small(**settings).learn(**{"total_timesteps": 200, **calls})
    assert list(tmp_path.iterdir()) == []


def test_an_id_beside_the_environment_is_refused() -> None:
    with pytest.raises(UsageError, match="env_id: the first argument names the environment"):
        small(env_id="Acrobot-v1")


def test_a_whole_config_and_a_loaded_policy_learn_without_a_folder(tmp_path: Path) -> None:
    """What they hold was not chosen one by one, and their defaults ask for nothing."""
    DQN.from_config(Config(env_id="CartPole-v1", **SMALL)).learn(200)
    agent = small(run_dir=tmp_path, tensorboard=True, quiet=True, checkpoint_interval=100)
    agent.learn(200)
    DQN.load(tmp_path).learn(200)
    with pytest.raises(UsageError, match="tensorboard=True without"):
        DQN.load(tmp_path, tensorboard=True).learn(200)


def test_every_setting_reaches_config_json(tmp_path: Path) -> None:
    small(run_dir=tmp_path, quiet=True, gamma=0.5).learn(200)
    kept = json.loads((tmp_path / "config.json").read_text())["config"]
    assert set(kept) == {field.name for field in fields(Config)}
    assert (kept["gamma"], kept["run_dir"], kept["num_envs"]) == (0.5, str(tmp_path), 2)


# Evaluating


def test_the_settings_of_evaluations_hold_in_evaluate() -> None:
    agent = small(eval_episodes=3, eval_max_steps=4)
    found = agent.evaluate()
    assert (found.episodes, found.num_cut, found.lengths.tolist()) == (3, 3, [4, 4, 4])
    assert agent.evaluate(2, max_steps=0).num_cut == 0
    with pytest.raises(UsageError, match="max_steps -1: it must be at least 0"):
        agent.evaluate(2, max_steps=-1)
    for strange in ("x", 2.5, True):
        with pytest.raises(UsageError, match="max_steps"):
            agent.evaluate(2, max_steps=strange)  # type: ignore[arg-type]


def test_an_evaluation_has_the_threads_of_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    before, seen = torch.get_num_threads(), []
    agent = small(cpu_threads=before + 1)
    agent.evaluate(1, max_steps=3)
    monkeypatch.setattr(
        "fastdqn.training.evaluation.evaluate",
        lambda *_, **__: seen.append(torch.get_num_threads()),
    )
    agent.evaluate(1)
    assert (seen, torch.get_num_threads()) == ([before + 1], before)


class Unsaveable(UniformSampler):
    """Says that it cannot be saved."""

    def state(self) -> Any:
        raise UsageError("the sampler", "its numbers lie elsewhere", "Do without.")


def test_checkpoints_of_a_policy_alone_are_kept_as_many_as_asked_for(tmp_path: Path) -> None:
    agent = small(checkpoint_interval=100, keep_last=2, sampler=Unsaveable)
    agent.learn(500, run_dir=tmp_path / "run")
    kept = sorted(path.name for path in (tmp_path / "run" / "checkpoints").glob("step-*"))
    assert kept[-1] == "step-000000000500"
    assert len(kept) <= 3  # the last one of a run is one more
    assert (
        "Checkpoints hold the policy alone: the sampler"
        in (tmp_path / "run" / "log.txt").read_text()
    )
