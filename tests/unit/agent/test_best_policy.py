"""The best policy of real runs: kept, saved, loaded, gone on from, and without any effect."""

from __future__ import annotations

import copy
import csv
import errno
import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.envs.classic_control import CartPoleEnv
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from fastdqn import DQN, CheckpointError, UsageError
from fastdqn.cli.commands import main
from fastdqn.reporting import best_policy
from fastdqn.training import checkpoint
from fastdqn.training.callbacks import Callback
from fastdqn.training.checkpoint import load_policy, save_policy
from fastdqn.training.events import Episode, Evaluation
from tests.masked import MaskedCounterEnv
from tests.small_agents import SMALL

pytestmark = pytest.mark.usefixtures("no_plots")

OFTEN: dict[str, Any] = {**SMALL, "eval_episodes": 3, "eval_interval": 100, "log_interval": 100}
CARTPOLE = "CartPole-v1"


def small(env: Any = CARTPOLE, **settings: Any) -> DQN:
    return DQN(env, **{**OFTEN, "quiet": True, **settings})


class Best(Callback):
    """Keeps the parameters of each best policy."""

    def __init__(self, agent: DQN) -> None:
        self.agent, self.evaluations = agent, list[tuple[int, Evaluation]]()
        self.parameters: dict[str, torch.Tensor] = {}
        self.episodes: list[Episode] = []
        self.twin: DQN | None = None

    def on_evaluation(self, env_steps: int, evaluation: Evaluation, reached: bool) -> None:
        self.evaluations.append((env_steps, evaluation))
        if evaluation.best:
            self.parameters = {name: t.clone() for name, t in self.agent.parameters().items()}
            self.twin = copy.deepcopy(self.agent)

    def on_episodes(self, episodes: Any) -> None:
        self.episodes += episodes


def rows_of(run: Path) -> list[dict[str, str]]:
    with (run / "evaluations.csv").open() as stream:
        return list(csv.DictReader(stream))


def best_in(run: Path) -> dict[str, Any]:
    assert (run / "checkpoints" / "best").is_dir()
    description = load_policy(run, "best").description
    assert "evaluation" in description
    return dict(description["evaluation"])


def test_the_best_policy_of_a_run_is_saved_loaded_and_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    agent, run = small(quiet=False, checkpoint_interval=50), tmp_path / "run"
    seen = Best(agent)
    agent.learn(600, run_dir=run, callback=seen)
    rows, out = rows_of(run), capsys.readouterr().out
    assert [int(row["env_step"]) for row in rows] == [*range(100, 700, 100)]
    assert [int(row["best"]) for row in rows] == [found.best for _, found in seen.evaluations]
    best = max((row for row in rows if row["best"] == "1"), key=lambda row: float(row["mean"]))
    assert best_in(run) == {
        "env_step": int(best["env_step"]),
        "mean": float(best["mean"]),
        "std": float(best["std"]),
        "episodes": 3,
    }
    result = json.loads((run / "result.json").read_text())["return"]
    assert (result["best_mean"], result["best_env_step"]) == (
        float(best["mean"]),
        int(best["env_step"]),
    )
    loaded = DQN.load(run, policy="best")
    assert loaded.describe()["env_steps"] == int(best["env_step"])
    for name, tensor in loaded.parameters().items():
        assert torch.equal(tensor, seen.parameters[name])
    assert seen.twin is not None
    assert seen.twin.describe()["env_steps"] == int(best["env_step"])
    assert len(list((run / "checkpoints").iterdir())) == 4  # three of the rotation
    assert ", the best so far" in out
    assert f"policy of env step {int(best['env_step']):,}" in out
    assert out.splitlines()[-1].endswith(f"fastdqn evaluate {run} --policy best")
    capsys.readouterr()
    assert main(["evaluate", str(run), "--policy", "best", "--episodes", "2"]) == 0
    shown = capsys.readouterr().out
    assert main(["evaluate", str(run / "checkpoints" / "best"), "--episodes", "2"]) == 0
    assert capsys.readouterr().out == shown


