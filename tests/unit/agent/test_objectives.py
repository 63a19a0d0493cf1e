"""`--objective`, from the flag to what acts, learns and is saved; and what is refused."""

from __future__ import annotations

import copy
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fastdqn import (
    DQN,
    IQN,
    MLP,
    C51Objective,
    CheckpointError,
    DoubleDQNObjective,
    IQNObjective,
    Learner,
    MunchausenObjective,
    Objective,
    QRObjective,
    UsageError,
    make_tensor_env,
)
from fastdqn.cli.commands import main
from fastdqn.training.tensor.blocks import Block
from tests.masked import MaskedCounterEnv
from tests.oracles import CHAIN_GAMMA, CHAIN_Q
from tests.tensor_oracles import PureChain
from tests.unit.cli.test_commands import TINY
from tests.unit.training.test_tensor_rollout import rollout_of

pytestmark = pytest.mark.usefixtures("one_thread")

NAMES: dict[str, dict[str, Any]] = {
    "munchausen": {"munchausen_alpha": 0.5},
    "c51": {"num_atoms": 11, "v_min": -20.0, "v_max": 20.0},
    "qr": {"num_quantiles": 5},
    "iqn": {"num_quantiles": 5},
}
EXPECTED: dict[str, Objective] = {
    "munchausen": MunchausenObjective("huber", 0.5),
    "c51": C51Objective(num_atoms=11, v_min=-20, v_max=20),
    "qr": QRObjective(num_quantiles=5),
    "iqn": IQNObjective(num_quantiles=5),
}
SETTINGS: dict[str, Any] = {
    "batch_size": 8,
    "buffer_size": 100,
    "learning_starts": 20,
    "hidden_sizes": (8,),
    "execution": "eager",
    "quiet": True,
}
ENVS: dict[str, dict[str, Any]] = {
    "one by one": {"env": "CartPole-v1", "num_envs": 2, "num_workers": 0},
    "masks": {"env": partial(MaskedCounterEnv, 0, 5), "num_envs": 2, "num_workers": 0},
    "tensors": {"env": partial(make_tensor_env, "CartPole-v1", 2, "cpu")},
    "discrete": {"env": "CliffWalking-v1", "num_envs": 2, "num_workers": 0},
}


def agent_of(kind: str, name: str, **changes: Any) -> DQN:
    chosen = dict(ENVS[kind])
    env = chosen.pop("env")
    env = env() if kind == "tensors" else env
    return DQN(env, objective=name, **{**SETTINGS, **chosen, **NAMES[name], **changes})


@pytest.mark.parametrize("kind", ENVS)
@pytest.mark.parametrize("name", NAMES)
def test_each_trains_acts_and_a_copy_goes_on_alike(name: str, kind: str) -> None:
    agent = agent_of(kind, name, n_step=2, replay="prioritized")
    assert agent.learner.objective == EXPECTED[name]
    assert isinstance(agent.network, IQN if name == "iqn" else MLP)
    before = agent.learner.state.online.clone()
    agent.learn(total_timesteps=60)
    twin = copy.deepcopy(agent)
    for each in (agent, twin):
        each.learn(total_timesteps=40)
    state = agent.learner.state
    assert int(state.skipped) == 0
    assert (state.online - before).norm() > 1e-3
    assert torch.equal(state.online, twin.learner.state.online)


@pytest.mark.parametrize("name", NAMES)
def test_a_saved_policy_is_loaded_by_the_name_in_it(name: str, tmp_path: Path) -> None:
    agent = agent_of("one by one", name)
    agent.save(tmp_path / "saved")
    again = DQN.load(tmp_path / "saved")
    assert again.learner.objective == EXPECTED[name]
    assert torch.equal(again.learner.state.online, agent.learner.state.online)
    obs = torch.randn(50, 4)
    assert (again.predict(obs) == agent.predict(obs)).all()
    with pytest.raises(UsageError, match="beside objective="):
        DQN.load(tmp_path / "saved", objective=DoubleDQNObjective(), double=False)


def test_another_name_takes_the_place_of_the_saved_one_where_the_network_fits(
    tmp_path: Path,
) -> None:
    agent_of("one by one", "munchausen").save(tmp_path / "saved")
    plain = DQN.load(tmp_path / "saved", objective="dqn")
    assert plain.learner.objective == DoubleDQNObjective()
    assert plain.config.munchausen_alpha == 0.9
    with pytest.raises(UsageError, match="trained with objective='munchausen'"):
        DQN.load(tmp_path / "saved", objective="c51")


@pytest.mark.parametrize("name", NAMES)
def test_an_object_of_a_class_has_its_network_and_is_asked_for(name: str, tmp_path: Path) -> None:
    small = {**SETTINGS, "num_envs": 2, "num_workers": 0}
    agent = DQN("CartPole-v1", objective=EXPECTED[name], **small)
    agent.learn(total_timesteps=30)
    agent.save(tmp_path / "saved")
    with pytest.raises(CheckpointError, match="objective of the caller's own"):
        DQN.load(tmp_path / "saved")
    again = DQN.load(tmp_path / "saved", objective=EXPECTED[name])
    assert torch.equal(again.learner.state.online, agent.learner.state.online)


