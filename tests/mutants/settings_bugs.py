"""Bugs of inherited settings, of what saved outputs mean, and of memory that is counted."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from fastdqn import config
from fastdqn.agent import loading, memory_check, network, saved_parts
from fastdqn.algorithms.distributional import C51Objective
from fastdqn.algorithms.quantiles import QRObjective

__all__ = ["PLANTED"]

INHERITED = "tests/unit/agent/test_inherited_settings.py::test_"
SAVED = "tests/unit/agent/test_saved_parts.py::test_what_would_give_saved_outputs_another_meaning"
MEMORY = "tests/unit/agent/test_memory_check.py::test_"

PLANTED: dict[str, tuple[Callable[[], None], tuple[str, ...]]] = {
    "settings of a preset that stay without effect": (
        partial(setattr, config, "idle_in", lambda *_: set()),
        (INHERITED + "a_switch_takes_back_what_the_preset_says_beside_it",),
    ),
    "atoms that are loaded as quantiles": (
        partial(setattr, loading, "refuse_other_objective", lambda *_: None),
        (SAVED + "_is_refused[quantiles]", SAVED + "_is_refused[an upper end]"),
    ),
    "a support that may change at loading": (
        partial(setattr, saved_parts, "OF_OUTPUTS", {}),
        (SAVED + "_is_refused[a lower end]", SAVED + "_is_refused[a support]"),
    ),
    "objects that are taken for any objective": (
        partial(setattr, saved_parts, "NAMES", {}),
        (SAVED + "_is_refused[an object]",),
    ),
    "memory of an update that is not counted": (
        partial(setattr, network, "refuse_many_numbers", lambda *_: None),
        (MEMORY + "memory_is_counted_to_the_byte",),
    ),
    "pairs of quantiles counted once": (
        partial(setattr, memory_check, "PAIRS", {C51Objective: 1, QRObjective: 1}),
        (MEMORY + "memory_is_counted_to_the_byte",),
    ),
    "fractions whose embedding is not counted": (
        partial(setattr, memory_check, "NUM_COSINES", 0),
        (MEMORY + "the_fractions_of_iqn_are_counted_in_every_row",),
    ),
}
"""Name -> what plants the bug, and tests that must turn red."""
