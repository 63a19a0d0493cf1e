"""Providers of environments: what the caller passed as `env`, and how more of it is built.

An id or a factory builds environments behind a vectorizer; EnvPool has its own; of a VectorEnv or
tensor environments that the caller built there is one, and no second can be built.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from functools import partial
from types import MappingProxyType
from typing import Any

import gymnasium as gym
import torch
from gymnasium.vector import VectorEnv

from fastdqn.config import Config
from fastdqn.device import available_cores
from fastdqn.envs.advice import refuse_no_factory
from fastdqn.envs.description import EnvDescription, EnvFactory, describe, describe_spaces
from fastdqn.envs.masks import MASK, refuse_useless_expectation, with_mask_in_info
from fastdqn.envs.sources.adapted_envs import copied_observations_in
from fastdqn.envs.sources.envpool import EnvPoolSource, describe_envpool
from fastdqn.envs.sources.source import VECTORIZERS, EnvSource, make_source, source_of
from fastdqn.envs.spaces import measured_step_s
from fastdqn.envs.specs.ids import factory_of
from fastdqn.envs.specs.plain_values import refuse_what_is_not_built
from fastdqn.envs.specs.wrapping import factory_with
from fastdqn.envs.tensor import TensorEnv, make_tensor_env
from fastdqn.envs.workers.allocation import allocation_beside_learner, timed_in_turns
from fastdqn.envs.workers.supervision import Supervision
from fastdqn.errors import UsageError
from fastdqn.foundation.trial_env import trial_env

__all__ = ["AnyEnv", "EnvProvider", "GymnasiumEnvs", "env_provider_of"]

AnyEnv = str | EnvFactory | VectorEnv[Any, Any, Any] | TensorEnv
Learning = Callable[[], float]
"""Times the learning of a vector step at each call; seconds."""


class EnvProvider:
    """Provides the environments of an agent.

    Attributes:
        description: One environment.
        fixed: Settings that the environments decide, such as `num_envs`.
        builds: Whether fresh environments can be built, e.g. for an evaluation.
        kind: Of environments, for messages.
    """

    description: EnvDescription
    fixed: Mapping[str, int] = MappingProxyType({})
    builds = True
    kind = ""

    def training(self, config: Config, learning: Learning) -> AbstractContextManager[EnvSource]:
        """Build the environments of a training; the context manager closes them."""
        return closing(self._source(config, config.num_envs, learning))

    def evaluation(self, config: Config, num_envs: int) -> EnvSource:
        """Build environments apart from those of the training.

        Raises:
            UsageError: They cannot be built.
        """
        return self._source(config, num_envs, None)

    def tensors(self, num_envs: int, device: torch.device) -> TensorEnv | None:  # noqa: ARG002
        """Return the tensor environments of a training; None where there are none."""
        return None

    def _source(self, config: Config, num_envs: int, learning: Learning | None) -> EnvSource:  # noqa: ARG002
        got, way_out = f"an agent of {self.kind}", "Pass an id or a factory."
        raise UsageError(got, "it cannot build environments", way_out)


class GymnasiumEnvs(EnvProvider):
    """Environments of Gymnasium, built from a factory.

    Args:
        factory: Builds one.
        masks: Whether to obey their action masks, and to expect some; see `describe`.

    Raises:
        UsageError: DQN cannot train on them.
    """

    def __init__(self, factory: EnvFactory, **masks: bool) -> None:
        self.factory = partial(with_mask_in_info, factory)
        self.description = describe(self.factory, **masks)

    def _source(self, config: Config, num_envs: int, learning: Learning | None) -> EnvSource:
        num_groups = 1 if learning is None else config.env_groups
        allocation, each = None, num_envs // num_groups
        if config.num_workers is None:
            seconds = self._seconds(learning)
            allocation = allocation_beside_learner(each, *seconds, num_groups=num_groups)
        return make_source(
            config.vectorizer if config.vectorizer in VECTORIZERS else "grouped",
            self.factory,
            self.description,
            num_envs,
            config.num_workers,
            num_groups=num_groups,
            supervision=Supervision(
                config.worker_deadline_s,
                config.max_worker_restarts,
                restore_s=min(config.restore_limit_s, config.worker_deadline_s / 2)
                if config.restore_episodes and learning is not None
                else 0.0,
            ),
            allocation=allocation,
            keep_episodes=learning is not None,
        )

    def _seconds(self, learning: Learning | None) -> tuple[float | None, float]:
        """Return the seconds of an env step (None if workers step all) and of learning."""
        if learning is None or self.description.step_s is None:
            return self.description.step_s, 0.0
        with trial_env(self.factory) as env:
            return timed_in_turns(partial(measured_step_s, env), learning)


class EnvPoolEnvs(EnvProvider):
    """Environments of EnvPool, also for the evaluation; UsageError where it lacks the id."""

    def __init__(self, env_id: str) -> None:
        self.env_id = env_id
        self.description = describe_envpool(env_id)

    def _source(self, config: Config, num_envs: int, learning: Learning | None) -> EnvSource:
        beside = None if learning is None else max(1, available_cores() - 1)
        return EnvPoolSource(self.env_id, num_envs, config.num_workers or beside)


class TensorEnvs(GymnasiumEnvs):
    """Tensor environments for training, Gymnasium's own of the same id for the evaluation."""

    def __init__(self, env_id: str) -> None:
        make_tensor_env(env_id, 1, "cpu")  # refuses unknown ids
        super().__init__(factory_of(env_id))
        self.env_id = env_id

    def tensors(self, num_envs: int, device: torch.device) -> TensorEnv | None:
        """Build the environments of a training on a device."""
        return make_tensor_env(self.env_id, num_envs, device)


class GivenVectorEnv(EnvProvider):
    """A VectorEnv of the caller, trained in as it is and left for the caller to close.

    It is reset once, to see whether its infos hold action masks. Arguments as of `env_provider_of`.
    """

    builds, kind = False, "a VectorEnv"

    def __init__(self, envs: VectorEnv[Any, Any, Any], *, masks: bool, expect_masks: bool) -> None:
        self.envs = envs
        in_infos = masks and (MASK in envs.reset()[1] or expect_masks)
        self.source = source_of(envs, masks_in_infos=in_infos, obey_masks=masks)
        self.description = self.source.description
        self.fixed = {"num_envs": envs.num_envs, "env_groups": self.source.num_groups}

    @contextmanager
    def training(self, config: Config, learning: Learning) -> Iterator[EnvSource]:  # noqa: ARG002
        """Return the vector itself as a source."""
        with copied_observations_in(self.envs):
            yield self.source


class GivenTensorEnv(EnvProvider):
    """Tensor environments of the caller, trained in as they are."""

    builds, kind = False, "a tensor environment"

    def __init__(self, env: TensorEnv) -> None:
        self.env, self.fixed = env, {"num_envs": env.num_envs}
        spaces = env.single_observation_space, env.single_action_space
        self.description = describe_spaces(env.env_id, *spaces)

    def tensors(self, num_envs: int, device: torch.device) -> TensorEnv | None:  # noqa: ARG002
        """Return the caller's environments."""
        return self.env


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
