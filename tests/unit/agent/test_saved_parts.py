"""A saved policy is loaded where its outputs keep their meaning, and refused elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fastdqn import (
    DQN,
    C51Objective,
    IQNObjective,
    MunchausenObjective,
    QRObjective,
    UsageError,
)
from tests.small_agents import OWN_PROCESS

pytestmark = pytest.mark.usefixtures("one_thread")

OTHERS: dict[str, tuple[str, dict[str, Any], str]] = {
    "quantiles": ("c51", {"objective": "qr"}, "objective='qr' for .* with objective='c51'"),
    "any quantiles": ("qr", {"objective": "iqn"}, "objective='iqn' for .* with objective='qr'"),
    "one number": ("iqn", {"objective": "dqn"}, "objective='dqn' for .* with objective='iqn'"),
    "atoms": ("qr", {"objective": "c51"}, "objective='c51' for .* with objective='qr'"),
    "a lower end": ("c51", {"v_min": -10}, "v_min=-10 for .* with v_min=-200.0"),
    "an upper end": ("c51", {"v_max": np.float32(1000)}, "v_max=.* with v_max=200.0"),
    "fewer atoms": ("c51", {"num_atoms": 11}, "num_atoms=11 for .* with num_atoms=51"),
    "fewer quantiles": ("qr", {"num_quantiles": 5}, "num_quantiles=5 for .* num_quantiles=51"),
    "an object": ("c51", {"objective": QRObjective()}, "objective='qr' for"),
    "an object of any": ("qr", {"objective": IQNObjective()}, "objective='iqn' for"),
    "a support": ("c51", {"objective": C51Objective(v_max=9.0)}, "v_max=9.0 for"),
}


@pytest.mark.parametrize("case", OTHERS)
def test_what_would_give_saved_outputs_another_meaning_is_refused(
    case: str, tmp_path: Path
) -> None:
    name, given, words = OTHERS[case]
    agent = DQN("CartPole-v1", objective=name, **OWN_PROCESS)
    agent.save(tmp_path)
    with pytest.raises(UsageError, match=words):
        DQN.load(tmp_path, **given)


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("c51", {"objective": "c51", "num_atoms": 51, "v_min": -200, "v_max": np.float64(200)}),
        ("c51", {"objective": C51Objective()}),
        ("qr", {"objective": QRObjective(double=False)}),
        ("iqn", {"num_quantiles": 7}),
        ("iqn", {"objective": IQNObjective(num_quantiles=7)}),
        ("dqn", {"objective": "munchausen", "munchausen_alpha": 0.5}),
        ("dqn", {"objective": MunchausenObjective()}),
    ],
)
def test_what_means_the_same_is_loaded(name: str, given: dict[str, Any], tmp_path: Path) -> None:
    agent = DQN("CartPole-v1", objective=name, **OWN_PROCESS)
    agent.save(tmp_path)
    again = DQN.load(tmp_path, **given)
    assert torch.equal(again.learner.state.online, agent.learner.state.online)
