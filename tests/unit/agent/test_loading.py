"""A policy is loaded with the environment that it was saved with, or says what to name."""

from __future__ import annotations

import json
import random
import shlex
import sys
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import wrappers
from gymnasium.envs.classic_control import CartPoleEnv
from gymnasium.vector import SyncVectorEnv

from fastdqn import DQN, IQN, MLP, CheckpointError, UsageError
from fastdqn.cli.commands import main
from fastdqn.envs.specs.construction import chain_of
from fastdqn.envs.tensor import make_tensor_env
from tests.oracles import OneStateEnv
from tests.small_agents import SMALL

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

FIXTURES = Path(__file__).parents[2] / "fixtures" / "policies"
EVALUATE = ("--episodes", "2")
LOW = np.int64(-1)


def small(env: Any, **settings: Any) -> DQN:
    return DQN(env, **{**SMALL, **settings})


def saved(env: Any, folder: Path, **settings: Any) -> Path:
    small(env, **settings).save(folder / "policy")
    return folder / "policy"


def make(env_id: str, *around: Callable[[Any], Any], **kwargs: Any) -> gym.Env[Any, Any]:
    env = gym.make(env_id, **kwargs)
    for wrap in around:
        env = wrap(env)
    return env


def facts(agent: DQN) -> list[Any]:
    """Return what decides about the environments of an agent's evaluation."""
    env = agent._provider.factory()  # type: ignore[attr-defined]
    around = [(type(w).__name__, getattr(w, "_saved_kwargs", None)) for w in chain_of(env)]
    message = [type(env.unwrapped), env.unwrapped.spec.kwargs, around]
    env.close()
    return message


def abs_of(reward: Any) -> Any:
    return abs(reward)


class Mine(gym.Wrapper[Any, Any, Any, Any]):
    """A wrapper of the caller's own."""


class Other(gym.Wrapper[Any, Any, Any, Any]):
    """Another one, which no registration brings."""


def sized(**kwargs: Any) -> Sized:
    return Sized(**kwargs)


def made_inside(**kwargs: Any) -> Mine:
    """An entry point that brings a wrapper of its own."""
    return Mine(Sized(**kwargs))


def mine(env: Any) -> Mine:
    return Mine(env)


class Sized(gym.Env[Any, Any]):
    """Shows as many numbers as it is asked to."""

    def __init__(self, size: int = 2, goal: Any = None) -> None:
        self.observation_space = gym.spaces.Box(0, 1, (size,), np.float32)
        self.action_space = gym.spaces.Discrete(2)
        self.size, self.goal = size, goal

    def reset(self, **kwargs: Any) -> Any:
        return np.zeros(self.size, np.float32), {}

    def step(self, action: Any) -> Any:
        return np.zeros(self.size, np.float32), 1.0, False, True, {}


@pytest.fixture
def registered() -> Iterator[str]:
    """An environment that is registered, with a wrapper of ours put on by its registration."""
    extra = (Mine.wrapper_spec(),)
    gym.register("Sized-v0", sized, max_episode_steps=9, additional_wrappers=extra)
    yield "Sized-v0"
    gym.registry.pop("Sized-v0", None)


# The environment comes back


FACTORIES: dict[str, Callable[[], gym.Env[Any, Any]]] = {
    "arguments": partial(make, "FrozenLake-v1", is_slippery=False, desc=["SF", "HG"]),
    "a length": partial(make, "CartPole-v1", max_episode_steps=7),
    "no length": partial(make, "CartPole-v1", max_episode_steps=-1),
    "a shorter limit": partial(
        make, "CartPole-v1", partial(wrappers.TimeLimit, max_episode_steps=7)
    ),
    "a longer limit": partial(
        make, "CartPole-v1", partial(wrappers.TimeLimit, max_episode_steps=9999)
    ),
    "a limit inside": partial(
        make,
        "CartPole-v1",
        partial(wrappers.TimeLimit, max_episode_steps=8),
        partial(wrappers.FrameStackObservation, stack_size=3),
    ),
    "a tuple": partial(make, "Sized-v0", size=3, goal=(1, (2, [3]))),
    "numbers of numpy": partial(make, "Sized-v0", size=np.int64(3), goal=np.float64(0.5)),
    "a dtype": partial(make, "CartPole-v1", partial(wrappers.DtypeObservation, dtype=np.float64)),
    "several": partial(
        make,
        "Blackjack-v1",
        wrappers.FlattenObservation,
        partial(wrappers.RecordEpisodeStatistics, buffer_length=10**7),
        partial(wrappers.ClipReward, min_reward=-0.5, max_reward=0.5),
        sab=False,
        natural=True,
    ),
}


