"""The shared block: one row per environment, written by the workers and read by the trainer."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt
from gymnasium.spaces import Box, Discrete, MultiBinary, MultiDiscrete, Space

from fastdqn.errors import UsageError

__all__ = ["RowSpec", "SharedBlock"]

CACHE_LINE_BYTES = 64


@dataclass(frozen=True)
class RowSpec:
    """Shapes and dtypes of one environment's row.

    Attributes:
        num_envs: Environments, N.
        obs_shape: Shape of one observation.
        obs_dtype: Dtype of the observation space, by name.
        action_shape: Shape of one action; () for a Discrete space.
        action_dtype: Dtype of the action space, by name.
        num_masked: Actions of a mask, A; 0 without masks.
        num_origin: Words that say what an episode began from, see `origins`; 0 keeps none.
    """

    num_envs: int
    obs_shape: tuple[int, ...]
    obs_dtype: str
    action_shape: tuple[int, ...] = ()
    action_dtype: str = "int64"
    num_masked: int = 0
    num_origin: int = 0

    @classmethod
    def of_spaces(
        cls,
        num_envs: int,
        obs: Space[Any] | None,
        action: Space[Any] | None,
        num_masked: int = 0,
        num_origin: int = 0,
    ) -> RowSpec:
        """Return the layout for the two spaces of a single environment.

        Args:
            num_envs: Environments, N.
            obs: Space of one observation; None where observations do not lie in the block.
            action: Space of one action; None where actions do not lie in the block.
            num_masked: Actions of a mask.
            num_origin: Words of an origin.

        Raises:
            UsageError: A space has no fixed shape and numeric dtype.
        """
        for name, space in (("observation", obs), ("action", action)):
            if not isinstance(space, Box | Discrete | MultiBinary | MultiDiscrete | None):
                raise UsageError(
                    f"{name} space {space}",
                    "the rows take arrays of one fixed shape and dtype",
                    "Wrap the environment (gymnasium.wrappers.FlattenObservation) "
                    "or use Gymnasium's own AsyncVectorEnv.",
                )
        sizes = num_masked, num_origin
        return cls(num_envs, *_shape_and_dtype(obs), *_shape_and_dtype(action), *sizes)

    def fields(self) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
        """Return shape and dtype of every array of `SharedBlock`, in the order of the block."""
        n = self.num_envs
        obs, obs_dtype = (n, *self.obs_shape), np.dtype(self.obs_dtype)
        return {
            "obs": (obs, obs_dtype),
            "final_obs": (obs, obs_dtype),
            "action": ((n, *self.action_shape), np.dtype(self.action_dtype)),
            "reward": ((n,), np.dtype(np.float64)),
            "terminated": ((n,), np.dtype(np.bool_)),
            "truncated": ((n,), np.dtype(np.bool_)),
            "real": ((n,), np.dtype(np.bool_)),
            "resting": ((n,), np.dtype(np.bool_)),
            "restarting": ((n,), np.dtype(np.bool_)),
            "episode_return": ((n,), np.dtype(np.float64)),
            "episode_length": ((n,), np.dtype(np.int64)),
            "action_mask": ((n, self.num_masked), np.dtype(np.bool_)),
            "final_action_mask": ((n, self.num_masked), np.dtype(np.bool_)),
            "origin": ((n, self.num_origin), np.dtype(np.uint64)),
            "steps_sent": ((n, min(self.num_origin, 1)), np.dtype(np.int64)),
        }

    @property
    def nbytes(self) -> int:
        """Bytes of the whole block, each array on cache lines of its own."""
        return sum(_padded_bytes(shape, dtype) for shape, dtype in self.fields().values())


@dataclass(frozen=True)
class SharedBlock:
    """Numpy views of one block of memory; N environments.

    Attributes:
        obs: [N, *O] what the policy acts on next: after an end, the first of the new episode.
        final_obs: [N, *O] last observation of an episode that ended in this step and was reset
            in it; rows that did not end hold older contents.
        action: [N, *A] the actions to take.
        reward: [N] float64.
        terminated: [N] bool.
        truncated: [N] bool.
        real: [N] bool; False where the step was only a reset (autoreset mode NEXT_STEP).
        resting: [N] bool, set by the caller: not to be stepped; the row stays as it is.
        restarting: [N] bool, set by the caller beside `resting`: the next step resets instead, and
            clears both.
        episode_return: [N] float64, sum of rewards of the episode that ended last.
        episode_length: [N] int64, env steps of the episode that ended last.
        action_mask: [N, A] bool, what may be done in `obs`; [N, 0] without masks.
        final_action_mask: [N, A] bool, what could have been done in `final_obs`; or [N, 0].
        origin: [N, 8] uint64, what the running episode began from, see `origins`; or [N, 0].
        steps_sent: [N, 1] int64, set by the caller: steps of the group so far; or [N, 0].
    """

    obs: npt.NDArray[Any]
    final_obs: npt.NDArray[Any]
    action: npt.NDArray[Any]
    reward: npt.NDArray[np.float64]
    terminated: npt.NDArray[np.bool_]
    truncated: npt.NDArray[np.bool_]
    real: npt.NDArray[np.bool_]
    resting: npt.NDArray[np.bool_]
    restarting: npt.NDArray[np.bool_]
    episode_return: npt.NDArray[np.float64]
    episode_length: npt.NDArray[np.int64]
    action_mask: npt.NDArray[np.bool_]
    final_action_mask: npt.NDArray[np.bool_]
    origin: npt.NDArray[np.uint64]
    steps_sent: npt.NDArray[np.int64]

    @classmethod
    def over(cls, buffer: memoryview | bytearray, spec: RowSpec) -> SharedBlock:
        """Lay the arrays over a writable buffer of at least `spec.nbytes`; copies nothing."""
        arrays, offset = {}, 0
        for name, (shape, dtype) in spec.fields().items():
            flat = np.frombuffer(buffer, dtype, count=math.prod(shape), offset=offset)
            arrays[name] = flat.reshape(shape)
            offset += _padded_bytes(shape, dtype)
        return cls(**arrays)

    @classmethod
    def allocate(cls, spec: RowSpec) -> SharedBlock:
        """Allocate private memory for the rows, all zero; `real` is True."""
        rows = cls.over(bytearray(spec.nbytes), spec)
        rows.real[:] = True
        return rows

    def clear(self) -> None:
        """Clear the last step: no reward, no end, every row real, no environment at rest."""
        self.reward[:] = 0.0
        self.terminated[:] = self.truncated[:] = self.resting[:] = self.restarting[:] = False
        self.real[:] = True

    def columns(self, start: int, stop: int) -> SharedBlock:
        """Return views of the environments `start` to `stop` (excluded)."""
        return SharedBlock(**{f.name: getattr(self, f.name)[start:stop] for f in fields(self)})


def _shape_and_dtype(space: Space[Any] | None) -> tuple[tuple[int, ...], str]:
    """Return shape and dtype of an array space; None takes no bytes of the block."""
    if space is None:
        return (0,), "uint8"
    return tuple(space.shape or ()), np.dtype(space.dtype).name


def _padded_bytes(shape: tuple[int, ...], dtype: np.dtype[Any]) -> int:
    nbytes = math.prod(shape) * dtype.itemsize
    return -(-nbytes // CACHE_LINE_BYTES) * CACHE_LINE_BYTES
