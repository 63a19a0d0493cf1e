"""Masks: what is stored and done is what was allowed, under every vectorizer."""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box
from gymnasium.vector import AutoresetMode

from fastdqn.envs.description import describe
from fastdqn.envs.grouped import GroupedVectorEnv
from fastdqn.envs.masks import with_mask_in_info
from fastdqn.envs.sources.source import GroupedSource, make_source, source_of
from fastdqn.envs.workers.supervision import Supervision
from fastdqn.errors import UsageError
from fastdqn.training.evaluation import evaluate
from tests.batched import MaskedBatchedCounter
from tests.drive import MODES, everything_in, random_policy, roll, rollout_of, vector_of
from tests.masked import (
    NUM_ACTIONS,
    CrashingMaskedEnv,
    DictMaskedCounterEnv,
    ListMaskedCounterEnv,
    MaskedCounterEnv,
    WrongMaskEnv,
    allowed,
    assert_masked,
)
from tests.oracles import CounterRules, assert_complete, assert_counted, counters

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fastdqn.envs.sources.source import EnvSource
    from fastdqn.policies.policy import Policy
    from tests.drive import Vector

NUM_ENVS = 3
RULES = CounterRules((3, 1, 7, 2, 5), "alternating")
SAME_STEP = AutoresetMode.SAME_STEP
every_mode = pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.name)


def _counters(kind: type[MaskedCounterEnv], **kwargs: Any) -> Any:
    return counters(NUM_ENVS, RULES.lengths, RULES.ends_by, kind, **kwargs)


@pytest.fixture(
    scope="module",
    params=[
        (env, kind, mode)
        for env in (MaskedCounterEnv, DictMaskedCounterEnv)
        for kind in ("grouped 0", "grouped 2", "async", "sync")
        for mode in MODES
    ],
    ids=lambda p: f"{p[0].__name__}, {p[1]}, {p[2].name}",
)
def vector(quick_starts: None, request: pytest.FixtureRequest) -> Iterator[Vector]:
    """Three masked counters of the caller's own; shared by several tests."""
    env, kind, mode = request.param
    # Gymnasium's own vectors hand over the array itself in SAME_STEP, after the reset wrote to it.
    reuses = "grouped" in kind or mode is not SAME_STEP
    envs = vector_of(kind, _counters(env, reuses=reuses), mode)
    yield envs
    envs.close()


def _source(envs: Vector, *, seldom: bool = False) -> EnvSource:
    envs.set_attr("episode", -1)
    envs.set_attr("seldom", seldom)
    envs.set_attr("strict", True)
    return source_of(envs, masks_in_infos=isinstance(envs.single_observation_space, Box))


def _check_rolled_out(source: EnvSource, *, seldom: bool = False, vector_steps: int = 40) -> None:
    """Roll out at random, then greedily; the counters themselves raise on what is forbidden."""
    rollout = rollout_of(source)
    rollout.reset(range(NUM_ENVS))
    for epsilon in (1.0, 0.0, 0.5):
        roll(rollout, vector_steps, epsilon)
    stored = everything_in(rollout.replay)
    assert len(stored.action) == rollout.env_steps > vector_steps
    assert set(stored.action) == set(range(NUM_ACTIONS))
    assert stored.terminated.any()
    assert stored.truncated.any()
    assert_masked(stored, RULES, seldom=seldom)
    assert_complete(stored, RULES, NUM_ENVS)


@pytest.mark.parametrize("seldom", [False, True])
def test_masks_are_those_of_the_next_observation_and_no_action_is_forbidden(
    vector: Vector, seldom: bool
) -> None:
    """With `seldom` nothing is said at every third place, at some first and last ones too."""
    _check_rolled_out(_source(vector, seldom=seldom), seldom=seldom)


def test_an_evaluation_does_the_best_of_what_is_allowed(vector: Vector) -> None:
    source = _source(vector)
    vector.set_attr("strict", False)  # what is forbidden would show in the returns
    policy = random_policy(source)
    result = evaluate(policy, source, range(NUM_ENVS), 3 * NUM_ENVS)
    best = [
        sum(_greedy_reward(policy, i, episode, t) for t in range(RULES.length(i, episode)))
        for i in range(NUM_ENVS)
        for episode in range(3 * NUM_ENVS)
    ]
    assert len(set(best)) == len(best)
    assert set(result.returns.tolist()) <= set(best)
    assert len(set(result.returns.tolist())) == 3 * NUM_ENVS