@pytest.mark.parametrize("name", FACTORIES)
def test_the_environment_of_a_factory_comes_back(
    name: str, tmp_path: Path, registered: str
) -> None:
    agent = small(FACTORIES[name])
    agent.save(tmp_path / "policy")
    loaded = DQN.load(tmp_path / "policy")
    assert facts(loaded) == facts(agent)
    loaded.save(tmp_path / "again")
    assert facts(DQN.load(tmp_path / "again")) == facts(agent)


def test_a_policy_of_a_factory_brings_after_loading_what_it_brought_before(tmp_path: Path) -> None:
    agent = small(FACTORIES["a shorter limit"]).learn(100)
    agent.save(tmp_path / "policy")
    before, after = agent.evaluate(20), DQN.load(tmp_path / "policy").evaluate(20)
    assert after.returns.tolist() == before.returns.tolist()
    assert after.lengths.max() == 7


def test_workers_build_the_environment_again_too(tmp_path: Path, nothing_left: None) -> None:
    path = saved(FACTORIES["a shorter limit"], tmp_path, vectorizer="grouped", num_workers=1)
    loaded = DQN.load(path).learn(60)
    assert loaded.evaluate(3).lengths.max() == 7


def test_arguments_and_wrappers_of_an_id_come_back(tmp_path: Path) -> None:
    named: dict[str, Any] = {
        "env_kwargs": {"is_slippery": False, "map_name": "8x8"},
        "wrapper": ("TimeLimit(max_episode_steps=30)", "TimeLimit(40)"),
    }
    agent = small("FrozenLake-v1", **named)
    agent.save(tmp_path / "policy")
    loaded = DQN.load(tmp_path / "policy")
    assert loaded.config == agent.config
    assert facts(loaded) == facts(agent)
    assert facts(loaded)[2] == [("TimeLimit", {"max_episode_steps": n}) for n in (100, 30, 40)]


@pytest.mark.parametrize("goal", [(1, 2), {"a": [(), None]}, "text", True, -0.5])
def test_arguments_come_back_as_what_they_were(tmp_path: Path, registered: str, goal: Any) -> None:
    path = saved(registered, tmp_path, env_kwargs={"goal": goal})
    assert DQN.load(path).config.env_kwargs == {"goal": goal}
    (found,) = [facts(DQN.load(path))[1]["goal"]]
    assert (found, type(found)) == (goal, type(goal))


def test_what_a_registration_puts_around_an_environment_is_put_there_once(
    tmp_path: Path, registered: str
) -> None:
    agent = small(partial(make, registered, wrappers.FlattenObservation))
    around = [name for name, _ in facts(agent)[2]]
    assert around == ["TimeLimit", "Mine", "FlattenObservation"]
    agent.save(tmp_path / "policy")
    again = [name for name, _ in facts(DQN.load(tmp_path / "policy"))[2]]
    assert again == around


def test_what_an_entry_point_puts_around_an_environment_is_put_there_once(
    tmp_path: Path, registered: str
) -> None:
    gym.register("Inside-v0", made_inside, max_episode_steps=5)
    agent = small(partial(make, "Inside-v0", wrappers.FlattenObservation, goal=3))
    assert [name for name, _ in facts(agent)[2]] == ["Mine", "TimeLimit", "FlattenObservation"]
    agent.save(tmp_path / "policy")
    assert facts(DQN.load(tmp_path / "policy")) == facts(agent)
    gym.registry.pop("Inside-v0")
    gym.register("Inside-v0", sized, max_episode_steps=5)
    with pytest.raises(UsageError, match="Mine is a wrapper of the caller's own"):
        DQN.load(tmp_path / "policy")
    gym.registry.pop("Inside-v0")