def test_a_later_call_keeps_the_best_policy_until_it_is_beaten(tmp_path: Path) -> None:
    agent = small()
    agent.learn(300, run_dir=tmp_path)
    folder = tmp_path / "checkpoints" / "best"
    path = folder / "policy.json"
    saved = load_policy(folder)
    evaluation = {"env_step": 200, "mean": 1e6, "std": 1.0, "episodes": 3}
    shutil.rmtree(folder)
    save_policy(folder, saved.parameters, {**saved.description, "evaluation": evaluation})
    before = path.read_text()
    agent.learn(300)
    assert path.read_text() == before
    assert {row["best"] for row in rows_of(tmp_path)[-4:]} == {"0"}
    result = json.loads((tmp_path / "result.json").read_text())["return"]
    assert (result["best_mean"], result["best_env_step"]) == (1e6, 200)
    evaluation["mean"] = -1.0
    shutil.rmtree(folder)
    save_policy(folder, saved.parameters, {**saved.description, "evaluation": evaluation})
    agent.learn(300)
    assert best_in(tmp_path)["mean"] > 0
    path.write_text("{}")
    agent.learn(300)
    assert "The best policy so far is not kept" in (tmp_path / "log.txt").read_text()


def test_what_a_full_disk_refuses_is_saved_when_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right, calls = checkpoint.save_best, list[int]()

    def save_best(*arguments: Any) -> None:
        calls.append(0)
        if len(calls) < 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        right(*arguments)

    monkeypatch.setattr(best_policy, "save_best", save_best)
    small(eval_interval=300).learn(300, run_dir=tmp_path)
    log = (tmp_path / "log.txt").read_text()
    assert "Could not write the best policy of env step 300" in log
    assert "No space left" in log
    assert "Could write the best policy" in log
    assert best_in(tmp_path)["env_step"] == 300


def same_returns(**settings: Any) -> DQN:
    """Return an agent in whose environment no policy is better than another."""
    return small(env_kwargs={"sutton_barto_reward": True}, **settings)


def test_what_a_full_disk_refused_is_kept_by_later_calls_and_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    agent = same_returns()
    with monkeypatch.context() as patch:
        patch.setattr(best_policy, "save_best", full)
        for _ in range(2):
            agent.learn(200, run_dir=tmp_path)
    assert not (tmp_path / "checkpoints" / "best").exists()
    twin, other = copy.deepcopy(agent), tmp_path / "other"
    twin.learn(200, run_dir=other)
    assert best_in(other)["env_step"] == 500
    agent.learn(200)
    assert best_in(tmp_path)["env_step"] == 100
    agent.learn(200, run_dir=tmp_path / "another")
    assert best_in(tmp_path / "another")["env_step"] == 700


def test_a_best_policy_that_a_crash_left_aside_is_still_the_one_to_beat(tmp_path: Path) -> None:
    agent = same_returns()
    agent.learn(200, run_dir=tmp_path)
    folder = tmp_path / "checkpoints" / "best"
    folder.rename(folder.with_name(".replaced-best"))
    agent.learn(200)
    assert load_policy(tmp_path, "best").description["evaluation"]["env_step"] == 100
    result = json.loads((tmp_path / "result.json").read_text())["return"]
    assert result["best_env_step"] == 100


@pytest.mark.parametrize(
    "settings",
    [
        {"vectorizer": "tensor"},
        {"vectorizer": "grouped", "num_workers": 0, "env_groups": 2},
        {"vectorizer": "grouped", "num_workers": 0, "execution": "native"},
    ],
    ids=["tensor", "groups", "native"],
)
def test_a_training_with_evaluations_is_the_one_without(
    tmp_path: Path, settings: dict[str, Any]
) -> None:
    left = []
    for interval in (0, 50):
        run = tmp_path / str(interval)
        small(eval_interval=interval, **settings).learn(400, run_dir=run)
        left.append((run / "episodes.csv").read_text())
        assert (len(rows_of(run)) > 4) == (interval > 0)
    assert left[0] == left[1]