def _greedy_reward(policy: Policy, env_id: int, episode: int, t: int) -> float:
    obs = (env_id, episode, t)
    q = policy.network(policy._parameters, torch.tensor([obs], dtype=torch.float32))[0].tolist()
    action = max((a for a in range(NUM_ACTIONS) if allowed(*obs)[a]), key=q.__getitem__)
    return RULES.reward(*obs, action)


# Vectors of the caller's own that are special


@every_mode
def test_masks_of_a_vector_that_is_one_program_are_read(mode: AutoresetMode) -> None:
    envs = MaskedBatchedCounter(NUM_ENVS, mode)
    rollout = rollout_of(source_of(envs, masks_in_infos=True))
    rollout.reset([5, 6, 7])
    for epsilon in (1.0, 0.0):
        roll(rollout, 40, epsilon)
    stored = everything_in(rollout.replay)
    assert_masked(stored, envs.rules)
    assert_complete(stored, envs.rules, NUM_ENVS)


def test_masks_in_the_block_of_our_own_vector_are_read_there_without_infos() -> None:
    for num_workers in (0, 2):
        envs = GroupedVectorEnv(
            _counters(MaskedCounterEnv),
            autoreset_mode=SAME_STEP,
            num_workers=num_workers,
            num_masked=NUM_ACTIONS,
            send_infos=False,
        )
        source = source_of(envs)
        assert isinstance(source, GroupedSource)
        _check_rolled_out(source)
        source.close()


def test_masks_that_no_info_brings_and_no_source_reads_are_refused() -> None:
    envs = GroupedVectorEnv(
        _counters(MaskedCounterEnv), num_workers=0, num_masked=NUM_ACTIONS, send_infos=False
    )
    with pytest.raises(UsageError, match=r"send_infos=False.* autoreset_mode"):
        source_of(envs)
    assert source_of(envs, obey_masks=False).description.num_masked == 0
    envs.close()


def test_masks_in_the_block_that_are_not_to_be_obeyed_are_not_read() -> None:
    envs = GroupedVectorEnv(
        _counters(MaskedCounterEnv, strict=False),
        autoreset_mode=SAME_STEP,
        num_workers=0,
        num_masked=NUM_ACTIONS,
    )
    rollout = rollout_of(source_of(envs, obey_masks=False))
    rollout.reset(range(NUM_ENVS))
    roll(rollout, 20)
    envs.close()
    assert_counted(everything_in(rollout.replay), RULES)


@pytest.mark.parametrize("kind", ["grouped 0", "sync"])
@every_mode
def test_a_mask_may_be_a_list(kind: str, mode: AutoresetMode) -> None:
    envs = vector_of(kind, _counters(ListMaskedCounterEnv, seldom=True), mode)
    _check_rolled_out(source_of(envs, masks_in_infos=True), seldom=True)
    envs.close()


@pytest.mark.parametrize("env", [MaskedCounterEnv, DictMaskedCounterEnv])
@pytest.mark.parametrize("kind", ["grouped 0", "sync"])
@every_mode
def test_masks_that_are_not_to_be_obeyed_are_not_read(
    env: type[MaskedCounterEnv], kind: str, mode: AutoresetMode
) -> None:
    envs = vector_of(kind, _counters(env, strict=False), mode)
    source = source_of(envs, masks_in_infos=True, obey_masks=False)
    rollout = rollout_of(source)
    rollout.reset(range(NUM_ENVS))
    roll(rollout, 40)
    envs.close()
    stored = everything_in(rollout.replay)
    assert stored.next_action_mask is None
    assert_counted(stored, RULES)
    shown = stored.obs.astype(int).tolist()
    done = zip(shown, stored.action.tolist(), strict=True)
    assert not all(allowed(*obs)[action] for obs, action in done)


# What we make ourselves


