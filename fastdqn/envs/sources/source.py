"""Sources of experience over vectors: our own workers, Gymnasium's vectors, the caller's."""

from __future__ import annotations

import multiprocessing
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv

from fastdqn.envs.description import EnvDescription, EnvFactory, describe_spaces
from fastdqn.envs.grouped import GroupedVectorEnv
from fastdqn.envs.masks import (
    MASK,
    observed_beside_mask,
    refuse_mask_shape,
    refuse_unexpected_mask,
    refuse_unexpected_masks,
)
from fastdqn.envs.sharing import envs_in_use, register_holder
from fastdqn.envs.sources.adapted_envs import with_copied_observations
from fastdqn.envs.sources.continued import Continuation, RecordedSteps
from fastdqn.envs.sources.new_episode import NewEpisode
from fastdqn.envs.sources.protocol import ContinuingSource, EnvSource
from fastdqn.envs.sources.reused_arrays import refuse_reused_arrays
from fastdqn.envs.sources.vector_source import VectorSource
from fastdqn.envs.specs.registrations import RegisteringFactory, packed_registry
from fastdqn.envs.vector_data import as_env_actions
from fastdqn.envs.workers.allocation import Allocation
from fastdqn.envs.workers.open_episodes import Histories
from fastdqn.envs.workers.process import without_main_module
from fastdqn.envs.workers.supervision import Supervision
from fastdqn.envs.workers.system_limits import refuse_unless_parent
from fastdqn.errors import UsageError

__all__ = [
    "VECTORIZERS",
    "ContinuingSource",
    "EnvSource",
    "GroupedSource",
    "VectorSource",
    "make_source",
    "source_of",
]

VECTORIZERS = ("grouped", "async", "sync")
REPLY_DEADLINE_S = 120.0


class GroupedSource:
    """A GroupedVectorEnv in SAME_STEP mode: its shared block is the rows, nothing is copied.

    Args:
        envs: The vector; `close` closes it.
        description: Its environments.
    """

    resets_within_step = True

    def __init__(self, envs: GroupedVectorEnv, description: EnvDescription) -> None:
        self.envs = envs
        self.rows = envs.rows
        self.num_envs, self.num_groups = envs.num_envs, envs.num_groups
        self.num_workers = envs.num_workers
        self.description = description
        self.rows_of = envs.rows_of
        unmasked = description.obeys_masks and not description.num_masked
        self._watches_infos = unmasked and envs.send_infos
        self._counts_alike = description.first_action == 0 and self.rows.action.dtype == np.int64
        self._sent: deque[int] = deque()  # groups whose step was not received yet

    @property
    def num_restarts(self) -> int:
        """Workers that were restarted so far."""
        return self.envs.num_restarts

    @property
    def restarts(self) -> Sequence[str]:
        """Why workers were restarted, one text each, the newest last."""
        return self.envs.restarts

    def reset(self, seeds: Sequence[int]) -> None:
        """Start new episodes everywhere; fills `rows.obs`."""
        while self._sent:
            self.recv(self._sent[0])
        self.envs.reset_async(seed=list(seeds))
        _, infos = self.envs.reset_wait()
        if self._watches_infos:
            refuse_unexpected_masks(infos)
        self.rows.clear()

    def histories(self) -> Histories | None:
        """Return the open episodes; see `ContinuingSource`."""
        kept = self.envs.episode_log
        return None if kept is None else kept.histories()

    @property
    def last_seeds(self) -> Sequence[int | None]:
        """Of the last resets with a seed; see `ContinuingSource`."""
        return self.envs.last_seeds

    def continue_episodes(
        self,
        histories: Histories,
        recorded: RecordedSteps,
        *,
        seeds: Sequence[int],
        fresh: Sequence[int],
        limit_s: float,
    ) -> dict[int, str]:
        """Go on with the open episodes of another source; see `ContinuingSource`."""
        continuation = Continuation(self, histories, recorded, limit_s)
        continuation.run(seeds, fresh)
        return continuation.lost

    def leave_out(self, envs: npt.NDArray[np.int64]) -> None:
        """Mark the rows of environments as no transitions until their next step."""
        assert self.envs.episode_log is not None
        self.envs.episode_log.mark_unreal(envs)

    def send(self, actions: npt.NDArray[np.int64], group: int = 0) -> None:
        """Wake the workers; returns at once."""
        if not self._counts_alike:
            actions = as_env_actions(actions, self.description)
        self.envs.send(actions, group)
        self._sent.append(group)

    def recv(self, group: int = 0) -> None:
        """Wait for all workers.

        Raises:
            UsageError: An environment gives a mask where none was expected.
            TimeoutError: An unsupervised worker did not answer for two minutes.
            WorkerError: Workers failed more often than their supervision allows.
        """
        patience_s = None if self.envs.supervised else REPLY_DEADLINE_S
        try:
            answers = self.envs.recv(patience_s, group)
        except multiprocessing.TimeoutError:
            raise  # still under way
        except Exception:
            self._sent.popleft()
            raise
        self._sent.popleft()
        if self._watches_infos:
            for infos, _ in filter(None, answers):
                for env, info in infos.items():
                    refuse_unexpected_mask(env, info)

    def begin_anew(self, envs: npt.NDArray[np.int64]) -> NewEpisode:
        """Let the workers reset them with the next step, while others may be under way."""
        self.rows.resting[envs] = self.rows.restarting[envs] = True
        return NewEpisode.NEXT

    def close(self) -> None:
        """End the workers."""
        self.envs.close(quiet=True)


