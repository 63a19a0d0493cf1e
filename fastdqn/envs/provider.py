"""Providers of environments: what the caller passed as `env`, and how more of it is built.

An id or a factory builds environments behind a vectorizer; EnvPool has its own; of a VectorEnv or
tensor environments that the caller built there is one, and no second can be built.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from functools import partial
from types import MappingProxyType
from typing import Any, Protocol

import gymnasium as gym
import torch
from gymnasium.vector import VectorEnv

from fastdqn.config import Config
from fastdqn.device import available_cores
from fastdqn.envs.advice import refuse_no_factory
from fastdqn.envs.description import EnvDescription, EnvFactory, describe, factory_of
from fastdqn.envs.given_envs import GivenTensorEnv, GivenVectorEnv, Learning
from fastdqn.envs.masks import refuse_useless_expectation, with_mask_in_info
from fastdqn.envs.sources.envpool import EnvPoolSource, describe_envpool
from fastdqn.envs.sources.source import VECTORIZERS, EnvSource, make_source
from fastdqn.envs.spaces import measured_step_s
from fastdqn.envs.specs.wrapping import factory_with, refuse_what_is_not_built
from fastdqn.envs.tensor import TensorEnv, make_tensor_env
from fastdqn.envs.workers.allocation import Allocation, allocation_beside_learner, timed_in_turns
from fastdqn.envs.workers.supervision import Supervision
from fastdqn.errors import UsageError
from fastdqn.foundation.trial_env import trial_env

__all__ = [
    "AnyEnv",
    "EnvPoolEnvs",
    "EnvProvider",
    "GivenTensorEnv",
    "GivenVectorEnv",
    "GymnasiumEnvs",
    "TensorEnvs",
    "env_provider_of",
]

AnyEnv = str | EnvFactory | VectorEnv[Any, Any, Any] | TensorEnv


class EnvProvider(Protocol):
    """Provides the environments of an agent.

    Attributes:
        description: One environment.
        fixed: Settings that the environments decide, such as `num_envs`.
        builds: Whether fresh environments can be built, e.g. for an evaluation.
    """

    description: EnvDescription
    fixed: Mapping[str, int]
    builds: bool

    def training(self, config: Config, learning: Learning) -> Any:
        """Return a context manager of the EnvSource of a training.

        Args:
            config: Its settings.
            learning: Times the learning of a vector step at each call; seconds.
        """

    def evaluation(self, config: Config, num_envs: int) -> EnvSource:
        """Build environments apart from those of the training.

        Raises:
            UsageError: They cannot be built.
        """

    def tensors(self, num_envs: int, device: torch.device) -> TensorEnv | None:
        """Return the tensor environments of a training; None where there are none."""


class GymnasiumEnvs:
    """Environments of Gymnasium, built from a factory.

    Args:
        factory: Builds one.
        masks: Whether to obey their action masks, and to expect some; see `describe`.

    Raises:
        UsageError: DQN cannot train on them.
    """

    fixed: Mapping[str, int] = MappingProxyType({})
    builds = True

    def __init__(self, factory: EnvFactory, **masks: bool) -> None:
        self.factory = partial(with_mask_in_info, factory)
        self.description = describe(self.factory, **masks)

    @contextmanager
    def training(self, config: Config, learning: Learning) -> Iterator[EnvSource]:
        """Build the environments of a training, and close them afterwards."""
        allocation, groups = None, config.env_groups
        if config.num_workers is None:
            step_s, learn_s = self._seconds(learning)
            each = config.num_envs // groups
            allocation = allocation_beside_learner(each, step_s, learn_s, num_groups=groups)
        with closing(self._source(config, config.num_envs, groups, allocation)) as source:
            yield source

    def evaluation(self, config: Config, num_envs: int) -> EnvSource:
        """Build environments apart from those of the training."""
        allocation = None
        if config.num_workers is None:
            allocation = allocation_beside_learner(num_envs, self.description.step_s, 0.0)
        return self._source(config, num_envs, allocation=allocation)

    def tensors(self, num_envs: int, device: torch.device) -> TensorEnv | None:  # noqa: ARG002
        """Return None: these return NumPy arrays."""
        return None

    def _seconds(self, learning: Learning) -> tuple[float | None, float]:
        """Return the seconds of an env step (None if workers step all) and of learning."""
        if self.description.step_s is None:
            return None, 0.0
        with trial_env(self.factory) as env:
            return timed_in_turns(partial(measured_step_s, env), learning)

    def _source(
        self,
        config: Config,
        num_envs: int,
        num_groups: int = 1,
        allocation: Allocation | None = None,
    ) -> EnvSource:
        vectorizer = config.vectorizer if config.vectorizer in VECTORIZERS else "grouped"
        return make_source(
            vectorizer,
            self.factory,
            self.description,
            num_envs,
            config.num_workers,
            num_groups=num_groups,
            supervision=Supervision(config.worker_deadline_s, config.max_worker_restarts),
            allocation=allocation,
        )


class EnvPoolEnvs:
    """Environments of EnvPool, also for the evaluation.

    Args:
        env_id: EnvPool's id.

    Raises:
        UsageError: It is not installed, or does not have the id.
    """

    fixed: Mapping[str, int] = MappingProxyType({})
    builds = True

    def __init__(self, env_id: str) -> None:
        self.env_id = env_id
        self.description = describe_envpool(env_id)

    @contextmanager
    def training(self, config: Config, learning: Learning) -> Iterator[EnvSource]:  # noqa: ARG002
        """Build a pool for a training, and close it afterwards."""
        threads = config.num_workers or max(1, available_cores() - 1)
        with closing(EnvPoolSource(self.env_id, config.num_envs, threads)) as source:
            yield source

    def evaluation(self, config: Config, num_envs: int) -> EnvSource:
        """Build a pool apart from that of the training."""
        return EnvPoolSource(self.env_id, num_envs, config.num_workers or None)

    def tensors(self, num_envs: int, device: torch.device) -> TensorEnv | None:  # noqa: ARG002
        """Return None: these return NumPy arrays."""
        return None


class TensorEnvs(GymnasiumEnvs):
    """Tensor environments for training, Gymnasium's own of the same id for the evaluation.

    Args:
        env_id: An id that both have.

    Raises:
        UsageError: There are no tensor environments of that id.
    """

    def __init__(self, env_id: str) -> None:
        make_tensor_env(env_id, 1, "cpu")  # refuses unknown ids
        super().__init__(factory_of(env_id))
        self.env_id = env_id

    def tensors(self, num_envs: int, device: torch.device) -> TensorEnv | None:
        """Build the environments of a training on a device."""
        return make_tensor_env(self.env_id, num_envs, device)


def env_provider_of(
    env: AnyEnv,
    vectorizer: str = "grouped",
    *,
    masks: bool = True,
    expect_masks: bool = False,
    env_kwargs: Mapping[str, Any] | None = None,
    wrapper: Sequence[str] | None = None,
) -> EnvProvider:
    """Return the provider for what the caller passed as `env`.

    Args:
        env: An id, a factory, a VectorEnv, or tensor environments.
        vectorizer: What steps the environments of an id or a factory.
        masks: Whether to obey action masks.
        expect_masks: Whether there will be masks though the first infos hold none.
        env_kwargs: See Config.
        wrapper: See Config.

    Raises:
        UsageError: DQN cannot train on it, or the vectorizer cannot step it.
    """
    by_id: dict[str, Callable[[str], EnvProvider]] = {"envpool": EnvPoolEnvs, "tensor": TensorEnvs}
    if not isinstance(env, str) or vectorizer in by_id:
        refuse_what_is_not_built(env_kwargs, wrapper)
    silent = vectorizer in by_id or isinstance(env, TensorEnv)
    refuse_useless_expectation(expect_masks, infos=not silent, obeyed=masks)
    if isinstance(env, VectorEnv):
        return GivenVectorEnv(env, masks=masks, expect_masks=expect_masks)
    if isinstance(env, TensorEnv):
        return GivenTensorEnv(env)
    if not isinstance(env, str) and (isinstance(env, gym.Env) or not callable(env)):
        refuse_no_factory(env)
    if vectorizer in by_id:
        if not isinstance(env, str):
            raise UsageError(
                f"--vectorizer {vectorizer} with a factory",
                "it builds environments of its own",
                "Pass an environment id, or choose --vectorizer grouped.",
            )
        return by_id[vectorizer](env)
    made = factory_with(env, env_kwargs, wrapper) if isinstance(env, str) else env
    return GymnasiumEnvs(made, masks=masks, expect_masks=expect_masks)
