"""DQN: five calls, any environment, the same numbers for the same seed."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from torch import Tensor, nn

from fastdqn import DQN, CheckpointError, UsageError
from fastdqn.envs.grouped import GroupedVectorEnv
from fastdqn.execution.compile import CompiledStep
from fastdqn.training.callbacks import Callback
from fastdqn.training.events import Episode
from tests.oracles import CounterEnv, CrashError, CrashingEnv, OffsetCounterEnv, OneStateEnv

SMALL: dict[str, Any] = {
    "num_envs": 2,
    "vectorizer": "sync",
    "learning_starts": 40,
    "batch_size": 8,
    "hidden_sizes": (16,),
    "execution": "eager",
    "buffer_size": 1000,
}
CARTPOLE = "CartPole-v1"


def cartpole() -> gym.Env[Any, Any]:
    return gym.make(CARTPOLE)


def small(env: Any = CARTPOLE, **settings: Any) -> DQN:
    return DQN(env, **{**SMALL, **settings})


def copies(agent: DQN) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in agent.parameters().items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


class Returns(Callback):
    """Keeps the episodes that it sees."""

    def __init__(self) -> None:
        self.episodes: list[Episode] = []

    def on_episodes(self, episodes: Sequence[Episode]) -> None:
        self.episodes += episodes


# What it takes


def _vector(mode: AutoresetMode) -> SyncVectorEnv:
    return SyncVectorEnv([cartpole, cartpole], autoreset_mode=mode)


@pytest.mark.parametrize(
    "make",
    [
        lambda: CARTPOLE,
        lambda: cartpole,
        lambda: lambda: gym.make(CARTPOLE),
        lambda: partial(gym.make, CARTPOLE),
        lambda: _vector(AutoresetMode.SAME_STEP),
        lambda: _vector(AutoresetMode.NEXT_STEP),
        lambda: _vector(AutoresetMode.DISABLED),
    ],
    ids=["id", "function", "lambda", "partial", "SAME_STEP", "NEXT_STEP", "DISABLED"],
)
def test_it_learns_in_whatever_makes_environments(make: Callable[[], Any]) -> None:
    agent = small(make())
    before = copies(agent)
    assert agent.learn(200) is agent
    assert not same(copies(agent), before)
    message = agent.describe()
    assert message["env_steps"] >= 200
    assert message["updates"] == int((message["env_steps"] - 40) * 0.25)


def test_it_learns_in_a_grouped_vector_of_the_callers_own(nothing_left: None) -> None:
    envs = GroupedVectorEnv(
        [partial(gym.make, CARTPOLE)] * 4, num_workers=2, autoreset_mode=AutoresetMode.SAME_STEP
    )
    try:
        agent = small(envs).learn(200)
        assert agent.config.num_envs == 4
        assert agent.describe()["updates"] == 40
    finally:
        envs.close()


def test_a_vector_of_the_callers_own_is_left_open_and_learned_in_again() -> None:
    envs = _vector(AutoresetMode.NEXT_STEP)
    agent = small(envs).learn(100)
    assert not envs.closed
    agent.learn(100)
    assert agent.describe()["env_steps"] >= 200
    envs.close()


class Dueling(nn.Module):
    """A network of the caller's own, with a buffer and two heads."""

    scale: Tensor

    def __init__(self, scale: float = 1.0, units: int = 12) -> None:
        super().__init__()
        self.trunk = nn.Linear(4, units)
        self.value, self.advantage = nn.Linear(units, 1), nn.Linear(units, 2)
        self.register_buffer("scale", torch.tensor(scale))

    def forward(self, obs: Tensor) -> Tensor:
        x = self.trunk(obs * self.scale).relu()
        advantage: Tensor = self.advantage(x)
        value: Tensor = self.value(x)
        return value + advantage - advantage.mean(1, keepdim=True)


