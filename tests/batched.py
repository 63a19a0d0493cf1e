"""Counters written as one program: a vector environment that no Gymnasium class made."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from gymnasium.spaces import Box, Discrete
from gymnasium.vector import AutoresetMode, VectorEnv

from tests.masked import NUM_ACTIONS, allowed
from tests.oracles import CounterRules


class BatchedCounter(VectorEnv[Any, Any, Any]):
    """N counters written as one program: native arrays, one seed for all."""

    def __init__(self, num_envs: int, mode: AutoresetMode | str | None) -> None:
        self.num_envs = num_envs
        self.metadata = {} if mode is None else {"autoreset_mode": mode}
        self.single_observation_space = Box(0, 4096, (3,), np.float32)
        self.single_action_space = Discrete(3)
        self.rules = CounterRules((3, 2))
        self.seed: int | None = None
        self.state = np.zeros((num_envs, 3), np.int64)
        self.state[:, 0] = np.arange(num_envs)
        self.state[:, 1] = -1
        self.ended = np.zeros(num_envs, np.bool_)

    def _begin(self, mask: np.ndarray[Any, Any]) -> None:
        self.state[mask, 1] += 1
        self.state[mask, 2] = 0
        self.ended[mask] = False

    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        assert seed is None or isinstance(seed, int)
        self.seed = self.seed if seed is None else seed
        mask = (options or {}).get("reset_mask", np.ones(self.num_envs, np.bool_))
        self._begin(mask)
        return self.state.astype(np.float32), {}

    def step(self, actions: Any) -> Any:
        reset = self.ended.copy()
        reward = np.zeros(self.num_envs)
        terminated, truncated = np.zeros((2, self.num_envs), np.bool_)
        for i in np.flatnonzero(~reset).tolist():
            env_id, episode, t = self.state[i].tolist()
            reward[i] = self.rules.reward(env_id, episode, t, int(actions[i]))
            terminated[i], truncated[i] = self.rules.flags(env_id, episode, t)
        self.state[~reset, 2] += 1
        self._begin(reset)
        ended = self.ended = terminated | truncated
        infos: dict[str, Any] = {}
        if self.metadata["autoreset_mode"] == AutoresetMode.SAME_STEP and ended.any():
            infos = {"final_obs": self.state.astype(np.float32), "_final_obs": ended}
            self._begin(ended.copy())
        return self.state.astype(np.float32), reward, terminated, truncated, infos


class MaskedBatchedCounter(BatchedCounter):
    """Says what may be done, of all counters in one array, as its own kind of boolean."""

    def __init__(self, num_envs: int, mode: AutoresetMode, num_actions: int = NUM_ACTIONS) -> None:
        super().__init__(num_envs, mode)
        self.single_action_space = Discrete(NUM_ACTIONS)
        self.message = num_actions

    def masks(self, state: npt.NDArray[np.int64]) -> npt.NDArray[np.int8]:
        return np.array([allowed(*row) for row in state.tolist()], np.int8)[:, : self.message]

    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        obs, _ = super().reset(seed=seed, options=options)
        return obs, {"action_mask": self.masks(self.state)}

    def step(self, actions: Any) -> Any:
        acting = ~self.ended
        rows = zip(self.state[acting].tolist(), actions[acting].tolist(), strict=True)
        assert all(allowed(*row)[action] for row, action in rows)
        *result, infos = super().step(actions)
        if "final_obs" in infos:
            final = infos["final_obs"].astype(np.int64)
            infos["final_info"] = {"action_mask": self.masks(final)}
        return *result, {**infos, "action_mask": self.masks(self.state)}
