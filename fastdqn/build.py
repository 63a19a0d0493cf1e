"""From settings to parts: the one place where a Config meets plain arguments."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fastdqn.algorithms.exploration import ladder_of
from fastdqn.algorithms.objectives import Objective
from fastdqn.algorithms.optimizers import OPTIMIZERS, Adam, AdamW, Optimizer
from fastdqn.config import Config, refuse_epsilon, settled, with_named
from fastdqn.device import check_device
from fastdqn.envs.description import EnvDescription
from fastdqn.envs.seeding import Stream, seeds_of
from fastdqn.envs.tensor import TensorEnv
from fastdqn.errors import UsageError
from fastdqn.execution.modes import refuse_execution
from fastdqn.foundation.durations import seconds_of
from fastdqn.learner.learner import Learner
from fastdqn.learner.settings import refuse_precision
from fastdqn.networks.flat_network import FlatNetwork
from fastdqn.presets import preset_config
from fastdqn.replay import (
    NewestSampler,
    PrioritizedSampler,
    ReplayBuffer,
    Sampler,
    UniformSampler,
)
from fastdqn.replay.sampler_check import SamplerFactory, sampler_of
from fastdqn.training.host.rollout import HostRollout
from fastdqn.training.host.trainer import HostTrainer
from fastdqn.training.schedules import (
    Intervals,
    Schedule,
    exploration_schedule,
    learning_rate_schedule,
)
from fastdqn.training.tensor.rollout import TensorRollout
from fastdqn.training.tensor.trainer import TensorTrainer
from fastdqn.training.trainer import Trainer
from fastdqn.transition import storage_dtype

__all__ = [
    "build_config",
    "build_intervals",
    "build_ladder",
    "build_learner",
    "build_learning_rate",
    "build_loop",
    "build_optimizer",
    "build_sampler",
    "build_schedule",
    "build_tensor_rollout",
    "refuse_impossible",
    "sampler_factory",
]


def build_config(env_id: str, settings: Mapping[str, Any]) -> Config:
    """Build the Config of an environment from named settings; `preset` fills the others.

    Raises:
        UsageError: There is no such setting, or its value cannot be used.
    """
    unknown = sorted(set(settings) - set(Config.__dataclass_fields__))
    if unknown:
        raise UsageError(
            f"setting {unknown[0]}",
            "DQN has no such setting",
            f"Choose among {', '.join(Config.__dataclass_fields__)}.",
        )
    preset = settings.get("preset") or ""
    named = {**settings, "env_id": env_id, "preset": preset}
    config = with_named(preset_config(preset) if preset else Config(), named)
    if config.noisy:
        refuse_epsilon(settings, "pass noisy=False")
    return settled(config)


def refuse_impossible(config: Config, device: torch.device, *, builds: bool) -> None:
    """Refuse what this device cannot run, and a device that computes wrongly.

    Args:
        config: The settings.
        device: Where the run would be.
        builds: Whether fresh environments can be built for an evaluation.

    Raises:
        UsageError: Names the flag, or the operation.
    """
    refuse_execution(config.execution, device)
    refuse_precision(config.precision, device)
    if device.type == "mps":
        check_device(device)
    if config.stop_at_return is not None and not builds:
        raise UsageError(
            "stop_at_return with environments that the caller built",
            "evaluation needs fresh environments and cannot build them",
            "Pass an environment id or a factory.",
        )


def sampler_factory(config: Config) -> SamplerFactory:
    """Return what builds the sampler that `replay` names."""
    prioritized = partial(
        PrioritizedSampler,
        alpha=config.priority_alpha,
        beta_start=config.priority_beta_start,
        beta_end=config.priority_beta_end,
        eps=config.priority_eps,
    )
    named: dict[str, SamplerFactory] = {
        "uniform": UniformSampler,
        "prioritized": prioritized,
        "newest": NewestSampler,
    }
    return named[config.replay]


def build_sampler(
    config: Config, env: EnvDescription, device: torch.device, make: SamplerFactory
) -> Sampler:
    """Allocate the replay ring and build its sampler."""
    ring = ReplayBuffer(
        _capacity(config),
        config.num_envs,
        env.obs_shape,
        storage_dtype(env.obs_dtype),
        device=device,
        seed=seeds_of(config.seed, Stream.REPLAY, 1)[0],
        num_groups=config.env_groups,
        num_masked=env.num_masked,
        n_step=config.n_step,
    )
    sampler = sampler_of(make, ring, config.batch_size)
    sampler.due = round(config.replay_ratio * config.num_envs / config.env_groups)
    return sampler


def _capacity(config: Config) -> int:
    assert config.buffer_size != "auto"  # the preflight chose a number
    return config.buffer_size


def build_learner(config: Config, network: FlatNetwork, objective: Objective) -> Learner:
    """Build the learner, eager at first; the network is on its device already."""
    return Learner(
        network,
        gamma=config.gamma,
        objective=objective,
        optimizer=build_optimizer(config),
        learning_rate=config.learning_rate,
        clip_norm=config.clip_norm,
        clip_value=config.clip_value,
        target=config.target,
        tau=config.tau,
        target_period=config.target_period,
        precision=config.precision,
    )


def build_optimizer(config: Config) -> Optimizer:
    """Build the optimizer."""
    kind = OPTIMIZERS[config.optimizer]
    if issubclass(kind, Adam | AdamW):
        return kind(weight_decay=config.weight_decay, amsgrad=config.amsgrad)
    return kind(weight_decay=config.weight_decay)


def build_schedule(config: Config) -> Schedule:
    """Build the exploration schedule."""
    start, end = config.epsilon_start, config.epsilon_end
    steps, factor = config.epsilon_decay_steps, config.epsilon_decay_factor
    return exploration_schedule(config.epsilon_schedule, start, end, steps, factor)


def build_learning_rate(config: Config, env_steps: int) -> Schedule | None:
    """Build the schedule of the step size over so many env steps; None is a constant."""
    start, end = config.learning_rate, config.learning_rate_end
    return learning_rate_schedule(config.lr_schedule, start, end, env_steps)


def build_ladder(config: Config, device: torch.device) -> Tensor | None:
    """Build the epsilon ladder [N]; None where all environments explore alike."""
    if not config.epsilon_ladder:
        return None
    return ladder_of(config.num_envs, config.epsilon_ladder_alpha).to(device)


def build_tensor_rollout(
    config: Config, env: TensorEnv, learner: Learner, make: SamplerFactory
) -> TensorRollout:
    """Build the rollout of tensor environments, updates included.

    Raises:
        UsageError: A setting that tensor environments do not have.
    """
    if make is NewestSampler:
        raise UsageError(
            f"--replay {config.replay} with tensor environments",
            "their batches are drawn by random numbers, on the device",
            "Use --replay uniform.",
        )
    return TensorRollout(
        env,
        learner,
        capacity=_capacity(config),
        batch_size=config.batch_size,
        seed=config.seed,
        sampler=make,
        n_step=config.n_step,
        ladder=build_ladder(config, learner.device),
        on_nonfinite=config.on_nonfinite,
    )


def build_intervals(config: Config, *, evaluates: bool = True) -> Intervals:
    """Return the intervals of the loop, with or without evaluations."""
    return Intervals(
        report=config.log_interval,
        checkpoint=config.checkpoint_interval,
        evaluate=config.eval_interval if evaluates else 0,
        target_episodes=config.target_period_episodes if config.target == "hard" else 0,
        checkpoint_s=seconds_of(config.checkpoint_every or "") or math.inf,
    )


def build_loop(
    rollout: HostRollout | TensorRollout,
    learner: Learner,
    sampler: Sampler | None,
    **settings: Any,
) -> Trainer:
    """Build the loop around parts; see `Trainer`. Only tensor environments need no sampler."""
    if isinstance(rollout, TensorRollout):
        return TensorTrainer(rollout, learner, **settings)
    assert sampler is not None
    return HostTrainer(rollout, learner, sampler=sampler, **settings)
