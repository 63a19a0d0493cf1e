"""Refuses a training that does not fit into memory, before anything of it is built or started."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import nn

from fastdqn.agent.memory_check import refuse_many_numbers, refuse_wide
from fastdqn.agent.memory_parts import (
    EVALUATION_ENVS,
    atoms_of,
    items_beside_ring,
    processes_for,
)
from fastdqn.agent.memory_plan import MemoryPlan, reserve_of, rooms_of
from fastdqn.algorithms.objectives import Objective
from fastdqn.config import Config, flag_of, spelled
from fastdqn.envs.description import EnvDescription
from fastdqn.errors import UsageError
from fastdqn.foundation.formatting import format_bytes
from fastdqn.replay.sizes import FunctionalSizes, RingSizes, SkippingSizes
from fastdqn.transition import storage_dtype

__all__ = ["Training", "fitted"]

LARGE = 2**30
"""Bytes from which a ring is mentioned at the start of a run."""


@dataclass(frozen=True)
class Training:
    """What the memory that a training takes depends on.

    Attributes:
        config: The settings.
        env: One environment.
        network: The caller's own, or None.
        objective: What is learned.
        device: Of the ring and the network.
        tensor_envs: Whether the environments of the training live on the device.
        builds: Whether environments are built here, and not by the caller.
        own_sampler: Whether the caller's own draws the batches; its tensors are not known.
    """

    config: Config
    env: EnvDescription
    network: nn.Module | None
    objective: Objective
    device: torch.device
    tensor_envs: bool = False
    builds: bool = True
    own_sampler: bool = False

    def sizes(self) -> RingSizes:
        """Return the sizes of the ring; the smallest one where its size is still to be chosen."""
        config, env = self.config, self.env
        capacity = _least(config) if config.buffer_size == "auto" else config.buffer_size
        frame = config.num_envs, env.obs_shape, storage_dtype(env.obs_dtype)
        if self.tensor_envs:
            kind = SkippingSizes if config.on_nonfinite == "skip" else FunctionalSizes
            return kind(capacity, *frame, n_step=config.n_step)
        return RingSizes(capacity, *frame, None, env.num_masked, config.env_groups, config.n_step)

    def num_workers(self, *, most: bool) -> tuple[int, int]:
        """Return the worker processes of the training and of the evaluations.

        Args:
            most: Where measurements choose, return the most that they may choose; else the fewest.
        """
        trained = self.config.num_envs if self.builds and not self.tensor_envs else 0
        evaluated = min(self.config.eval_episodes, EVALUATION_ENVS) if self.builds else 0
        how = {"most": most, "quick": self.env.step_s is not None}
        of_training, of_evaluation = (
            processes_for(self.config, envs, **how) for envs in (trained, evaluated)
        )
        return of_training, of_evaluation

    def plan(self, *, most: bool) -> MemoryPlan:
        """Return what the training takes, and what there is; `most` as above."""
        parts = self.config, self.env, self.network, self.objective, self.device
        items = items_beside_ring(*parts, num_workers=self.num_workers(most=most))
        prioritized = self.config.replay == "prioritized" and not self.own_sampler
        return MemoryPlan(self.sizes(), prioritized, tuple(items), tuple(rooms_of(self.device)))


def fitted(training: Training) -> tuple[Config, str]:
    """Compare everything that a training takes with the memory that is left.

    Returns:
        The settings with the size of the ring as a number, and a line about it for the log, which
        is empty where the ring is small and its size was named.

    Raises:
        UsageError: Something does not fit; names the flag, and has the table and the ways out.
    """
    config, env, objective = training.config, training.env, training.objective
    refuse_many_numbers(config, env, objective, training.device)
    if training.network is None:
        refuse_wide(config, env, atoms_of(objective))
    if config.buffer_size == "auto":
        plan = _chosen(config, training.plan(most=True))
        config = replace(config, buffer_size=plan.sizes.capacity)
        return config, _line(plan, "--buffer-size auto")
    plan = training.plan(most=False)
    plan.refuse_unless_fits(lambda flag: _spelled(config, flag), _least(config))
    return config, _line(plan, "Replay ring") if plan.ring_nbytes >= LARGE else ""


def _chosen(config: Config, plan: MemoryPlan) -> MemoryPlan:
    """Return the plan with the largest ring that fits beside the reserve.

    Raises:
        UsageError: None fits that is large enough for the other settings.
    """
    least, row = _least(config), config.num_envs
    capacity = plan.largest(reserve_of, max(-(-config.total_timesteps // row) * row, least))
    if capacity >= least:
        return plan.holding(capacity)
    plan = plan.holding(least)
    room = next(plan.overdrawn(reserve_of))
    raise UsageError(
        "--buffer-size auto",
        f"the training takes {format_bytes(room.takes(plan.items()))} of {room.name} with a ring "
        f"of {least:,} transitions, and {format_bytes(room.free)} are left, of which "
        f"{format_bytes(reserve_of(room.free))} are to stay free",
        f"Name a --buffer-size, which keeps no reserve, or free memory.\n{plan.table(room)}",
    )


def _least(config: Config) -> int:
    """Return the smallest ring that the other settings allow."""
    of_steps = config.n_step * config.num_envs + 1 if config.n_step > 1 else 1
    return max(config.batch_size, config.num_envs, of_steps)


def _spelled(config: Config, flag: str) -> str:
    """Return a flag with its value, as it is typed."""
    name = flag.removeprefix("--").replace("-", "_")
    value = getattr(config, name)
    return f"{flag_of(name)} {value:,}" if name == "buffer_size" else f"{flag} {spelled(value)}"


def _line(plan: MemoryPlan, what: str) -> str:
    """Return what a ring takes, and of what."""
    room = plan.narrowest()
    rest = room.free - room.takes(plan.items())
    return (
        f"{what}: {plan.sizes.capacity:,} transitions, {format_bytes(plan.ring_nbytes)} of "
        f"{format_bytes(room.free)} free on {room.name}; {format_bytes(rest)} stay free"
    )
