"""`--replay prioritized` and `--n-step`, from the flag to what is drawn, in all trainings."""

from __future__ import annotations

import copy
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from fastdqn import DQN, PrioritizedSampler, UsageError, make_tensor_env
from fastdqn.agent.learning import Trainable
from fastdqn.cli.commands import main
from fastdqn.replay.functional_ring import FunctionalRing
from tests.masked import MaskedCounterEnv
from tests.unit.cli.test_commands import TINY

pytestmark = pytest.mark.usefixtures("one_thread")

SETTINGS: dict[str, Any] = {
    "batch_size": 8,
    "buffer_size": 100,
    "learning_starts": 20,
    "replay_ratio": 1.0,
    "hidden_sizes": (8,),
    "quiet": True,
    "replay": "prioritized",
    "n_step": 3,
}
ENVS: dict[str, dict[str, Any]] = {
    "one by one": {"env": "CartPole-v1", "num_envs": 4, "vectorizer": "sync"},
    "groups": {"env": "CartPole-v1", "num_envs": 4, "env_groups": 2, "num_workers": 1},
    "masks": {"env": partial(MaskedCounterEnv, 0, 5), "num_envs": 2, "num_workers": 0},
    "tensors": {"env": partial(make_tensor_env, "CartPole-v1", 4, "cpu")},
}


def agent_of(kind: str, **changes: Any) -> DQN:
    chosen = dict(ENVS[kind])
    env = chosen.pop("env")
    return DQN(env() if kind == "tensors" else env, **{**SETTINGS, **chosen, **changes})


def sampler_of(agent: Trainable) -> PrioritizedSampler:
    sampler = agent._own_sampler
    assert isinstance(sampler, PrioritizedSampler)
    return sampler


@pytest.mark.parametrize(
    "execution", ["eager", "native", pytest.param("compile", marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("kind", ENVS)
def test_what_may_be_drawn_has_a_priority_and_nothing_else(kind: str, execution: str) -> None:
    agent = agent_of(kind, execution=execution)
    agent.learn(total_timesteps=400)
    sampler = sampler_of(agent)
    updates = int(agent.learner.state.updates)
    assert agent.learner.execution == execution
    assert int(sampler.draws) == int(sampler.anneal) == updates == 380
    assert int(agent.learner.state.skipped) == 0
    if isinstance(sampler.replay, FunctionalRing):
        first, count = sampler.replay.span()
        rows = sampler.replay.nth(torch.arange(int(count)), first)
    else:
        sampler.follow()
        rows = sampler.buffer.newest(1, len(sampler.buffer))[0]
    leaves = sampler.tree.leaves
    assert sorted(rows.tolist()) == leaves.nonzero()[:, 0].tolist()
    assert len(set(leaves[rows].tolist())) > 20
    assert float(sampler.tree.total()) == pytest.approx(float(leaves.double().sum()), rel=1e-5)
    assert sampler.ring.n_step == 3


def test_auto_measures_and_trains_and_later_calls_lose_no_transition() -> None:
    agent = agent_of("one by one", execution="auto", buffer_size=4_000, learning_starts=100)
    agent.learn(total_timesteps=1_412)
    assert "eager" in agent.execution_reason  # was measured
    for timesteps in (408, 404):
        agent.learn(total_timesteps=timesteps)
    assert int(agent.learner.state.skipped) == 0
    sampler = sampler_of(agent)
    sampler.follow()
    assert int((sampler.tree.leaves > 0).sum()) == len(sampler.buffer) == 2_224


def test_settings_reach_the_sampler_and_go_with_the_agent(tmp_path: Path) -> None:
    numbers = {"priority_alpha": 0.3, "priority_beta_start": 0.1, "priority_beta_end": 0.7}
    agent = agent_of("one by one", **numbers, priority_eps=0.01, execution="eager")
    sampler = sampler_of(agent)
    assert (sampler.alpha, sampler.beta_start, sampler.beta_end) == (0.3, 0.1, 0.7)
    assert sampler.eps == 0.01
    agent.learn(total_timesteps=120)
    agent.learn(total_timesteps=80)
    assert (int(sampler.draws), int(sampler.anneal)) == (180, 180)
    agent.save(tmp_path / "agent")
    again = DQN.load(tmp_path / "agent")
    assert (again.config.n_step, again.config.priority_alpha) == (3, 0.3)
    assert DQN.load(tmp_path / "agent", replay="uniform").config.priority_alpha == 0.6
    again.learn(total_timesteps=120)
    other = sampler_of(again)
    assert other.alpha == 0.3
    assert int(other.draws) == int(other.anneal) == 180 + 100


@pytest.mark.parametrize("kind", ["one by one", "tensors"])
@pytest.mark.parametrize("execution", ["eager", "native"])
def test_the_same_seed_is_the_same_run_and_a_copy_goes_on_alike(kind: str, execution: str) -> None:
    agents = [agent_of(kind, execution=execution) for _ in range(2)]
    for agent in agents:
        agent.learn(total_timesteps=120)
    twin = copy.deepcopy(agents[0])
    for agent in (*agents, twin):
        agent.learn(total_timesteps=120)
    assert torch.equal(agents[0].learner.state.online, agents[1].learner.state.online)
    assert torch.equal(agents[0].learner.state.online, twin.learner.state.online)
    leaves = [sampler_of(agent).tree.leaves for agent in (*agents, twin)]
    assert torch.equal(leaves[0], leaves[1])
    assert torch.equal(leaves[0], leaves[2])


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--replay prioritized --priority-alpha 1.5", "--priority-alpha 1.5: it must lie in"),
        ("--replay prioritized --priority-alpha -1", "--priority-alpha -1"),
        ("--replay prioritized --priority-beta-start 2", "--priority-beta-start 2"),
        ("--replay prioritized --priority-beta-end nan", "--priority-beta-end nan"),
        ("--replay prioritized --priority-eps 0", "--priority-eps 0"),
        ("--replay prioritized --priority-eps 1e-40", "--priority-eps 1e-40"),
        ("--replay newest --priority-alpha 0.5", "--priority-alpha 0.5 with --replay newest"),
        ("--priority-beta-end 0.5", "--priority-beta-end 0.5 with --replay uniform"),
        ("--n-step 3 --replay newest", "--n-step 3 with --replay newest"),
        ("--n-step 0", "--n-step 0: it must be at least 1"),
        ("--n-step 50 --buffer-size 100", "--n-step 50: --buffer-size 100 holds 50 transitions"),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_starts(
    flags: str, words: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    assert main(["train", *TINY.split(), *flags.split(), "--run-dir", str(run_dir)]) == 2
    shown = " ".join(capsys.readouterr().err.split())
    assert words in shown
    assert not run_dir.exists()


def test_a_sampler_of_the_callers_own_decides_alone() -> None:
    with pytest.raises(UsageError, match=r"priority_alpha=.*decides it"):
        DQN("CartPole-v1", sampler=PrioritizedSampler, priority_alpha=0.5)
