"""What a host of environments is to do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gymnasium as gym

from fastdqn.envs.workers.shared_block import RowSpec

__all__ = ["EnvFactory", "Task"]

EnvFactory = Callable[[], gym.Env[Any, Any]]


@dataclass(frozen=True)
class Task:
    """What a host is to do.

    Attributes:
        first_env: Index of its first environment in the whole vector.
        num_envs: Its environments.
        spec: Layout of the block, for all environments.
        autoreset_mode: Value of a Gymnasium AutoresetMode.
        send_infos: Whether infos travel; if not, they are dropped here.
        obs_space: Space of an observation that does not lie in the block, or None.
        plain_actions: Whether actions in the block reach environments as Python numbers, which
            they work with faster, and not as NumPy's.
        refuse_masks: Whether an action mask in an info is refused, which would be passed over.
    """

    first_env: int
    num_envs: int
    spec: RowSpec
    autoreset_mode: str
    send_infos: bool
    obs_space: gym.Space[Any] | None = None
    plain_actions: bool = False
    refuse_masks: bool = False
