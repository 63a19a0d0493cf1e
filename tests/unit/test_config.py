"""Settings: what is accepted, what is refused and how the refusal reads."""

from __future__ import annotations

import ast
import json
import math
from dataclasses import FrozenInstanceError, fields, replace
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import fastdqn.config
from fastdqn.config import Config, choices_of, flag_of, plain, spelled
from fastdqn.errors import UsageError
from fastdqn.foundation.objective_checks import OF_OBJECTIVES

AT_LEAST_ONE = (
    "total_timesteps num_envs env_groups buffer_size batch_size epsilon_decay_steps "
    "eval_episodes cpu_threads log_interval checkpoint_interval"
)
NOT_NEGATIVE = (
    "seed num_workers target_period target_period_episodes learning_starts max_worker_restarts"
)
NOT_NEGATIVE_NUMBERS = "weight_decay learning_rate learning_rate_end"
POSITIVE_NUMBERS = "replay_ratio clip_norm clip_value worker_deadline_s"
FRACTIONS = "gamma epsilon_start epsilon_end"
POSITIVE_FRACTIONS = "tau epsilon_decay_factor"
WIDE = Config(total_timesteps=10**12, buffer_size=10**10)


def changed(name: str, value: object) -> Config:
    changes: dict[str, Any] = {name: value}
    return replace(WIDE, **changes)


def refusal(name: str, value: object) -> UsageError:
    with pytest.raises(UsageError) as refused:
        changed(name, value)
    shown = repr(value) if isinstance(value, str) else spelled(value)
    choices = choices_of(Config.__dataclass_fields__[name])
    assert refused.value.got == f"{flag_of(name)} {value if choices else shown}"
    assert refused.value.way_out
    return refused.value


def test_the_defaults_are_accepted_and_frozen() -> None:
    config = Config()
    with pytest.raises(FrozenInstanceError):
        config.seed = 1  # type: ignore[misc]


@given(st.sampled_from(AT_LEAST_ONE.split()), st.integers(max_value=0))
def test_sizes_below_one_are_refused(name: str, value: int) -> None:
    refusal(name, value)


@given(st.sampled_from(f"{AT_LEAST_ONE} {NOT_NEGATIVE}".split()), st.integers(1, 10**9))
def test_sizes_from_one_on_are_accepted(name: str, value: int) -> None:
    ample: dict[str, Any] = {"learning_starts": 0, "batch_size": 1, "num_envs": 1}
    if name == "env_groups":
        ample["num_envs"] = value
    assert getattr(replace(WIDE, **{**ample, name: value}), name) == value


@given(st.sampled_from(NOT_NEGATIVE.split()), st.integers(max_value=-1))
def test_counts_below_zero_are_refused(name: str, value: int) -> None:
    assert refusal(name, value).reason == "it must not be negative"


@pytest.mark.parametrize("name", f"{NOT_NEGATIVE} {NOT_NEGATIVE_NUMBERS}".split())
def test_counts_of_zero_are_accepted(name: str) -> None:
    assert getattr(changed(name, 0), name) == 0


@given(
    st.sampled_from(f"{NOT_NEGATIVE_NUMBERS} {POSITIVE_NUMBERS}".split()),
    st.floats(max_value=0, exclude_max=True, allow_infinity=False),
)
def test_negative_numbers_are_refused(name: str, value: float) -> None:
    refusal(name, value)


@pytest.mark.parametrize("name", POSITIVE_NUMBERS.split())
def test_zero_is_refused_where_a_number_must_be_positive(name: str) -> None:
    assert refusal(name, 0.0).reason == "it must be positive"


@given(
    st.sampled_from(f"{FRACTIONS} {POSITIVE_FRACTIONS}".split()),
    st.floats(allow_nan=False, allow_infinity=False).filter(lambda value: not 0 <= value <= 1),
)
def test_fractions_outside_the_unit_interval_are_refused(name: str, value: float) -> None:
    assert "1]" in refusal(name, value).reason


