"""Choosing by measurement: the fastest wins, all are reported, and the training is not changed."""

from __future__ import annotations

import re
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from fastdqn.errors import UsageError
from fastdqn.execution.step import EagerStep, PureStep, Step
from fastdqn.learner.learner import Learner
from fastdqn.native import NativeActor
from fastdqn.networks.mlp import MLP
from fastdqn.policies.actors import actors_for
from fastdqn.policies.policy import Actor, EagerActor, Hosted, Policy
from fastdqn.replay import PrioritizedSampler, ReplayBuffer, Sampler, UniformSampler
from fastdqn.training import autotune
from fastdqn.training.autotune import (
    fastest_actor,
    fastest_mode,
    learning_seconds,
    tune,
)
from tests.clock import Clock
from tests.fake_cuda import RecordingCuda
from tests.learner_modes import run_by, run_by_graphs
from tests.learner_settings import nothing_left_in, written
from tests.small_learners import Branches

BATCH, OBS = 8, torch.zeros(2, 4)


def learner_of(clock: Clock | None = None, **took_s: float) -> tuple[Learner, Sampler]:
    """Build a learner over an empty ring, with fake modes that really learn, so long a call."""
    torch.manual_seed(0)
    learner = Learner(MLP((4,), 2, (8,)))
    for mode, seconds in took_s.items():
        run_by(learner, mode.replace("_", "+"), partial(slow, clock or Clock(), seconds))
    return learner, UniformSampler(ReplayBuffer(64, 2, (4,), seed=3), BATCH, due=2)


def slow(clock: Clock, seconds: float, step: PureStep) -> Step:
    def slowly(*given: Any) -> None:
        clock.now += seconds
        step(*given)

    return EagerStep(slowly)


def test_the_fastest_mode_wins_and_all_are_reported(clock: Clock) -> None:
    learner, sampler = learner_of(clock, eager=600e-6, cudagraph=80e-6, compile_cudagraph=30e-6)
    candidates = ["eager", "cudagraph", "compile+cudagraph"]
    best, message = fastest_mode(learner, sampler, 2, candidates)
    assert best == learner.execution == "compile+cudagraph"
    assert message == (
        "measured per update: compile+cudagraph 15 us, cudagraph 40 us, eager 300 us"
    )
    assert list(learner._modes) == [best]  # what the others held is free again
    learner, sampler = learner_of(clock, eager=20e-6, cudagraph=80e-6)
    assert fastest_mode(learner, sampler, 2, candidates[:2])[0] == learner.execution == "eager"


def test_a_mode_that_cannot_be_compiled_is_reported_and_left_out(clock: Clock) -> None:
    learner, sampler = learner_of(clock, eager=600e-6, compile_cudagraph=30e-6)

    def refused(*_given: Any) -> None:
        raise UsageError("--execution compile", "it looks at a value", "Use eager.")

    run_by(learner, "compile+cudagraph", lambda _: EagerStep(refused))
    best, message = fastest_mode(learner, sampler, 2, ["eager", "compile+cudagraph"])
    assert best == learner.execution == "eager"
    assert "compile+cudagraph cannot run (--execution compile: it looks at a value" in message


def test_a_measurement_leaves_no_trace_in_weights_moments_counts_and_draws() -> None:
    learner, sampler = learner_of()
    cuda = RecordingCuda()
    run_by_graphs(learner, cuda)
    before = written(learner.state)
    default = torch.get_rng_state()
    with nothing_left_in(sampler):
        fastest_mode(learner, sampler, 4, ["eager", "cudagraph"])
    assert cuda.replays() >= 5  # three rounds, however slow the machine, and two calls before
    for kept, now in zip(before, written(learner.state), strict=True):
        assert (
            torch.equal(
                kept,
                now,
            )
            or (kept.isnan() & now.isnan()).all()
        )
    assert torch.equal(torch.get_rng_state(), default)
    assert len(sampler.buffer) == 0


