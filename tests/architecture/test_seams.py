"""What comes from outside the package learns through its public arguments, in every mode."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastdqn
from fastdqn import (
    DQN,
    CheckpointError,
    Learner,
    NonFiniteError,
    ReplayBuffer,
    UsageError,
    make_tensor_env,
)
from fastdqn.replay.functional_ring import FunctionalRing
from fastdqn.replay.sampler import UniformSampler
from tests.architecture.toys import ByPriority, EachHead, Heads, Munchausen, Noisy, OneAfterAnother
from tests.fake_cuda import RecordingCuda
from tests.learner_modes import run_by_graphs
from tests.small_learners import filled_ring, random_batch

pytestmark = pytest.mark.usefixtures("one_thread")

Toy = Callable[[], dict[str, Any]]
TOYS: dict[str, Toy] = {
    "objective": lambda: {"objective": Munchausen()},
    "head": lambda: {"objective": EachHead(), "network": Heads(4, 2)},
    "sampler": lambda: {"sampler": ByPriority},
    "noisy layer": lambda: {"network": Noisy(4, 2)},
}
REASONS = {
    "objective": "the objective is Munchausen",
    "head": "the objective is EachHead",
    "sampler": "the sampler is ByPriority",
    "noisy layer": "the network is Noisy",
}


class Everything(nn.Module):
    """Noisy heads: what the toys do one by one, in one network."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.noise = Heads(4, 2), Noisy(4, 2)
        self.num_random = self.noise.num_random

    def forward(self, obs: Tensor, random: Tensor) -> Tensor:
        outputs: Tensor = self.heads(obs) + self.noise(obs, random).unsqueeze(2)
        return outputs


def together() -> dict[str, Any]:
    return {"objective": EachHead(), "network": Everything(), "sampler": ByPriority}


ENVS: dict[str, Callable[[], Any]] = {
    "workers": lambda: "CartPole-v1",
    "tensors": lambda: make_tensor_env("CartPole-v1", 2, "cpu"),
}
SETTINGS: dict[str, Any] = {
    "batch_size": 8,
    "buffer_size": 64,
    "learning_starts": 16,
    "replay_ratio": 1.0,
    "hidden_sizes": (8,),
    "epsilon_start": 1.0,  # so that what is seen does not hang on rounding
    "epsilon_end": 1.0,
    "quiet": True,
}


def agent_of(env: str, toy: Toy, execution: str) -> DQN:
    torch.manual_seed(0)
    own: dict[str, Any] = {"num_envs": 1, "num_workers": 0} if env == "workers" else {}
    return DQN(ENVS[env](), execution=execution, **toy(), **own, **SETTINGS)


def learned(agent: DQN, steps: int = 60) -> Tensor:
    """Train; return how far the parameters have moved."""
    before = agent.learner.state.online.clone()
    agent.learn(total_timesteps=steps)
    state = agent.learner.state
    assert int(state.updates) == steps - SETTINGS["learning_starts"]
    assert int(state.skipped) == 0
    moved: Tensor = (state.online - before).norm()
    return moved


@pytest.mark.parametrize("env", ENVS)
@pytest.mark.parametrize("name", TOYS)
def test_each_toy_trains_acts_and_is_saved(name: str, env: str, tmp_path: Path) -> None:
    agent = agent_of(env, TOYS[name], "eager")
    assert learned(agent) > 0.01
    assert set(TOYS[name]()) <= set(agent.origin)
    obs = torch.randn(5, 4)
    assert agent.predict(obs).shape == (5,)
    agent.save(tmp_path / "toy")
    again = DQN.load(tmp_path / "toy", **TOYS[name](), env=ENVS[env]())
    assert (again.predict(obs) == agent.predict(obs)).all()
    if "objective" in agent.origin:
        with pytest.raises(CheckpointError, match=r"objective of the caller's own, .*pass it"):
            DQN.load(tmp_path / "toy", network=TOYS[name]().get("network"), env=ENVS[env]())


