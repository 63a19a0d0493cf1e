"""Settings of presets and saved policies beside those that the caller names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import fastdqn.cli.train as train_file
from fastdqn import DQN, MLP, UsageError
from fastdqn.cli.commands import main
from fastdqn.config import Config

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL: dict[str, Any] = {"num_envs": 2, "num_workers": 0, "execution": "eager", "quiet": True}


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[Config]:
    """The settings of runs that would start now."""
    found: list[Config] = []

    def train(config: Config, _: float) -> int:
        found.append(config)
        return 0

    monkeypatch.setattr(train_file, "train", train)
    return found


@pytest.mark.parametrize(
    ("preset", "flag", "settings"),
    [
        ("mountaincar", "--no-epsilon-ladder", {"epsilon_ladder": False}),
        ("lesson-per", "--replay uniform", {"replay": "uniform"}),
        ("acrobot", "--objective c51", {"objective": "c51"}),
    ],
)
def test_a_switch_takes_back_what_the_preset_says_beside_it(
    preset: str, flag: str, settings: dict[str, Any], started: list[Config]
) -> None:
    assert main(["train", "--preset", preset, *flag.split()]) == 0
    (config,) = started
    by_name = DQN(config.env_id, preset=preset, wrapper=config.wrapper, **settings, **SMALL)
    for name, value in {**settings, "epsilon_ladder_alpha": 7.0, "preset": preset}.items():
        assert getattr(config, name) == getattr(by_name.config, name) == value
    assert config.stop_at_return == by_name.config.stop_at_return


def test_what_the_caller_names_beside_it_is_refused(
    started: list[Config], capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--no-epsilon-ladder", "--epsilon-ladder-alpha", "3"]
    assert main(["train", "--preset", "mountaincar", *flags]) == 2
    assert "--epsilon-ladder-alpha 3.0 without a ladder" in capsys.readouterr().err
    with pytest.raises(UsageError, match="without a ladder"):
        DQN("CartPole-v1", preset="mountaincar", epsilon_ladder=False, epsilon_ladder_alpha=3.0)
    assert not started


def test_a_switch_takes_back_what_a_saved_policy_says_beside_it(tmp_path: Path) -> None:
    saved: dict[str, Any] = {
        "lr_schedule": "linear",
        "learning_rate_end": 1e-5,
        "epsilon_ladder": True,
        "epsilon_ladder_alpha": 3.0,
        "replay": "prioritized",
        "priority_alpha": 0.5,
    }
    DQN("CartPole-v1", **saved, **SMALL).save(tmp_path)
    default = Config()
    named: dict[str, Any]
    for named, name in (
        ({"lr_schedule": "constant"}, "learning_rate_end"),
        ({"epsilon_ladder": False}, "epsilon_ladder_alpha"),
        ({"replay": "uniform"}, "priority_alpha"),
    ):
        config = DQN.load(tmp_path, **named).config
        expected = {**saved, **named, name: getattr(default, name)}
        assert {key: getattr(config, key) for key in expected} == expected
    with pytest.raises(UsageError, match="--learning-rate-end"):
        DQN.load(tmp_path, lr_schedule="constant", learning_rate_end=1e-5)


def test_a_return_of_the_preset_is_taken_back_as_the_message_says(
    started: list[Config], capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["train", "--preset", "cartpole", "--eval-interval", "0"]
    assert main(flags) == 2
    shown = " ".join(capsys.readouterr().err.split())
    assert shown.endswith(
        "Add --stop-at-return None to train to the end, or leave --eval-interval out."
    )
    assert main([*flags, "--stop-at-return", "None"]) == 0
    assert [(config.eval_interval, config.stop_at_return) for config in started] == [(0, None)]


def test_what_has_no_effect_beside_a_network_of_the_callers_own_is_not_refused() -> None:
    network = MLP((4,), 2, (8,))
    with pytest.warns(UserWarning, match="dueling=True"):
        agent = DQN("CartPole-v1", network=network, dueling=True, hidden_sizes=(1,), **SMALL)
    assert agent.network is network
    assert not agent.config.dueling