def test_a_graph_that_was_measured_is_not_recorded_again() -> None:
    learner, sampler = learner_of()
    cuda = RecordingCuda()
    run_by_graphs(learner, cuda)
    fastest_mode(learner, sampler, 4, ["cudagraph"])
    flags = torch.zeros(2, dtype=torch.bool)
    sampler.buffer.write(flags.long(), torch.ones(2), flags, flags, OBS)
    learner.learn(sampler, 4)
    assert cuda.captures() == 1
    assert int(learner.state.updates) == 4


def test_a_mode_that_cannot_run_is_reported_and_left_out() -> None:
    learner, sampler = learner_of()

    def broken(*_: Any) -> None:
        learner.state.online.add_(1.0)
        raise RuntimeError("a wait within a graph\nand much more")

    run_by(learner, "cudagraph", lambda _: EagerStep(broken))
    before = learner.state.online.clone()
    best, message = fastest_mode(learner, sampler, 1, ["eager", "cudagraph"])
    assert best == learner.execution == "eager"
    assert message.endswith("cudagraph cannot run (a wait within a graph)")
    assert torch.equal(learner.state.online, before)


def test_where_not_even_the_first_mode_runs_its_error_is_reported() -> None:
    learner, sampler = learner_of()
    before = learner.state.online.clone()

    def broken(*_: Any) -> None:
        learner.state.online.add_(1.0)
        raise RuntimeError("no such thing")

    run_by(learner, "eager", lambda _: EagerStep(broken))
    learner.execute_as("eager")
    with pytest.raises(RuntimeError, match="no such thing"):
        fastest_mode(learner, sampler, 1, ["eager"])
    assert torch.equal(learner.state.online, before)


# Acting


def _actors(monkeypatch: pytest.MonkeyPatch, clock: Clock, **took_s: float) -> list[str]:
    """Let actors of CUDA take so long each; return the kinds that were asked for."""
    asked: list[str] = []

    class Timed:
        def __init__(self, kind: str, policy: Policy) -> None:
            self.kind, self.plain = kind, EagerActor(policy)

        def __call__(self, *given: Any) -> Tensor:
            return self.on_host(*given)[0]

        def on_host(self, *given: Any) -> Hosted:
            clock.now += took_s[self.kind.replace(" ", "_")]
            return self.plain.on_host(*given)

    def timed_actors_for(policy: Policy) -> dict[str, Actor]:
        asked.extend(actors_for(policy))
        return {kind: Timed(kind, policy) for kind in asked}

    monkeypatch.setattr(autotune, "actors_for", timed_actors_for)
    return asked


def test_the_fastest_actor_acts_and_nothing_is_drawn(
    monkeypatch: pytest.MonkeyPatch, clock: Clock
) -> None:
    policy = Policy(learner_of()[0].network)
    before = policy._generator.get_state()
    asked = _actors(monkeypatch, clock, eager=300e-6, cudagraph=50e-6, cpu_copy=70e-6)
    best, message = fastest_actor(policy, OBS)
    assert best == "cudagraph"
    assert message == (
        "acting by cudagraph, measured per vector step: "
        "cudagraph 50 us, cpu copy 70 us, eager 300 us"
    )
    assert asked == ["eager", "cudagraph", "cpu copy"]
    assert torch.equal(policy._generator.get_state(), before)
    now = clock.now
    policy.act_on_host(OBS, 0.5)
    assert clock.now - now == pytest.approx(50e-6)


def test_a_module_with_buffers_has_no_copy_on_the_cpu(
    monkeypatch: pytest.MonkeyPatch, clock: Clock
) -> None:
    asked = _actors(monkeypatch, clock, eager=1.0, cudagraph=1.0)
    fastest_actor(Policy(Learner(Branches()).network), OBS)
    assert asked == ["eager", "cudagraph"]


# Together


def _together(
    monkeypatch: pytest.MonkeyPatch, clock: Clock, asked: str
) -> tuple[Learner, Policy, str]:
    monkeypatch.setattr(autotune, "synchronize", lambda device: None)
    _actors(monkeypatch, clock, eager=300e-6, cudagraph=50e-6, cpu_copy=70e-6)
    learner = Learner(MLP((4,), 2, (8,)))
    learner.device = torch.device("cuda")  # so it says; its tensors are the CPU's
    took = {"eager": 600e-6, "cudagraph": 80e-6, "native": 30e-6, "compile": 1.0}
    for mode, seconds in took.items():
        run_by(learner, mode, partial(slow, clock, seconds))
    policy = Policy(learner.network)
    sampler = UniformSampler(ReplayBuffer(64, 2, (4,)), BATCH, due=2)
    return learner, policy, tune(asked, learner, policy, sampler, expected_updates=10)


