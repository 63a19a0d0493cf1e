"""Environments on the device against Gymnasium's own, step by step from the same states.

Every environment of a pair follows a rule of thumb that solves the task, with a share of random
actions that grows from none in the first environment to all in the last: so every way of
ending is met, goals, falls and time limits.

In float64 the two differ by the last bit of a sine at most: PyTorch and NumPy bring their own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch._dynamo.utils import counters

from fastdqn.envs.tensor import TENSOR_ENVS, Acrobot, CartPole, MountainCar, PureTensorEnv

Floats = npt.NDArray[np.float64]
Observations = npt.NDArray[np.float32]
Flags = npt.NDArray[np.bool_]

N = 8
IDS = sorted(TENSOR_ENVS)
LIMITS = {"Acrobot-v1": 500, "CartPole-v1": 500, "MountainCar-v0": 200}

each_id = pytest.mark.parametrize("env_id", IDS)


def rule_of_thumb(env_id: str, state: Floats) -> npt.NDArray[np.int64]:
    """Balance the pole; push the way the car rolls; turn the way the second link turns."""
    if env_id == "CartPole-v1":
        return (state[:, 2] + 0.3 * state[:, 3] > 0).astype(np.int64)
    return 2 * (state[:, -1] > 0).astype(np.int64)


def distance_to_a_limit(env_id: str, state: Floats) -> Floats:
    """Return how far each state [N, S] lies from where a flag would turn."""
    if env_id == "CartPole-v1":
        position, angle = np.abs(state[:, 0]), np.abs(state[:, 2])
        return np.minimum(np.abs(position - 2.4), np.abs(angle - 12 * np.pi / 180))
    if env_id == "MountainCar-v0":
        return np.abs(state[:, 0] - 0.5)
    return np.abs(-np.cos(state[:, 0]) - np.cos(state[:, 0] + state[:, 1]) - 1.0)


@dataclass
class Seen:
    """What one vector step showed, of one side."""

    final_obs: Observations
    reward: npt.NDArray[np.float32]
    terminated: Flags
    truncated: Flags

    @property
    def ended(self) -> Flags:
        return self.terminated | self.truncated


class Twins:
    """A tensor environment and N of Gymnasium's, in the same states, under the same actions."""

    def __init__(self, env_id: str, dtype: torch.dtype, limit: int | None = None) -> None:
        limits = {} if limit is None else {"max_episode_steps": limit}
        self.env_id = env_id
        self.env: Any = TENSOR_ENVS[env_id](N, dtype=dtype, **limits)
        self.gyms: list[Any] = [
            gym.make(env_id, disable_env_checker=True, **limits) for _ in range(N)
        ]
        self.obs: Observations = self.env.reset(11).numpy()
        self._rng = np.random.default_rng(5)
        for index in range(N):
            self.restart(index)

    @property
    def state(self) -> Floats:
        physics: Floats = self.env.state[0].numpy().astype(np.float64)
        return physics

    @property
    def gym_state(self) -> Floats:
        return np.array([np.asarray(env.unwrapped.state, np.float64) for env in self.gyms])

    def restart(self, index: int) -> None:
        """Begin an episode of Gymnasium's environment in the state that the tensors are in."""
        self.gyms[index].reset(seed=0)
        self.share(index)

    def share(self, index: int) -> None:
        env = self.gyms[index].unwrapped
        env.state = self.state[index].copy()

    def shown(self, index: int) -> Observations:
        """Return what Gymnasium's environment shows of the state that it is in."""
        env = self.gyms[index].unwrapped
        if self.env_id == "Acrobot-v1":
            seen: Observations = env._get_ob()
            return seen
        return np.array(env.state, np.float32)

    def actions(self) -> npt.NDArray[np.int64]:
        num_actions = self.env.single_action_space.n
        chance = self._rng.integers(num_actions, size=N)
        at_random = self._rng.random(N) < np.linspace(0, 1, N)
        return np.where(at_random, chance, rule_of_thumb(self.env_id, self.state))

    def step(self) -> tuple[Seen, Seen]:
        """Step both sides with the same actions; `self.obs` is what the tensors show next."""
        actions = self.actions()
        ours = self.env.step(torch.from_numpy(actions))
        rows = [env.step(int(action)) for env, action in zip(self.gyms, actions, strict=True)]
        obs, reward, terminated, truncated, _ = zip(*rows, strict=True)
        theirs = Seen(
            np.array(obs),
            np.array(reward, np.float32),
            np.array(terminated),
            np.array(truncated) & ~np.array(terminated),
        )
        self.obs = ours.obs.numpy()
        flags = (ours.terminated.numpy(), ours.truncated.numpy())
        return Seen(ours.final_obs.numpy(), ours.reward.numpy(), *flags), theirs

    def episodes_of_both_go_on(self, ended: Flags, *, share_all: bool) -> None:
        """Feed the tensors' new episodes across, and look at what either side shows of them."""
        for index in range(N):
            if ended[index]:
                self.restart(index)
                close_to_an_ulp(self.obs[index], self.shown(index))
            elif share_all:
                self.share(index)