def test_given_arguments_come_before_the_saved_ones_and_wrappers_too(
    tmp_path: Path, registered: str
) -> None:
    by_id = saved(registered, tmp_path, env_kwargs={"goal": 1}, wrapper=("TimeLimit(3)",))
    agent = DQN.load(by_id, env_kwargs={"goal": 2})
    assert facts(agent)[1]["goal"] == 2
    assert facts(agent)[2][-1] == ("TimeLimit", {"max_episode_steps": 3})
    assert [name for name, _ in facts(DQN.load(by_id, wrapper=()))[2]] == ["TimeLimit", "Mine"]
    made = saved(partial(make, registered, goal=(1,)), tmp_path / "made")
    agent = DQN.load(made, wrapper=("TimeLimit(4)",))
    assert facts(agent)[1]["goal"] == (1,)
    assert facts(agent)[2][-1] == ("TimeLimit", {"max_episode_steps": 4})


def test_another_environment_of_the_callers_takes_nothing_of_the_saved_one(
    tmp_path: Path,
) -> None:
    path = saved("CartPole-v1", tmp_path, wrapper=("TimeLimit(3)",))
    assert DQN.load(path, lambda: gym.make("CartPole-v1")).config.wrapper == ()
    assert DQN.load(path, "CartPole-v0").config.wrapper == ()
    assert DQN.load(path, "CartPole-v1").config.wrapper == ("TimeLimit(3)",)


# What cannot be built again is named


def _own_spec() -> gym.Env[Any, Any]:
    spec = gym.spec("CartPole-v1")
    return gym.make(gym.envs.registration.EnvSpec(spec.id, entry_point=sized))


NOT_AGAIN: dict[str, tuple[Any, tuple[str, ...]]] = {
    "no spec": (CartPoleEnv, ("CartPoleEnv cannot be built again: it was not made by",)),
    "a wrapper of the caller's": (
        partial(make, "CartPole-v1", mine),
        (
            f"{__name__}:Mine is a wrapper of the caller's own",
            f"--env-id CartPole-v1 --wrapper {__name__}:Mine, or DQN.load(folder, env=...)",
        ),
    ),
    "a function": (
        partial(make, "CartPole-v1", partial(wrappers.TransformReward, func=abs_of)),
        ("the argument func of TransformReward is of type function",),
    ),
    "an array": (
        partial(
            make,
            "MountainCar-v0",
            partial(
                wrappers.RescaleObservation, min_obs=np.int64(-1), max_obs=np.ones(2, np.float32)
            ),
        ),
        ("the argument max_obs of RescaleObservation is of type ndarray",),
    ),
    "an object": (
        partial(make, "Sized-v0", goal=object()),
        ("the argument goal of Sized-v0 is of type object", "--env-id Sized-v0"),
    ),
    "a running mean": (
        partial(make, "CartPole-v1", wrappers.NormalizeObservation),
        (
            "NormalizeObservation: its running mean is not saved",
            "--wrapper 'NormalizeObservation(epsilon=1e-08)'",
        ),
    ),
    "another spec": (_own_spec, ("CartPole-v1 is registered as something else",)),
    "a vector": (
        lambda: SyncVectorEnv([lambda: gym.make("CartPole-v1")] * 2),
        ("SyncVectorEnv cannot be built again: the caller built it",),
    ),
    "tensors": (lambda: make_tensor_env("CartPole-v1", 2, "cpu"), ("the caller built it",)),
}


@pytest.mark.parametrize("name", NOT_AGAIN)
def test_what_cannot_be_built_again_is_refused_with_the_reason_and_what_to_name(
    name: str, tmp_path: Path, registered: str
) -> None:
    env, parts = NOT_AGAIN[name]
    given = env() if name in {"a vector", "tensors"} else env
    path = saved(given, tmp_path)
    with pytest.raises(UsageError) as refused:
        DQN.load(path)
    for part in ("DQN.load(folder, env=...)", str(path), *parts):
        assert part in str(refused.value)
    assert DQN.load(path, given).description.num_actions in {2, 3}


def test_an_environment_that_is_no_longer_registered_is_named(
    tmp_path: Path, registered: str
) -> None:
    by_id = saved(registered, tmp_path, env_kwargs={"goal": "x y"})
    made = saved(partial(make, registered), tmp_path / "made")
    gym.registry.pop(registered)
    for path in (by_id, made):
        with pytest.raises(UsageError, match="environment Sized-v0 is not found here: ") as refused:
            DQN.load(path)
        assert f"fastdqn evaluate {path} --env-id Sized-v0" in str(refused.value)


