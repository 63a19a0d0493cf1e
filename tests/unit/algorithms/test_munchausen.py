"""Munchausen: its softmax policy under masks, and what is refused."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastdqn.algorithms.munchausen import MunchausenObjective, log_policy, soft_value
from fastdqn.errors import UsageError


@settings(max_examples=50, deadline=None)
@given(
    q=st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=6),
    mask=st.lists(st.booleans(), min_size=6, max_size=6),
    temperature=st.floats(1 / 64, 10, width=32),
)
def test_the_policy_sums_to_1_over_what_is_allowed(
    q: list[float], mask: list[bool], temperature: float
) -> None:
    values, allowed = torch.tensor([q]), torch.tensor([mask[: len(q)]])
    fine = allowed if allowed.any() else torch.ones_like(allowed)
    logs = torch.cat(
        [log_policy(values, torch.tensor([a]), temperature, allowed) for a in range(len(q))]
    )
    assert (logs <= 0).all()
    assert logs[~fine[0]].isneginf().all()
    powers = (logs.double() / temperature).exp()
    scale = 1e-6 * max(map(abs, q)) / temperature
    assert powers.sum().item() == pytest.approx(1.0, abs=1e-4 + scale)
    best = values.masked_fill(~fine, -math.inf).max().item()
    value = soft_value(values, temperature, allowed).item()
    slack = 1e-5 * max(1.0, abs(best), temperature)
    assert best - slack <= value <= best + temperature * math.log(len(q)) + slack


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"alpha": 1.5}, r"--munchausen-alpha 1.5: it must lie in \[0, 1\]"),
        ({"alpha": -0.1}, "--munchausen-alpha -0.1"),
        ({"temperature": 0.0}, "--munchausen-temperature 0.0: it must be positive"),
        ({"clip": 0.0}, "--munchausen-clip 0.0: it must be negative"),
        ({"clip": 1.0}, "--munchausen-clip 1.0"),
        ({"temperature": 3e38}, r"3e\+38: it must be positive, from 1e-30 to 1e\+30"),
        ({"temperature": 1e-320}, r"1e-320: it must be positive, from 1e-30 to 1e\+30"),
        ({"clip": -1e300}, r"-1e\+300: it must be negative, from -1e\+30 to -1e-30"),
        ({"clip": -1e-40}, r"-1e-40: it must be negative, from -1e\+30 to -1e-30"),
        ({"temperature": math.nan}, "--munchausen-temperature nan"),
        ({"error_loss": "cubic"}, "--loss cubic"),
    ],
)
def test_what_cannot_be_is_refused(given: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        MunchausenObjective(**given)
