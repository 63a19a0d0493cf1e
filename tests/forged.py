"""Policies that a stranger forged: any value in them, and a hash that is right."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import Tensor

__all__ = ["HOSTILE", "fields_of", "forge", "replaced", "told_by"]

HUGE, TINY = 10**18, 10**-300
HOSTILE: list[Any] = [
    *(None, True, False, 0, 1, -1, 2, 2**31, 2**53 + 1, -(2**63), HUGE, 10**400),
    *(0.5, -0.5, 1e308, -1e308, TINY, float("nan"), float("inf"), float("-inf")),
    *("", "x", "auto", "cuda:99", "../../x", "/etc/passwd", "\x00", "\x1b[31m", "x" * 5000, "1e5"),
    *(
        "forged_module:X-v0",
        "os:X-v0",
        "a.b:C",
        "CartPole-v1",
        "LunarLander-v3",
        "GymV26Environment-v0",
    ),
    *([], {}, [[]], [0], [-1], [1, 2, 3], [HUGE, HUGE], [1e9], ["x"], [None], [True], [[1]] * 50),
    *({"x": 1}, {"$tuple": 1}, {"$dtype": "object"}, {"": None}, {"why_not": 3}),
    {"id": "forged_module:X-v0", "kwargs": {}, "wrappers": []},
    {"id": "CartPole-v1", "kwargs": {"x": 1}, "wrappers": []},
    {"id": "CartPole-v1", "kwargs": [], "wrappers": {}},
    {"id": "GymV26Environment-v0", "kwargs": {"env_id": "forged_module:X-v0"}, "wrappers": []},
    *(
        {"id": "CartPole-v1", "kwargs": {}, "wrappers": [wrapper]}
        for wrapper in (
            *(None, {}, {"name": "TimeLimit"}, {"name": "TimeLimit", "kwargs": {}}),
            {"name": "X", "module": "forged_module", "kwargs": {}},
            {"name": "forged_module:X", "kwargs": {}},
            {"name": "vector", "kwargs": {}},
            {"name": "FrameStackObservation", "kwargs": {"stack_size": 10**9}},
            {"name": "DelayObservation", "kwargs": {"delay": -5}},
            {"name": "RecordVideo", "kwargs": {"video_folder": "forged_videos"}},
            {"name": "TransformReward", "kwargs": {"func": "print"}},
            {"name": "TimeLimit", "kwargs": {"max_episode_steps": 5}, "extra": 1},
        )
    ),
    ["forged_module:X"],
    ["RecordVideo('forged_videos')"],
    ["FrameStackObservation(1000000000)"],
    ["TimeLimit(__import__('forged_module'))"],
    ["NormalizeObservation", "FlattenObservation"],
]
"""Values for any place of a description."""


def forge(
    source: Path,
    target: Path,
    message: Mapping[str, Any],
    tensors: Mapping[str, Tensor] | None = None,
) -> Path:
    """Copy a policy with another description and maybe other tensors, and the right hash."""
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target)
    if tensors is not None:
        (target / "model.safetensors").write_bytes(save(dict(tensors)))
    content = (target / "model.safetensors").read_bytes()
    digest = hashlib.sha256(content + json.dumps(message, sort_keys=True).encode()).hexdigest()
    text = json.dumps({**message, "schema": 1, "sha256": digest})
    (target / "policy.json").write_text(text)
    return target


def told_by(policy: Path) -> dict[str, Any]:
    """Return the description of a policy without schema and hash."""
    message = json.loads((policy / "policy.json").read_text())
    return {name: value for name, value in message.items() if name not in {"schema", "sha256"}}


def fields_of(message: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Return the places of a description: its names, and those of its settings."""
    return [(name,) for name in message] + [("config", name) for name in message["config"]]


def replaced(message: Mapping[str, Any], place: tuple[str, ...], value: Any) -> dict[str, Any]:
    """Return a description with another value in a place."""
    if len(place) == 1:
        return {**message, place[0]: value}
    return {**message, "config": {**message["config"], place[1]: value}}
