"""The worker process: several environments, stepped on a signal, results in the shared block.

A signal is one short message on the worker's own connection; everything else of a step lies in
the block. When the parent dies, its end of the connection closes and the worker leaves.
"""

from __future__ import annotations

import contextlib
import pickle
import signal
import traceback
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import cloudpickle
import gymnasium as gym
import numpy as np
from gymnasium.spaces.utils import is_space_dtype_shape_equiv
from gymnasium.vector import AutoresetMode

from fastdqn.envs.rows import Rows, RowSpec

if TYPE_CHECKING:
    from collections.abc import Callable
    from multiprocessing.connection import Connection

__all__ = ["CLOSE", "DONE", "FAILED", "PAYLOAD", "STEP", "Failure", "Task", "run_worker"]

STEP = b"s"
"""The whole message that asks for one step of every environment of the worker."""
CLOSE = pickle.dumps(("close", ()))
"""The whole message that ends the worker."""
DONE, PAYLOAD, FAILED = b"d", b"p", b"f"
"""First byte of an answer: nothing more; a pickled result follows; a pickled Failure follows."""


@dataclass(frozen=True)
class Task:
    """What a worker hosts.

    Attributes:
        first_env: Index of its first environment in the whole vector.
        env_fns: Cloudpickled list of factories, one per environment.
        spec: Layout of the block, for all environments.
        autoreset_mode: Value of a Gymnasium AutoresetMode.
        send_infos: Whether infos travel; if not, they are dropped in the worker.
        semaphore: Limits how many workers run an environment at a time, or None.
    """

    first_env: int
    env_fns: bytes
    spec: RowSpec
    autoreset_mode: str
    send_infos: bool
    semaphore: Any = None


@dataclass(frozen=True)
class Failure:
    """An exception that an environment raised, fit to cross the process border.

    Attributes:
        env: Index of the environment in the whole vector.
        error: The exception, or None if it does not survive pickling.
        text: The formatted traceback.
    """

    env: int
    error: Exception | None
    text: str


