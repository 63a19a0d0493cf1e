"""Any Gymnasium VectorEnv, in any autoreset mode, as rows of true transitions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv
from gymnasium.vector.async_vector_env import AsyncState

from fastdqn.envs.description import EnvDescription
from fastdqn.envs.masks import MASK, checked_masks, observed_beside_mask, refuse_unexpected_masks
from fastdqn.envs.sharing import EnvsInUse, refuse_shared
from fastdqn.envs.sources.new_episode import NewEpisode
from fastdqn.envs.sources.reused_arrays import ReuseWatch
from fastdqn.envs.space_check import NUMBERS, VectorCheck
from fastdqn.envs.vector_data import as_env_actions
from fastdqn.envs.workers.shared_block import RowSpec, SharedBlock
from fastdqn.errors import UsageError

__all__ = ["VectorSource"]


class VectorSource:
    """A vector environment whose results are copied into private rows.

    Args:
        envs: The vector; `close` closes it.
        description: Its environments.
        compared: Whether each environment checks its observations itself, as those with
            `CopiedObservations` do.

    Raises:
        UsageError: The vector's autoreset mode is unknown. Later: an observation is outside its
            space.
    """

    num_groups = 1

    def __init__(
        self,
        envs: VectorEnv[Any, Any, Any],
        description: EnvDescription,
        *,
        compared: bool = False,
    ) -> None:
        self.envs = envs
        self.num_envs = envs.num_envs
        parallel = isinstance(envs.unwrapped, AsyncVectorEnv)
        self.num_workers = getattr(envs.unwrapped, "num_workers", self.num_envs) if parallel else 0
        self.description = description
        self._key = observed_beside_mask(envs.single_observation_space)
        space, action = description.obs_space, envs.single_action_space
        spec = RowSpec.of_spaces(self.num_envs, space, action, description.num_masked)
        self.rows = SharedBlock.allocate(spec)
        compared = compared and envs.single_observation_space == space
        self._checks = VectorCheck(envs, space, self._key, self.rows.obs, compared=compared)
        self._mode = _autoreset_mode(envs)
        same_step = self._mode is AutoresetMode.SAME_STEP
        self._watch = ReuseWatch(self.num_envs) if same_step else None
        self.resets_within_step = self._mode is not AutoresetMode.NEXT_STEP
        self._refuses_masks = description.obeys_masks and self._key is None
        self._returns = np.zeros(self.num_envs)
        self._lengths = np.zeros(self.num_envs, np.int64)
        self._ended = np.zeros(self.num_envs, np.bool_)
        self._everyone = np.ones(self.num_envs, np.bool_)
        self._pending: npt.NDArray[Any] | None = None
        self.vector = self

    @property
    def num_restarts(self) -> int:
        """Workers that were restarted so far; 0 for vectors that do not count."""
        return int(getattr(self.envs.unwrapped, "num_restarts", 0))

    @property
    def restarts(self) -> Sequence[str]:
        """Why workers were restarted, one text each, the newest last."""
        restarts: Sequence[str] = getattr(self.envs.unwrapped, "restarts", ())
        return restarts

    def rows_of(self, group: int) -> SharedBlock:  # noqa: ARG002
        """Return the rows: there is one group."""
        return self.rows

    def reset(self, seeds: Sequence[int]) -> None:
        """Start new episodes everywhere; fills `rows.obs`."""
        envs: Any = self.envs  # vectors that are a program of their own take one seed for all
        if isinstance(envs, AsyncVectorEnv) and envs._state is AsyncState.WAITING_STEP:
            envs.step_wait()
        single_actions = isinstance(envs.unwrapped, AsyncVectorEnv | SyncVectorEnv)
        obs, infos = envs.reset(seed=list(seeds) if single_actions else seeds[0])
        self.rows.clear()
        self._show(obs, infos)
        self._ended[:] = False
        self._returns[:] = 0.0
        self._lengths[:] = 0

    def send(self, actions: npt.NDArray[np.int64], group: int = 0) -> None:  # noqa: ARG002
        """Start the step where the vector can (AsyncVectorEnv), or keep it for `recv`."""
        self._pending = as_env_actions(actions, self.description)
        if isinstance(self.envs, AsyncVectorEnv):
            self.envs.step_async(self._pending)

    def recv(self, group: int = 0) -> None:  # noqa: ARG002
        """Finish the step and copy it into the rows."""
        if isinstance(self.envs, AsyncVectorEnv):
            result = self.envs.step_wait()
        else:
            result = self.envs.step(self._pending)
        rows, (obs, reward, terminated, truncated, infos) = self.rows, result
        _refuse_reward_shape(np.asarray(reward), self.num_envs)
        if not self.resets_within_step:
            np.logical_not(self._ended, out=rows.real)
        if "restarted" in infos:
            self._cut(infos["restarted"])
        rows.reward[:], rows.terminated[:], rows.truncated[:] = reward, terminated, truncated
        np.logical_or(rows.terminated, rows.truncated, out=self._ended)
        self._count_episodes()
        self._place_observations(obs, infos)

    def begin_anew(self, envs: npt.NDArray[np.int64]) -> NewEpisode:
        """Reset some environments where the vector can, else only count their episodes anew.

        Vectors of Gymnasium's classes and of ours can, and those that leave it to the caller.
        """
        which = np.zeros(self.num_envs, np.bool_)
        which[envs] = True
        self._returns[which] = 0.0
        self._lengths[which] = 0
        known = isinstance(self.envs.unwrapped, AsyncVectorEnv | SyncVectorEnv)
        if not known and self._mode is not AutoresetMode.DISABLED:
            return NewEpisode.NEVER
        self._ended[which] = False
        self._show(*self.envs.reset(options={"reset_mask": which.copy()}), which)
        return NewEpisode.NOW

    def _cut(self, restarted: npt.NDArray[np.bool_]) -> None:
        """Leave out the rows of environments whose worker was restarted; see GroupedVectorEnv."""
        if self.resets_within_step:
            self.rows.real[:] = True
        self.rows.real[restarted] = False
        self._returns[restarted] = 0.0
        self._lengths[restarted] = 0

    def _count_episodes(self) -> None:
        rows = self.rows
        self._returns += rows.reward * rows.real
        self._lengths += rows.real
        rows.episode_return[self._ended] = self._returns[self._ended]
        rows.episode_length[self._ended] = self._lengths[self._ended]
        self._returns[self._ended] = 0.0
        self._lengths[self._ended] = 0

    def _place_observations(self, obs: Any, infos: dict[str, Any]) -> None:
        """Fill `obs` and, for episodes that ended within the step, `final_obs`."""
        rows, ended = self.rows, self._ended
        watched = self._watch is not None and ended.any()
        acted_on = rows.obs.copy() if watched else None
        self._show(obs, infos)
        if not (self.resets_within_step and ended.any()):
            return
        if self._mode is AutoresetMode.SAME_STEP:
            self._place_finals(obs, infos, acted_on)
            return
        rows.final_obs[ended] = rows.obs[ended]
        rows.final_action_mask[ended] = rows.action_mask[ended]
        self._show(*self.envs.reset(options={"reset_mask": ended.copy()}), ended)

    def _show(
        self, obs: Any, infos: dict[str, Any], which: npt.NDArray[np.bool_] | None = None
    ) -> None:
        """Write observations and masks of the environments in `which` [N], or of all."""
        message = infos
        if self._key is not None:
            message, obs = obs, obs[self._key]
        self._checks.take(obs, which, infos.get("restarted"))
        self._read_masks(self.rows.action_mask, message, self._everyone if which is None else which)

    def _place_finals(
        self, obs: Any, infos: dict[str, Any], acted_on: npt.NDArray[Any] | None
    ) -> None:
        """SAME_STEP: write last observations and their masks, which come in the infos.

        `acted_on` [N, *O] is None once every environment is cleared of reusing its arrays.
        """
        rows, finals, message = self.rows, infos["final_obs"], infos.get("final_info", {})
        masks = np.full(self.num_envs, None)
        for env in np.flatnonzero(self._ended).tolist():
            final = finals[env]
            if self._key is not None:
                masks[env], final = final[MASK], final[self._key]
            rows.final_obs[env] = self._checks.array_of(final, env)
        message = message if self._key is None else {MASK: masks}
        self._read_masks(rows.final_action_mask, message, self._ended)
        if acted_on is None or self._watch is None:
            return
        one_memory = isinstance(obs, np.ndarray) and np.may_share_memory(finals, obs)
        for env in np.flatnonzero(self._ended).tolist():
            shown = acted_on[env], rows.final_obs[env], rows.obs[env]
            self._watch.look(env, *shown, one_memory=one_memory)
        self._watch = None if self._watch.over else self._watch

    def _read_masks(
        self, into: npt.NDArray[np.bool_], message: Any, which: npt.NDArray[np.bool_]
    ) -> None:
        """Write the masks of the environments in `which` [N]; without one everything is allowed."""
        num_masked = self.description.num_masked
        if not num_masked:
            if self._refuses_masks:
                refuse_unexpected_masks(message)
            return
        said = which & message.get(f"_{MASK}", MASK in message)
        if MASK in message and message[MASK].dtype == object:
            said &= [mask is not None for mask in message[MASK]]
        into[which & ~said] = True
        if said.any():
            into[said] = checked_masks(message[MASK], said, num_masked)

    def held(self) -> Iterable[tuple[int, Any]]:
        """Return (index, environment) of those that can be reached, until they are closed."""
        vector: Any = self.envs.unwrapped
        within = isinstance(vector, SyncVectorEnv) and not vector.closed
        return enumerate(vector.envs) if within else ()

    def refuse_shared(self, taken: EnvsInUse) -> None:
        """Refuse environments that are one object, or in use elsewhere.

        Raises:
            UsageError: Names two of them.
        """
        for index, env in self.held():
            refuse_shared(taken, env, index, self)

    def close(self) -> None:
        """Close the vector environment."""
        self.envs.close()


def _refuse_reward_shape(reward: npt.NDArray[Any], num_envs: int) -> None:
    if reward.shape != (num_envs,) or reward.dtype.kind not in NUMBERS:
        raise UsageError(
            f"rewards of shape {reward.shape} and dtype {reward.dtype} from {num_envs} "
            f"environments, {reward[0]!r} from environment 0",
            "each must be a scalar number",
            "Return float(reward[0]) from the environment's step.",
        )


def _autoreset_mode(envs: VectorEnv[Any, Any, Any]) -> AutoresetMode:
    mode = envs.metadata.get("autoreset_mode")
    try:
        return AutoresetMode(mode)
    except ValueError:
        raise UsageError(
            f"{type(envs).__name__} with autoreset_mode {mode!r}",
            "without it reset rows look like transitions",
            'Set envs.metadata["autoreset_mode"] to a gymnasium.vector.AutoresetMode.',
        ) from None
