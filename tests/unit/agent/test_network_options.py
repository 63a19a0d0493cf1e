"""`--dueling`, `--noisy`, `--layer-norm` and `--activation`, from the flag to the saved policy."""

from __future__ import annotations

import copy
import json
import re
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fastdqn import DQN, CheckpointError, UsageError, make_tensor_env
from fastdqn.agent import memory_check
from fastdqn.cli.commands import main
from fastdqn.config import Config
from fastdqn.native import why_not_act
from fastdqn.networks.mlp import MLP
from fastdqn.presets import preset_config
from fastdqn.training.callbacks import Callback
from fastdqn.training.checkpoint import load_policy
from fastdqn.training.events import Report
from tests.forged import forge, told_by
from tests.masked import MaskedCounterEnv
from tests.small_learners import Branches
from tests.unit.cli.test_commands import TINY

pytestmark = pytest.mark.usefixtures("one_thread")

OPTIONS: dict[str, Any] = {"dueling": True, "noisy": True, "layer_norm": True, "activation": "tanh"}
FLAGS = ["--dueling", "--noisy", "--layer-norm", "--activation", "tanh"]
SETTINGS: dict[str, Any] = {
    "batch_size": 8,
    "buffer_size": 200,
    "learning_starts": 20,
    "replay_ratio": 1.0,
    "hidden_sizes": (8, 6),
    "execution": "eager",
    "quiet": True,
    "log_interval": 20,
}
ENVS: dict[str, dict[str, Any]] = {
    "one by one": {"env": "CartPole-v1", "num_envs": 2, "num_workers": 0},
    "groups": {"env": "CartPole-v1", "num_envs": 4, "env_groups": 2, "num_workers": 1},
    "discrete": {"env": "FrozenLake-v1", "num_envs": 2, "num_workers": 0},
    "masks": {"env": partial(MaskedCounterEnv, 0, 5), "num_envs": 2, "num_workers": 0},
    "tensors": {"env": partial(make_tensor_env, "CartPole-v1", 4, "cpu")},
}


def agent_of(kind: str = "one by one", **changes: Any) -> DQN:
    chosen = {**ENVS[kind], **SETTINGS, **changes}
    env = chosen.pop("env")
    return DQN(env() if kind == "tensors" else env, **chosen)


class Epsilons(Callback):
    def __init__(self) -> None:
        self.seen: set[float] = set()

    def on_report(self, report: Report) -> None:
        self.seen.add(report.epsilon)


@pytest.mark.parametrize("kind", ENVS)
def test_a_network_with_all_options_learns_and_explores_by_its_noise(kind: str) -> None:
    agent, seen = agent_of(kind, **OPTIONS), Epsilons()
    initial = {name: tensor.clone() for name, tensor in agent.parameters().items()}
    agent.learn(total_timesteps=60, callback=seen)
    assert seen.seen == {0.0}
    assert agent.config.epsilon_start == agent.config.epsilon_end == 0.0
    assert int(agent.learner.state.skipped) == 0
    assert int(agent.learner.state.updates) == 40
    for name, tensor in agent.parameters().items():
        assert not torch.equal(tensor, initial[name]), name
    assert all(getattr(agent.network, name) == value for name, value in OPTIONS.items())
    twin = copy.deepcopy(agent)
    assert twin.config == agent.config
    assert agent.learn(total_timesteps=40).config.noisy