def test_an_environment_that_has_changed_is_refused(tmp_path: Path, registered: str) -> None:
    paths = [saved(registered, tmp_path), saved(partial(make, registered), tmp_path / "made")]
    gym.registry.pop(registered)
    gym.register(registered, sized, kwargs={"size": 5}, additional_wrappers=(Mine.wrapper_spec(),))
    with pytest.raises(UsageError, match=r"observations \(2,\) float32 .* has \(5,\) float32"):
        DQN.load(paths[0])
    assert DQN.load(paths[1]).description.obs_shape == (2,)  # its arguments were noted, all of them


LARGE: dict[str, dict[str, Any]] = {
    "a large seed": {"seed": 2**100},
    "None": {"env_kwargs": None, "wrapper": None},
    "a list": {"wrapper": ["TimeLimit(5)"]},
    "many layers": {"hidden_sizes": (2,) * 80},
    "numbers of numpy": {"env_kwargs": {"goal": [np.int64(3)]}},
}


@pytest.mark.parametrize("name", LARGE)
def test_what_can_be_trained_can_be_loaded(name: str, tmp_path: Path, registered: str) -> None:
    agent = small(registered, **LARGE[name])
    agent.save(tmp_path / "policy")
    assert DQN.load(tmp_path / "policy").config == agent.config


def test_an_environment_that_the_caller_passes_is_not_looked_for_in_the_file(
    tmp_path: Path, registered: str
) -> None:
    factory = partial(make, registered, goal={"x" * 600: object(), 1: 2})
    path = saved(factory, tmp_path)
    with pytest.raises(UsageError, match="the argument goal of Sized-v0 is "):
        DQN.load(path)
    assert DQN.load(path, factory).description.num_actions == 2
    odd = saved(
        partial(make, "Sized-v0", partial(wrappers.DelayObservation, delay=5000)), tmp_path / "odd"
    )
    with pytest.raises(UsageError, match="the argument delay of DelayObservation is 5000"):
        DQN.load(odd)
    assert DQN.load(odd, factory).description.num_actions == 2


SEVEN = partial(wrappers.TimeLimit, max_episode_steps=7)
NAMED = {
    "a limit outside": (
        partial(make, "CartPole-v1", mine, SEVEN),
        f"--env-id CartPole-v1 --wrapper {__name__}:Mine 'TimeLimit(max_episode_steps=7)'",
    ),
    "another limit": (
        partial(make, "CartPole-v1", mine, max_episode_steps=7),
        f"--env-id CartPole-v1 --env-kwargs max_episode_steps=7 --wrapper {__name__}:Mine",
    ),
    "no limit": (
        partial(make, "CartPole-v1", mine, SEVEN, max_episode_steps=-1),
        "--env-id CartPole-v1 --env-kwargs max_episode_steps=-1 "
        f"--wrapper {__name__}:Mine 'TimeLimit(max_episode_steps=7)'",
    ),
    "brought by the registration": (
        partial(make, "Sized-v0", wrappers.FlattenObservation, Other),
        f"--env-id Sized-v0 --wrapper FlattenObservation {__name__}:Other",
    ),
}


@pytest.mark.parametrize("name", NAMED)
def test_the_command_that_is_printed_builds_the_environment_that_was_saved(
    name: str, tmp_path: Path, registered: str
) -> None:
    factory, words = NAMED[name]
    agent = small(factory)
    agent.save(path := tmp_path / "policy")
    env_id = words.split()[1]
    for env in (None, env_id):
        with pytest.raises(UsageError) as refused:
            DQN.load(path, env)
        assert f"{words}, or DQN.load" in str(refused.value)
    typed = shlex.split(words)
    around = tuple(typed[typed.index("--wrapper") + 1 :])
    again = DQN.load(path, env_id, wrapper=around)
    assert [kind for kind, _ in facts(again)[2]] == [kind for kind, _ in facts(agent)[2]]
    limits = [[kw for kind, kw in facts(a)[2] if kind == "TimeLimit"] for a in (agent, again)]
    assert limits[0] == limits[1]


