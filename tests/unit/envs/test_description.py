"""From an id or a factory to a checked description, refused early with a way out."""

from __future__ import annotations

import pickle
from functools import partial
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Space, Text, Tuple

from fastdqn.envs.description import describe, describe_spaces
from fastdqn.envs.grouped import GroupedVectorEnv
from fastdqn.envs.specs.ids import factory_of
from fastdqn.errors import UsageError
from tests.oracles import ArrayRewardEnv, CounterEnv, CrashError, CrashingEnv, OffsetCounterEnv

if TYPE_CHECKING:
    from collections.abc import Iterator

TWO = Discrete(2)


@pytest.fixture
def registered() -> Iterator[str]:
    """Register an id in this process only."""
    gym.register("OnlyHere-v3", "tests.oracles:CounterEnv", 12.5, kwargs={"env_id": 7})
    yield "OnlyHere-v3"
    del gym.registry["OnlyHere-v3"]


# Ids


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("LunarLandr-v3", "LunarLander-v3"),
        ("lunarlander-v3", "LunarLander-v3"),
        ("LunarLander-v2", "LunarLander-v3"),
        ("LunarLander", "LunarLander-v3"),
        ("CartPole-v7", "CartPole-v1"),
        ("cart-pole-v1", "CartPole-v1"),
    ],
)
def test_an_unknown_id_is_refused_and_names_the_close_match(wrong: str, right: str) -> None:
    with pytest.raises(UsageError, match=rf"^--env-id {wrong}: .*Did you mean .*{right}"):
        factory_of(wrong)


@pytest.mark.parametrize("wrong", ["Qqqqqqqqq-v0", "not an id!", "nowhere/CartPole-v1"])
def test_an_id_like_no_other_is_refused_with_an_example(wrong: str) -> None:
    with pytest.raises(UsageError, match=r"Gymnasium knows .* LunarLander-v3"):
        factory_of(wrong)


def test_the_close_matches_are_named_once() -> None:
    with pytest.raises(UsageError) as refused:
        factory_of("LunarLandr-v3")
    assert str(refused.value).count("Did you mean") == 1
    assert "?." not in str(refused.value)


def test_an_id_builds_its_environment_with_the_given_arguments() -> None:
    env = factory_of("LunarLander-v3", gravity=-5.0)()
    gravity = env.unwrapped.gravity  # type: ignore[attr-defined]
    env.close()
    assert gravity == -5.0


def test_no_environment_is_checked_at_every_step() -> None:
    env = factory_of("CartPole-v1")()
    layers = repr(env)
    env.close()
    assert "TimeLimit" in layers
    assert "PassiveEnvChecker" not in layers


def test_an_id_known_to_this_process_alone_is_known_in_the_workers(registered: str) -> None:
    envs = GroupedVectorEnv([factory_of(registered)] * 2, num_workers=2)
    try:
        assert envs.get_attr("env_id") == (7, 7)
        assert envs.call("knows_id", registered) == (True, True)
        assert envs.call("knows_id", "CartPole-v1") == (True, True)
    finally:
        envs.close()


def test_a_factory_of_an_id_pickles_with_its_spec(registered: str) -> None:
    packed = pickle.dumps(factory_of(registered))
    spec = gym.registry.pop(registered)
    env = pickle.loads(packed)()  # noqa: S301 - packed two lines above
    gym.registry[registered] = spec
    assert env.unwrapped.env_id == 7
    env.close()


# Descriptions


def test_a_registered_environment_is_described_by_its_id_and_threshold(registered: str) -> None:
    described = describe(factory_of(registered))
    assert (described.env_id, described.solved_at) == (registered, 12.5)
    assert (described.obs_shape, described.obs_dtype) == ((3,), "float32")
    assert (described.num_actions, described.first_action) == (3, 0)


def test_a_factory_without_a_spec_is_described_by_its_name() -> None:
    def my_world() -> gym.Env[Any, Any]:
        return CounterEnv()

    assert describe(my_world).env_id == "my_world"
    assert describe(my_world).solved_at is None
    assert describe(CounterEnv).env_id == "CounterEnv"


def test_actions_that_start_at_five_are_described() -> None:
    described = describe(OffsetCounterEnv)
    assert (described.num_actions, described.first_action) == (3, 5)


def test_describing_closes_the_environment_that_it_built() -> None:
    closed = []

    class Closing(CounterEnv):
        def close(self) -> None:
            closed.append(True)

    describe(Closing)
    assert closed == [True]


