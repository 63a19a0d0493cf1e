"""Presets: each is a Config, and each lesson adds what its sentence says."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest

from fastdqn.config import Config
from fastdqn.errors import UsageError
from fastdqn.presets import NOT_MEASURED, PRESETS, preset_config

ROOT = Path(__file__).parents[2]


def differences(one: Config, other: Config) -> set[str]:
    return {f.name for f in fields(Config) if getattr(one, f.name) != getattr(other, f.name)}


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_carries_its_name_and_nothing_else_beside_its_settings(name: str) -> None:
    assert differences(preset_config(name), PRESETS[name].config) == {"preset"}
    assert preset_config(name).preset == name


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_leaves_machine_and_folder_to_the_user(name: str) -> None:
    free = {"seed", "num_workers", "vectorizer", "device", "execution", "run_dir", "quiet"}
    assert differences(PRESETS[name].config, Config()).isdisjoint(free)


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_says_in_a_sentence_what_it_does(name: str) -> None:
    assert PRESETS[name].summary.endswith(".")
    assert len(PRESETS[name].summary) < 100


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_says_what_to_expect_and_how_that_is_known(name: str) -> None:
    preset = PRESETS[name]
    measured = re.findall(r"measured: (\S+?)(?:;|$)", preset.source)
    assert "settings: " in preset.source
    assert (preset.expected == NOT_MEASURED) == (not measured)
    assert all((ROOT / file).is_file() for file in measured)


@pytest.mark.parametrize(("name", "least"), [("lunarlander", 220.0), ("cartpole", 485.0)])
def test_the_expected_score_is_below_that_of_every_seed_in_the_measurement(
    name: str, least: float
) -> None:
    assert f"greedy mean >= {least:g}" in PRESETS[name].expected
    runs = json.loads((ROOT / f"benchmarks/results/{name}-solved-2-cores.json").read_text())
    means = list(_fresh_means(runs))
    assert len(means) == 10
    assert min(means) >= least


def _fresh_means(found: Any) -> Iterator[float]:
    """Yield the means of fresh greedy episodes, wherever they stand in a file of results."""
    if isinstance(found, dict):
        yield from (value for key, value in found.items() if key == "fresh_mean")
    for part in found.values() if isinstance(found, dict) else found:
        if isinstance(part, dict | list):
            yield from _fresh_means(part)


@pytest.mark.parametrize("name", ["lunarlander", "cartpole", "acrobot", "mountaincar"])
def test_the_presets_that_solve_ask_for_no_less_than_the_environment_does(name: str) -> None:
    config = preset_config(name)
    threshold = gym.spec(config.env_id).reward_threshold
    assert config.stop_at_return is not None
    assert threshold is not None
    assert config.stop_at_return >= threshold
    assert config.eval_episodes >= 100


def test_the_bare_lesson_is_greedy_without_replay_and_without_a_target() -> None:
    bare = preset_config("lesson-bare")
    assert (bare.double, bare.target, bare.replay, bare.batch_size) == (False, "none", "newest", 1)
    assert (bare.epsilon_schedule, bare.epsilon_start) == ("constant", 0.0)


def test_each_lesson_adds_to_the_one_before() -> None:
    bare, replay, target, double = (
        preset_config(f"lesson-{step}") for step in ("bare", "replay", "target", "double")
    )
    assert differences(bare, replay) == {"preset", "replay", "batch_size"}
    assert replay.replay == "uniform"
    assert differences(replay, target) >= {"target", "target_period_episodes", "epsilon_start"}
    assert (target.target, target.double) == ("hard", False)
    assert target.epsilon_start > target.epsilon_end > 0
    assert (double.double, double.target) == (True, "soft")
    assert differences(double, preset_config("lesson-per")) == {"preset", "replay"}
    assert preset_config("lesson-per").replay == "prioritized"


def test_the_lessons_run_in_one_environment_and_for_the_same_time() -> None:
    lessons = [preset_config(name) for name in PRESETS if name.startswith("lesson")]
    assert len(lessons) == 5
    assert (
        len({(lesson.env_id, lesson.total_timesteps, lesson.num_envs) for lesson in lessons}) == 1
    )


@pytest.mark.parametrize(
    ("name", "hint"),
    [("lunarlandr", "Did you mean lunarlander?"), ("zzz", f"Choose {', '.join(PRESETS)}.")],
)
def test_an_unknown_preset_is_refused_with_a_way_out(name: str, hint: str) -> None:
    with pytest.raises(UsageError) as refused:
        preset_config(name)
    assert str(refused.value) == f"--preset {name}: there is no such preset. {hint}"