@given(
    st.sampled_from(f"{FRACTIONS} {POSITIVE_FRACTIONS}".split()),
    st.floats(0, 1, exclude_min=True),
)
def test_fractions_inside_are_accepted(name: str, value: float) -> None:
    assert getattr(changed(name, value), name) == value


def test_zero_is_a_fraction_of_some_settings_and_not_of_others() -> None:
    for name in FRACTIONS.split():
        changed(name, 0.0)
    for name in POSITIVE_FRACTIONS.split():
        assert refusal(name, 0.0).reason == "it must lie in (0, 1]"


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, "0.5", True, 1j])
@pytest.mark.parametrize(
    "name", [field.name for field in fields(Config) if str(field.type).startswith("float")]
)
def test_numbers_that_are_none_are_refused(name: str, value: object) -> None:
    assert refusal(name, value).reason == "it must be a finite number"


@pytest.mark.parametrize("value", [3, ["dqn"], np.array(["dqn", "mse"]), np.array([1, 2])])
@pytest.mark.parametrize("name", [field.name for field in fields(Config) if choices_of(field)])
def test_what_is_no_word_is_no_choice(name: str, value: object) -> None:
    assert refusal(name, value).reason == "there is no such choice"


@pytest.mark.parametrize("value", ["8", True, 2.5, np.float32(2.5), np.array([8])])
@pytest.mark.parametrize(
    "name", [field.name for field in fields(Config) if str(field.type).startswith("int")]
)
def test_counts_that_are_no_whole_numbers_are_refused(name: str, value: object) -> None:
    assert refusal(name, value).reason.removesuffix(" or auto") == "it must be a whole number (int)"


@pytest.mark.parametrize("value", [1e3, np.int64(1000), np.float32(1000), np.array(1000)])
@pytest.mark.parametrize(
    "name", [field.name for field in fields(Config) if str(field.type).startswith("int")]
)
def test_whole_numbers_may_be_numpys_or_written_as_1e3(name: str, value: object) -> None:
    ample: dict[str, Any] = {"learning_starts": 0, name: value}
    if name == "env_groups":
        ample["num_envs"] = 1_000
    if name in OF_OBJECTIVES:
        ample["objective"] = OF_OBJECTIVES[name][0]
    kept = getattr(replace(WIDE, **ample), name)
    assert (kept, type(kept)) == (1_000, int)


@pytest.mark.parametrize(
    ("name", "value", "plain_value"),
    [
        ("learning_rate", np.float32(0.5), 0.5),
        ("gamma", np.array(0.5), 0.5),
        ("stop_at_return", np.int16(7), 7),
        ("double", np.False_, False),
        ("double", 0, False),
        ("hidden_sizes", np.array([64, 32]), (64, 32)),
        ("hidden_sizes", [np.int8(64), 32.0], (64, 32)),
        ("run_dir", "here", Path("here")),
        ("env_id", np.str_("CartPole-v1"), "CartPole-v1"),
        ("device", torch.device("cpu"), "cpu"),
        ("wrapper", "TimeLimit(5)", ("TimeLimit(5)",)),
        ("wrapper", ["A", "B"], ("A", "B")),
        ("wrapper", None, ()),
        ("env_kwargs", None, {}),
        ("env_kwargs", MappingProxyType({"a": 1}), {"a": 1}),
    ],
)
def test_settings_are_kept_as_plain_values(name: str, value: object, plain_value: object) -> None:
    kept = getattr(changed(name, value), name)
    assert (kept, type(kept)) == (plain_value, type(plain_value))
    json.dumps(plain(changed(name, value)))


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("double", "no", "True or False"),
        ("double", 2, "True or False"),
        ("tensorboard", None, "True or False"),
        ("env_id", 5, "a word"),
        ("preset", b"cartpole", "a word"),
        ("run_dir", 5, "a path"),
        ("run_dir", "", "a path"),
        ("wrapper", 5, "a name or several"),
        ("wrapper", (1,), "a name or several"),
        ("env_kwargs", 5, "map names to values"),
        ("env_kwargs", {1: 2}, "map names to values"),
    ],
)
def test_values_of_another_type_are_refused(name: str, value: object, reason: str) -> None:
    assert reason in refusal(name, value).reason


