"""What a rollout on the host consists of, beside ring and policy, as plain values and tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from fastdqn.envs.sources.protocol import EnvSource
from fastdqn.envs.space_check import SpaceCheck
from fastdqn.envs.workers.open_episodes import NOT_STEPPED, Histories
from fastdqn.envs.workers.origins import NUM_WORDS, is_origin
from fastdqn.envs.workers.shared_block import SharedBlock
from fastdqn.foundation.state import LARGEST, PartState
from fastdqn.training.host.guard import bad_rows
from fastdqn.training.host.saved_guards import spoiled_in

__all__ = ["SHOWN", "SavedRollout"]

Arrays = Mapping[str, npt.NDArray[Any]]
SHOWN = tuple(
    field.name
    for field in fields(SharedBlock)
    if field.name not in {"action", "resting", "origin", "steps_sent"}
)
"""The arrays of the block that say what a step brought."""
SIGNED = {"uint16": np.int16, "uint32": np.int32, "uint64": np.int64}
"""Dtypes that few libraries for tensors know, and those that hold the same bits."""
MOST_ACTIONS = 2**31


@dataclass(frozen=True)
class SavedRollout:
    """A rollout between two vector steps, N environments in G groups.

    Attributes:
        env_steps: Real transitions so far.
        episodes: Finished episodes so far.
        seeds: [N] of the last reset.
        order: The groups, in the order in which the ring expects them.
        num_unread: The first so many of them have taken a step that the ring does not hold yet.
        rows: What the environments showed last, by names of the block's arrays, SHOWN.
        action: [N] int64 their last actions, counted from 0; read of groups that are unread.
        histories: The open episodes; None where they are not kept.
    """

    env_steps: int
    episodes: int
    seeds: list[int]
    order: list[int]
    num_unread: int
    rows: Arrays
    action: npt.NDArray[np.int64]
    histories: Histories | None

    @property
    def unread(self) -> npt.NDArray[np.bool_]:
        """[N] bool, whose last step the ring does not hold yet."""
        size = len(self.action) // len(self.order)
        groups = np.arange(len(self.action)) // size
        return np.isin(groups, self.order[: self.num_unread])

    # To a state

    def state(self) -> PartState:
        """Return it as plain values and tensors, copies."""
        tensors = {
            f"rows/{name}": _to_tensor(rows) for name, rows in self.rows.items() if rows.size
        }
        tensors["action"] = torch.from_numpy(self.action.copy())
        values: dict[str, Any] = {
            "env_steps": self.env_steps,
            "episodes": self.episodes,
            "num_envs": len(self.action),
            "num_groups": len(self.order),
            "seeds": self.seeds,
            "order": self.order,
            "num_unread": self.num_unread,
            "lengths": None,
        }
        if self.histories is not None:
            taken = self.histories.actions
            values["lengths"] = [len(actions) for actions in taken]
            joined = np.concatenate(taken).astype(np.int32)
            tensors["origins"] = torch.from_numpy(self.histories.origin.view(np.int64).copy())
            tensors["actions"] = torch.from_numpy(joined)
        return PartState(values, tensors)

    # From a state

    @classmethod
    def read(cls, state: PartState, source: EnvSource) -> SavedRollout:
        """Read a state that was saved of as many environments of the same kind.

        Raises:
            CheckpointError: Names a value that is missing or cannot be.
        """
        num_envs, num_groups = source.num_envs, source.num_groups
        state.whole("num_envs", num_envs, num_envs)
        state.whole("num_groups", num_groups, num_groups)
        order = state.wholes("order", num_groups, 0, num_groups - 1)
        if order != [(order[0] + turn) % num_groups for turn in range(num_groups)]:
            raise state.refusal("order", f"{order}, in which groups take no turns")
        saved = cls(
            state.whole("env_steps"),
            state.whole("episodes"),
            state.wholes("seeds", num_envs),
            list(order),
            state.whole("num_unread", 0, num_groups),
            {name: _from_tensor(state, name, getattr(source.rows, name)) for name in SHOWN},
            _actions_in(state, "action", num_envs, 0, source.description.num_actions),
            _histories_in(state, num_envs, source.description.num_actions),
        )
        _refuse_outside(saved, state, source)
        return saved


def _to_tensor(array: npt.NDArray[Any]) -> torch.Tensor:
    copy = np.array(array)  # also of one number
    return torch.from_numpy(copy.view(SIGNED.get(copy.dtype.name, copy.dtype)))


def _from_tensor(state: PartState, name: str, like: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return an array of the block; flags are 0 or 1 whatever bytes the file has."""
    if not like.size:
        return like
    array = state.tensor(f"rows/{name}", _to_tensor(like)).cpu().numpy().view(like.dtype)
    return array.view(np.uint8) != 0 if like.dtype == np.bool_ else array


def _actions_in(
    state: PartState, name: str, count: int, least: int, num_actions: int
) -> npt.NDArray[np.int64]:
    dtype = torch.int32 if name == "actions" else torch.int64
    like = torch.empty(count, dtype=dtype, device="meta")
    actions = state.tensor(name, like).cpu().numpy().astype(np.int64)
    if ((actions < least) | (actions >= num_actions)).any():
        raise state.refusal(name, f"of actions beyond [{least}, {num_actions - 1}]")
    return actions


def _histories_in(state: PartState, num_envs: int, num_actions: int) -> Histories | None:
    if state.values.get("lengths") is None:
        return None
    lengths = state.wholes("lengths", num_envs, 0, MOST_ACTIONS)
    like = torch.empty(num_envs, NUM_WORDS, dtype=torch.int64, device="meta")
    origin = state.tensor("origins", like).cpu().numpy().view(np.uint64)
    for env, words in enumerate(origin):
        if not is_origin(words):
            raise state.refusal("origins", f"of no generator for environment {env}")
    joined = _actions_in(state, "actions", sum(lengths), NOT_STEPPED, num_actions)
    return Histories(origin.copy(), np.split(joined, np.cumsum(lengths)[:-1]))


def _refuse_outside(saved: SavedRollout, state: PartState, source: EnvSource) -> None:
    """Refuse last observations that the space does not hold; the others are compared."""
    space = source.description.obs_space
    check = SpaceCheck(space, source.rows.obs.shape[1:], source.rows.obs.dtype)
    ended = saved.unread & (saved.rows["terminated"] | saved.rows["truncated"])
    final = saved.rows["final_obs"][ended]
    if check.bounded and ((final < check.low) | (final > check.high)).any():
        raise state.refusal("rows/final_obs", "of values that the observation space does not hold")
    shown = saved.rows["obs"][~saved.unread]
    if bad_rows(shown).any():
        raise state.refusal("rows/obs", "not finite throughout")
    spoiled = spoiled_in(state.part("guards"), len(saved.action))
    if (saved.rows["restarting"] & ~spoiled).any():
        raise state.refusal("rows/restarting", "true where no episode was cut")
    if (saved.rows["episode_length"] < 0).any() or (saved.rows["episode_length"] > LARGEST).any():
        raise state.refusal("rows/episode_length", "negative")