def test_wrappers_stay_where_the_saved_id_or_new_arguments_are_named(tmp_path: Path) -> None:
    agent = small(partial(make, "CartPole-v1", SEVEN))
    agent.save(path := tmp_path / "policy")
    assert facts(DQN.load(path, "CartPole-v1")) == facts(agent)
    given = {"sutton_barto_reward": True}
    assert facts(DQN.load(path, env_kwargs=given))[2] == facts(agent)[2]
    own = saved(partial(make, "CartPole-v1", mine), tmp_path / "own")
    with pytest.raises(UsageError, match=r"its wrapper cannot be put on again: .*Mine"):
        DQN.load(own, env_kwargs=given)
    assert len(facts(DQN.load(own, "CartPole-v1", wrapper=()))[2]) == 1


def test_an_id_that_is_named_for_what_the_file_does_not_know_is_made_with_a_warning(
    tmp_path: Path, registered: str
) -> None:
    path = saved(partial(make, registered, goal=object()), tmp_path)
    with pytest.warns(UserWarning, match="as it is registered here.*goal of Sized-v0"):
        agent = DQN.load(path, registered)
    assert facts(agent)[1] == {}


class Stubborn(Sized):
    """Counts and draws when it is made, and raises when it is closed or, if so asked, made."""

    made = 0
    refuses = False

    def __init__(self, **kwargs: Any) -> None:
        Stubborn.made += 1
        random.random()
        super().__init__(**kwargs)
        if self.refuses:
            raise RuntimeError("not today")

    def close(self) -> None:
        raise RuntimeError("not closed")


def stubborn(**kwargs: Any) -> Mine:
    return Mine(Stubborn(**kwargs))


