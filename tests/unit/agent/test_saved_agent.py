"""Agents that are saved with their replay ring, and loaded to learn on."""

from __future__ import annotations

import re
import shutil
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import torch

from fastdqn import DQN
from fastdqn.errors import CheckpointError, UsageError
from fastdqn.training.callbacks import Callback
from fastdqn.training.checkpoint import load_policy
from tests.saved_trainings import differences

SMALL: dict[str, Any] = {
    "num_envs": 4,
    "num_workers": 0,
    "learning_starts": 40,
    "batch_size": 8,
    "buffer_size": 150,
    "hidden_sizes": (16,),
    "execution": "eager",
}
make = partial(DQN, "CartPole-v1", **SMALL)


class SavesAt(Callback):
    """Saves an agent in the middle of a call of `learn`."""

    def __init__(self, agent: DQN, folder: Path, env_steps: int) -> None:
        self.agent, self.folder, self.env_steps = agent, folder, env_steps

    def on_checkpoint(self, trainer: Any) -> None:
        if not self.folder.exists() and trainer.rollout.env_steps >= self.env_steps:
            self.agent.save(self.folder, replay=True)


@pytest.mark.parametrize(
    "settings",
    [
        {"replay": "prioritized", "n_step": 3, "amsgrad": True},
        {"vectorizer": "tensor", "noisy": True},
        pytest.param({"env_groups": 2, "objective": "iqn"}, marks=pytest.mark.slow),
    ],
)
def test_learn_save_load_learn_is_learn_learn(
    settings: dict[str, Any], tmp_path: Path, one_thread: None
) -> None:
    agent = make(**settings).learn(220)
    agent.save(tmp_path / "agent", replay=True)
    again = DQN.load(tmp_path / "agent")
    assert differences(agent, again) == []
    agent.learn(160)
    assert differences(agent, again.learn(160)) == []
    assert [path.name for path in tmp_path.iterdir()] == ["agent"]
    again.save(tmp_path / "agent", replay=True)  # in the place of the other one
    assert differences(again, DQN.load(tmp_path / "agent")) == []


@pytest.mark.parametrize("vectorizer", ["grouped", "tensor"])
def test_what_was_saved_in_the_middle_of_learn_goes_on_there(
    vectorizer: str, tmp_path: Path, one_thread: None
) -> None:
    agent = make(vectorizer=vectorizer, checkpoint_interval=100, lr_schedule="linear")
    saves = SavesAt(agent, tmp_path / "agent", 200)
    agent.learn(400, callback=saves)
    saved = load_policy(tmp_path / "agent").description["env_steps"]
    assert 200 <= saved < 400
    again = DQN.load(tmp_path / "agent").learn(400 - saved)
    assert again.inexact == ()
    assert differences(agent, again) == []


def test_a_policy_alone_is_loaded_where_it_is_asked_for_or_other_settings_are(
    tmp_path: Path,
) -> None:
    agent = make().learn(200)
    agent.save(tmp_path / "agent", replay=True)
    load = partial(DQN.load, tmp_path / "agent")
    for policy_alone in (
        load(training=False),
        load(buffer_size=300),
        DQN.load(load_policy(tmp_path / "agent")),
    ):
        assert len(policy_alone.replay) == 0
        assert policy_alone.describe()["env_steps"] == 200
        for name, tensor in agent.parameters().items():
            assert torch.equal(policy_alone.parameters()[name], tensor)
    assert len(load(num_workers=None, eval_interval=1000).replay) == len(agent.replay)
    with pytest.raises(UsageError, match=r"buffer_size=300 with training=True: .* saved with 150"):
        load(buffer_size=300, training=True)
    with pytest.raises(UsageError, match="training=True: only the newest policy"):
        DQN.load(load_policy(tmp_path / "agent"), training=True)


def test_a_policy_alone_cannot_go_on_as_a_training(tmp_path: Path) -> None:
    make().save(tmp_path / "agent")
    with pytest.raises(CheckpointError, match="holds a policy and no state of a training"):
        DQN.load(tmp_path / "agent", training=True)
    assert DQN.load(tmp_path / "agent").describe()["env_steps"] == 0


