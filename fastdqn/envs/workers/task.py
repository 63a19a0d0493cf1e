"""The task of a host of environments."""

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
    """The task of one host.

    Attributes:
        first_env: Index of its first environment in the whole vector.
        num_envs: Its environments.
        spec: Layout of the block, for all environments.
        autoreset_mode: Value of a Gymnasium AutoresetMode.
        send_infos: Whether infos are sent to the caller; if not, they are dropped here.
        obs_space: Space of an observation that does not lie in the block, or None.
        plain_actions: Whether environments get actions of the block as Python numbers, which are
            faster than NumPy's.
        refuse_masks: Whether an action mask in an info is refused, since it would be ignored.
    """

    first_env: int
    num_envs: int
    spec: RowSpec
    autoreset_mode: str
    send_infos: bool
    obs_space: gym.Space[Any] | None = None
    plain_actions: bool = False
    refuse_masks: bool = False
