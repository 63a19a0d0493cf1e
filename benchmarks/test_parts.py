"""The parts alone, by pytest-benchmark: stepping, acting, writing, drawing, updating."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks.random_replay import NUM_ENVS, random_replay, random_step
from benchmarks.update_modes import learner_of, possible_modes, updates_of
from fastdqn.envs.description import describe
from fastdqn.envs.sources.source import EnvSource, make_source
from fastdqn.envs.specs.ids import factory_of
from fastdqn.networks.flat_network import FlatNetwork
from fastdqn.networks.mlp import MLP
from fastdqn.policies.policy import Policy
from fastdqn.replay import UniformSampler

UPDATES_PER_CALL = 4
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Give PyTorch one thread, as a run does."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("vectorizer", ["grouped", "async", "sync"])
@pytest.mark.parametrize("env_id", ["LunarLander-v3", "CartPole-v1"])
def test_vector_step(benchmark: BenchmarkFixture, env_id: str, vectorizer: str) -> None:
    factory = factory_of(env_id)
    source: EnvSource = make_source(vectorizer, factory, describe(factory), NUM_ENVS)
    actions = np.zeros(NUM_ENVS, np.int64)

    def step() -> None:
        source.send(actions)
        source.recv()

    try:
        source.reset(range(NUM_ENVS))
        benchmark.pedantic(step, rounds=200, iterations=5, warmup_rounds=20)  # type: ignore[no-untyped-call]
    finally:
        source.close()


def test_act(benchmark: BenchmarkFixture) -> None:
    policy = Policy(FlatNetwork(MLP((8,), 4, (64, 64))))
    obs = torch.randn(NUM_ENVS, 8)
    benchmark(lambda: policy.act(obs, 0.1).numpy())


def test_replay_write(benchmark: BenchmarkFixture) -> None:
    replay, step = random_replay(), random_step()
    benchmark(lambda: replay.write(*step))


@pytest.mark.parametrize("batch_size", [64, 256])
def test_replay_sample(benchmark: BenchmarkFixture, batch_size: int) -> None:
    replay = random_replay()
    benchmark(lambda: replay.sample(batch_size))


@pytest.mark.parametrize("execution", possible_modes(CPU)[0])
@pytest.mark.parametrize(("hidden", "batch_size"), [(64, 64), (128, 128)])
def test_four_updates(
    benchmark: BenchmarkFixture, execution: str, hidden: int, batch_size: int
) -> None:
    learner = learner_of(execution, hidden, CPU)
    update = updates_of(learner, UniformSampler(random_replay(), batch_size), UPDATES_PER_CALL)
    benchmark.pedantic(update, rounds=300, iterations=2, warmup_rounds=20)  # type: ignore[no-untyped-call]
