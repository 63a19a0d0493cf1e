"""How the environments of a vector are dealt out and stepped."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import gymnasium as gym
import numpy as np

from fastdqn.envs.workers.shared_block import RowSpec

__all__ = ["EnvFactory", "PoolSettings"]

EnvFactory = Callable[[], gym.Env[Any, Any]]


@dataclass(frozen=True)
class PoolSettings:
    """How the environments are dealt out and stepped.

    Attributes:
        spec: Layout of the shared block.
        num_workers: Processes, at most one per environment of a group.
        caller_envs: Environments of each group, the last ones, that the caller's process hosts.
        num_groups: Groups of environments, each stepped by signals of its own.
        autoreset_mode: Value of a Gymnasium AutoresetMode.
        send_infos: Whether infos are sent to the caller; if not, the hosts drop them.
        start_method: `spawn`, `forkserver` or `fork`.
        daemon: Whether workers end with the parent and may start no children of their own.
        max_concurrency: How many may run an environment at a time; None is all.
        obs_space: Space of an observation that does not lie in the block, or None.
        shared_obs: Gymnasium's shared memory for such observations; None pickles them.
        plain_actions: Whether environments get actions of the block as Python numbers, which are
            faster than NumPy's.
        refuse_masks: Whether an action mask in an info is refused, since it would be ignored.
        action_range: The smallest and the largest action, where the episodes are kept so that they
            can be played again; None keeps none.
        spin_s: Seconds to stay awake for a signal; 0 goes to sleep at once.
        name: Prefix of the process names.
    """

    spec: RowSpec
    num_workers: int = 0
    caller_envs: int = 0
    num_groups: int = 1
    autoreset_mode: str = "SameStep"
    send_infos: bool = False
    start_method: str = "spawn"
    daemon: bool = True
    max_concurrency: int | None = None
    obs_space: gym.Space[Any] | None = None
    shared_obs: Any = None
    plain_actions: bool = False
    refuse_masks: bool = False
    action_range: tuple[int, int] | None = None
    spin_s: float = 0.0
    name: str = "Workers"

    def spans(self) -> list[list[tuple[int, int]]]:
        """Return (first, last + 1) environment by share and group, in order.

        Workers have even shares; the caller's is the last one, where it takes one.
        """
        edges, num_envs = [], self.spec.num_envs
        for first, last in pairwise(range(0, num_envs + 1, num_envs // self.num_groups)):
            own = last - self.caller_envs
            even = np.linspace(first, own, self.num_workers + 1).astype(int).tolist()
            edges.append([*even, last] if self.caller_envs else even)
        return [list(spans) for spans in zip(*map(pairwise, edges), strict=True)]