def test_a_network_of_the_callers_own_is_trained_in_place() -> None:
    network = Dueling()
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    agent = small(network=network).learn(200)
    assert agent.network is network
    for name, parameter in network.named_parameters():
        assert not torch.equal(parameter, before[name]), name


def test_an_unknown_setting_is_refused_with_the_known_ones() -> None:
    with pytest.raises(UsageError, match=r"setting learnin_rate: .*learning_rate"):
        small(learnin_rate=1e-3)


def test_a_setting_that_cannot_be_is_refused() -> None:
    with pytest.raises(UsageError, match="--num-envs 0"):
        small(num_envs=0)
    with pytest.raises(UsageError, match=r"--buffer-size 100000\.5: it must be a whole number"):
        small(buffer_size=1e5 + 0.5)


def test_a_return_to_stop_at_needs_environments_to_evaluate_in() -> None:
    with pytest.raises(UsageError, match="stop_at_return with environments that the caller built"):
        small(_vector(AutoresetMode.SAME_STEP), stop_at_return=475.0)


# learn


def test_a_later_call_goes_on_where_the_last_one_ended() -> None:
    agent, callback = small(), Returns()
    agent.learn(200, callback=callback)
    first = len(callback.episodes)
    agent.learn(300, callback=callback)
    assert agent.describe()["env_steps"] == 500
    assert agent.describe()["updates"] == (500 - 40) // 4
    assert [episode.episode for episode in callback.episodes] == list(
        range(1, len(callback.episodes) + 1)
    )
    assert callback.episodes[first].env_step > 200 >= callback.episodes[first - 1].env_step


class Misspelled(Returns):
    def on_episode(self, episode: Episode) -> None:
        raise AssertionError


class Generous(Returns):
    on_time = True

    def once(self) -> None:
        raise AssertionError


@pytest.mark.parametrize(
    ("callback", "refused"),
    [
        (Misspelled(), r"Misspelled with a method on_episode: .* calls no such .*on_episodes, on_"),
        (print, r"callback of <class 'builtin_.*: it is no .*Callback\. Derive .*on_episodes, on_"),
        (Returns, r"callback Returns: it is a class, not an object\. Pass Returns\(\)"),
    ],
)
def test_a_callback_that_would_not_be_called_is_refused_before_anything_starts(
    callback: Any, refused: str, tmp_path: Path
) -> None:
    agent = small()
    for run_dir in (None, tmp_path / "run"):
        with pytest.raises(UsageError, match=refused):
            agent.learn(200, run_dir=run_dir, callback=callback)
    assert not (tmp_path / "run").exists()
    assert agent.describe()["env_steps"] == 0


def test_a_callback_may_have_other_attributes_and_more_methods() -> None:
    callback = Generous()
    small().learn(100, callback=callback)
    assert callback.episodes


def test_a_later_call_starts_in_other_episodes() -> None:
    agent = small(epsilon_start=1.0, epsilon_end=1.0)
    seeds = [agent.env_seeds(), agent.env_seeds()]
    assert len({*seeds[0], *seeds[1]}) == 4


def test_without_a_number_it_trains_for_the_setting() -> None:
    assert small(total_timesteps=120).learn().describe()["env_steps"] == 120


@pytest.mark.parametrize("timesteps", ["300", 300.5, True, -5, [300]])
def test_what_is_no_number_of_steps_is_refused(timesteps: Any) -> None:
    agent = small()
    with pytest.raises(UsageError, match="total_timesteps"):
        agent.learn(timesteps)
    assert agent.describe()["env_steps"] == 0


def test_counts_may_be_written_as_numbers_of_any_kind() -> None:
    agent = small().learn(np.float64(100.0))  # type: ignore[arg-type]
    assert agent.describe()["env_steps"] == 100
    assert agent.evaluate(2.0, seed=np.int64(3)).episodes == 2  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("episodes", "seed"), [("2", 0), (2.5, 0), (0, 0), (True, 0), (2, -1), (2, "1")]
)
def test_what_is_no_number_of_episodes_and_no_seed_is_refused(episodes: Any, seed: Any) -> None:
    with pytest.raises(UsageError, match=r"episodes|seed"):
        small().evaluate(episodes, seed=seed)


