"""Masks from the environments to the agent: which are read, and which refused."""

from __future__ import annotations

import math
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Dict, Discrete
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from torch import nn

from fastdqn import DQN, UsageError
from fastdqn.cli import commands
from fastdqn.envs.description import describe
from fastdqn.envs.masks import (
    MaskInInfo,
    allowed_in,
    checked_masks,
    observed_beside_mask,
    with_mask_in_info,
)
from fastdqn.envs.sources.source import make_source
from fastdqn.training.callbacks import Callback
from tests.drive import MODES, everything_in
from tests.masked import (
    NUM_ACTIONS,
    DictMaskedCounterEnv,
    ForbiddenError,
    LateMaskedCounterEnv,
    MaskedCounterEnv,
    OffsetMaskedCounterEnv,
    WrongMaskEnv,
    allowed,
    assert_masked,
)
from tests.oracles import CounterEnv, CounterRules, CrashingEnv, Info, Step
from tests.unit.agent.test_dqn import small

RULES = CounterRules((3, 7, 2), "alternating")
TAXI = "Taxi-v4" if "Taxi-v4" in gym.registry else "Taxi-v3"


def counter(kind: type[MaskedCounterEnv] = MaskedCounterEnv, **kwargs: Any) -> Any:
    """Return a factory of masked counters that take their seeds for their numbers."""
    return partial(kind, -1, RULES.lengths, RULES.ends_by, **kwargs)


# A mask beside an observation


def test_a_dict_of_an_observation_and_a_mask_is_seen_and_nothing_else_is() -> None:
    mask, obs = Box(0, 1, (2,), np.int8), Box(0, 1, (3,), np.float32)
    assert observed_beside_mask(Dict({"action_mask": mask, "pixels": obs})) == "pixels"
    assert observed_beside_mask(Dict({"action_mask": mask})) is None
    assert observed_beside_mask(Dict({"a": obs, "b": obs})) is None
    assert observed_beside_mask(Dict({"action_mask": mask, "a": obs, "b": obs})) is None
    assert observed_beside_mask(obs) is None


def test_a_mask_beside_the_observation_moves_into_the_info() -> None:
    env = with_mask_in_info(partial(DictMaskedCounterEnv, 2))
    assert isinstance(env, MaskInInfo)
    assert env.observation_space == CounterEnv().observation_space
    obs, info = env.reset(seed=0)
    assert (obs.tolist(), info["action_mask"].tolist()) == ([2, 0, 0], allowed(2, 0, 0))
    obs, *_, info = env.step(0)
    assert (obs.tolist(), info["action_mask"].tolist()) == ([2, 0, 1], allowed(2, 0, 1))


def test_an_environment_without_such_a_dict_is_left_alone() -> None:
    assert type(with_mask_in_info(MaskedCounterEnv)) is MaskedCounterEnv


# What is described


@pytest.mark.parametrize(
    ("factory", "num_masked"),
    [
        (CounterEnv, 0),
        (MaskedCounterEnv, NUM_ACTIONS),
        (LateMaskedCounterEnv, NUM_ACTIONS),
        (partial(with_mask_in_info, DictMaskedCounterEnv), NUM_ACTIONS),
        (partial(CrashingEnv, where="step", at=1), 0),
        (partial(gym.make, TAXI), 6),
    ],
)
def test_an_environment_is_asked_once_whether_it_masks(factory: Any, num_masked: int) -> None:
    assert describe(factory).num_masked == num_masked
    assert describe(factory, masks=False).num_masked == 0


def test_a_first_mask_of_another_shape_is_refused_and_can_be_ignored() -> None:
    factory = partial(WrongMaskEnv, at=0)
    message = r"environment WrongMaskEnv with an action mask of shape \(3,\): .* need \(4,\)"
    with pytest.raises(UsageError, match=rf"{message}\. .*--no-action-masks"):
        small(factory)
    assert small(partial(factory, strict=False), action_masks=False).learn(60)


@pytest.mark.parametrize("masks", [np.array([[1, 0], [0, 1], [1, 1]]), [[1, 0], None, [1, 1]]])
def test_masks_of_some_environments_are_picked_as_bool(masks: Any) -> None:
    given = masks if isinstance(masks, np.ndarray) else np.array(masks, object)
    picked = checked_masks(given, np.array([True, False, True]), 2)
    assert (picked.dtype, picked.tolist()) == (np.bool_, [[True, False], [True, True]])


@pytest.mark.parametrize(
    ("masks", "shape"), [(np.ones((3, 4)), "(4,)"), (np.ones(3), "()"), (["", [1], [1]], "(1,)")]
)
def test_a_mask_of_another_shape_names_its_environment(masks: Any, shape: str) -> None:
    given = masks if isinstance(masks, np.ndarray) else np.array(masks, object)
    with pytest.raises(UsageError) as refused:
        checked_masks(given, np.array([False, True, True]), 2)
    assert refused.value.got == f"environment 1 with an action mask of shape {shape}"