@pytest.mark.slow
def test_a_training_of_workers_with_evaluations_is_the_one_without(tmp_path: Path) -> None:
    left = []
    for interval in (0, 100):
        run = tmp_path / str(interval)
        agent = small(vectorizer="grouped", num_workers=2, eval_interval=interval)
        agent.learn(600, run_dir=run)
        left.append((run / "episodes.csv").read_text())
    assert left[0] == left[1]


def test_masks_and_arguments_of_environments_hold_in_evaluations(tmp_path: Path) -> None:
    agent = small(partial(MaskedCounterEnv, 0, 5))
    agent.learn(150, run_dir=tmp_path / "masked")
    assert best_in(tmp_path / "masked")["episodes"] == 3
    agent = small(env_kwargs={"sutton_barto_reward": True})
    agent.learn(150, run_dir=tmp_path / "rewarded")
    assert best_in(tmp_path / "rewarded")["mean"] == -1.0


class Drawing(CartPoleEnv):
    """Draws from the global generator while it is built, played and closed."""

    def __init__(self) -> None:
        super().__init__()
        np.random.random(3)

    def step(self, action: Any) -> Any:
        obs, reward, *rest = super().step(action)  # type: ignore[no-untyped-call]
        return obs, reward + np.random.random(), *rest

    def close(self) -> None:
        np.random.random(3)


@pytest.mark.parametrize("vectorizer", ["sync", "grouped"])
def test_environments_that_draw_while_they_are_built_change_nothing(
    tmp_path: Path, vectorizer: str
) -> None:
    left = []
    for interval in (0, 100):
        run = tmp_path / str(interval)
        agent = small(Drawing, vectorizer=vectorizer, num_workers=0, eval_interval=interval)
        np.random.seed(3)
        agent.learn(200, run_dir=run)
        agent.learn(200)
        left.append((run / "episodes.csv").read_text())
    assert left[0] == left[1]


class Lonely(CartPoleEnv):
    """A simulator of one client: a second one fails when it is reset."""

    client = 0

    def reset(self, **kwargs: Any) -> Any:
        if Lonely.client not in {0, id(self)}:
            raise ConnectionError("port 9000 is taken")
        Lonely.client = id(self)
        return super().reset(**kwargs)

    def close(self) -> None:
        Lonely.client *= Lonely.client != id(self)


def test_environments_that_fail_in_an_evaluation_end_no_training(tmp_path: Path) -> None:
    settings = {**SMALL, "num_envs": 1, "quiet": True}
    agent = DQN(Lonely, **settings)
    try:
        agent.learn(200, run_dir=tmp_path)
    except ConnectionError as error:
        pytest.fail(f"the training ended: {error}")
    assert agent.describe()["env_steps"] == 200
    assert json.loads((tmp_path / "result.json").read_text())["status"] == "completed"
    log = (tmp_path / "log.txt").read_text()
    assert log.count("No evaluations, and no best policy: no fresh environments") == 1
    assert "(ConnectionError: port 9000 is taken)" in log
    with pytest.raises(ConnectionError, match="port 9000"):
        DQN(Lonely, **settings, eval_interval=100).learn(200)


class Lucky(CartPoleEnv):
    """Ends after five steps; its return says with which seed it was reset."""

    def reset(self, **kwargs: Any) -> Any:
        obs, info = super().reset(**kwargs)
        self.steps, self.luck = 0, float(self.np_random.random())
        return obs, info

    def step(self, action: Any) -> Any:
        self.steps += 1
        obs, *_ = super().step(action)  # type: ignore[no-untyped-call]
        return obs, self.luck, self.steps == 5, False, {}


