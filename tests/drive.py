"""Builds vectors of every kind, rolls them out into a replay ring, and reads the ring back."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv

from fastdqn.envs.grouped import GroupedVectorEnv
from fastdqn.envs.workers.process import without_main_module
from fastdqn.networks.flat_network import FlatNetwork
from fastdqn.networks.mlp import mlp_for
from fastdqn.policies.policy import Policy
from fastdqn.replay import ReplayBuffer, gather
from fastdqn.training.host.rollout import HostRollout
from fastdqn.transition import storage_dtype
from tests.oracles import EnvFactory, Stored

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from fastdqn.envs.sources.source import EnvSource
    from fastdqn.training.events import Episode

KINDS = ("grouped 0", "grouped 1", "grouped 2", "grouped 4", "async", "sync")
MODES = (AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP, AutoresetMode.DISABLED)

Vector = AsyncVectorEnv | SyncVectorEnv


def vector_of(kind: str, factories: Sequence[EnvFactory], mode: AutoresetMode) -> Vector:
    """Build a vector of one of KINDS; its workers are forks of a server, see `quick_starts`."""
    if kind == "sync":
        return SyncVectorEnv(factories, autoreset_mode=mode)
    if kind.startswith("grouped"):
        workers = int(kind.split()[1])
        return GroupedVectorEnv(
            factories, context="forkserver", autoreset_mode=mode, num_workers=workers
        )
    with without_main_module():
        return AsyncVectorEnv(factories, context="forkserver", autoreset_mode=mode)


def random_policy(source: EnvSource, seed: int = 0) -> Policy:
    """Return a policy over a small network; with epsilon 1 its actions are uniform."""
    env = source.description
    return Policy(FlatNetwork(mlp_for(env.obs_space, env.num_actions, (4,))), seed)


def rollout_of(
    source: EnvSource, capacity: int = 8000, seed: int = 0, on_nonfinite: str = "raise"
) -> HostRollout:
    """Return a rollout that acts at random and writes into a ring of its own."""
    env = source.description
    dtype = storage_dtype(env.obs_dtype)
    replay = ReplayBuffer(
        capacity,
        source.num_envs,
        env.obs_shape,
        dtype,
        num_masked=env.num_masked,
        num_groups=source.num_groups,
    )
    policy = random_policy(source, seed)
    return HostRollout(source, policy, replay, on_nonfinite=on_nonfinite)


def roll(rollout: HostRollout, vector_steps: int, epsilon: float = 1.0) -> list[Episode]:
    """Take vector steps, with random actions if nothing else is said; return what ended."""
    episodes: list[Episode] = []
    for _ in range(vector_steps):
        rollout.send(epsilon)
        rollout.collect()
        episodes += rollout.write()
    return episodes


def everything_in(replay: ReplayBuffer) -> Stored:
    """Return every transition that can be drawn, newest first."""
    return stored_at(replay, replay.newest(1, len(replay))[0])


def stored_at(replay: ReplayBuffer, index: torch.Tensor) -> Stored:
    """Return the transitions at flat indices of the ring."""
    rows = gather(replay.ring, index)
    parts = (rows.obs, rows.action, rows.reward, rows.next_obs, rows.terminated, rows.truncated)
    stored, mask = Stored(*(part.numpy() for part in parts)), rows.next_action_mask
    return stored if mask is None else replace(stored, next_action_mask=mask.numpy())