# Agents


class Undisturbed(Callback):
    """Fails where a worker is restarted, as it is where a counter raises."""

    def on_restart(self, env_steps: int, message: str) -> None:
        raise AssertionError(message)


@pytest.mark.parametrize("kind", [MaskedCounterEnv, DictMaskedCounterEnv, OffsetMaskedCounterEnv])
@pytest.mark.parametrize(
    "settings",
    [
        {"vectorizer": "sync"},
        {"vectorizer": "grouped", "num_workers": 0, "env_groups": 2},
        {"vectorizer": "grouped", "num_workers": 2},
    ],
    ids=["sync", "no workers, 2 groups", "2 workers"],
)
def test_an_agent_learns_and_is_evaluated_within_its_masks(
    kind: type[MaskedCounterEnv], settings: dict[str, Any], nothing_left: None
) -> None:
    agent = small(counter(kind), **settings)
    agent.learn(300, callback=Undisturbed())
    stored = everything_in(agent.replay)
    assert len(stored.action) >= 300
    assert stored.next_action_mask is not None
    assert_masked(stored, RULES)
    assert small(counter(kind)).evaluate(5).episodes == 5  # sync: an error of a counter is raised


@pytest.mark.parametrize("kind", [MaskedCounterEnv, DictMaskedCounterEnv])
@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.name)
def test_an_agent_of_a_vector_learns_within_its_masks(
    kind: type[MaskedCounterEnv], mode: AutoresetMode
) -> None:
    envs = SyncVectorEnv([counter(kind)] * 3, autoreset_mode=mode)
    envs.set_attr("reuses", False)
    agent = small(envs).learn(200)
    assert_masked(everything_in(agent.replay), RULES)
    agent.learn(200)
    assert_masked(everything_in(agent.replay), RULES)


@pytest.mark.parametrize("kind", [MaskedCounterEnv, DictMaskedCounterEnv])
def test_an_agent_ignores_masks_with_action_masks_off(kind: type[MaskedCounterEnv]) -> None:
    agent = small(counter(kind, strict=False), action_masks=False).learn(200)
    assert agent.replay.ring.masks is None
    envs = SyncVectorEnv([counter(kind, strict=False)] * 2)
    assert small(envs, action_masks=False).learn(200).replay.ring.masks is None
    with pytest.raises(ForbiddenError):
        small(counter(kind), action_masks=False).learn(200)


class Trap(gym.Env[Any, Any]):
    """Two steps, one-hot, of which the second pays 1; the other action is never allowed."""

    def __init__(self) -> None:
        self.observation_space = Box(0.0, 1.0, (2,), np.float32)
        self.action_space = Discrete(2)
        self.state = 0

    def reset(self, *, seed: int | None = None, options: Info | None = None) -> tuple[Any, Info]:
        super().reset(seed=seed)
        self.state = 0
        return np.eye(2, dtype=np.float32)[0], {"action_mask": np.array([True, False])}

    def step(self, action: int) -> Step:
        over, self.state = self.state == 1, 1
        obs = np.eye(2, dtype=np.float32)[1]
        return obs, float(over), over, False, {"action_mask": np.array([True, False])}


@pytest.mark.parametrize("double", [True, False])
def test_what_is_forbidden_next_does_not_count_in_the_target(double: bool) -> None:
    """Q(s0) = gamma 1; if the target saw the forbidden 1000 it would be 500."""
    table = nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        table.weight.copy_(torch.tensor([[0.0, 0.0], [1000.0, 1000.0]]))
    agent = small(Trap, network=table, gamma=0.5, double=double, learning_rate=0.02, tau=0.1)
    agent.learn(1200)
    q = table.weight.detach()
    assert q[0].tolist() == pytest.approx([0.5, 1.0], abs=0.02)
    assert q[1].tolist() == [1000.0, 1000.0]


# predict, save and load


def _valued(agent: DQN, *q: float) -> DQN:
    """Let the network value the actions so, whatever it sees."""
    parameters = agent.parameters()
    for parameter in parameters.values():
        parameter.zero_()
    list(parameters.values())[-1].copy_(torch.tensor(q))
    return agent


def test_a_prediction_is_the_best_of_what_is_allowed() -> None:
    agent = _valued(small(counter(OffsetMaskedCounterEnv)), 3.0, 4.0, 2.0, 1.0)
    assert agent.predict(np.zeros(3)) == 6
    assert agent.predict(np.zeros(3), [True, False, True, True]) == 5
    assert agent.predict(np.zeros(3), np.array([0, 0, 0, 1], np.int8)) == 8
    masks = [[0, 0, 1, 1], [1, 1, 1, 1], [0, 0, 0, 0]]
    assert agent.predict(np.zeros((3, 3)), masks).tolist() == [7, 6, 6]
    assert agent.predict(np.zeros((0, 3)), np.zeros((0, 4))).shape == (0,)