@pytest.mark.parametrize("timesteps", [0, 39, 40])
def test_so_few_steps_that_nothing_is_learned_are_refused(timesteps: int) -> None:
    agent = small()
    with pytest.raises(UsageError, match="learning starts after 40 env steps"):
        agent.learn(timesteps)
    assert agent.describe()["env_steps"] == 0


def test_no_steps_at_all_are_refused_later_too() -> None:
    agent = small().learn(100)
    with pytest.raises(UsageError, match="total_timesteps 0"):
        agent.learn(0)


def test_an_environment_that_raises_costs_neither_the_counters_nor_the_policy() -> None:
    agent = small(partial(CrashingEnv, where="step", at=61))
    with pytest.raises(CrashError):
        agent.learn(1000)
    assert agent.describe()["env_steps"] == 120
    assert agent.describe()["updates"] == 20
    assert agent.predict(np.zeros(3)) in range(3)


class _Closing(OneStateEnv):
    """Counts how many of it are open."""

    open = 0

    def __init__(self) -> None:
        super().__init__()
        type(self).open += 1

    def close(self) -> None:
        type(self).open -= 1


def test_every_environment_that_it_opens_is_closed() -> None:
    agent = small(_Closing, stop_at_return=1e9, eval_interval=50)
    agent.learn(100)
    agent.evaluate(3)
    assert _Closing.open == 0


# predict


def test_an_observation_gives_an_action_and_a_batch_gives_actions() -> None:
    agent = small()
    batch = np.random.default_rng(0).normal(size=(5, 4))
    actions = agent.predict(batch)
    assert isinstance(actions, np.ndarray)
    assert (actions.dtype.name, actions.shape) == ("int64", (5,))
    one = agent.predict(batch[2])
    assert isinstance(one, np.ndarray)
    assert (one.dtype.name, one.shape) == ("int64", ())
    assert one == actions[2]
    with torch.no_grad():
        q: Tensor = agent.network(torch.as_tensor(batch, dtype=torch.float32))
    assert actions.tolist() == q.argmax(1).tolist()
    assert len(set(actions.tolist())) == 2


def test_a_list_is_an_observation_too_and_no_observations_give_no_actions() -> None:
    agent = small()
    assert agent.predict([0.0, 0.0, 0.0, 0.0]).shape == ()
    assert agent.predict(np.zeros((0, 4))).shape == (0,)


def test_an_action_is_one_of_the_environments_own() -> None:
    agent = small(OffsetCounterEnv)
    env = OffsetCounterEnv()
    actions = agent.predict(np.random.default_rng(0).normal(size=(200, 3)) * 100)
    assert set(actions.tolist()) <= {5, 6, 7}
    assert env.action_space.contains(agent.predict(np.zeros(3)))


def test_a_whole_number_is_an_observation_of_a_discrete_space() -> None:
    agent = small("FrozenLake-v1")
    assert agent.predict(3).shape == ()
    assert agent.predict(np.arange(16)).shape == (16,)


@pytest.mark.parametrize("shape", [(), (3,), (5,), (2, 5), (2, 3, 4), (4, 1)])
def test_an_observation_of_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(UsageError, match=r"the network takes \(4,\)"):
        small().predict(np.zeros(shape))


# evaluate


def test_an_evaluation_is_repeated_by_its_seed_and_learns_nothing() -> None:
    agent = small().learn(100)
    before = copies(agent)
    first, again, other = (agent.evaluate(5, seed=seed) for seed in (3, 3, 4))
    assert first.returns.tolist() == again.returns.tolist()
    assert first.returns.tolist() != other.returns.tolist()
    assert first.episodes == 5
    assert same(copies(agent), before)
    assert agent.describe()["env_steps"] == 100