def run_worker(connection: Connection, block: Any, task: Task, inherited: list[Connection]) -> None:
    """Serve until the parent says close or its end of the connection closes.

    Args:
        connection: This worker's end.
        block: Shared memory (a RawArray) of `task.spec.nbytes`.
        task: What to host.
        inherited: Ends that a forked child holds by accident; closed first, since an end that
            stays open here would hide the parent's death from other workers.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's business
    for end in inherited:
        end.close()
    host = _Host(block, task)
    with contextlib.suppress(EOFError, OSError):
        while host.serve(connection):
            pass
    host.close()


class _Host:
    """The environments of one worker and the columns of the block that they own."""

    def __init__(self, block: Any, task: Task) -> None:
        self.task = task
        self.env_fns: list[Callable[[], gym.Env[Any, Any]]] = pickle.loads(task.env_fns)  # noqa: S301 - written by the parent process
        count = len(self.env_fns)
        self.rows = Rows.over(memoryview(block), task.spec).columns(
            task.first_env, task.first_env + count
        )
        self.envs: list[gym.Env[Any, Any]] = []
        self.returns, self.lengths = [0.0] * count, [0] * count
        self.ended = [False] * count
        self.current = 0
        self.step_one = {
            AutoresetMode.NEXT_STEP.value: self._step_or_reset,
            AutoresetMode.SAME_STEP.value: self._step_and_reset,
            AutoresetMode.DISABLED.value: self._step_only,
        }[task.autoreset_mode]
        self.permit = task.semaphore or contextlib.nullcontext()

    def serve(self, connection: Connection) -> bool:
        """Answer one message; return False when it was the last."""
        message = connection.recv_bytes()
        try:
            answer = self._step() if message == STEP else self._obey(message)
        except Exception as error:  # whatever an environment raises goes to the parent
            answer = FAILED + _pack_failure(self.task.first_env + self.current, error)
        connection.send_bytes(answer)
        return message != CLOSE

    def _obey(self, message: bytes) -> bytes:
        name, data = pickle.loads(message)  # noqa: S301 - written by the parent process
        return _payload(getattr(self, name)(*data))

    def _step(self) -> bytes:
        with self.permit:
            return self._step_all()

    def _step_all(self) -> bytes:
        infos: dict[int, dict[str, Any]] = {}
        for i, action in enumerate(self.rows.action.copy()):  # an environment may keep its action
            self.current = i
            info = self.step_one(i, action)
            if info and self.task.send_infos:
                infos[self.task.first_env + i] = info
        return _payload(infos) if infos else DONE

    def _step_only(self, i: int, action: Any) -> dict[str, Any]:
        """Step environment `i` and write its row; the episode's sums are written at its end."""
        rows = self.rows
        obs, reward, terminated, truncated, info = self.envs[i].step(action)
        if not isinstance(reward, float):
            reward = _scalar_reward(reward)
        rows.obs[i] = obs
        rows.reward[i] = reward
        rows.terminated[i] = terminated
        rows.truncated[i] = truncated
        self.returns[i] += reward
        self.lengths[i] += 1
        if terminated or truncated:
            self.ended[i] = True
            rows.episode_return[i] = self.returns[i]
            rows.episode_length[i] = self.lengths[i]
        return info

    def _step_and_reset(self, i: int, action: Any) -> dict[str, Any]:
        """SAME_STEP: an ended environment is reset at once; its last observation is kept."""
        info = self._step_only(i, action)
        if self.ended[i]:
            self.rows.final_obs[i] = self.rows.obs[i]
            info = {"final_info": info, **self._reset_one(i, None, None)}
        return info

    def _step_or_reset(self, i: int, action: Any) -> dict[str, Any]:
        """NEXT_STEP: an ended environment is reset by the next step, which is no transition."""
        self.rows.real[i] = not self.ended[i]
        if not self.ended[i]:
            return self._step_only(i, action)
        self.rows.reward[i] = 0.0
        self.rows.terminated[i] = self.rows.truncated[i] = False
        return self._reset_one(i, None, None)

    def _reset_one(
        self, i: int, seed: int | None, options: dict[str, Any] | None
    ) -> dict[str, Any]:
        obs, info = self.envs[i].reset(seed=seed, options=options)
        shape = np.shape(obs)
        if shape != self.task.spec.obs_shape:
            raise ValueError(
                f"reset returned an observation of shape {shape}, "
                f"the observation space says {self.task.spec.obs_shape}"
            )
        self.rows.obs[i] = obs
        self.returns[i], self.lengths[i], self.ended[i] = 0.0, 0, False
        return info

    def make(self) -> None:
        """Build the environments."""
        for i, env_fn in enumerate(self.env_fns):
            self.current = i
            self.envs.append(env_fn())

    def reset(
        self, seeds: list[int | None], options: dict[str, Any] | None, mask: list[bool]
    ) -> dict[int, dict[str, Any]]:
        """Reset the environments that the mask names; return their infos by index."""
        infos = {}
        for i, seed in enumerate(seeds):
            self.current = i
            if mask[i]:
                with self.permit:
                    info = self._reset_one(i, seed, options)
                infos[self.task.first_env + i] = info if self.task.send_infos else {}
        return infos

    def call(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
        """Call a method of every environment, or read an attribute."""
        if name in {"reset", "step", "close", "set_wrapper_attr"}:
            raise ValueError(
                f"Trying to call function `{name}` with `call`, use `{name}` directly."
            )
        results = []
        for i, env in enumerate(self.envs):
            self.current = i
            attribute = env.get_wrapper_attr(name)
            results.append(attribute(*args, **kwargs) if callable(attribute) else attribute)
        return results

    def set_attr(self, name: str, values: list[Any]) -> None:
        """Set one attribute of every environment."""
        for i, (env, value) in enumerate(zip(self.envs, values, strict=True)):
            self.current = i
            env.set_wrapper_attr(name, value)

    def check_spaces(
        self, mode: Any, obs_space: gym.Space[Any], action_space: gym.Space[Any]
    ) -> list[tuple[bool, bool]]:
        """Say for every environment whether its two spaces are those of the vector."""
        return [
            (
                env.observation_space == obs_space
                if mode == "same"
                else is_space_dtype_shape_equiv(env.observation_space, obs_space),
                env.action_space == action_space,
            )
            for env in self.envs
        ]

    def close(self) -> None:
        """Close every environment, once."""
        while self.envs:
            self.envs.pop().close()


def _scalar_reward(reward: Any) -> float:
    if np.ndim(reward) != 0:
        raise ValueError(
            f"the reward must be a scalar, got an array of shape {np.shape(reward)}: "
            "return float(reward[0]) from the environment's step"
        )
    return float(reward)


def _payload(content: Any) -> bytes:
    packed: bytes = cloudpickle.dumps(content)
    return PAYLOAD + packed


def _pack_failure(env: int, error: Exception) -> bytes:
    text = "".join(traceback.format_exception(error))
    try:
        packed: bytes = cloudpickle.dumps(Failure(env, error, text))
        pickle.loads(packed)  # noqa: S301 - proves that the parent can read what was just written
    except Exception:
        packed = cloudpickle.dumps(Failure(env, None, text))
    return packed