def make_source(
    vectorizer: str,
    factory: EnvFactory,
    description: EnvDescription,
    num_envs: int,
    num_workers: int | None = None,
    *,
    num_groups: int = 1,
    supervision: Supervision | None = None,
    allocation: Allocation | None = None,
    keep_episodes: bool = False,
) -> EnvSource:
    """Build `num_envs` environments behind the chosen kind of vector.

    Args:
        vectorizer: `grouped` (ours), `async` or `sync` (Gymnasium's own); same transitions.
        factory: Builds one environment.
        description: What `describe(factory)` returned.
        num_envs: Environments, N.
        num_workers: Processes of `grouped`; None chooses by measurement.
        num_groups: Groups of `grouped` that step separately.
        supervision: Restart workers of `grouped` that fail; None raises.
        allocation: Processes and the caller's share of `grouped`; None goes by `num_workers`.
        keep_episodes: Keep the open episodes of `grouped`; see `ContinuingSource`.
    """
    if vectorizer == "grouped":
        grouped = GroupedVectorEnv(
            [factory] * num_envs,
            autoreset_mode=AutoresetMode.SAME_STEP,
            num_workers=num_workers,
            num_groups=num_groups,
            send_infos=False,
            num_masked=description.num_masked,
            drop_masks=not description.obeys_masks,
            supervision=supervision,
            allocation=allocation,
            keep_episodes=keep_episodes,
        )
        return GroupedSource(grouped, description)
    return _gymnasiums(vectorizer, factory, description, num_envs)


def _gymnasiums(
    vectorizer: str, factory: EnvFactory, description: EnvDescription, num_envs: int
) -> VectorSource:
    """Build environments behind one of Gymnasium's own vectors."""
    if vectorizer == "async":
        refuse_unless_parent(f"--vectorizer {vectorizer}", "Use --vectorizer sync.")
        factory = RegisteringFactory(factory, packed_registry())
        kind: Callable[..., VectorEnv[Any, Any, Any]] = partial(AsyncVectorEnv, context="spawn")
    else:
        kind = SyncVectorEnv
    own = [partial(with_copied_observations, factory, index) for index in range(num_envs)]
    with without_main_module():
        envs = kind(own, autoreset_mode=AutoresetMode.DISABLED)
        source = VectorSource(envs, description, compared=True)
    try:
        source.refuse_shared(envs_in_use())
    except UsageError:
        source.close()
        raise
    register_holder(source)
    return source


def source_of(
    envs: VectorEnv[Any, Any, Any], *, masks_in_infos: bool = False, obey_masks: bool = True
) -> EnvSource:
    """Make a source of a vector environment that the caller built and will close.

    Args:
        envs: The vector.
        masks_in_infos: Whether its infos hold `action_mask`; one in a Dict observation, or in
            the block of a GroupedVectorEnv, is found without it.
        obey_masks: Whether masks are read; if so, an unexpected one is refused.

    Raises:
        UsageError: Its spaces do not suit DQN, its masks have another number of actions or cannot
            be read, or its autoreset mode is unknown.
    """
    env_id = envs.spec.id if envs.spec else type(envs).__name__
    threshold = envs.spec.reward_threshold if envs.spec else None
    space: Any = envs.single_observation_space
    key = observed_beside_mask(space)
    description = describe_spaces(
        env_id, space if key is None else space[key], envs.single_action_space, threshold
    )
    if obey_masks and key is not None:
        refuse_mask_shape(f"environment {env_id}", space[MASK].shape, description.num_actions)
    in_block = isinstance(envs, GroupedVectorEnv) and envs.rows.action_mask.shape[1] > 0
    if obey_masks and (masks_in_infos or in_block or key is not None):
        description = replace(description, num_masked=description.num_actions)
    description = replace(description, obeys_masks=obey_masks)
    if _shares_its_rows(envs, description):
        return GroupedSource(envs, description)  # type: ignore[arg-type]
    if description.num_masked and key is None and not getattr(envs, "send_infos", True):
        raise UsageError(
            f"{type(envs).__name__} with send_infos=False",
            "masks lie in its block, where it was built with num_masked, which is read in mode "
            "SAME_STEP only, and no infos travel",
            "Build it with send_infos=True, or with num_masked and "
            "autoreset_mode=AutoresetMode.SAME_STEP.",
        )
    refuse_reused_arrays(envs, masks=description.num_masked > 0)
    source = VectorSource(envs, description)
    source.refuse_shared({})
    return source


def _shares_its_rows(envs: VectorEnv[Any, Any, Any], description: EnvDescription) -> bool:
    """Return whether a vector is one of ours whose block holds all that the rollout reads."""
    return (
        isinstance(envs, GroupedVectorEnv)
        and envs.autoreset_mode is AutoresetMode.SAME_STEP
        and envs.rows.obs.shape[1:] == description.obs_shape
        and envs.rows.action_mask.shape[1] == description.num_masked
    )