@pytest.mark.parametrize("env", [MaskedCounterEnv, DictMaskedCounterEnv])
@pytest.mark.parametrize(
    ("vectorizer", "num_workers", "num_groups"),
    [
        ("grouped", 0, 1),
        ("grouped", 0, 3),
        ("grouped", 1, 1),
        ("grouped", 2, 1),
        ("async", None, 1),
        ("sync", None, 1),
    ],
)
def test_made_sources_read_masks(
    env: type[MaskedCounterEnv], vectorizer: str, num_workers: int | None, num_groups: int
) -> None:
    factory = partial(
        with_mask_in_info, partial(env, -1, RULES.lengths, RULES.ends_by, seldom=True)
    )
    source = make_source(
        vectorizer, factory, describe(factory), NUM_ENVS, num_workers, num_groups=num_groups
    )
    try:
        _check_rolled_out(source, seldom=True, vector_steps=40 * num_groups)
    finally:
        source.close()


# What is refused


@pytest.mark.filterwarnings("ignore:.*ERROR")  # Gymnasium's log of what raised
@pytest.mark.parametrize("kind", ["grouped 0", "grouped 2", "sync"])
@pytest.mark.parametrize("mode", [MODES[0], SAME_STEP], ids=lambda mode: mode.name)
def test_a_mask_of_another_shape_is_refused_with_its_environment(
    kind: str, mode: AutoresetMode
) -> None:
    if kind.startswith("grouped"):
        envs: Vector = GroupedVectorEnv(
            [partial(WrongMaskEnv, i) for i in range(NUM_ENVS)],
            autoreset_mode=mode,
            num_workers=int(kind.split()[1]),
            num_masked=NUM_ACTIONS,
        )
    else:
        envs = vector_of(kind, [partial(WrongMaskEnv, i) for i in range(NUM_ENVS)], mode)
    rollout = rollout_of(source_of(envs, masks_in_infos=True))
    rollout.reset(range(NUM_ENVS))
    roll(rollout, 1)
    rollout.send(1.0)
    message = rf"environment [0-2] with .* shape \(3,\): its {NUM_ACTIONS} actions need \(4,\)"
    with pytest.raises(UsageError, match=message):
        rollout.collect()
    assert len(rollout.replay) == NUM_ENVS
    envs.close()


def test_masks_of_one_program_of_another_shape_are_refused() -> None:
    envs = MaskedBatchedCounter(NUM_ENVS, SAME_STEP, num_actions=1)
    rollout = rollout_of(source_of(envs, masks_in_infos=True))
    with pytest.raises(UsageError, match=r"environment 0 with an action mask of shape \(1,\)"):
        rollout.reset(range(NUM_ENVS))


def test_a_mask_space_of_another_shape_is_refused() -> None:
    envs = vector_of("sync", _counters(DictMaskedCounterEnv), SAME_STEP)
    space: Any = envs.single_observation_space
    space["action_mask"].__init__(0, 1, (5,), np.int8)
    with pytest.raises(UsageError, match=r"action mask of shape \(5,\): its 4 actions need \(4,\)"):
        source_of(envs)
    assert source_of(envs, obey_masks=False).description.num_masked == 0


# Restarts


@pytest.mark.parametrize(("num_workers", "num_groups"), [(0, 1), (0, 3), (2, 1), (1, 3)])
def test_a_restarted_environment_shows_its_own_mask_again(
    num_workers: int, num_groups: int
) -> None:
    """Every counter raises in its seventh step, on what it was allowed to do."""
    factories = counters(NUM_ENVS, RULES.lengths, RULES.ends_by, CrashingMaskedEnv)
    envs = GroupedVectorEnv(
        factories,
        autoreset_mode=SAME_STEP,
        num_workers=num_workers,
        num_groups=num_groups,
        send_infos=False,
        num_masked=NUM_ACTIONS,
        supervision=Supervision(deadline_s=30.0),
    )
    source = source_of(envs)
    rollout = rollout_of(source)
    rollout.reset(range(NUM_ENVS))
    roll(rollout, 6 * num_groups)
    until = time.monotonic() + 30
    while rollout.env_steps < 12 * NUM_ENVS and time.monotonic() < until:
        roll(rollout, 1)
        silent = ~source.rows.real
        assert source.rows.action_mask[silent].any(1).all()
    source.close()
    assert rollout.env_steps >= 12 * NUM_ENVS
    assert source.num_restarts >= 1
    assert not any("Forbidden" in message for message in source.restarts)
    assert_masked(everything_in(rollout.replay), RULES)