def test_an_evaluation_plays_as_many_episodes_as_are_asked() -> None:
    agent = small(OneStateEnv)
    assert [agent.evaluate(count).episodes for count in (1, 7, 20, 21)] == [1, 7, 20, 21]
    assert set(agent.evaluate(3).returns) == {5.0}


@pytest.mark.parametrize("episodes", [0, -1])
def test_no_episodes_are_refused(episodes: int) -> None:
    with pytest.raises(UsageError, match=f"episodes {episodes}: it must be at least 1"):
        small().evaluate(episodes)


def test_an_agent_of_a_vector_knows_no_environments_to_evaluate_in() -> None:
    envs = _vector(AutoresetMode.SAME_STEP)
    with pytest.raises(UsageError, match="it cannot build environments"):
        small(envs).evaluate(3)
    envs.close()


# save and load


def test_a_saved_policy_acts_as_before(tmp_path: Path) -> None:
    agent = small(hidden_sizes=(16, 8), gamma=0.9).learn(200)
    agent.save(tmp_path / "policy")
    loaded = DQN.load(tmp_path / "policy")
    assert same(copies(loaded), copies(agent))
    assert loaded.config == agent.config
    obs = np.random.default_rng(0).normal(size=(50, 4))
    assert loaded.predict(obs).tolist() == agent.predict(obs).tolist()
    assert loaded.evaluate(3).returns.tolist() == agent.evaluate(3).returns.tolist()


def test_a_loaded_policy_goes_on_learning_without_a_burst(tmp_path: Path) -> None:
    small().learn(200).save(tmp_path / "policy")
    loaded = DQN.load(str(tmp_path / "policy"), num_envs=4)
    target = loaded.learner.state.target
    assert torch.equal(target, loaded.learner.state.online)
    before = copies(loaded)
    loaded.learn(140)
    assert loaded.describe()["env_steps"] == 340
    assert loaded.describe()["updates"] == (200 - 40) // 4 + (140 - 40) // 4
    assert not same(copies(loaded), before)


def test_saved_settings_can_be_overridden(tmp_path: Path) -> None:
    agent = small(gamma=0.9)
    agent.save(tmp_path / "policy")
    loaded = DQN.load(tmp_path / "policy", num_envs=8, learning_rate=1e-4)
    assert (loaded.config.num_envs, loaded.config.learning_rate) == (8, 1e-4)
    assert loaded.config.gamma == 0.9


def test_a_policy_of_a_factory_is_loaded_with_the_factory(tmp_path: Path) -> None:
    agent = small(CounterEnv)
    agent.save(tmp_path / "policy")
    loaded = DQN.load(tmp_path / "policy", CounterEnv)
    assert same(copies(loaded), copies(agent))
    with pytest.raises(UsageError, match="CounterEnv"):
        DQN.load(tmp_path / "policy")


def test_a_network_of_the_callers_own_comes_back_with_its_buffers(tmp_path: Path) -> None:
    agent = small(network=Dueling(scale=0.25)).learn(100)
    agent.save(tmp_path / "policy")
    loaded = DQN.load(tmp_path / "policy", network=Dueling(scale=1.0))
    assert float(loaded.network.scale) == 0.25  # type: ignore[arg-type]
    assert same(copies(loaded), copies(agent))


@pytest.mark.parametrize("network", [None, Dueling(units=13), nn.Linear(4, 2)])
def test_a_policy_of_another_network_is_refused(tmp_path: Path, network: nn.Module | None) -> None:
    small(network=Dueling()).save(tmp_path / "policy")
    with pytest.raises(CheckpointError, match="holds the parameters of another network"):
        DQN.load(tmp_path / "policy", network=network)


def test_a_folder_without_a_policy_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="holds no readable policy"):
        DQN.load(tmp_path)


# The same numbers


def trained(**settings: Any) -> tuple[dict[str, Tensor], list[Episode]]:
    agent, callback = small(**settings), Returns()
    agent.learn(600, callback=callback)
    return copies(agent), callback.episodes