@pytest.mark.parametrize(
    ("obs", "mask"), [((3,), (3,)), ((3,), (1, 4)), ((2, 3), (4,)), ((2, 3), (4, 2)), ((3,), ())]
)
def test_a_mask_that_does_not_fit_the_observations_is_refused(obs: Any, mask: Any) -> None:
    with pytest.raises(UsageError, match=r"action_mask of shape \(.*Or leave it out"):
        small(counter()).predict(np.zeros(obs), np.ones(mask))


def test_a_saved_agent_obeys_masks_again(tmp_path: Path) -> None:
    agent = small(counter()).learn(100)
    agent.save(tmp_path / "policy")
    loaded = DQN.load(tmp_path / "policy", counter())
    assert loaded.config.action_masks
    assert loaded.evaluate(4).returns.tolist() == agent.evaluate(4).returns.tolist()
    loaded.learn(100)
    assert_masked(everything_in(loaded.replay), RULES)
    ignoring = small(counter(strict=False), action_masks=False)
    ignoring.save(tmp_path / "ignoring")
    assert DQN.load(tmp_path / "ignoring", counter()).replay.ring.masks is None


# Taxi, which Gymnasium masks


def _moves(agent: DQN) -> Any:
    stored = everything_in(agent.learn(400).replay)
    return (stored.obs != stored.next_obs) | stored.terminated


def test_the_masked_taxi_never_stands_still_and_the_free_one_does() -> None:
    assert _moves(small(TAXI, epsilon_start=1.0)).all()
    assert not _moves(small(TAXI, epsilon_start=1.0, action_masks=False)).all()


def test_a_taxi_is_trained_and_evaluated_from_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    flags = (
        f"train --env-id {TAXI} --total-timesteps 400 --learning-starts 100 --num-envs 4 "
        "--env-groups 2 --num-workers 0 --execution eager --eval-episodes 2 --quiet --device cpu"
    )
    assert commands.main([*flags.split(), "--run-dir", str(run)]) == 0
    assert commands.main(["evaluate", str(run), "--episodes", "2"]) == 0
    assert f"{TAXI}: mean return" in capsys.readouterr().out
    assert (run / "result.json").exists()


# What is neither allowed nor forbidden


class OddMaskEnv(MaskedCounterEnv):
    """Says one thing of every action."""

    said: Any = 2

    def message(self) -> Info:
        return {"action_mask": np.full(NUM_ACTIONS, self.said)}


@pytest.mark.parametrize("said", [2, 0.5, math.nan, -1, np.int8(2), np.uint8(255)], ids=repr)
@pytest.mark.parametrize("vectorizer", ["grouped", "sync"])
def test_a_mask_of_other_numbers_ends_a_run_by_environment_and_number(
    vectorizer: str, said: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(OddMaskEnv, "said", said)
    factory = counter(OddMaskEnv)
    source = make_source(vectorizer, factory, describe(factory), 2, num_workers=0)
    with closing(source), pytest.raises(UsageError) as refused:
        source.reset((0, 1))
    named = [f"the action mask of environment {env} with {np.asarray(said)}" for env in (0, 1)]
    assert refused.value.got in named


@pytest.mark.parametrize(
    "dtype", [np.bool_, np.int8, np.uint8, np.int64, np.float32, object, "list"]
)
def test_ones_and_zeros_of_any_dtype_are_a_mask(dtype: Any) -> None:
    mask: Any = [[1, 0, 1], [0, 0, 1]]
    given = mask if dtype == "list" else np.array(mask, dtype)
    read = allowed_in(given, "it")
    assert read.dtype == np.bool_
    assert read.tolist() == np.array(mask, np.bool_).tolist()
    if dtype is not bool and dtype != "list":
        assert allowed_in(given.T, "it").tolist() == read.T.tolist()


def test_a_negative_zero_is_zero_and_what_is_no_number_is_no_mask() -> None:
    assert allowed_in(np.array([-0.0, 1.0]), "it").tolist() == [False, True]
    for odd in (["a", ""], [[1], [1, 0]], [None, 1], [1j, 0]):
        with pytest.raises(UsageError, match=r"^it"):
            allowed_in(odd, "it")


def test_none_is_no_mask() -> None:
    picked = checked_masks(np.array([None, [1, 0]], object), np.array([True, True]), 2)
    assert picked.tolist() == [[True, True], [True, False]]