def test_acting_at_epsilon_0_explores_and_predict_does_not() -> None:
    """Q-values of five actions lie near each other, so that noise changes which is best."""
    torch.manual_seed(0)
    agent = agent_of("masks", noisy=True)
    num_actions = agent.description.num_actions
    obs = torch.zeros(3, *agent.description.obs_shape)
    with torch.no_grad():
        for name, tensor in agent.network.named_parameters():
            tensor.mul_(0.01 if "sigma" not in name else 1.0)
    acted = torch.stack([agent.policy.act(obs, 0.0) for _ in range(60)])
    assert len(set(acted[:, 0].tolist())) == num_actions
    assert torch.equal(acted, acted[:, :1].expand_as(acted))  # all environments share the noise
    changes = (acted[1:, 0] != acted[:-1, 0]).float().mean()
    assert changes > 0.3  # drawn anew at every vector step
    state = agent.policy._generator.get_state()
    greedy = {tuple(agent.predict(obs.numpy()).tolist()) for _ in range(20)}
    greedy |= {tuple(agent.policy.greedy(obs).tolist()) for _ in range(20)}
    assert len(greedy) == 1
    assert torch.equal(agent.policy._generator.get_state(), state)
    q = agent.network(obs)  # without noise
    assert agent.policy.greedy(obs).tolist() == q.argmax(1).tolist()


def test_each_pass_of_an_update_has_noise_of_its_own_and_each_update_another() -> None:
    agent = agent_of(noisy=True)
    network, seen = agent.learner.network, []
    plain = MLP.apply_to

    def spy(self: MLP, parameters: Any, obs: Any, random: Any = None) -> Any:
        seen.append(tuple(random.tolist()))
        return plain(self, parameters, obs, random)

    agent.learn(total_timesteps=30)
    network.module.apply_to = partial(spy, network.module)  # type: ignore[assignment,arg-type]
    sampler = agent._own_sampler
    agent.learner.learn(sampler, 2)
    assert len(seen) == len(set(seen)) == 6  # online at obs, online and target at next_obs
    assert {len(numbers) for numbers in seen} == {network.num_random(8)}


def test_saved_policies_keep_their_options(tmp_path: Path) -> None:
    agent = agent_of(**OPTIONS)
    agent.learn(total_timesteps=60)
    agent.save(tmp_path / "policy")
    loaded = DQN.load(tmp_path / "policy")
    for name, value in OPTIONS.items():
        assert getattr(loaded.config, name) == getattr(loaded.network, name) == value
    assert loaded.config.epsilon_start == loaded.config.epsilon_end == 0.0
    obs = torch.randn(200, 4)
    assert np.array_equal(loaded.predict(obs.numpy()), agent.predict(obs.numpy()))
    one, other = (policy.evaluate(3, max_steps=50) for policy in (agent, loaded))
    assert np.array_equal(one.returns, other.returns)
    loaded.learn(total_timesteps=60)
    assert main(["evaluate", str(tmp_path / "policy"), "--episodes", "2"]) == 0
    with pytest.raises(UsageError, match="--epsilon-end with --noisy"):
        DQN.load(tmp_path / "policy", epsilon_end=0.0)
    with pytest.raises(UsageError, match=r"activation='relu' .*trained with tanh"):
        DQN.load(tmp_path / "policy", activation="relu")
    with pytest.raises(CheckpointError, match="network"):
        DQN.load(tmp_path / "policy", network=Branches())


@pytest.mark.parametrize(
    ("given", "was"),
    [
        ({"dueling": False}, "dueling=True"),
        ({"noisy": False}, "noisy=True"),
        ({"layer_norm": "yes"}, "layer_norm=True"),
        ({"hidden_sizes": [8, 7]}, r"hidden_sizes=\(8, 6\)"),
    ],
    ids=str,
)
def test_a_saved_network_is_not_loaded_with_other_layers(
    given: dict[str, Any], was: str, tmp_path: Path
) -> None:
    agent_of(**OPTIONS).save(tmp_path / "policy")
    ((name, value),) = given.items()
    words = re.escape(f"{name}={value!r} for {tmp_path / 'policy'}: its network was trained with ")
    with pytest.raises(UsageError, match=f"{words}{was}. Leave it out"):
        DQN.load(tmp_path / "policy", **given)
    same: dict[str, Any] = {"dueling": np.True_, "noisy": 1, "hidden_sizes": np.array([8, 6])}
    assert DQN.load(tmp_path / "policy", **same).config.hidden_sizes == (8, 6)