def test_the_same_seed_gives_the_same_run_bit_for_bit_and_another_one_does_not() -> None:
    parameters, episodes = trained(seed=5)
    torch.manual_seed(12345)
    again, episodes_again = trained(seed=5)
    assert same(parameters, again)
    assert episodes == episodes_again
    other, episodes_of_other = trained(seed=6)
    assert not same(parameters, other)
    assert episodes != episodes_of_other


def test_the_number_of_workers_changes_nothing(nothing_left: None) -> None:
    parameters, episodes = trained(num_envs=4, vectorizer="sync")
    for workers in (0, 1, 2):
        again = trained(num_envs=4, vectorizer="grouped", num_workers=workers)
        assert same(parameters, again[0])
        assert episodes == again[1]


def test_the_first_network_depends_on_the_seed_alone() -> None:
    torch.manual_seed(1)
    one = copies(small(seed=5, num_envs=2))
    torch.manual_seed(2)
    assert same(one, copies(small(seed=5, num_envs=8, gamma=0.5)))
    assert not same(one, copies(small(seed=6)))


# The caller's own state


def _generators() -> tuple[Any, ...]:
    return torch.get_rng_state().tolist(), str(np.random.get_state()), random.getstate()


def test_the_callers_generators_and_threads_are_left_alone(tmp_path: Path) -> None:
    before, threads = _generators(), torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        agent = small(cpu_threads=1).learn(100)
        agent.evaluate(2)
        agent.predict(np.zeros(4))
        agent.save(tmp_path / "policy")
        DQN.load(tmp_path / "policy")
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    assert _generators() == before


def test_the_loop_computes_with_the_threads_of_the_setting() -> None:
    threads = torch.get_num_threads()
    with small(cpu_threads=threads + 1).trainer(100, Callback()):
        assert torch.get_num_threads() == threads + 1
    assert torch.get_num_threads() == threads


def test_the_threads_come_back_when_no_environment_can_be_built() -> None:
    built: list[gym.Env[Any, Any]] = []

    def only_once() -> gym.Env[Any, Any]:
        if built:
            raise CrashError("out of environments")
        built.append(cartpole())
        return built[0]

    agent = small(only_once, cpu_threads=torch.get_num_threads() + 1)
    threads = torch.get_num_threads()
    with pytest.raises(CrashError):
        agent.learn(100)
    assert torch.get_num_threads() == threads


# How it runs


def test_bfloat16_is_trained_with_and_reported() -> None:
    full, half = (small(precision=name).learn(400) for name in ("float32", "bf16"))
    assert half.learner.precision == "bf16"
    assert not same(copies(full), copies(half))
    assert {tensor.dtype for tensor in half.parameters().values()} == {torch.float32}
    assert same(copies(full), copies(small().learn(400)))  # float32 is the default


def test_a_device_that_computes_wrongly_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def check(device: torch.device) -> None:
        asked.append(str(device))
        raise UsageError("--device mps", "argmax is wrong", "Use --device cpu.")

    monkeypatch.setattr("fastdqn.build.check_device", check)
    monkeypatch.setattr("fastdqn.agent.learning.resolve_device", torch.device)
    with pytest.raises(UsageError, match="argmax is wrong"):
        small(device="mps")
    small(device="cpu")
    assert asked == ["mps"]


def test_a_later_call_on_a_card_takes_the_way_of_the_first_one_again() -> None:
    """Where the first call ended before its updates were compiled, they are compiled now."""
    agent = small(execution="auto").learn(200)
    agent.learner.device = torch.device("cuda")  # so it says
    for chosen in ("compile", "eager"):
        agent._chosen, message = chosen, agent.execution_reason
        agent._choose_execution(10**6)
        assert (agent.learner.execution, agent.execution_reason) == (chosen, message)
    assert isinstance(agent.learner._modes["compile"].learning[0], CompiledStep)