@pytest.mark.parametrize("value", [(64, 0), (-1,), (8.5,), (True,), 64, "64"])
def test_hidden_sizes_that_are_no_sizes_are_refused(value: object) -> None:
    assert "whole number" in refusal("hidden_sizes", value).reason


def test_hidden_sizes_may_be_a_list_or_empty() -> None:
    assert tuple(changed("hidden_sizes", [64, 32]).hidden_sizes) == (64, 32)
    assert changed("hidden_sizes", ()).hidden_sizes == ()


@pytest.mark.parametrize(
    "field", [f for f in fields(Config) if choices_of(f)], ids=lambda f: f.name
)
def test_choices_are_held_in_python_too(field: Any) -> None:
    ample = replace(WIDE, target_period=1)
    for choice in choices_of(field):
        changes: dict[str, Any] = {field.name: choice}
        replace(ample, **changes)
    message = refusal(field.name, "nonsense")
    assert message.way_out == f"Choose {', '.join(choices_of(field))}."


def test_optional_settings_may_be_none_and_others_may_not() -> None:
    for field in fields(Config):
        if str(field.type).endswith("| None"):
            assert getattr(changed(field.name, None), field.name) is None
        elif str(field.type) in {"int", "float"}:
            refusal(field.name, None)


@pytest.mark.parametrize("value", ["Auto", "auto ", " auto", "", 0, -1, 1.5, True, None])
def test_the_size_of_the_ring_is_a_number_or_auto(value: object) -> None:
    assert refusal("buffer_size", value).reason.endswith(" or auto")
    assert changed("buffer_size", "auto").buffer_size == "auto"
    assert changed("buffer_size", np.str_("auto")).buffer_size == "auto"


def test_a_ring_whose_size_is_chosen_later_is_compared_with_nothing() -> None:
    asked = Config(buffer_size="auto", batch_size=10**6, num_envs=10**6, n_step=7)
    assert plain(asked)["buffer_size"] == "auto"


def test_no_other_number_may_be_auto() -> None:
    for name in ("batch_size", "num_envs", "gamma", "num_workers"):
        assert "auto" not in refusal(name, "auto").reason


@given(st.integers(2, 10**6), st.integers(1, 10**6))
def test_a_batch_fits_into_the_buffer_or_is_refused(batch: int, buffer: int) -> None:
    if batch <= buffer:
        Config(batch_size=batch, buffer_size=buffer, num_envs=1)
        return
    with pytest.raises(UsageError, match=f"--batch-size {batch}: .* --buffer-size {buffer}"):
        Config(batch_size=batch, buffer_size=buffer, num_envs=1)


@given(st.integers(0, 10**6), st.integers(1, 10**6))
def test_learning_starts_before_the_end_or_is_refused(start: int, total: int) -> None:
    if start < total:
        Config(learning_starts=start, total_timesteps=total)
        return
    with pytest.raises(UsageError, match=f"--learning-starts {start}: .*{total}"):
        Config(learning_starts=start, total_timesteps=total)


def test_a_vector_step_fits_into_the_buffer_or_is_refused() -> None:
    Config(num_envs=64, buffer_size=64, batch_size=8)
    with pytest.raises(UsageError, match=r"--num-envs 65: .* --buffer-size 64"):
        Config(num_envs=65, buffer_size=64, batch_size=8)


@given(st.integers(1, 64), st.integers(1, 64))
def test_groups_are_equally_large_or_refused(num_envs: int, groups: int) -> None:
    if num_envs % groups == 0:
        Config(num_envs=num_envs, env_groups=groups)
        return
    message = rf"--env-groups {groups}: --num-envs {num_envs} .* Choose --num-envs as a multiple"
    with pytest.raises(UsageError, match=message):
        Config(num_envs=num_envs, env_groups=groups)