@pytest.mark.parametrize("name", NAMES)
def test_double_chooses_online_and_is_without_effect_on_munchausen(name: str) -> None:
    objective = agent_of("one by one", name, double=False).learner.objective
    assert len(objective.passes) == (2 if name == "munchausen" else 1)


# Values on a chain that is known


class Rows(nn.Module):
    """Free numbers for each state and action, and the fractions of IQN below them."""

    def __init__(self, numbers: int, fractions: bool = False) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.zeros(2, 2 * numbers))
        self.fractions = fractions

    def forward(self, obs: torch.Tensor) -> torch.Tensor:
        outputs = (obs @ self.table).view(len(obs), 2, -1)
        if not self.fractions:
            return outputs.squeeze(2) if outputs.shape[2] == 1 else outputs
        count = outputs.shape[2]
        own = (torch.arange(count) + 0.5) / count
        return torch.cat((outputs, own.expand(len(obs), 1, count)), 1)


CHAINS: dict[str, tuple[Any, Rows]] = {
    "munchausen": (MunchausenObjective("mse", 0.0, 0.01), Rows(1)),
    "c51": (C51Objective(num_atoms=17, v_min=-0.5, v_max=1.5), Rows(17)),
    "qr": (QRObjective(num_quantiles=4), Rows(4)),
    "iqn": (IQNObjective(num_quantiles=4), Rows(4, fractions=True)),
}


@pytest.mark.parametrize("name", CHAINS)
def test_q_of_the_chain_converges_to_the_known_values(name: str) -> None:
    """Munchausen without its bonus, almost greedy: its fixed point is another one otherwise."""
    torch.manual_seed(0)
    objective, network = CHAINS[name]
    settings: dict[str, Any] = {"gamma": CHAIN_GAMMA, "tau": 0.1, "learning_rate": 0.05}
    learner = Learner(copy.deepcopy(network), objective=objective, **settings)
    rollout = rollout_of(PureChain(4), learner, capacity=400, batch_size=32)
    rollout.advance(Block(20, 0), 1.0)
    for number in range(60):
        learner.state.learning_rate.fill_(0.05 * 0.95**number)
        rollout.advance(Block(1, 1, 5), 0.5)
    flat = learner.network
    with torch.no_grad():
        found = flat.q(flat.views(learner.state.online), torch.eye(2))
    torch.testing.assert_close(found, torch.tensor(CHAIN_Q), atol=0.06, rtol=0)


# What is refused


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--objective c51 --v-min 5 --v-max 5", "--v-min 5.0 and --v-max 5.0"),
        ("--objective c51 --v-min nan", "--v-min nan"),
        ("--objective c51 --num-atoms 1", "--num-atoms 1: it must be at least 2"),
        ("--objective qr --num-quantiles 0", "--num-quantiles 0: it must be at least 1"),
        ("--objective qr --loss mse", "--loss mse with --objective qr"),
        ("--objective iqn --loss mse", "--loss mse with --objective iqn"),
        ("--objective c51 --loss mse", "--loss mse with --objective c51"),
        ("--objective munchausen --munchausen-alpha 1.5", "--munchausen-alpha 1.5"),
        ("--objective munchausen --munchausen-temperature 0", "--munchausen-temperature 0.0"),
        ("--objective munchausen --munchausen-clip 1", "--munchausen-clip 1.0: it must be neg"),
        ("--v-max 10", "--v-max 10.0 with --objective dqn: it does not read it"),
        ("--objective c51 --num-quantiles 9", "--num-quantiles 9 with --objective c51"),
        ("--objective c52", "--objective c52"),
        ("--objective iqn --execution native", "--execution native"),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_starts(
    flags: str, words: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    assert main(["train", *TINY.split(), *flags.split(), "--run-dir", str(run_dir)]) == 2
    shown = " ".join(capsys.readouterr().err.split())
    assert words in shown


@pytest.mark.parametrize(
    ("objective", "network", "words"),
    [
        ("c51", MLP((4,), 2), "C51Objective reads 51 numbers for an action"),
        ("qr", MLP((4,), 2, num_atoms=50), r"it gives outputs \[3, 2, 50\]"),
        ("iqn", MLP((4,), 2, num_atoms=51), "1 Q-values, and CartPole-v1 has 2 actions"),
        ("iqn", MLP((4,), 2), "IQNObjective reads 51 quantiles"),
        ("dqn", MLP((4,), 2, num_atoms=51), r"it gives \[3, 2, 51\]"),
        ("munchausen", IQN(MLP((4,), 2)), r"it gives \[3, 3, 51\]"),
    ],
)
def test_networks_whose_outputs_do_not_fit_are_refused(
    objective: str, network: nn.Module, words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        DQN("CartPole-v1", objective=objective, network=network, num_envs=2, num_workers=0)


def test_a_network_of_the_callers_own_that_fits_is_taken() -> None:
    network = MLP((4,), 2, (8,), num_atoms=51, dueling=True, noisy=True)
    small = {**SETTINGS, "num_envs": 2, "num_workers": 0}
    agent = DQN("CartPole-v1", objective="c51", network=network, **small)
    agent.learn(total_timesteps=40)
    assert int(agent.learner.state.skipped) == 0