def test_describing_closes_the_environment_that_it_refuses() -> None:
    closed = []

    class Closing(CounterEnv):
        def __init__(self) -> None:
            super().__init__()
            self.action_space = Box(-1, 1, (2,), np.float32)

        def close(self) -> None:
            closed.append(True)

    with pytest.raises(UsageError, match="Discrete"):
        describe(Closing)
    assert closed == [True]


def test_an_environment_that_lacks_a_library_is_refused_by_name() -> None:
    def mujoco() -> gym.Env[Any, Any]:
        raise gym.error.DependencyNotInstalled("Please run pip install this\nand that")

    said = r"mujoco: it cannot be built \(DependencyNotInstalled: Please run pip install this\)\. "
    with pytest.raises(UsageError, match=said):
        describe(mujoco)


def test_what_a_constructor_raises_is_reported_and_is_the_cause() -> None:
    with pytest.raises(UsageError, match=r"cannot be built \(CrashError: out of luck\)") as refused:
        describe(partial(CrashingEnv, where="constructor"))
    assert isinstance(refused.value.__cause__, CrashError)


# Spaces


@pytest.mark.parametrize(
    "action",
    [Box(-1, 1, (2,), np.float32), MultiDiscrete([2, 3]), MultiBinary(2), Dict({"a": TWO})],
    ids=lambda space: type(space).__name__,
)
def test_actions_that_are_not_one_number_of_a_few_are_refused(action: Space[Any]) -> None:
    with pytest.raises(UsageError) as refused:
        describe_spaces("Walker-v0", TWO, action)
    assert refused.value.got.startswith(f"environment Walker-v0 with action space {action}")
    assert "Discrete" in refused.value.reason
    assert "--env-id" in refused.value.way_out
    assert "wrap" in refused.value.way_out


@pytest.mark.parametrize(
    ("obs", "wrapper"),
    [
        (Dict({"a": TWO}), "FlattenObservation"),
        (Tuple([TWO, TWO]), "FlattenObservation"),
        (Dict({"a": TWO}), "FilterObservation"),
        (Text(5), "numeric array"),
    ],
    ids=["Dict", "Tuple", "Dict filtered", "Text"],
)
def test_observations_that_are_no_array_are_refused_with_a_wrapper(
    obs: Space[Any], wrapper: str
) -> None:
    with pytest.raises(UsageError) as refused:
        describe_spaces("Maze-v0", obs, TWO)
    assert refused.value.got == f"environment Maze-v0 with {type(obs).__name__} observations"
    assert wrapper in refused.value.way_out


def test_a_dict_environment_trains_once_it_is_wrapped_as_advised() -> None:
    class DictEnv(CounterEnv):
        def __init__(self) -> None:
            super().__init__()
            self.observation_space = Dict({"at": Box(0, 9, (3,), np.float32), "on": TWO})

        def _obs(self) -> Any:
            return {"at": super()._obs(), "on": 1}

    described = describe(lambda: gym.wrappers.FlattenObservation(DictEnv()))
    assert described.obs_shape == (5,)


@pytest.mark.parametrize("dtype", [np.uint16, np.uint32, np.uint64])
def test_a_dtype_without_a_tensor_is_refused(dtype: type[np.uint16]) -> None:
    with pytest.raises(UsageError, match=f"{np.dtype(dtype)} observations.*DtypeObservation"):
        describe_spaces("Wide-v0", Box(0, 9, (3,), dtype), TWO)


@pytest.mark.parametrize(
    ("obs", "shape", "dtype"),
    [
        (Box(0, 255, (8, 8), np.uint8), (8, 8), "uint8"),
        (Box(-1, 1, (2,), np.float64), (2,), "float64"),
        (Discrete(4), (), "int64"),
        (MultiBinary(3), (3,), "int8"),
        (MultiDiscrete([2, 5]), (2,), "int64"),
    ],
    ids=["image", "float64", "Discrete", "MultiBinary", "MultiDiscrete"],
)
def test_spaces_of_one_array_are_described_as_they_are(
    obs: Space[Any], shape: tuple[int, ...], dtype: str
) -> None:
    described = describe_spaces("Some-v0", obs, TWO, solved_at=3.0)
    assert (described.obs_space, described.obs_shape, described.obs_dtype) == (obs, shape, dtype)
    assert described.solved_at == 3.0


def test_a_reward_that_is_an_array_is_no_matter_of_spaces() -> None:
    assert describe(ArrayRewardEnv).obs_shape == (3,)