def close_to_an_ulp(ours: Observations, theirs: Observations) -> None:
    assert ours.dtype == theirs.dtype == np.float32
    assert (np.abs(ours.astype(np.float64) - theirs) <= np.spacing(np.abs(theirs))).all()


def same_ends(ours: Seen, theirs: Seen) -> None:
    np.testing.assert_array_equal(ours.terminated, theirs.terminated)
    np.testing.assert_array_equal(ours.truncated, theirs.truncated)
    np.testing.assert_array_equal(ours.reward, theirs.reward)


# Whole episodes, apart from their first states on


@pytest.mark.parametrize(
    ("env_id", "falls", "cuts"), [("CartPole-v1", 80, 2), ("MountainCar-v0", 20, 8)]
)
def test_whole_episodes_are_gymnasiums(env_id: str, falls: int, cuts: int) -> None:
    twins = Twins(env_id, torch.float64)
    terminated = truncated = 0
    for _ in range(1200):
        ours, theirs = twins.step()
        same_ends(ours, theirs)
        close_to_an_ulp(ours.final_obs, theirs.final_obs)
        going_on = ~ours.ended
        np.testing.assert_array_equal(twins.obs[going_on], ours.final_obs[going_on])
        twins.episodes_of_both_go_on(ours.ended, share_all=False)
        terminated += int(ours.terminated.sum())
        truncated += int(ours.truncated.sum())
    assert terminated >= falls
    assert truncated >= cuts


@pytest.mark.slow
def test_whole_swings_are_gymnasiums_in_stretches_of_fifty_steps() -> None:
    """The double pendulum is chaotic: the last bit of a cosine would show after some 200 steps."""
    twins = Twins("Acrobot-v1", torch.float64)
    age = np.zeros(N, np.int64)
    terminated = truncated = 0
    for _ in range(2000):
        ours, theirs = twins.step()
        same_ends(ours, theirs)
        close_to_an_ulp(ours.final_obs, theirs.final_obs)
        going_on = ~ours.ended
        np.testing.assert_array_equal(twins.obs[going_on], ours.final_obs[going_on])
        twins.episodes_of_both_go_on(ours.ended, share_all=False)
        age = np.where(ours.ended, 0, age + 1)
        for index in np.flatnonzero(age % 50 == 0):
            twins.share(int(index))
        terminated += int(ours.terminated.sum())
        truncated += int(ours.truncated.sum())
    assert terminated >= 60
    assert truncated >= 2


# One step from the same state


@each_id
def test_every_single_step_is_gymnasiums_in_float64(env_id: str) -> None:
    twins = Twins(env_id, torch.float64)
    for _ in range(600):
        ours, theirs = twins.step()
        same_ends(ours, theirs)
        close_to_an_ulp(ours.final_obs, theirs.final_obs)
        twins.episodes_of_both_go_on(ours.ended, share_all=True)


@each_id
def test_every_single_step_is_gymnasiums_in_float32_but_for_rounding(env_id: str) -> None:
    twins = Twins(env_id, torch.float32)
    ends = excused = 0
    for _ in range(600):
        ours, theirs = twins.step()
        np.testing.assert_allclose(ours.final_obs, theirs.final_obs, rtol=1e-6, atol=1e-6)
        clear = distance_to_a_limit(env_id, twins.gym_state) > 1e-6
        same_ends(*(_only(seen, clear) for seen in (ours, theirs)))
        twins.episodes_of_both_go_on(ours.ended | theirs.ended, share_all=True)
        ends += int(ours.terminated.sum())
        excused += int((~clear).sum())
    assert ends > 8
    assert excused <= 2


def _only(seen: Seen, rows: Flags) -> Seen:
    return Seen(
        seen.final_obs[rows], seen.reward[rows], seen.terminated[rows], seen.truncated[rows]
    )


# Time limits


@each_id
def test_the_usual_limit_is_the_registered_one_and_holds_to_the_step(env_id: str) -> None:
    limit = LIMITS[env_id]
    env: Any = TENSOR_ENVS[env_id](2)
    assert env.max_episode_steps == limit == gym.spec(env_id).max_episode_steps
    env.state[1].copy_(torch.tensor([limit - 2, 0]))  # one is two steps from its end
    cut = [env.step(torch.tensor([1, 1])).truncated.tolist() for _ in range(3)]
    assert cut == [[False, False], [True, False], [False, False]]
    assert env.state[1].tolist() == [1, 3]


