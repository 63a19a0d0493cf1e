"""What is refused about an environment, and that the advice works when it is followed."""

from __future__ import annotations

import multiprocessing
import re
import sys
from functools import partial
from types import ModuleType
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.envs.classic_control import CartPoleEnv
from gymnasium.spaces import Box, Dict, Discrete, MultiDiscrete, Sequence, Space, Text, Tuple
from gymnasium.vector import SyncVectorEnv

from fastdqn import DQN
from fastdqn.envs.description import describe, describe_spaces
from fastdqn.envs.grouped import GroupedVectorEnv
from fastdqn.errors import UsageError
from tests.frail import Bare, Parental, Stuck

if TYPE_CHECKING:
    from collections.abc import Callable

TINY: dict[str, Any] = {"num_envs": 2, "learning_starts": 64, "device": "cpu", "execution": "eager"}
VECTORIZERS = [("grouped", 0), ("grouped", 2), ("sync", None), ("async", None)]
IMAGE, ON = Box(0, 255, (3, 3), np.uint8), Discrete(4)


class Mission(Space[str]):
    """A space of a package's own, as MiniGrid's, which Gymnasium cannot flatten."""

    def sample(self, mask: Any = None, probability: Any = None) -> str:
        return "go there"

    def contains(self, x: Any) -> bool:
        return isinstance(x, str)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Mission)

    __hash__ = None  # type: ignore[assignment]


class Showing(CartPoleEnv):
    """A CartPole that shows samples of another space."""

    def __init__(self, space: Space[Any]) -> None:
        super().__init__()
        self.observation_space = space

    def reset(self, **kwargs: Any) -> Any:
        super().reset(**kwargs)
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> Any:
        return self.observation_space.sample(), *super().step(action)[1:]  # type: ignore[no-untyped-call]


def refused(factory: Any) -> UsageError:
    with pytest.raises(UsageError) as caught:
        DQN(factory, **TINY)
    return caught.value


# Observations


@pytest.mark.parametrize(
    ("space", "shape"),
    [
        (Dict({"image": IMAGE, "direction": ON, "mission": Text(9)}), (13,)),
        (Dict({"image": IMAGE, "direction": ON, "mission": Mission()}), (13,)),
        (Dict({"image": IMAGE, "direction": ON}), (13,)),
        (Dict({"image": IMAGE, "deep": Dict({"a": ON, "b": Text(3)}), "list": Sequence(ON)}), (9,)),
        (Tuple([ON, Sequence(ON), IMAGE]), (13,)),
        (Tuple([ON, Box(0, 1, (2,))]), (6,)),
    ],
    ids=["text", "own space", "all arrays", "nested", "tuple", "tuple of arrays"],
)
def test_advice_for_observations_of_several_parts_works_as_it_is_written(
    space: Space[Any], shape: tuple[int, ...]
) -> None:
    way_out = refused(partial(Showing, space)).way_out
    written = re.search(
        r"(from gymnasium.wrappers import .*?); (DQN\(lambda: .*?\(gymnasium.make.*)", way_out
    )
    assert written is not None
    names: dict[str, Any] = {"env": partial(Showing, space)}
    exec(written[1], names)  # noqa: S102 - what a user would type
    called = written[2].partition(";")[0].removeprefix("DQN(")
    wrapped = eval(called.replace("gymnasium.make(...)", "env()").rstrip()[:-1], names)  # noqa: S307
    assert describe(wrapped).obs_shape == shape
    DQN(wrapped, num_workers=0, **TINY).learn(66)


def test_the_advice_names_a_wrapper_of_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Showing, "__module__", "minigrid.envs.empty")
    space = Dict({"image": IMAGE, "mission": Mission()})
    assert "minigrid.wrappers.ImgObsWrapper(env)" in refused(partial(Showing, space)).way_out
    monkeypatch.undo()
    assert "minigrid" not in refused(partial(Showing, space)).way_out


@pytest.mark.parametrize("shape", [(0,), (3, 0), (0, 3, 3)])
def test_observations_without_a_number_are_refused(shape: tuple[int, ...]) -> None:
    said = refused(partial(Showing, Box(0, 1, shape)))
    assert said.got == f"environment Showing with observations of shape {shape}"