def test_a_run_that_came_to_its_end_is_loaded_as_its_policy_or_goes_on_where_asked(
    tmp_path: Path,
) -> None:
    settings: dict[str, Any] = {"run_dir": tmp_path / "run", "quiet": True, "eval_interval": 0}
    agent = make(**settings, replay_ratio=0.25).learn(222)
    policy = DQN.load(tmp_path / "run")
    for name, tensor in agent.parameters().items():
        assert torch.equal(policy.parameters()[name], tensor)
    assert policy.describe()["updates"] == agent.describe()["updates"]
    assert len(policy.replay) == 0
    whole = DQN.load(tmp_path / "run", training=True)
    assert len(whole.replay) == len(agent.replay)
    whole.learn(100)
    assert whole.describe()["updates"] == int((whole.describe()["env_steps"] - 40) * 0.25)


def test_the_setting_replay_is_one_of_load_as_before(tmp_path: Path) -> None:
    make(replay="prioritized").learn(100).save(tmp_path / "agent", replay=True)
    assert DQN.load(tmp_path / "agent", replay="uniform").config.replay == "uniform"


def test_a_damaged_training_is_refused_by_its_file(tmp_path: Path) -> None:
    make().learn(100).save(tmp_path / "agent", replay=True)
    chunk = tmp_path / "agent" / "replay" / "chunk-00000.safetensors"
    content = bytearray(chunk.read_bytes())
    content[-1] ^= 1
    chunk.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"chunk-00000.safetensors is damaged"):
        DQN.load(tmp_path / "agent")


def test_an_older_training_is_not_taken_in_silence_where_the_newest_policy_has_none(
    tmp_path: Path,
) -> None:
    """As after a run that failed within a step, or whose ring met a full disk."""
    checkpoints = tmp_path / "run" / "checkpoints"
    agent = make().learn(100)
    agent.save(checkpoints / "step-000000000100", replay=True)
    agent.learn(60).save(checkpoints / "step-000000000160")
    words = r"step-000000000100 is loaded.*step-000000000160 holds a policy and no.*training=False"
    with pytest.warns(UserWarning, match=words):
        assert DQN.load(tmp_path / "run").describe()["env_steps"] == 100
    assert DQN.load(tmp_path / "run", training=False).describe()["env_steps"] == 160
    (checkpoints / "step-000000000100" / "optimizer.safetensors").unlink()
    with pytest.raises(CheckpointError, match="training=False"):
        DQN.load(tmp_path / "run")


def test_a_forged_value_is_refused_by_folder_part_and_name(tmp_path: Path) -> None:
    make().learn(100).save(tmp_path / "agent", replay=True)
    path = tmp_path / "agent" / "state.json"
    _, _, rest = path.read_bytes().partition(b"\n")
    forged = re.sub(rb'("ratio":{[^}]*"updates":)\d+', rb"\g<1>0", rest)
    assert forged != rest
    path.write_bytes(b'{"sha256": "%s",\n' % sha256(forged).hexdigest().encode() + forged)
    with pytest.raises(CheckpointError, match=r"agent ratio: its updates is 0: \d+ would be due"):
        DQN.load(tmp_path / "agent")


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "agent").mkdir()
    (tmp_path / "agent" / "thesis.txt").write_text("mine")
    with pytest.raises(UsageError, match="thesis"):
        make().save(tmp_path / "agent", replay=True)
    assert (tmp_path / "agent" / "thesis.txt").read_text() == "mine"
    shutil.rmtree(tmp_path / "agent")


def test_whether_the_whole_training_is_saved_is_yes_or_no(tmp_path: Path) -> None:
    agent: Any = DQN("CartPole-v1", num_envs=1, num_workers=0, execution="eager")
    with pytest.raises(UsageError, match="replay 'no': it must be True or False"):
        agent.save(tmp_path / "agent", replay="no")
    assert not (tmp_path / "agent").exists()
