"""States of trainings that are restored elsewhere, otherwise, or from a stranger."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import SyncVectorEnv
from torch import Tensor

from fastdqn import DQN
from fastdqn.errors import CheckpointError, UsageError
from fastdqn.foundation.state import PartState
from fastdqn.replay import UniformSampler
from fastdqn.training.callbacks import Callback
from fastdqn.training.schedules import Linear
from tests.saved_trainings import Saved, finish, restored, save, train_to

SMALL: dict[str, Any] = {
    "num_envs": 4,
    "num_workers": 0,
    "learning_starts": 40,
    "batch_size": 8,
    "buffer_size": 150,
    "hidden_sizes": (16,),
    "execution": "eager",
}
Change = Callable[[dict[str, Any], dict[str, Tensor]], object]


def agent_of(kind: str = "workers", **settings: Any) -> DQN:
    if kind == "vector":  # rows of it are not whole
        envs = SyncVectorEnv([partial(gym.make, "CartPole-v1")] * 4)
        return DQN(envs, **{**SMALL, "num_workers": None, **settings})
    if kind == "lake":
        return DQN("FrozenLake-v1", **{**SMALL, **settings})
    more = {"vectorizer": "tensor"} if kind == "tensors" else {}
    return DQN("CartPole-v1", **{**SMALL, **more, **settings})


PRIORITIZED: dict[str, Any] = {"replay": "prioritized", "n_step": 3}


@cache
def saved_of(kind: str) -> Saved:
    """Return the state of a training, in the middle where nothing but tensors is running."""
    agent = agent_of(kind, **PRIORITIZED)
    if kind == "tensors":
        return train_to(agent, 400, 300)
    return save(agent.learn(300))


def changed(saved: Saved, change: Change) -> Saved:
    values = json.loads(saved.values)
    ring = {f"ring/{name}": tensor.clone() for name, tensor in saved.ring.items()}
    tensors = {**{name: tensor.clone() for name, tensor in saved.tensors.items()}, **ring}
    change(values, tensors)
    own = {name: tensor for name, tensor in tensors.items() if not name.startswith("ring/")}
    cells = {name: tensors[f"ring/{name}"] for name in saved.ring}
    return Saved(saved.parameters, cells, json.dumps(values), own)


# From a stranger


def put(path: str, value: Any) -> Change:
    """Put a value at PART/.../NAME, or numbers into a tensor at index 0, 1, ..."""

    def change(values: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        if path in tensors:
            numbers = torch.tensor(value, dtype=tensors[path].dtype)
            tensors[path].view(-1)[: numbers.numel()] = numbers
            return
        *parts, name = path.split("/")
        for part in parts:
            values = values[part]
        assert name in values
        values[name] = value

    return change


def everywhere(path: str, value: Any) -> Change:
    return lambda _, tensors: tensors[path].fill_(value)


FORGED: dict[str, tuple[str, Change, str]] = {
    "a pointer far outside": ("workers", put("ring/next_index", [10**12]), "next_index"),
    "a pointer before the ring": ("workers", put("ring/next_index", [-1]), "next_index"),
    "a pointer to another row": ("workers", everywhere("ring/next_index", 0), "next_index"),
    "an action too many": ("workers", put("ring/action", [2]), r"action is not in \[0, 2\)"),
    "a negative action": ("tensors", put("ring/action", [-1]), "action is not in"),
    "on over an end": ("workers", everywhere("ring/continues", True), "continues is true where"),
    "on over an end on the device": ("tensors", everywhere("ring/continues", True), "continues is"),
    "a reward that is none": ("workers", everywhere("ring/reward", torch.nan), "reward is not"),
    "an observation that is none": ("workers", everywhere("ring/frames", torch.inf), "frames"),
    "a place on a lake": ("lake", everywhere("ring/frames", 16), "frames is none that"),
    "rows to come": ("workers", put("replay/row", 10**6), "rows is"),
    "an old row": ("workers", put("replay/valid/oldest", 0), "oldest is a row that has been"),
    "more in a row": ("workers", put("replay/valid/counts", [5]), "counts is not in"),
    "fewer in a row": ("vector", everywhere("replay/valid/counts", 0), "last is"),
    "partial rows": ("vector", put("replay/valid/newest_partial", -1), "newest_partial is -1"),
    "in order": ("vector", put("replay/valid/in_order", True), "in_order is true"),
    "out of the list": ("vector", everywhere("replay/valid/list", 10**9), "list is not in"),
    "another list": ("vector", everywhere("replay/valid/list", 3), "list is not what was written"),
    "served by none": ("vector", everywhere("replay/finals/served", 10**9), "served is not in"),
    "the frames of others": ("workers", everywhere("replay/finals/served", 0), "another row"),
    "rows that point nowhere": (
        "workers",
        everywhere("replay/finals/points_away", False),
        "elsewhere in a row",
    ),
    "no priorities": ("workers", everywhere("sampler/leaves", 0.0), "leaves is 0 for what"),
    "priorities of all": ("tensors", everywhere("sampler/leaves", 1.0), "leaves is 0 for what"),
    "negative priorities": ("workers", put("sampler/leaves", [-1.0]), "leaves is not in"),
    "other sums": ("workers", put("sampler/level3", [1e20]), "level3 is not the sums"),
    "a mark to come": ("workers", put("sampler/mark", [0, 10**9]), "mark is"),
    "no steps of beta": ("workers", put("sampler/anneal", [0]), "anneal is 0"),
    "a burst": ("workers", put("ratio/updates", 0), "updates is 0: .* would be due at once"),
    "an earlier burst": ("workers", put("ratio/start", 0), "would be due at once"),
    "a target that is none": (
        "workers",
        put("learner/target", [torch.nan]),
        "target is not finite",
    ),
    "a moment that is none": ("workers", put("learner/slot1", [torch.inf]), "slot1 is not finite"),
    "more skipped": ("workers", put("learner/skipped", [10**6]), "skipped is 1000000 of"),
    "updates below none": ("workers", put("learner/updates", [-1]), "updates is -1"),
    "a step back": ("workers", put("learner/learning_rate", [-1.0]), "learning_rate is negative"),
    "a generator of zeros": (
        "workers",
        everywhere("policy/generator/generator", 0),
        "policy generator: its generator is none that can be",
    ),
    "NumPy beyond its words": (
        "workers",
        put("generators/numpy/position", 10**6),
        "position is 1000000",
    ),
    "Python beyond its words": (
        "workers",
        everywhere("generators/python/words", 700),
        "position is 700",
    ),
    "a ring apart": ("workers", put("replay/apart", [[]]), "apart is no list of 1 flags"),
    "no mode": ("workers", put("agent/execution", "rm -rf"), "execution is 'rm -rf', which is"),
    "another action on the device": ("tensors", put("rollout/action", [9]), "action is not in"),
    "shown by none": ("tensors", put("rollout/shown", [0.5]), "shown is not what the ring shows"),
    "other steps": ("tensors", put("rollout/earlier_steps", 8), "env_steps is"),
    "other rows": ("tensors", put("rollout/rows", 8), "rows is 8"),
}


@pytest.mark.parametrize("name", FORGED)
def test_a_forged_state_is_refused_by_part_and_value(name: str) -> None:
    kind, change, message = FORGED[name]
    forged = changed(saved_of(kind), change)
    with pytest.raises(CheckpointError, match=message):
        restored(agent_of(kind, **PRIORITIZED), forged)


@pytest.mark.parametrize("name", ["terminated", "truncated", "continues"])
def test_a_byte_that_is_no_flag_is_refused(name: str) -> None:
    saved, agent = saved_of("workers"), agent_of(**PRIORITIZED)
    restored(agent, saved)
    agent.replay_tensors()[name].view(torch.uint8)[3] = 7  # PyTorch itself would copy it as True
    with pytest.raises(CheckpointError, match=f"{name} is not of flags throughout"):
        agent.restore_training(saved.state)


FORGED_IN_THE_MIDDLE: dict[str, tuple[Change, str]] = {
    "begun later": (put("trainer/begun_at", 10**6), "trainer: its begun_at is"),
    "no status": (put("trainer/status", "won"), "status is 'won', none of running"),
    "many returns": (put("trainer/returns", [0.0] * 101), "returns is .*, no list of at most 100"),
    "a return that is none": (put("trainer/returns", ["x"]), "returns is 'x'"),
    "no rounds": (put("selection/rounds/EVALUATION_ENVS", -1), "EVALUATION_ENVS is -1"),
}


@pytest.mark.parametrize("name", FORGED_IN_THE_MIDDLE)
def test_a_forged_state_of_a_loop_is_refused_before_a_step(name: str) -> None:
    change, message = FORGED_IN_THE_MIDDLE[name]
    agent = restored(agent_of("tensors", **PRIORITIZED), changed(saved_of("tensors"), change))
    with pytest.raises(CheckpointError, match=message):
        finish(agent)


@pytest.mark.parametrize(("name", "number"), [("env_steps", 2**62), ("episodes", 0)])
def test_counts_of_a_rollout_that_are_not_those_of_the_agent_are_refused(
    name: str, number: int
) -> None:
    """More env steps would make a burst of updates, and memory for their draws."""
    forged = changed(train_to(agent_of(), 400, 300), put(f"rollout/{name}", number))
    with pytest.raises(CheckpointError, match=f"its {name} is {number}, no whole number in"):
        finish(restored(agent_of(), forged))


def test_words_of_a_stranger_are_shown_without_what_a_terminal_obeys() -> None:
    """Nor what no file can hold."""
    words = put("agent/execution_reason", "\x1b[2Jas asked\ud800")
    agent = restored(agent_of(), changed(save(agent_of().learn(100)), words))
    assert agent.execution_reason == " [2Jas asked "


def paths(values: Any, path: str = "") -> Iterator[str]:
    """Yield the paths of all plain values of a state."""
    for name, value in values.items():
        here = f"{path}/{name}".removeprefix("/")
        yield here
        if isinstance(value, dict):
            yield from paths(value, here)


WRONG: tuple[Any, ...] = (None, -1, 2**63, 0.5, "x", [], {}, True)


@pytest.mark.parametrize("kind", [pytest.param("vector", marks=pytest.mark.slow), "tensors"])
def test_values_of_other_kinds_are_taken_or_refused_and_never_anything_else(kind: str) -> None:
    saved, messages = saved_of(kind), list[str]()
    agent = restored(agent_of(kind, **PRIORITIZED), saved)
    for path in paths(json.loads(saved.values)):
        for wrong in () if path.startswith(("trainer", "selection")) else WRONG:
            values = json.loads(saved.values)
            put(path, wrong)(values, {})
            try:
                agent.restore_training(PartState(values, saved.tensors))
            except CheckpointError as error:
                messages.append(str(error))
    assert len(messages) > 200
    assert all(message.startswith("state") for message in messages)


@pytest.mark.parametrize("kind", ["vector", "tensors"])
def test_tensors_that_are_missing_or_of_other_shapes_are_refused_by_name(kind: str) -> None:
    saved = saved_of(kind)
    agent = restored(agent_of(kind, **PRIORITIZED), saved)
    for path, tensor in saved.tensors.items():
        name = re.escape(path.rpartition("/")[2])
        if path.startswith(("trainer", "selection")):
            continue
        for other in (None, tensor.reshape(1, *tensor.shape), tensor.to(torch.float16)):
            tensors: dict[str, Any] = {**saved.tensors, path: other}
            if other is None:
                del tensors[path]
            forged: Any = PartState(saved.state.values, tensors)
            with pytest.raises(CheckpointError, match=f"its {name} is "):
                agent.restore_training(forged)


# Elsewhere, and otherwise


def on_a_card(values: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """Make a state one of CUDA, whose generators have other states."""
    values["agent"]["device"] = "cuda"
    for part in (values["learner"], values["policy"], values["replay"]):
        part["generator"]["device"] = "cuda"
    for name in list(tensors):
        if name.endswith("generator/generator"):
            tensors[name] = torch.arange(16, dtype=torch.uint8)


def test_a_training_of_another_device_draws_from_new_seeds_and_says_so() -> None:
    there = changed(saved_of("workers"), on_a_card)
    one, other = (restored(agent_of(**PRIORITIZED), there) for _ in range(2))
    (reason,) = one.inexact
    assert "drawn on cuda go on from other seeds on cpu" in reason
    drawn = [each.policy._generator.get_state() for each in (one, other, agent_of())]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    assert torch.equal(one.learner.state.target, there.tensors["learner/target"])
    one.learn(100)


class Mine(UniformSampler):
    """Remembers something that it does not say."""

    independent = True


def test_a_sampler_of_the_callers_own_that_says_nothing_is_named() -> None:
    agent = agent_of(sampler=Mine).learn(100)
    (reason,) = restored(agent_of(sampler=Mine), save(agent)).inexact
    assert reason.startswith("the sampler Mine says what it consists of by written() alone")


class Unsavable(UniformSampler):
    """Says what no file of a checkpoint holds."""

    independent = True
    values: ClassVar[dict[str, Any]] = {}
    tensors: ClassVar[dict[str, torch.Tensor]] = {}

    def state(self) -> PartState:
        return PartState(self.values, self.tensors)


@pytest.mark.usefixtures("no_plots")
@pytest.mark.parametrize(
    ("values", "tensors", "why"),
    [
        ({"mean": np.float32(1.0)}, {}, "its state() cannot be written as JSON"),
        ({"mean": float("nan")}, {}, "its state() cannot be written as JSON"),
        ({}, {"waves": torch.zeros(2, dtype=torch.complex64)}, "'waves' of its state() has dtype"),
    ],
)
def test_a_sampler_that_cannot_be_saved_is_named(
    values: dict[str, Any],
    tensors: dict[str, torch.Tensor],
    why: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(Unsavable, "values", values)
    monkeypatch.setattr(Unsavable, "tensors", tensors)
    agent = agent_of(sampler=Unsavable, checkpoint_interval=40)
    agent.learn(100, run_dir=tmp_path / "run")
    assert why in " ".join((tmp_path / "run" / "log.txt").read_text().split())
    assert {path.name for path in (tmp_path / "run" / "checkpoints").glob("step-*/*")} == {
        "model.safetensors",
        "policy.json",
    }
    with pytest.raises(UsageError, match="the sampler Unsavable") as error:
        agent.save(tmp_path / "whole", replay=True)
    assert why in str(error.value)


@pytest.mark.parametrize("kind", ["workers", "tensors"])
def test_without_a_ring_it_is_filled_anew_and_no_update_is_made_up_for(kind: str) -> None:
    settings = {"target": "hard", "target_period": 9, "replay_ratio": 0.5, "num_envs": 4}
    agent = agent_of(kind, **settings).learn(204)
    again = restored(agent_of(kind, **settings), save(agent, replay=False))
    (reason,) = again.inexact
    assert reason.startswith("the replay ring was not saved")
    assert torch.equal(again.learner.state.target, agent.learner.state.target)
    made = agent.describe()["updates"]
    assert made == (204 - 40) // 2
    again.learn(48)
    assert again.describe()["updates"] == made + (48 - 40) // 2  # that many were to come first
    again.learn(52)
    assert again.describe()["updates"] == made + (100 - 40) // 2
    assert int(again.learner.state.updates) == again.describe()["updates"]
    assert again.describe()["env_steps"] == 304


@pytest.mark.parametrize("kind", ["workers", "tensors"])
def test_a_training_in_the_middle_without_a_ring_comes_to_its_end(kind: str) -> None:
    agent, heard = agent_of(kind, **PRIORITIZED), list[Any]()

    class Hears(Callback):
        def on_report(self, report: Any) -> None:
            heard.append((report.env_steps, report.sps, report.updates))

    with agent.trainer(400, Callback()) as trainer:
        trainer.begin(agent.env_seeds())
        while trainer.rollout.env_steps < 200:
            trainer.vector_step()
        saved = save(agent, replay=False)
        train_s = trainer.watch.train_s
        made = trainer.ratio.updates
    again = restored(agent_of(kind, log_interval=50, **PRIORITIZED), saved)
    trainer = finish(again, seen=Hears())
    assert (trainer.status, again.describe()["env_steps"]) == ("completed", 400)
    assert trainer.watch.train_s > train_s
    assert all(0 < sps < 1e6 for _, sps, _ in heard)
    ratio = again.config.replay_ratio
    assert again.describe()["updates"] == made + int((400 - 200 - 40) * ratio)


def test_the_global_generators_go_on() -> None:
    agent = agent_of()
    random.gauss(0.0, 1.0)
    np.random.normal()
    saved = save(agent)
    drawn = [random.gauss(0.0, 1.0), np.random.normal(), random.random(), float(torch.rand(()))]
    restored(agent_of(), saved)
    again = [random.gauss(0.0, 1.0), np.random.normal(), random.random(), float(torch.rand(()))]
    assert drawn == again


# Another total


def test_schedules_go_on_as_those_of_the_new_total() -> None:
    settings = {
        **PRIORITIZED,
        "lr_schedule": "linear",
        "learning_rate": 1e-3,
        "learning_rate_end": 1e-4,
        "replay_ratio": 0.25,
    }
    agent = agent_of("tensors", **settings)
    saved = train_to(agent, 400, 200)
    longer = restored(agent_of("tensors", **settings), saved)
    rates: list[float] = []

    class Seen(Callback):
        def on_report(self, report: Any) -> None:
            rates.append(report.learning_rate)

    trainer = finish(longer, 600, Seen())  # 600 more
    assert trainer.until == 800
    assert int(longer._own_sampler.anneal) == (800 - 40) // 4  # type: ignore[attr-defined]
    last = Linear(1e-3, 1e-4, 800)(800 - 4, 0)
    assert rates[-1] == pytest.approx(last, rel=1e-5)
    assert longer.describe()["updates"] == (800 - 40) // 4
    same = restored(agent_of("tensors", **settings), saved)
    assert finish(same).until == 400
    assert float(same.learner.state.learning_rate) == float(agent.learner.state.learning_rate)


def test_a_training_at_its_end_takes_no_step_when_it_goes_on() -> None:
    agent = agent_of("tensors")
    saved = train_to(agent, 200, 200)
    again = restored(agent_of("tensors"), saved)
    trainer = finish(again)
    assert (trainer.status, again.describe()["env_steps"]) == ("completed", 200)


# An evaluation that was stopped


class StopsEvaluations(Callback):
    """Stops the training in the midst of its second evaluation."""

    def __init__(self) -> None:
        self.trainer: Any = None
        self.played: list[Any] = []

    def on_evaluation(self, env_steps: int, evaluation: Any, reached: bool) -> None:
        self.played.append((env_steps, evaluation.returns.tolist()))


def test_an_evaluation_that_was_stopped_is_played_when_the_training_goes_on() -> None:
    settings = {"eval_interval": 80, "eval_episodes": 4}
    whole, stopped, after = StopsEvaluations(), StopsEvaluations(), StopsEvaluations()
    train_to(agent_of("tensors", **settings), 400, 100, whole)
    agent = agent_of("tensors", **settings)
    with agent.trainer(400, stopped) as trainer:
        trainer.begin(agent.env_seeds())
        asked = 0

        def stop() -> bool:
            nonlocal asked
            asked += len(stopped.played) == 1
            if asked > 7:
                trainer.stop()
            return trainer.status == "stopped"

        assert trainer.evaluator is not None
        trainer.evaluator.stopped = stop
        while trainer.status == "running":
            trainer.vector_step()
        saved = save(agent)
    assert len(stopped.played) == 1
    assert asked > 7
    finish(restored(agent_of("tensors", **settings), saved), seen=after)
    assert stopped.played + after.played == whole.played
    assert len(whole.played) > 3