@pytest.mark.parametrize("vectorizer", ["async", "sync", "envpool", "tensor"])
def test_only_our_own_workers_step_in_groups(vectorizer: Any) -> None:
    Config(vectorizer=vectorizer, env_groups=1)
    with pytest.raises(UsageError, match=f"--env-groups 2 with --vectorizer {vectorizer}: only"):
        Config(vectorizer=vectorizer, env_groups=2)


def test_a_hard_target_needs_one_of_two_periods() -> None:
    Config(target="hard", target_period=100)
    Config(target="hard", target_period_episodes=10)
    with pytest.raises(UsageError, match=r"--target hard: .*--target-period-episodes"):
        Config(target="hard")


def test_every_field_is_documented_below_it() -> None:
    tree = ast.parse(Path(fastdqn.config.__file__).read_text())
    body = next(n.body for n in tree.body if isinstance(n, ast.ClassDef) and n.name == "Config")
    documented = {
        node.target.id
        for node, below in pairwise(body)
        if isinstance(node, ast.AnnAssign)
        and isinstance(node.target, ast.Name)
        and isinstance(below, ast.Expr)
    }
    assert documented == {field.name for field in fields(Config)}


def test_settings_as_plain_values_survive_json() -> None:
    config = Config(run_dir=Path("runs/one"), hidden_sizes=(7,), clip_norm=None)
    values: dict[str, Any] = json.loads(json.dumps(plain(config), allow_nan=False))
    assert values["run_dir"] == "runs/one"
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
    again = Config(**values)
    assert replace(again, run_dir=config.run_dir) == config


IDLE = {
    "a learning rate that falls from 0": (
        {"lr_schedule": "linear", "learning_rate": 0.0},
        "--learning-rate 0.0 with --lr-schedule linear: nothing falls from 0.",
    ),
    "a learning rate that rises": (
        {"lr_schedule": "cosine", "learning_rate": 1e-3, "learning_rate_end": 2e-3},
        "--learning-rate-end 0.002 with --lr-schedule cosine: it lies above --learning-rate 0.001",
    ),
    "an end of a constant": (
        {"learning_rate_end": 1e-5},
        "--learning-rate-end 1e-05 with --lr-schedule constant: a constant learning rate has no ",
    ),
    "a ladder from no exploration": (
        {"epsilon_ladder": True, "epsilon_schedule": "constant", "epsilon_start": 0.0},
        "--epsilon-ladder with --epsilon-start 0.0: every power of 0 is 0",
    ),
    "a ladder from no exploration to none": (
        {"epsilon_ladder": True, "epsilon_start": 0.0, "epsilon_end": 0.0},
        "--epsilon-ladder with --epsilon-start 0.0: every power of 0 is 0",
    ),
    "an alpha below 0": (
        {"epsilon_ladder": True, "epsilon_ladder_alpha": -0.5},
        "--epsilon-ladder-alpha -0.5: it must not be negative.",
    ),
    "an alpha without end": (
        {"epsilon_ladder": True, "epsilon_ladder_alpha": math.inf},
        "--epsilon-ladder-alpha inf: it must be a finite number",
    ),
    "an alpha without a ladder": (
        {"epsilon_ladder_alpha": 3.0},
        "--epsilon-ladder-alpha 3.0 without a ladder: all environments explore alike. Add ",
    ),
}


@pytest.mark.parametrize("name", IDLE)
def test_schedules_that_have_no_effect_are_refused(name: str) -> None:
    settings, words = IDLE[name]
    with pytest.raises(UsageError) as refused:
        Config(**settings)  # type: ignore[arg-type]
    assert str(refused.value).startswith(words)


@pytest.mark.parametrize(
    "settings",
    [
        {"lr_schedule": "linear", "learning_rate": 1e-3, "learning_rate_end": 1e-3},
        {"lr_schedule": "cosine"},
        {"learning_rate": 0.0},
        {"epsilon_ladder": True, "epsilon_start": 0.0, "epsilon_end": 0.1},
        {"epsilon_ladder": True, "epsilon_ladder_alpha": 0.0, "num_envs": 1},
    ],
)
def test_schedules_at_the_edge_of_what_is_possible_are_accepted(settings: dict[str, Any]) -> None:
    assert Config(**settings)