def test_auto_on_cuda_measures_updates_and_acting(
    monkeypatch: pytest.MonkeyPatch, clock: Clock
) -> None:
    learner, policy, message = _together(monkeypatch, clock, "auto")
    assert learner.execution == "native"
    measured = "measured per update: native 15 us, cudagraph 40 us, eager 300 us"
    assert message.startswith(f"{measured}; acting by cudagraph")
    assert not isinstance(policy.actor, EagerActor)


def test_asked_for_eager_everything_stays_plain_on_cuda(
    monkeypatch: pytest.MonkeyPatch, clock: Clock
) -> None:
    learner, policy, message = _together(monkeypatch, clock, "eager")
    assert (learner.execution, message) == ("eager", "as asked")
    assert isinstance(policy.actor, EagerActor)


def test_asked_for_another_way_the_updates_are_not_measured_and_acting_is(
    monkeypatch: pytest.MonkeyPatch, clock: Clock
) -> None:
    learner, policy, message = _together(monkeypatch, clock, "compile")
    assert learner.execution == "compile"
    assert message.startswith("as asked; acting by cudagraph, measured")
    assert not isinstance(policy.actor, EagerActor)


def test_for_a_few_updates_nothing_is_measured_on_the_cpu() -> None:
    learner, sampler = learner_of()
    policy = Policy(learner.network)
    message = tune("auto", learner, policy, sampler, expected_updates=10)
    assert message == "10 updates are done sooner than a trial"
    assert isinstance(policy.actor, EagerActor)


def test_on_the_cpu_the_c_is_measured_and_leaves_no_trace() -> None:
    learner, sampler = learner_of()
    policy = Policy(learner.network)
    before = [tensor.clone() for tensor in learner.state.written()]
    generator = sampler.buffer.generator.get_state()
    message = tune("auto", learner, policy, sampler, expected_updates=10**6)
    assert learner.execution == "native"
    assert re.match(r"measured per update: native \d+ us, eager \d+ us", message)
    assert isinstance(policy.actor, NativeActor)
    assert all(
        torch.equal(mine, then) or (mine.isnan() & then.isnan()).all()
        for mine, then in zip(learner.state.written(), before, strict=True)
    )
    assert torch.equal(sampler.buffer.generator.get_state(), generator)


def test_measuring_what_learning_takes_leaves_no_trace() -> None:
    learner, sampler = learner_of()
    before = learner.state.online.clone()
    assert 0 < learning_seconds(learner, sampler) < 1
    assert learning_seconds(learner, None) == 0.0
    assert torch.equal(learner.state.online, before)
    assert int(learner.state.updates) == 0


class Noisy(MLP):
    """Draws in its forward pass."""

    def forward(self, obs: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(obs) + torch.randn(2)


def test_measuring_a_network_that_draws_leaves_pytorchs_own_generator_alone() -> None:
    learner = Learner(Noisy((4,), 2, (8,)))
    sampler = UniformSampler(ReplayBuffer(64, 2, (4,), seed=3), BATCH, due=2)
    before = torch.get_rng_state()
    learning_seconds(learner, sampler)
    fastest_mode(learner, sampler, 2, ["eager"])
    assert torch.equal(torch.get_rng_state(), before)
    with sampler.rehearsal():
        learner.learn(sampler, 1)
    assert not torch.equal(torch.get_rng_state(), before)


def test_each_mode_is_tried_over_a_tree_that_holds_priorities() -> None:
    sampler = PrioritizedSampler(ReplayBuffer(100, 2, (4,)), 8)
    learner = Learner(MLP((4,), 2, (8,)))
    with autotune._trial(learner, sampler) as restore:
        for _ in range(2):
            learner.learn(sampler, 1)
            restore()
            assert float(sampler.tree.total()) > 0
    assert float(sampler.tree.total()) == 0
