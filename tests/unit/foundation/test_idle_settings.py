"""Settings without effect: refused where they are named, left out where they are inherited."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import numpy as np
import pytest

from fastdqn.config import Config, with_named
from fastdqn.errors import UsageError
from fastdqn.foundation.idle_settings import SWITCHES, idle_in

OTHER: dict[str, Any] = {
    "priority_alpha": 0.5,
    "priority_beta_start": 0.5,
    "priority_beta_end": 0.5,
    "priority_eps": 0.5,
    "learning_rate_end": 1e-5,
    "epsilon_ladder_alpha": 3.0,
    "loss": "mse",
    "num_atoms": 11,
    "v_min": -1.0,
    "v_max": 1.0,
    "num_quantiles": 5,
    "munchausen_alpha": 0.5,
    "munchausen_temperature": 0.5,
    "munchausen_clip": -2.0,
}
OFF: dict[str, tuple[Any, ...]] = {
    "replay": ("uniform", "newest", np.str_("uniform")),
    "lr_schedule": ("constant",),
    "epsilon_ladder": (False, 0, np.False_),
    "objective": ("dqn", "c51", "qr", "iqn", "munchausen"),
}


def pairs() -> list[tuple[str, Any]]:
    return [
        (name, off)
        for name, switch in SWITCHES.items()
        for off in OFF[switch.name]
        if off not in switch.on
    ]


def test_the_table_knows_fields_and_possible_values_only() -> None:
    known = {field.name for field in fields(Config)}
    assert set(OTHER) == set(SWITCHES)
    assert known.issuperset(SWITCHES)
    for switch in SWITCHES.values():
        for on in switch.on:
            assert getattr(Config(**{switch.name: on}), switch.name) == on  # type: ignore[arg-type]


@pytest.mark.parametrize(("name", "off"), pairs())
def test_what_is_named_is_refused_and_what_is_inherited_is_the_defaults_again(
    name: str, off: Any
) -> None:
    switch = SWITCHES[name]
    inherited = Config(**{switch.name: switch.on[0], name: OTHER[name]})
    assert getattr(with_named(inherited, {switch.name: off}), name) == getattr(Config(), name)
    with pytest.raises(UsageError) as refused:
        with_named(inherited, {switch.name: off, name: OTHER[name]})
    assert refused.value.reason == switch.reason
    assert refused.value.way_out.startswith(f"Add --{switch.name.replace('_', '-')}")


@pytest.mark.parametrize("name", OTHER)
def test_what_has_an_effect_is_inherited(name: str) -> None:
    switch = SWITCHES[name]
    for on in switch.on:
        inherited = Config(**{switch.name: switch.on[0], name: OTHER[name]})
        found = with_named(inherited, {switch.name: on, "seed": 7})
        assert getattr(found, name) == OTHER[name]


def test_missing_settings_count_as_the_defaults() -> None:
    assert idle_in(Config, {}) == idle_in(Config, vars(Config())) == SWITCHES.keys() - {"loss"}
    assert "epsilon_ladder_alpha" not in idle_in(Config, {"epsilon_ladder": 1})


@pytest.mark.parametrize("value", [None, [], {}, b"c51", 3])
def test_values_that_are_no_choice_are_refused_by_name(value: Any) -> None:
    for name, flag in (("objective", "--objective"), ("epsilon_ladder", "--epsilon-ladder")):
        with pytest.raises(UsageError, match=flag):
            with_named(Config(), {name: value})
