"""`--epsilon-ladder` and `--lr-schedule`, from the flag to actions and updates of all trainings."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fastdqn import DQN, Callback, make_tensor_env
from fastdqn.execution.modes import mode_of
from fastdqn.policies.actors import GraphActor, HostActor
from fastdqn.policies.policy import EagerActor
from fastdqn.training.events import Report
from fastdqn.training.tensor import rollout as tensor_rollout
from fastdqn.training.tensor.block_runner import BlockRunner
from tests.fake_cuda import RecordingCuda
from tests.learner_modes import run_by_graphs
from tests.masked import MaskedCounterEnv
from tests.tensor_oracles import TensorCounter

pytestmark = pytest.mark.usefixtures("one_thread")

NUM_ENVS, EPSILON, ALPHA = 4, 0.8, 7.0
LADDER: dict[str, Any] = {
    "epsilon_ladder": True,
    "epsilon_ladder_alpha": ALPHA,
    "epsilon_schedule": "constant",
    "epsilon_start": EPSILON,
}
SETTINGS: dict[str, Any] = {
    "num_envs": NUM_ENVS,
    "batch_size": 4,
    "buffer_size": 10_000,
    "learning_starts": 8,
    "replay_ratio": 0.01,
    "hidden_sizes": (4,),
    "execution": "eager",
    "quiet": True,
}
ENVS: dict[str, dict[str, Any]] = {
    "one by one": {"env": "CartPole-v1", "vectorizer": "sync"},
    "workers": {"env": "CartPole-v1", "num_workers": 0},
    "groups": {"env": "CartPole-v1", "num_workers": 0, "env_groups": 2},
    "masks": {"env": partial(MaskedCounterEnv, 0, 5), "num_workers": 0},
    "tensors": {"env": partial(make_tensor_env, "CartPole-v1", NUM_ENVS, "cpu")},
    "impure tensors": {"env": partial(TensorCounter, NUM_ENVS)},
}
STEPS = 500
CHI_SQUARE = 18.5
"""99.9 % of chi-square, 4 degrees."""


def agent_of(kind: str, **changes: Any) -> DQN:
    chosen = dict(ENVS[kind])
    env = chosen.pop("env")
    return DQN(env() if kind.endswith("tensors") else env, **{**SETTINGS, **chosen, **changes})


def stubborn(kind: str, **changes: Any) -> DQN:
    """Return an agent whose best action is always the first one, whatever it learns."""
    agent = agent_of(kind, **{"learning_rate": 0.0, **changes})
    *_, weight, bias = agent.parameters().values()
    weight.zero_()
    bias.copy_(-torch.arange(len(bias), dtype=torch.float32))
    return agent


def actions_of(agent: DQN, steps: int = STEPS) -> Tensor:
    """Train for so many vector steps; return what each environment did, [S, N]."""
    num_envs = agent.config.num_envs if agent._tensor_rollout is None else NUM_ENVS
    agent.learn(total_timesteps=steps * num_envs)
    return agent._own_sampler.ring.action[: steps * num_envs].reshape(-1, num_envs)


def assert_ladder(actions: Tensor, num_actions: int, ladder: Sequence[float]) -> None:
    """Check by chi-square how often each environment did not do the best."""
    share = torch.tensor(ladder, dtype=torch.float64) * (num_actions - 1) / num_actions
    explored, steps = (actions != 0).double().sum(0), len(actions)
    assert len(explored) == len(share)
    assert explored.tolist() == sorted(explored.tolist(), reverse=True)
    assert ((explored - steps * share) ** 2 / (steps * share * (1 - share))).sum() < CHI_SQUARE


EXPECTED = [EPSILON ** (1 + ALPHA * env / (NUM_ENVS - 1)) for env in range(NUM_ENVS)]


@pytest.mark.parametrize(
    ("kind", "execution"),
    [
        *((kind, "eager") for kind in ENVS if kind != "masks"),
        ("one by one", "native"),
        ("groups", "native"),
        *(
            pytest.param(kind, execution, marks=pytest.mark.slow)
            for kind in ("tensors", "impure tensors")
            for execution in ("native", "compile")
        ),
    ],
)
def test_each_environment_explores_with_its_power_of_epsilon(kind: str, execution: str) -> None:
    agent = stubborn(kind, execution=execution, **LADDER)
    num_actions = agent.description.num_actions
    assert_ladder(actions_of(agent), num_actions, EXPECTED)


@pytest.mark.parametrize("actor", ["recorded", "on the host"])
@pytest.mark.parametrize("kind", ["workers", "groups"])
def test_whatever_acts_explores_by_the_ladder(
    kind: str, actor: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def act(self: EagerActor, *arguments: Any) -> Any:
        policy = self._policy
        if policy not in actors:
            recorded = actor == "recorded"
            actors[policy] = (
                GraphActor(policy, cuda=RecordingCuda()) if recorded else HostActor(policy)
            )
        return actors[policy].on_host(*arguments)

    actors: dict[Any, Any] = {}
    monkeypatch.setattr(EagerActor, "on_host", act)
    agent = stubborn(kind, **LADDER)
    assert_ladder(actions_of(agent), 2, EXPECTED)
    assert len(actors) == 1


def test_tensor_environments_explore_by_the_ladder_in_graphs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cuda = RecordingCuda()
    graphs = mode_of("cudagraph", torch.device("cuda"))

    def by_graphs(
        iteration: Any, env: Any, _mode: Any, *others: Any, **options: Any
    ) -> BlockRunner:
        return BlockRunner(iteration, env, graphs, *others, **options, cuda=cuda)

    monkeypatch.setattr(tensor_rollout, "BlockRunner", by_graphs)
    assert_ladder(actions_of(stubborn("tensors", **LADDER)), 2, EXPECTED)


def test_forbidden_actions_are_done_by_no_step_of_the_ladder() -> None:
    agent = agent_of("masks", **LADDER)
    allowed: list[bool] = []
    act = agent.policy.actor.on_host

    def watched(obs: Tensor, epsilon: float, uniform: Tensor, mask: Tensor | None = None) -> Any:
        assert mask is not None
        action, chosen = act(obs, epsilon, uniform, mask)
        allowed.extend(mask.gather(1, action.unsqueeze(1)).flatten().tolist())
        return action, chosen

    agent.policy.actor.on_host = watched  # type: ignore[method-assign]
    agent.learn(total_timesteps=1_000)
    assert len(allowed) >= 1_000
    assert all(allowed)


@pytest.mark.parametrize("kind", ["workers", "tensors"])
def test_a_copy_explores_as_the_agent_would(kind: str) -> None:
    agent = stubborn(kind, **LADDER)
    twin = copy.deepcopy(agent)
    actions = actions_of(agent)
    assert torch.equal(actions_of(twin), actions)
    assert_ladder(actions, 2, EXPECTED)


def test_a_single_environment_explores_with_epsilon_itself() -> None:
    agent = stubborn("workers", num_envs=1, **LADDER)
    assert_ladder(actions_of(agent), 2, [EPSILON])


@pytest.mark.parametrize("kind", ["groups", "tensors"])
def test_without_a_ladder_all_explore_alike(kind: str) -> None:
    settings = {**LADDER, "epsilon_ladder": False}
    explored = (actions_of(stubborn(kind, **settings)) != 0).double().sum(0)
    share = EPSILON / 2
    assert ((explored - STEPS * share) ** 2 / (STEPS * share * (1 - share))).sum() < CHI_SQUARE


def test_evaluations_and_predictions_explore_nowhere() -> None:
    agent = stubborn("workers", **LADDER)
    agent.learn(total_timesteps=80)
    ladder = agent.evaluate(2, seed=1).returns.tolist()
    assert ladder == stubborn("workers").evaluate(2, seed=1).returns.tolist()
    assert agent.predict(torch.zeros(50, 4).numpy()).tolist() == [0] * 50


# The step size

FALLING: dict[str, Any] = {
    "learning_rate": 4e-3,
    "lr_schedule": "linear",
    "replay_ratio": 0.5,
    "log_interval": 40,
}


class Rates(Callback):
    """Keeps the step sizes of the reports."""

    def __init__(self) -> None:
        self.rates: list[tuple[int, float]] = []

    def on_report(self, report: Report) -> None:
        self.rates.append((report.env_steps, report.learning_rate))


def rates_of(agent: DQN, env_steps: int) -> list[tuple[int, float]]:
    callback = Rates()
    agent.learn(total_timesteps=env_steps, callback=callback)
    return callback.rates


def float32(value: float) -> Any:
    return pytest.approx(value, rel=1e-6, abs=1e-12)


@pytest.mark.parametrize("execution", ["eager", "native"])
@pytest.mark.parametrize("kind", ["one by one", "groups"])
def test_reports_show_the_step_size_of_their_env_steps(kind: str, execution: str) -> None:
    agent = agent_of(kind, execution=execution, **FALLING)
    shown = rates_of(agent, 400)
    width = NUM_ENVS // agent.config.env_groups
    assert [steps for steps, _ in shown] == list(range(40, 401, 40))
    for steps, rate in shown:  # the last updates before a report come before its last rows
        assert rate == float32(4e-3 * (1 - (steps - width) / 400))
    assert agent.learner.state.learning_rate.item() == 0.0  # at the last updates, after it


@pytest.mark.parametrize("execution", ["eager", pytest.param("native", marks=pytest.mark.slow)])
def test_in_tensor_environments_each_block_has_the_step_size_of_its_first_env_step(
    execution: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = agent_of("tensors", execution=execution, **FALLING, learning_rate_end=1e-3)
    blocks: list[tuple[int, float]] = []
    advance = tensor_rollout.TensorRollout.advance

    def watched(self: tensor_rollout.TensorRollout, *arguments: Any) -> Any:
        blocks.append((self.env_steps, agent.learner.state.learning_rate.item()))
        return advance(self, *arguments)

    monkeypatch.setattr(tensor_rollout.TensorRollout, "advance", watched)
    agent.learn(total_timesteps=400)
    assert len({rate for _, rate in blocks}) == len(blocks) > 10
    for steps, rate in blocks:
        assert rate == float32(4e-3 - 3e-3 * steps / 400)


def test_a_cosine_ends_where_it_is_asked_to() -> None:
    settings = {**FALLING, "lr_schedule": "cosine", "learning_rate_end": 1e-3}
    agent = agent_of("one by one", **settings)
    shown = dict(rates_of(agent, 400))
    assert agent.learner.state.learning_rate.item() == float32(1e-3)
    wave = 1 + math.cos(math.pi * (200 - NUM_ENVS) / 400)
    assert shown[200] == float32(1e-3 + 3e-3 * wave / 2)


@pytest.mark.parametrize("kind", ["one by one", "tensors"])
def test_the_next_call_and_a_loaded_policy_fall_over_their_own_env_steps(
    kind: str, tmp_path: Path
) -> None:
    agent = agent_of(kind, **FALLING)
    first = rates_of(agent, 400)
    agent.save(tmp_path / "saved")
    second = rates_of(agent, 200)
    assert first[0][1] > first[-1][1]
    assert second[0][1] > first[-1][1]
    assert second[0][1] <= 4e-3 * (1 - 40 / 200) * 1.2
    loaded = DQN.load(
        tmp_path / "saved", **({} if kind != "tensors" else {"env": ENVS[kind]["env"]()})
    )
    third = rates_of(loaded, 200)
    assert [steps for steps, _ in third] == [steps for steps, _ in second]
    assert [rate for _, rate in third][-1] == float32(second[-1][1])
    assert third[0][1] > first[-1][1]


@pytest.mark.parametrize("kind", ["one by one", "groups", "tensors"])
def test_a_constant_step_size_stays_as_it_was_written_by_hand(kind: str) -> None:
    agent = agent_of(kind, replay_ratio=0.5, log_interval=40)
    agent.learner.state.learning_rate.fill_(0.0123)
    assert {rate for _, rate in rates_of(agent, 200)} == {0.0123}
    assert agent.learner.state.learning_rate.item() == torch.tensor(0.0123).item()


@pytest.mark.parametrize("kind", ["one by one", pytest.param("tensors", marks=pytest.mark.slow)])
def test_updates_in_c_read_the_step_size_that_eager_ones_read(kind: str) -> None:
    vectors = {}
    for execution, schedule in (("eager", "linear"), ("native", "linear"), ("native", "constant")):
        settings = {**FALLING, "lr_schedule": schedule, "epsilon_schedule": "constant"}
        agent = agent_of(kind, execution=execution, epsilon_start=1.0, **settings)
        agent.learn(total_timesteps=400)
        vectors[execution, schedule] = agent.learner.state.online.clone()
    eager, native, constant = vectors.values()
    assert torch.allclose(eager, native, atol=1e-4)
    assert (native - constant).abs().max() > 0.02


def test_updates_in_a_graph_read_the_step_size_that_eager_ones_read() -> None:
    vectors = []
    for by_graphs in (False, True):
        agent = agent_of("one by one", **FALLING)
        cuda = RecordingCuda()
        with agent.trainer(400, Callback()) as trainer:
            if by_graphs:
                run_by_graphs(agent.learner, cuda)
                agent.learner.execute_as("cudagraph")
            trainer.run(agent.env_seeds())
        vectors.append(agent.learner.state.online.clone())
    assert torch.equal(*vectors)