def test_no_call_of_learn_plays_episodes_of_another_or_of_evaluate(tmp_path: Path) -> None:
    agent = small(Lucky, eval_interval=100)
    played = []
    for _ in range(3):
        seen = Best(agent)
        agent.learn(200, run_dir=tmp_path, callback=seen)
        played += [found.returns.tolist() for _, found in seen.evaluations]
        agent.save(tmp_path / "saved")
    seen = Best(loaded := DQN.load(tmp_path / "saved", Lucky, eval_interval=100, quiet=True))
    loaded.learn(200, callback=seen)
    played += [found.returns.tolist() for _, found in seen.evaluations]
    played.append(agent.evaluate(20, seed=agent.config.seed).returns.tolist())
    returns = [return_ for each in played for return_ in each]
    assert len(returns) == len(set(returns)) == 3 * 2 * 3 + 2 * 3 + 20


def test_the_end_of_a_run_is_not_evaluated_on_the_episodes_of_evaluate(tmp_path: Path) -> None:
    agent = small(Lucky, eval_interval=0)
    seen = Best(agent)
    agent.learn(200, run_dir=tmp_path, callback=seen)
    ((_, found),) = seen.evaluations
    again = agent.evaluate(3, seed=agent.config.seed)
    assert not set(found.returns) & set(again.returns)


# Which trainings are evaluated


def test_without_a_folder_only_what_was_asked_for_is_evaluated() -> None:
    silent = DQN(CARTPOLE, **SMALL)
    seen = Best(silent)
    silent.learn(12_000 // 60, callback=seen)
    assert seen.evaluations == []
    asked = DQN(CARTPOLE, **{**SMALL, "eval_interval": 100, "eval_episodes": 2})
    seen = Best(asked)
    asked.learn(200, callback=seen)
    assert [env_steps for env_steps, _ in seen.evaluations] == [100, 200]


def test_environments_of_the_caller_are_not_evaluated_and_the_log_says_so_once(
    tmp_path: Path,
) -> None:
    envs = SyncVectorEnv([lambda: gym.make(CARTPOLE)] * 2, autoreset_mode=AutoresetMode.SAME_STEP)
    settings = {name: OFTEN[name] for name in ("learning_starts", "batch_size", "execution")}
    DQN(envs, quiet=True, **settings).learn(200, run_dir=tmp_path / "run")
    log = (tmp_path / "run" / "log.txt").read_text()
    assert log.count("No evaluations, and no best policy") == 1
    assert not (tmp_path / "run" / "checkpoints" / "best").exists()
    with pytest.raises(UsageError, match="eval_interval=100 with environments that the caller"):
        DQN(envs, eval_interval=100, **settings)
    small().save(tmp_path / "saved")
    DQN.load(tmp_path / "saved", envs)
    envs.close()


# Refused


def test_a_choice_that_there_is_not_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small().save(tmp_path / "saved")
    with pytest.raises(UsageError, match="no folder of a run"):
        DQN.load(tmp_path / "saved", policy="best")
    with pytest.raises(UsageError, match=r"policy='first'.*Choose best or last"):
        DQN.load(tmp_path / "saved", policy="first")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="has been read already"):
        DQN.load(load_policy(tmp_path / "saved"), policy="best")
    assert main(["evaluate", str(tmp_path / "saved"), "--policy", "best"]) == 2
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    with pytest.raises(CheckpointError, match=r"holds no best policy.*--policy last"):
        DQN.load(run, policy="best")
    shutil.copytree(tmp_path / "saved", run / "checkpoints" / "best")
    with pytest.raises(CheckpointError, match="It holds a best policy: --policy best"):
        DQN.load(run)
    (run / "checkpoints" / "best").rename(run / "checkpoints" / ".replaced-best")
    assert DQN.load(run, policy="best").predict(np.zeros(4)).shape == ()
    capsys.readouterr()


def test_a_return_to_stop_at_needs_evaluations() -> None:
    with pytest.raises(UsageError, match="--eval-interval 0 with --stop-at-return 9"):
        small(stop_at_return=9.0, eval_interval=0)