@pytest.mark.slow
@pytest.mark.parametrize("env", ENVS)
def test_together_they_train_compiled_as_eagerly(env: str) -> None:
    eager, compiled = (agent_of(env, together, how) for how in ("eager", "compile"))
    assert learned(eager) > 0.01
    learned(compiled)
    for mine, theirs in zip(
        compiled.learner.state.written(), eager.learner.state.written(), strict=True
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("env", ENVS)
@pytest.mark.parametrize("name", TOYS)
def test_native_refuses_each_with_the_reason_and_auto_does_without(name: str, env: str) -> None:
    agent = agent_of(env, TOYS[name], "native")
    with pytest.raises(UsageError, match=REASONS[name]):
        agent.learn(total_timesteps=60)
    agent = agent_of(env, TOYS[name], "auto")
    learned(agent)
    sampler = agent._sampler if agent._tensor_rollout is None else agent._tensor_rollout.sampler
    assert REASONS[name] in str(agent.learner.why_not_native(sampler))
    assert agent.learner.execution == "eager"


@pytest.mark.parametrize("given", [{"double": True}, {"loss": "mse"}, {"replay": "newest"}])
def test_a_setting_beside_the_part_that_decides_it_is_refused(given: dict[str, Any]) -> None:
    parts: dict[str, Any] = {"objective": Munchausen(), "sampler": ByPriority}
    with pytest.raises(UsageError, match=f"{next(iter(given))}=.*decides it"):
        DQN("CartPole-v1", **parts, **given)


# Learners of the caller's own, and graphs


def learner_of(toy: Toy) -> Learner:
    torch.manual_seed(0)
    parts = {"network": fastdqn.MLP((4,), 2, (8,)), **toy()}
    parts.pop("sampler", None)
    return Learner(parts.pop("network"), learning_rate=1e-2, **parts)


def graphs_of(toy: Toy) -> tuple[Learner, RecordingCuda]:
    learner, cuda = learner_of(toy), RecordingCuda()
    run_by_graphs(learner, cuda)
    learner.execute_as("cudagraph")
    return learner, cuda


@pytest.mark.parametrize("name", [*TOYS, "together"])
def test_graphs_learn_what_eager_learning_does(name: str) -> None:
    toy = {**TOYS, "together": together}[name]
    (recorded, cuda), eager = graphs_of(toy), learner_of(toy)
    samplers = [ByPriority(filled_ring(), 8) for _ in range(2)]
    born = eager.state.online.clone()
    for updates in (1, 4, 2, 7, 4):
        for learner, sampler in zip((recorded, eager), samplers, strict=True):
            learner.learn(sampler, updates)
            learner.learn(sampler.buffer, sampler.buffer.newest(2, 8))
            learner.update(random_batch(updates))
    assert cuda.captures() > 0
    assert (eager.state.online - born).norm() > 0.01
    for mine, theirs in zip(recorded.state.written(), eager.state.written(), strict=True):
        assert torch.equal(mine, theirs)
    assert torch.equal(samplers[0].priority, samplers[1].priority)
    assert not torch.equal(samplers[0].priority, torch.ones(64 + 2))


@pytest.mark.parametrize(
    "mode", ["eager", pytest.param("compile", marks=pytest.mark.slow), "cudagraph"]
)
def test_each_batch_is_drawn_after_the_feedback_of_the_one_before(mode: str) -> None:
    """Feedback names exactly one row to be drawn next; drawn together, all rows were the first."""
    learner, replay = learner_of(dict), filled_ring()
    sampler = OneAfterAnother(replay, 8)
    if mode == "cudagraph":
        run_by_graphs(learner, RecordingCuda())
    learner.execute_as(mode)
    for updates in (4, 2):
        learner.learn(sampler, updates)
    drawn = replay.newest(1, len(replay))[0].flip(0)[:6]
    assert sampler.log[:6].tolist() == drawn.tolist()
    assert int(sampler.drawn) == 6


def test_a_priority_of_nan_changes_nothing_and_is_reported_as_such() -> None:
    class Unsure(Munchausen):
        def loss(self, *given: Any) -> tuple[Tensor, Tensor]:
            losses, priority = super().loss(*given)
            return losses, priority * torch.nan

    sampler = ByPriority(filled_ring(), 8)
    learner = learner_of(lambda: {"objective": Unsure()})
    learner.learn(sampler, 2)
    assert int(learner.state.skipped) == 2
    assert torch.equal(sampler.priority, torch.ones_like(sampler.priority))
    agent = agent_of("workers", lambda: {"objective": Unsure()}, "eager")
    with pytest.raises(NonFiniteError, match="had a priority that is not finite"):
        agent.learn(total_timesteps=60)


@pytest.mark.parametrize("env", ENVS)
def test_another_part_than_the_saved_one_is_refused_by_the_names_of_both(
    env: str, tmp_path: Path
) -> None:
    class Munchausen2(Munchausen):
        pass

    agent_of(env, together, "eager").save(tmp_path / "toy")
    parts, load = together(), partial(DQN.load, tmp_path / "toy", env=ENVS[env]())
    with pytest.raises(CheckpointError, match=r"objective .*EachHead, and this is .*Munchausen2"):
        load(**{**TOYS["noisy layer"](), "objective": Munchausen2(), "sampler": ByPriority})
    with pytest.raises(CheckpointError, match=r"sampler .*ByPriority, and this is .*OneAfter"):
        load(**{**parts, "sampler": OneAfterAnother})
    with pytest.warns(UserWarning, match=r"sampler .*ByPriority, and learning goes on without"):
        load(**{**parts, "network": Everything(), "sampler": None})
    elsewhere = type("ByPriority", (ByPriority,), {"__module__": "elsewhere"})
    load(**{**parts, "network": Everything(), "sampler": partial(elsewhere)})


def test_a_skipped_update_feeds_nothing_back() -> None:
    learner, replay = learner_of(dict), filled_ring()
    one, many = OneAfterAnother(replay, 8), ByPriority(replay, 8)
    replay.ring.reward.fill_(torch.nan)
    learner.learn(one, 3)
    learner.learn(many, 3)
    assert int(learner.state.skipped) == 6
    assert sorted(set(one.log[:3].tolist())) == [int(one.log[0])]
    assert torch.equal(many.priority, torch.ones_like(many.priority))


def test_tensor_environments_draw_after_the_feedback_too() -> None:
    env = make_tensor_env("CartPole-v1", 2, "cpu")
    agent = DQN(env, sampler=OneAfterAnother, execution="eager", **{**SETTINGS, "replay_ratio": 2})
    agent.learn(total_timesteps=24)
    assert agent._tensor_rollout is not None
    sampler = agent._tensor_rollout.sampler
    assert isinstance(sampler, OneAfterAnother)
    assert int(sampler.next) == int(sampler.drawn) == int(agent.learner.state.updates) == 16
    assert len(set(sampler.log[:16].tolist())) == 16


def test_without_randomness_and_feedback_neither_costs_anything() -> None:
    learner, replay = learner_of(dict), filled_ring()
    assert learner.num_random(128) == 0
    sampler = fastdqn.UniformSampler(replay, 8)
    assert sampler.fill(3).shape == (3, 8)
    assert sampler.written() == ()
    noisy = learner_of(TOYS["noisy layer"])
    assert noisy.num_random(8) == 3 * 16  # a pass each: online and target, obs and next_obs


def test_the_toys_know_public_names_alone_and_nobody_knows_them() -> None:
    text = Path(str(Path(__file__).with_name("toys.py"))).read_text(encoding="utf-8")
    imports = [line for line in text.splitlines() if "fastdqn" in line and "import" in line]
    assert imports == ["from fastdqn import Pass, Sampler, Transitions, uniform_of"]
    package = Path(fastdqn.__file__).parent
    names = ("EachHead", "ByPriority", "OneAfterAnother", "tests.")
    for path in package.rglob("*.py"):
        assert not any(name in path.read_text(encoding="utf-8") for name in names)


def test_both_rings_are_read_alike() -> None:
    replay, ring = ReplayBuffer(6, 2, (1,)), FunctionalRing(6, 2, (1,))
    replay.begin(torch.zeros(2, 1))
    ring.begin(torch.zeros(2, 1))
    none = torch.zeros(2, dtype=torch.bool)
    for number in range(11):
        obs = torch.full((2, 1), float(number))
        replay.write(torch.arange(2), torch.zeros(2), none, none, obs)
        ring.write(torch.arange(2), torch.zeros(2), none, none, obs, obs)
        replay.valid.publish(replay.valid.first, len(replay))
        found = []
        for source in (replay, ring):
            first, count = source.span()
            found.append(source.nth(torch.arange(int(count)), first).tolist())
        assert found[0] == found[1]
        assert torch.equal(replay.ring.continues, ring.ring.continues)


@pytest.mark.parametrize("what", ["losses", "priorities"])
@pytest.mark.parametrize("shape", [(), (1, 8), (8, 1), (5,)], ids=str)
def test_losses_and_priorities_of_other_shapes_are_refused(
    what: str, shape: tuple[int, ...]
) -> None:
    class Other(fastdqn.DoubleDQNObjective):
        def loss(self, *given: Any) -> tuple[Tensor, Tensor]:
            losses, priority = super().loss(*given)
            other = (losses if what == "losses" else priority).mean().expand(shape)
            return (other, priority) if what == "losses" else (losses, other)

    learner = Learner(fastdqn.MLP((4,), 2, (8,)), objective=Other())
    with pytest.raises(UsageError, match=rf"{what} \[.*\] for 8 rows, objective Other"):
        learner.update(random_batch(0, 8))


@pytest.mark.parametrize("env", ENVS)
@pytest.mark.parametrize(
    ("factory", "reason"),
    [
        (lambda _, __: None, "a sampler of NoneType"),
        (lambda ring, _: ByPriority(ring, 7), "batches of 7"),
        (lambda _, size: ByPriority(filled_ring(), size), "from the ring that it is handed"),
        (lambda _, __: ByPriority, "a sampler of ABCMeta"),
    ],
)
def test_a_sampler_of_something_else_is_refused(env: str, factory: Any, reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        agent_of(env, lambda: {"sampler": factory}, "eager").learn(total_timesteps=60)


def test_a_sampler_that_is_fed_back_names_what_it_writes() -> None:
    class Unnamed(UniformSampler):
        def feedback(self, rows: Tensor, priority: Tensor) -> None:
            self.seen = rows, priority

    with pytest.raises(UsageError, match="the feedback of Unnamed"):
        agent_of("workers", lambda: {"sampler": Unnamed}, "eager").learn(total_timesteps=60)
