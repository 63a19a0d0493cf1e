"""Actions reach the environments in the dtype of their space, alike under every vectorizer."""

from __future__ import annotations

from contextlib import closing
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from gymnasium.spaces import Box, Discrete, MultiDiscrete
from gymnasium.vector import AutoresetMode

from fastdqn import DQN, UsageError
from fastdqn.envs.description import describe, describe_spaces
from fastdqn.envs.grouped import GroupedVectorEnv
from fastdqn.envs.sources.source import make_source, source_of
from fastdqn.envs.workers.allocation import Allocation
from tests.drive import KINDS, MODES, vector_of
from tests.unit.agent.test_dqn import small
from tests.unruly import ActionEchoEnv

if TYPE_CHECKING:
    from fastdqn.envs.sources.source import EnvSource

NUM_ENVS, STEPS = 2, 12
SPACES: list[Any] = [
    Discrete(3, start=start, dtype=dtype)
    for dtype in (np.uint8, np.uint16, np.uint32, np.uint64, np.int8, np.int16, np.int32, np.int64)
    for start in ((0, 5) if np.dtype(dtype).kind == "u" else (0, 5, -2))
]
FEW = [space for space in SPACES if space.dtype in {np.dtype("u1"), np.dtype("u8")}][::3]
Transition = tuple[list[float], float, bool]


def _name(space: Any) -> str:
    return f"{space.dtype} from {space.start}"


def _plain_loop(space: Any) -> list[list[Transition]]:
    seen: list[list[Transition]] = []
    for actions in _actions().T:
        env, mine = ActionEchoEnv(space), []
        env.reset()
        for action in actions:
            obs, reward, terminated, *_ = env.step(space.dtype.type(action) + space.start)
            mine.append((obs.tolist(), reward, terminated))
            if terminated:
                env.reset()
        seen.append(mine)
    return seen


def _actions() -> Any:
    return np.random.default_rng(3).integers(3, size=(STEPS, NUM_ENVS))


def _by_source(source: EnvSource) -> list[list[Transition]]:
    """Return the first transitions of each environment; each takes its own actions in turn."""
    seen: list[list[Transition]] = [[] for _ in range(NUM_ENVS)]
    with closing(source):
        source.reset(range(NUM_ENVS))
        rows = source.rows
        while min(map(len, seen)) < STEPS:
            due = [_actions()[min(len(mine), STEPS - 1), i] for i, mine in enumerate(seen)]
            source.send(np.array(due))
            source.recv()
            last = rows.final_obs if source.resets_within_step else rows.obs
            for i in np.flatnonzero(rows.real).tolist():
                obs = last[i] if rows.terminated[i] else rows.obs[i]
                seen[i].append((obs.tolist(), float(rows.reward[i]), bool(rows.terminated[i])))
    return [mine[:STEPS] for mine in seen]


@pytest.mark.parametrize("space", SPACES, ids=_name)
@pytest.mark.parametrize("vectorizer", ["grouped", "sync"])
def test_every_dtype_and_start_gives_the_transitions_of_a_plain_loop(
    vectorizer: str, space: Any
) -> None:
    factory = partial(ActionEchoEnv, space)
    source = make_source(vectorizer, factory, describe(factory), NUM_ENVS, 0)
    assert _by_source(source) == _plain_loop(space)


@pytest.mark.parametrize("space", FEW, ids=_name)
@pytest.mark.parametrize(
    ("vectorizer", "allocation"),
    [
        ("grouped", Allocation(1, 0)),
        ("grouped", Allocation(2, 0)),
        ("grouped", Allocation(1, 1)),
        ("async", None),
    ],
    ids=["1 worker", "2 workers", "a worker and the caller", "async"],
)
def test_processes_are_handed_the_same_actions(
    vectorizer: str, allocation: Allocation | None, space: Any
) -> None:
    factory = partial(ActionEchoEnv, space)
    source = make_source(vectorizer, factory, describe(factory), NUM_ENVS, allocation=allocation)
    assert _by_source(source) == _plain_loop(space)


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.name)
@pytest.mark.parametrize("kind", ["grouped 0", "sync"])
def test_a_lent_vector_gets_actions_of_its_own_dtype(kind: str, mode: AutoresetMode) -> None:
    assert kind in KINDS
    for space in FEW:
        envs = vector_of(kind, [partial(ActionEchoEnv, space)] * NUM_ENVS, mode)
        assert _by_source(source_of(envs)) == _plain_loop(space)


def test_a_lent_vector_of_processes_gets_actions_of_its_own_dtype() -> None:
    envs = vector_of("async", [partial(ActionEchoEnv, FEW[0])] * NUM_ENVS, MODES[1])
    assert _by_source(source_of(envs)) == _plain_loop(FEW[0])


def test_an_agent_learns_and_predicts_in_the_dtype_of_the_actions() -> None:
    space: Any = Discrete(3, start=-2, dtype=np.int8)
    agent = small(partial(ActionEchoEnv, space), vectorizer="grouped", num_workers=0).learn(100)
    assert agent.evaluate(3).episodes == 3
    for obs, mask in ((np.zeros(2), None), (np.zeros((4, 2)), [[False, False, True]] * 4)):
        actions = agent.predict(obs, mask)
        assert actions.dtype == np.int8
        assert all(space.contains(action) for action in actions.ravel())
    assert (actions == 0).all()
    assert isinstance(agent, DQN)


@pytest.mark.parametrize(
    "space",
    [
        Discrete(200, start=100, dtype=np.uint8),
        Discrete(100, start=50, dtype=np.int8),
        Discrete(2, start=2**63 - 1, dtype=np.uint64),
    ],
    ids=_name,
)
def test_actions_that_their_dtype_cannot_hold_are_refused(space: Any) -> None:
    with pytest.raises(UsageError, match=r"its last action is \d+, and \d+ is the largest"):
        describe_spaces("X", Box(0, 1, (2,)), space)


def test_the_largest_action_that_fits_is_sent() -> None:
    space: Any = Discrete(3, start=253, dtype=np.uint8)
    factory = partial(ActionEchoEnv, space)
    assert _by_source(make_source("grouped", factory, describe(factory), 2, 0)) == _plain_loop(
        space
    )


def test_actions_of_several_numbers_still_travel_as_they_are() -> None:
    class Pair(ActionEchoEnv):
        def __init__(self) -> None:
            super().__init__(Discrete(3))
            self.action_space: Any = MultiDiscrete([3, 2], dtype=np.uint8)

        def step(self, action: Any) -> Any:
            assert self.action_space.contains(action), repr(action)
            return np.array(action, np.float64), 0.0, False, False, {}

    with closing(GroupedVectorEnv([Pair] * 2, num_workers=0)) as envs:
        envs.reset()
        obs = envs.step(np.array([[2, 1], [0, 1]], np.uint8))[0]
    assert obs.tolist() == [[2, 1], [0, 1]]