def test_advice_for_dtypes_and_actions_works_as_it_is_written() -> None:
    wide = partial(Showing, Box(0, 9, (3,), np.uint16))
    assert "gymnasium.wrappers.DtypeObservation(env, numpy.float32)" in refused(wide).way_out
    described = describe(lambda: gym.wrappers.DtypeObservation(wide(), np.float32))
    assert described.obs_dtype == "float32"

    class Continuous(Showing):
        def __init__(self) -> None:
            super().__init__(Box(0, 1, (2,)))
            self.action_space = MultiDiscrete([2, 2])

        def step(self, action: Any) -> Any:
            assert np.shape(action) == (2,)
            return super().step(int(action[0]))

    written = "gymnasium.wrappers.TransformAction(env, lambda i: ACTIONS[i], gymnasium.spaces."
    assert f"{written}Discrete(len(ACTIONS)))" in refused(Continuous).way_out
    actions = np.array([(0, 0), (1, 1), (0, 1)])
    few = partial(
        lambda: gym.wrappers.TransformAction(Continuous(), lambda i: actions[i], Discrete(3))
    )
    assert describe(few).num_actions == 3


# Kinds of environments


@pytest.fixture
def old_gym(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A fake of the old package: an environment and a space that are none of Gymnasium's."""
    gym_ = ModuleType("gym")
    gym_.Env = type("Env", (), {"__module__": "gym.core", "metadata": {}, "render_mode": None})  # type: ignore[attr-defined]
    gym_.Discrete = type(  # type: ignore[attr-defined]
        "Discrete",
        (),
        {"__module__": "gym.spaces.discrete", "n": 17, "__repr__": lambda _: "D(17)"},
    )
    monkeypatch.setitem(sys.modules, "gym", gym_)
    return gym_


def test_an_environment_of_the_old_package_is_said_to_be_one(old_gym: ModuleType) -> None:
    space = old_gym.Discrete()
    attributes = {"action_space": space, "observation_space": space, "reset": lambda _: 0}
    own = type("Old", (old_gym.Env,), {**attributes, "step": lambda *_: (0, 0.0, False, {})})
    said = refused(own)
    assert said.reason == "it is made for the old package gym, which Gymnasium has replaced"
    assert "shimmy.GymV26CompatibilityV0(env=" in said.way_out
    assert "gymnasium.Env" in said.way_out


def test_spaces_of_the_old_package_are_said_to_be_of_it(old_gym: ModuleType) -> None:
    class HalfWay(CartPoleEnv):
        def __init__(self) -> None:
            super().__init__()
            self.action_space = old_gym.Discrete()

    assert "the old package gym" in refused(HalfWay).reason


class OldReset(CartPoleEnv):
    def reset(self, **kwargs: Any) -> Any:
        return super().reset(**kwargs)[0]


class PairReset(OldReset):
    """Its observation has two numbers, which would pass for an observation and an info."""

    def reset(self, **kwargs: Any) -> Any:
        return super().reset(**kwargs)[:2]


class OldStep(CartPoleEnv):
    def step(self, action: Any) -> Any:
        obs, reward, terminated, truncated, info = super().step(action)  # type: ignore[no-untyped-call]
        return obs, reward, terminated or truncated, info


class ShortStep(CartPoleEnv):
    def step(self, action: Any) -> Any:
        return super().step(action)[:3]  # type: ignore[no-untyped-call]


class NoResetInfo(CartPoleEnv):
    def reset(self, **kwargs: Any) -> Any:
        return super().reset(**kwargs)[0], None


class NoStepInfo(CartPoleEnv):
    def step(self, action: Any) -> Any:
        return *super().step(action)[:4], None  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("vectorizer", ["grouped", "sync", "async"])
@pytest.mark.parametrize("masks", [True, False])
@pytest.mark.parametrize(
    ("env", "reason", "way_out"),
    [
        (OldReset, "only an observation, as the old gym API", "`return obs, {}`"),
        (PairReset, "only an observation, as the old gym API", "`return obs, {}`"),
        (OldStep, "four values, as the old gym API", "terminated, truncated, info`"),
        (ShortStep, "must return five values", "terminated, truncated, {}`"),
        (NoResetInfo, "its reset returned None for an info", "`return obs, {}`"),
        (NoStepInfo, "its step returned None for an info", "truncated, {}`"),
    ],
)
def test_what_answers_in_another_way_is_refused_with_what_to_write(
    env: type, reason: str, way_out: str, masks: bool, vectorizer: str
) -> None:
    with pytest.raises(UsageError) as caught:
        DQN(env, vectorizer=vectorizer, action_masks=masks, **TINY)
    assert caught.value.got == f"environment {env.__name__}"
    assert reason in caught.value.reason
    assert way_out in caught.value.way_out


def test_what_is_no_factory_is_refused_with_one() -> None:
    env = gym.make("CartPole-v1", max_episode_steps=7)
    way_out = 'DQN(lambda: gymnasium.make("CartPole-v1", ...))'
    assert way_out in refused(env).way_out
    assert "DQN(lambda: CartPoleEnv(...))" in refused(CartPoleEnv()).way_out
    assert "DQN(lambda: Bare(...))" in refused(Bare()).way_out
    env.close()
    for other in (3, None, ["CartPole-v1"], gym.spec("CartPole-v1")):
        assert 'DQN("CartPole-v1")' in refused(other).way_out


def test_what_a_factory_builds_that_is_no_environment_is_refused() -> None:
    def forgets() -> Any:
        CartPoleEnv()

    assert "returned None, which has no reset, step" in refused(forgets).reason
    vector = partial(SyncVectorEnv, [CartPoleEnv] * 2)
    assert "DQN(vector)" in refused(vector).way_out


# Closing


@pytest.mark.usefixtures("nothing_left")
@pytest.mark.parametrize(("vectorizer", "num_workers"), VECTORIZERS)
@pytest.mark.parametrize("env", [Bare, Stuck])
def test_an_environment_without_a_close_that_works_ends_no_run(
    env: Callable[[], Any], vectorizer: str, num_workers: int | None
) -> None:
    agent = DQN(env, vectorizer=vectorizer, num_workers=num_workers, **TINY)
    assert agent.learn(70).evaluate(2).episodes == 2


# Processes that may start no others


def _in_daemon(connection: Any, num_workers: int | None, vectorizer: str) -> None:
    try:
        envs = GroupedVectorEnv([CartPoleEnv] * 2, num_workers=num_workers)
        message: list[Any] = [envs.num_workers]
        envs.close()
        message.append(DQN(CartPoleEnv, vectorizer=vectorizer, **TINY).learn(70)._env_steps)
        connection.send(message)
    except Exception as error:
        connection.send(error)


@pytest.mark.parametrize(
    ("num_workers", "vectorizer", "message"),
    [
        (None, "grouped", [0, 70]),
        (0, "sync", [0, 70]),
        (2, "grouped", "num_workers=2 in a daemonic process: .* Use num_workers=0"),
        (0, "async", "--vectorizer async in a daemonic process: .* Use --vectorizer sync"),
    ],
)
def test_a_daemonic_process_steps_its_environments_by_itself(
    num_workers: int | None, vectorizer: str, message: Any
) -> None:
    context = multiprocessing.get_context("forkserver")
    ours, theirs = context.Pipe()
    process = context.Process(
        target=_in_daemon, args=(theirs, num_workers, vectorizer), daemon=True
    )
    process.start()
    answer = ours.recv()
    process.join()
    if isinstance(message, str):
        assert isinstance(answer, UsageError)
        assert re.match(message, str(answer))
    else:
        assert answer == message


@pytest.mark.usefixtures("nothing_left")
def test_an_environment_that_starts_processes_is_refused_with_the_place_where_it_may() -> None:
    with pytest.raises(AssertionError, match=r"num_workers=0 \(--num-workers 0\).*daemon=False"):
        GroupedVectorEnv([Parental], num_workers=1)
    for allowed in ({"num_workers": 0}, {"num_workers": 1, "daemon": False}):
        GroupedVectorEnv([Parental], **allowed).close()  # type: ignore[arg-type]


def test_spaces_alone_are_advised_on_too() -> None:
    with pytest.raises(UsageError, match="FlattenObservation"):
        describe_spaces("Maze-v0", Dict({"a": ON}), ON)