def test_a_trial_of_an_entry_point_leaves_no_trace_and_raises_nothing_raw(
    tmp_path: Path, registered: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    gym.register("Stubborn-v0", stubborn)
    monkeypatch.setitem(gym.registry, "Stubborn-v0", gym.registry.pop("Stubborn-v0"))
    path = saved(partial(make, "Stubborn-v0"), tmp_path)
    before = Stubborn.made, random.getstate()
    assert DQN.load(path).description.num_actions == 2
    assert (Stubborn.made, random.getstate()) == before
    monkeypatch.setattr(Stubborn, "refuses", True)
    with pytest.raises(UsageError, match=r"it cannot be built \(RuntimeError: not today"):
        DQN.load(path)


def test_one_wrapper_may_stand_alone_and_what_is_none_is_refused() -> None:
    assert small("CartPole-v1", wrapper="TimeLimit(5)").config.wrapper == ("TimeLimit(5)",)
    wrong: Any
    for wrong in (5, (1,)):
        for env in ("CartPole-v1", FACTORIES["a length"]):
            with pytest.raises(UsageError, match="it is no list of names"):
                small(env, wrapper=wrong)


# Evaluated from the command line


def test_evaluate_plays_what_was_trained_in(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = "--env-id CartPole-v1 --total-timesteps 100 --learning-starts 40 --num-envs 2 "
    words += "--batch-size 8 --vectorizer sync --execution eager --eval-episodes 2 --wrapper "
    words += f"TimeLimit(7) --wrapper {__name__}:mine --env-kwargs sutton_barto_reward=true"
    run = tmp_path / "run"
    assert main(["train", *words.split(), "--run-dir", str(run)]) == 0
    config = json.loads((run / "config.json").read_text())["config"]
    assert config["env_kwargs"] == {"sutton_barto_reward": True}
    assert config["wrapper"] == ["TimeLimit(7)", f"{__name__}:mine"]
    capsys.readouterr()
    assert main(["evaluate", str(run), *EVALUATE]) == 2
    message = capsys.readouterr().err
    assert f"{__name__}:mine is a wrapper of the caller's own" in message
    command = message.partition("fastdqn evaluate ")[2].partition(", or DQN.load")[0]
    typed = command.replace("'", "").split()
    assert typed[1:] == [
        *("--env-id", "CartPole-v1", "--env-kwargs", "sutton_barto_reward=True"),
        *("--wrapper", "TimeLimit(7)", f"{__name__}:mine"),
    ]
    assert main(["evaluate", *typed, *EVALUATE]) == 0
    assert "mean length 7" in capsys.readouterr().out


def test_evaluate_takes_an_environment_arguments_and_wrappers(
    tmp_path: Path, registered: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(saved(OneStateEnv, tmp_path, vectorizer="sync"))
    assert main(["evaluate", path, *EVALUATE]) == 2
    assert "OneStateEnv cannot be built again" in capsys.readouterr().err
    sized = str(saved("Sized-v0", tmp_path / "sized"))
    words = ["--env-id", "Sized-v0", "--env-kwargs", "goal=3", "--wrapper", "TimeLimit(1)"]
    assert main(["evaluate", sized, *EVALUATE, *words]) == 0
    assert capsys.readouterr().out.startswith("Sized-v0: mean return 1.0")
    assert main(["evaluate", sized, *EVALUATE, "--env-kwargs", "size=4"]) == 2
    assert "Sized-v0 has (4,) float32 and 2" in capsys.readouterr().err


# Modules


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A module that registers an environment when it is imported; it is not yet."""
    text = "import gymnasium as gym\nfrom tests.unit.agent.test_loading import sized\n"
    text += "gym.register('Brought-v0', sized)\n"
    (tmp_path / "brings_sized.py").write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield "brings_sized"
    sys.modules.pop("brings_sized", None)
    gym.registry.pop("Brought-v0", None)


def test_a_module_is_imported_where_the_caller_names_it_alone(tmp_path: Path, module: str) -> None:
    path = saved(f"{module}:Brought-v0", tmp_path)
    assert DQN.load(path).config.env_id == f"{module}:Brought-v0"
    del sys.modules[module]
    gym.registry.pop("Brought-v0")
    with pytest.raises(UsageError, match="module that no file may have imported") as refused:
        DQN.load(path)
    assert module not in sys.modules
    assert f"fastdqn evaluate {path} --env-id {module}:Brought-v0" in str(refused.value)
    with pytest.raises(UsageError, match="Brought"):
        DQN.load(path, "Brought-v0")
    assert module not in sys.modules
    assert DQN.load(path, f"{module}:Brought-v0").config.env_id == f"{module}:Brought-v0"
    assert isinstance(sys.modules[module], ModuleType)


# Policies that older versions wrote


def test_policies_of_the_first_schema_are_loaded_for_ever() -> None:
    cartpole = DQN.load(FIXTURES / "schema-1-cartpole")
    assert (cartpole.config.env_id, cartpole.config.hidden_sizes) == ("CartPole-v1", (8,))
    assert cartpole.describe()["env_steps"] == 300
    assert cartpole.describe()["updates"] == 65
    assert cartpole.predict(np.zeros((3, 4))).shape == (3,)
    lake = DQN.load(FIXTURES / "schema-1-frozenlake")
    assert lake.config.env_id == "FrozenLake-v1"
    assert lake.describe()["episodes"] == 0  # it did not say how many
    assert lake.learn(60).describe()["env_steps"] == 360


@pytest.mark.parametrize("kind", [MLP, IQN])
def test_an_mlp_or_iqn_of_the_callers_own_with_other_layers_is_asked_for(
    kind: Any, tmp_path: Path
) -> None:
    for hidden in ((6,), (6, 6)):

        def built(hidden: tuple[int, ...] = hidden) -> Any:
            mlp = MLP((4,), 2, hidden)
            return mlp if kind is MLP else IQN(mlp, 3)

        own: dict[str, Any] = {} if kind is MLP else {"objective": "iqn", "num_quantiles": 3}
        agent = small("CartPole-v1", network=built(), **own)
        agent.save(path := tmp_path / str(hidden))
        with pytest.raises(CheckpointError, match=r"your own, pass it: .*network=\.\.\."):
            DQN.load(path)
        again = DQN.load(path, network=built())
        assert all(map(torch.equal, again.parameters().values(), agent.parameters().values()))


def test_a_network_of_the_callers_own_is_asked_for(tmp_path: Path) -> None:
    from torch import nn  # noqa: PLC0415

    network = nn.Sequential(nn.Linear(4, 2))
    path = tmp_path / "policy"
    small("CartPole-v1", network=network).save(path)
    with pytest.raises(CheckpointError, match=r"another network than an MLP, Sequential: pass it"):
        DQN.load(path)
