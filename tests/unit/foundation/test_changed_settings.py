"""What may change when a run goes on, and how the rest is refused."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import pytest

from fastdqn.config import Config
from fastdqn.errors import UsageError
from fastdqn.foundation import changed_settings
from fastdqn.foundation.changed_settings import MAY_CHANGE, changes_of

RUN = "runs/mine"
ALL = [field.name for field in fields(Config)]


def changed(**settings: Any) -> list[str]:
    before = Config()
    return list(map(str, changes_of(before, replace(before, **settings), ALL, RUN)))


def test_nothing_changes_where_all_is_as_before() -> None:
    assert changed() == []


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"total_timesteps": 400_000}, "--total-timesteps 300000 -> 400000"),
        ({"checkpoint_every": "10m"}, "--checkpoint-every None -> 10m"),
        ({"stop_at_return": 475.0}, "--stop-at-return None -> 475.0"),
        ({"save_replay": False}, "--save-replay -> --no-save-replay"),
        ({"device": "cuda:1"}, "--device auto -> cuda:1"),
        ({"execution": "eager"}, "--execution auto -> eager"),
        ({"num_workers": 0}, "--num-workers None -> 0"),
    ],
)
def test_what_may_change_is_named_with_both_values(settings: dict[str, Any], line: str) -> None:
    assert changed(**settings) == [line]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"gamma": 0.5}, r"^--gamma 0.5 for runs/mine: the run began with --gamma 0.99, and may"),
        ({"num_envs": 8}, "transitions and open episodes of the environments"),
        ({"buffer_size": 50_000}, "its replay ring has the shape"),
        ({"hidden_sizes": (64, 64)}, "--hidden-sizes 64 64 .*--hidden-sizes 128 128"),
        ({"double": False}, "--no-double for .*began with --double"),
        ({"wrapper": ("TimeLimit(9)",)}, r"--wrapper TimeLimit\(9\) .*--wrapper nothing"),
        ({"learning_rate": 1e-3}, "it would be another run under the name of this one"),
        ({"run_dir": "x"}, "its own folder. Copy the folder, and resume the copy"),
        ({"seed": 1}, "its generators go on.* Leave --seed out, or begin another run"),
    ],
)
def test_all_else_is_refused_by_name_with_the_way_out(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        changed(**settings)


def test_only_what_is_compared_is_refused() -> None:
    before, after = Config(), Config(gamma=0.5, total_timesteps=7_000, preset="x")
    assert [c.name for c in changes_of(before, after, ["total_timesteps"], RUN)] == [
        "total_timesteps"
    ]
    assert changes_of(before, after, ["preset"], RUN, ignored=("preset",)) == []


def test_every_setting_is_listed_once_and_exists() -> None:
    assert set(ALL) >= MAY_CHANGE
    assert set(ALL) >= changed_settings.REASONS.keys()
    assert not MAY_CHANGE & changed_settings.REASONS.keys()