def test_a_file_is_checked_against_the_options_it_names(tmp_path: Path) -> None:
    agent_of(**OPTIONS).save(tmp_path / "policy")
    message, tensors = told_by(tmp_path / "policy"), load_policy(tmp_path / "policy").parameters
    assert set(OPTIONS) <= set(message["config"])

    def load(changes: dict[str, Any], others: dict[str, Any] | None = None) -> DQN:
        forged = {**message, "config": {**message["config"], **changes}}
        path = forge(
            tmp_path / "policy", tmp_path / "forged", forged, {**tensors, **(others or {})}
        )
        return DQN.load(path)

    load({})
    for name in ("dueling", "noisy", "layer_norm"):
        with pytest.raises(CheckpointError, match=r"it says that it has 3 layers.*holds others"):
            load({name: False})
        with pytest.raises(CheckpointError, match=f"its setting {name} is 'yes'"):
            load({name: "yes"})
    with pytest.raises(CheckpointError, match="no such choice"):
        load({"activation": "mish"})
    with pytest.raises(CheckpointError, match="last hidden layer, which has 1"):
        load({"hidden_sizes": [8, 1]})
    with pytest.raises(CheckpointError, match=r"its value.weight is of shape \(1, 6\)"):
        load({}, {"value.weight": torch.zeros(1, 6)})
    nan = torch.full((1, 3), torch.nan)
    with pytest.raises(CheckpointError, match=r"its value.weight_sigma holds a number that is not"):
        load({}, {"value.weight_sigma": nan})


def test_a_file_without_these_settings_is_of_a_plain_network(tmp_path: Path) -> None:
    agent = agent_of()
    agent.save(tmp_path / "policy")
    message, tensors = told_by(tmp_path / "policy"), load_policy(tmp_path / "policy").parameters
    config = {name: value for name, value in message["config"].items() if name not in OPTIONS}
    older = {**message, "config": config}
    loaded = DQN.load(forge(tmp_path / "policy", tmp_path / "older", older, tensors))
    options = [getattr(loaded.config, name) for name in ("dueling", "noisy", "layer_norm")]
    assert options == [False] * 3
    assert loaded.config.epsilon_start == 0.9


# Refusals


@pytest.mark.parametrize(
    "given",
    [
        "--epsilon-start 0.9",
        "--epsilon-end=0",
        "--epsilon_decay_steps 7",
        "--epsilon-ladder-alpha 3",
    ],
)
def test_an_epsilon_flag_beside_noisy_is_refused(
    given: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for flags in (["--noisy", *given.split()], [*given.split(), "--preset", "cartpole", "--noisy"]):
        assert main(["train", *flags]) == 2
        message = " ".join(capsys.readouterr().err.split())
        assert "with --noisy: a noisy network explores by its own noise" in message
        assert message.endswith("Leave it out, or add --no-noisy.")
    name = given.partition(" ")[0].partition("=")[0].lstrip("-").replace("-", "_")
    with pytest.raises(UsageError, match=r"with --noisy.*or pass noisy=False"):
        agent_of(noisy=True, **{name: getattr(Config(), name)})


def test_a_config_with_an_epsilon_beside_noisy_is_refused_and_that_of_a_preset_is_not() -> None:
    with pytest.raises(UsageError, match="--epsilon-end with --noisy"):
        DQN.from_config(Config("CartPole-v1", noisy=True, epsilon_end=0.3))
    with pytest.raises(UsageError, match="--epsilon-start with --noisy"):
        DQN.from_config(replace(preset_config("cartpole"), noisy=True, epsilon_start=0.3))
    assert preset_config("cartpole").epsilon_end == 0.02
    agent = DQN.from_config(replace(preset_config("cartpole"), noisy=True))
    assert agent.config.epsilon_start == agent.config.epsilon_end == 0.0
    assert DQN.from_config(agent.config).config == agent.config
    by_name = DQN("CartPole-v1", preset="cartpole", noisy=True)
    assert by_name.config == agent.config
    assert DQN("CartPole-v1", preset="cartpole", noisy=False).config.epsilon_end == 0.02


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"dueling": "yes"}, "--dueling 'yes': it must be True or False"),
        ({"noisy": 0.5}, "--noisy 0.5: it must be True or False"),
        ({"layer_norm": None}, "--layer-norm None: it must be True or False"),
        (
            {"hidden_sizes": 64},
            r"--hidden-sizes 64: it must be a tuple of whole numbers, as \(64,\)",
        ),
        ({"hidden_sizes": "64"}, "--hidden-sizes '64': it must be a tuple of whole numbers"),
        ({"hidden_sizes": ("64", 8)}, "--hidden-sizes '64' 8: a layer has a whole number of units"),
        ({"num_atoms": "1"}, "--num-atoms '1': it must be a whole number"),
        ({"activation": "mish"}, "--activation mish: there is no such choice. Choose relu, leaky"),
        ({"activation": 3}, "--activation 3: there is no such choice"),
        (
            {"dueling": True, "hidden_sizes": (8, 1)},
            "--dueling with --hidden-sizes 8 1: it divides",
        ),
    ],
)
def test_values_that_cannot_be_used_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        agent_of(**given)


