"""Environments that the caller built: trained in as they are, and left for the caller to close."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from gymnasium.vector import VectorEnv

from fastdqn.config import Config
from fastdqn.envs.description import describe_spaces
from fastdqn.envs.masks import MASK
from fastdqn.envs.sources.adapted_envs import copied_observations_in
from fastdqn.envs.sources.source import EnvSource, source_of
from fastdqn.envs.tensor import TensorEnv
from fastdqn.errors import UsageError

__all__ = ["GivenTensorEnv", "GivenVectorEnv", "Learning"]

Learning = Callable[[], float]
"""Times the learning of a vector step; seconds."""


class GivenVectorEnv:
    """A VectorEnv of the caller, trained in as it is and left for the caller to close.

    It is reset once, to see whether its infos hold action masks.

    Args:
        envs: The vector.
        masks: Whether to obey its action masks.
        expect_masks: Whether there will be masks though the first infos hold none.

    Raises:
        UsageError: DQN cannot train on it.
    """

    builds = False

    def __init__(
        self, envs: VectorEnv[Any, Any, Any], *, masks: bool = True, expect_masks: bool = False
    ) -> None:
        self.envs = envs
        in_infos = masks and (MASK in envs.reset()[1] or expect_masks)
        self.source = source_of(envs, masks_in_infos=in_infos, obey_masks=masks)
        self.description = self.source.description
        self.fixed: Mapping[str, int] = {
            "num_envs": envs.num_envs,
            "env_groups": self.source.num_groups,
        }

    @contextmanager
    def training(self, config: Config, learning: Learning) -> Iterator[EnvSource]:  # noqa: ARG002
        """Return the vector itself as a source."""
        with copied_observations_in(self.envs):
            yield self.source

    def evaluation(self, config: Config, num_envs: int) -> EnvSource:  # noqa: ARG002
        """Refuse."""
        raise _cannot_build("a VectorEnv")

    def tensors(self, num_envs: int, device: torch.device) -> TensorEnv | None:  # noqa: ARG002
        """Return None: these return NumPy arrays."""
        return None


class GivenTensorEnv:
    """Tensor environments of the caller, trained in as they are.

    Args:
        env: The environments.

    Raises:
        UsageError: DQN cannot train on them.
    """

    builds = False

    def __init__(self, env: TensorEnv) -> None:
        self.env = env
        self.fixed: Mapping[str, int] = {"num_envs": env.num_envs}
        self.description = describe_spaces(
            env.env_id, env.single_observation_space, env.single_action_space
        )

    def tensors(self, num_envs: int, device: torch.device) -> TensorEnv | None:  # noqa: ARG002
        """Return the caller's environments."""
        return self.env

    @contextmanager
    def training(self, config: Config, learning: Learning) -> Iterator[EnvSource]:  # noqa: ARG002
        """Refuse: tensor environments need no source."""
        raise _cannot_build("a tensor environment")
        yield  # makes this a generator, as the protocol wants

    def evaluation(self, config: Config, num_envs: int) -> EnvSource:  # noqa: ARG002
        """Refuse."""
        raise _cannot_build("a tensor environment")


def _cannot_build(what: str) -> UsageError:
    return UsageError(
        f"an agent of {what}", "it cannot build environments", "Pass an id or a factory."
    )