@each_id
def test_short_limits_cut_where_gymnasiums_wrapper_cuts(env_id: str) -> None:
    twins = Twins(env_id, torch.float64, limit=5)
    cut = []
    for _ in range(20):
        ours, theirs = twins.step()
        same_ends(ours, theirs)
        twins.episodes_of_both_go_on(ours.ended, share_all=False)
        cut.append(bool(ours.truncated.all()))
    assert cut == [False, False, False, False, True] * 4


def test_an_episode_that_ends_by_itself_at_its_limit_is_not_called_cut() -> None:
    env = CartPole(2, max_episode_steps=1)
    env.state[0].copy_(torch.tensor([[2.39, 9.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]]))
    step = env.step(torch.tensor([1, 1]))
    assert step.terminated.tolist() == [True, False]
    assert step.truncated.tolist() == [False, True]

    theirs = gym.make("CartPole-v1", max_episode_steps=1, disable_env_checker=True)
    theirs.reset(seed=0)
    inner: Any = theirs.unwrapped
    inner.state = np.array([2.39, 9.0, 0.0, 0.0])
    assert theirs.step(1)[2:4] == (True, True)


# Corners that play seldom reaches


CORNERS: list[tuple[Callable[..., PureTensorEnv], list[float], int]] = [
    (MountainCar, [-1.19, -0.07], 0),  # into the wall
    (MountainCar, [-1.2, 0.0], 1),  # away from it by the slope alone
    (MountainCar, [-0.2, 0.07], 2),  # as fast as it goes
    (MountainCar, [0.48, 0.02], 2),  # a hair beyond the goal
    (MountainCar, [0.55, -0.02], 0),  # beyond the goal, and rolling back
    (MountainCar, [0.59, 0.07], 2),  # against the right end
    (Acrobot, [3.0, -3.1, 9.0, -28.0], 0),  # more than one turn in one step
    (Acrobot, [-3.1, 3.1, -12.5, 28.2], 2),
    (Acrobot, [0.3, -3.0, 12.5, 28.2], 1),
    (CartPole, [0.0, 0.0, 0.2, -9.0], 1),  # beyond the angle within one step, from side to side
]


@pytest.mark.parametrize(("kind", "state", "action"), CORNERS)
def test_corners_are_gymnasiums(
    kind: Callable[..., PureTensorEnv], state: list[float], action: int
) -> None:
    env = kind(1, dtype=torch.float64)
    theirs = gym.make(env.env_id, disable_env_checker=True)
    theirs.reset(seed=0)
    inner: Any = theirs.unwrapped
    inner.state = np.array(state)
    obs, reward, terminated, _, _ = theirs.step(action)
    env.state[0].copy_(torch.tensor([state], dtype=torch.float64))
    step = env.step(torch.tensor([action]))
    close_to_an_ulp(step.final_obs[0].numpy(), obs)
    assert (step.reward.item(), step.terminated.item()) == (reward, terminated)
    if not terminated:
        state_then = np.asarray(inner.state, np.float64)
        np.testing.assert_allclose(env.state[0][0].numpy(), state_then, rtol=1e-13, atol=1e-14)


# Compiled


@pytest.mark.parametrize(
    "env_id",
    [pytest.param(name, marks=[pytest.mark.slow] * (name != "CartPole-v1")) for name in IDS],
)
def test_compiled_as_one_graph_it_does_what_the_plain_function_does(env_id: str) -> None:
    plain, compiled = (TENSOR_ENVS[env_id](16) for _ in range(2))
    obs = plain.reset(3)
    compiled.reset(3)
    generator = torch.Generator().manual_seed(0)
    torch._dynamo.reset()
    advance = torch.compile(compiled.advance, fullgraph=True)
    graphs: dict[str, int] = {}
    ends = 0
    for count in range(200):
        action = torch.randint(int(plain.single_action_space.n), (16,), generator=generator)
        uniform = torch.rand(16, plain.num_random, generator=generator)
        if count == 100:  # random play ends few episodes: let them all end here
            for env in (plain, compiled):
                env.state[1].fill_(LIMITS[env_id] - 1)
        right, fast = plain.advance(action, uniform), advance(action, uniform)
        torch.testing.assert_close(fast.obs, right.obs, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(fast.final_obs, right.final_obs, rtol=1e-6, atol=1e-6)
        for name in ("reward", "terminated", "truncated"):
            assert torch.equal(getattr(fast, name), getattr(right, name))
        assert torch.equal(compiled.state[1], plain.state[1])
        assert not torch.equal(fast.obs, obs)
        compiled.state[0].copy_(plain.state[0])  # rounding shall not grow
        obs = right.obs
        ends += int((right.terminated | right.truncated).sum())
        graphs = graphs or dict(counters["stats"])
    assert ends >= 16
    assert dict(counters["stats"]) == graphs