def test_options_beside_a_network_of_the_callers_own_have_no_effect_and_are_warned_of() -> None:
    with pytest.warns(UserWarning, match=r"noisy=True \(the network was built by the caller\)"):
        agent = agent_of(network=Branches(), noisy=True, epsilon_start=0.7)
    assert agent.config.epsilon_start == 0.7
    assert not agent.config.noisy
    for name in ("dueling", "layer_norm", "activation"):
        with pytest.warns(UserWarning, match=f"without effect.*{name}="):
            agent_of(network=Branches(), **{name: OPTIONS[name]})


def test_memory_is_counted_with_all_options(monkeypatch: pytest.MonkeyPatch) -> None:
    agent = agent_of(**OPTIONS)
    needed = 5 * 4 * agent.learner.network.flat.numel()
    for free, fits in ((needed, True), (needed - 1, False)):
        monkeypatch.setattr(memory_check, "available_bytes", lambda _, free=free: free)
        if fits:
            agent_of(**OPTIONS)
        else:
            with pytest.raises(UsageError, match="--hidden-sizes 8 6"):
                agent_of(**OPTIONS)


# Execution, and what a run leaves


@pytest.mark.parametrize(
    ("option", "named"), [({"noisy": True}, "--noisy"), ({"activation": "elu"}, "--activation elu")]
)
def test_native_refuses_what_it_does_not_know_by_name(option: dict[str, Any], named: str) -> None:
    agent = agent_of(execution="native", **option)
    with pytest.raises(UsageError, match=f"--execution native: .*{named}"):
        agent.learn(total_timesteps=60)
    assert named in str(why_not_act(agent.learner.network))
    agent = agent_of(execution="auto", **option)
    agent.learn(total_timesteps=60)
    assert agent.learner.execution == "eager"


def test_a_run_says_what_it_trained(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    assert main(["train", *TINY.split(), *FLAGS, "--run-dir", str(run)]) == 0
    config = json.loads((run / "config.json").read_text())
    text = json.dumps(config)
    assert '"epsilon_start": 0.0' in text
    assert '"epsilon_end": 0.0' in text
    assert '"noisy": true' in text
    assert '"activation": "tanh"' in text
    assert "hidden 8 dueling noisy LayerNorm tanh" in " ".join(capsys.readouterr().out.split())
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert {line["epsilon"] for line in lines if "epsilon" in line} == {0.0}
    assert json.loads((run / "result.json").read_text())["status"] == "completed"
