"""The rollout: what reaches the ring, in which dtypes, and what is refused."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from fastdqn.envs.sources.source import source_of
from fastdqn.errors import NonFiniteError
from fastdqn.native import NativeActor
from fastdqn.training.host.rollout import HostRollout
from fastdqn.training.transfer import PackedTransfer
from tests.drive import MODES, Vector, everything_in, roll, rollout_of, vector_of
from tests.oracles import (
    CounterEnv,
    CounterRules,
    Float64CounterEnv,
    NonFiniteEnv,
    OneStateEnv,
    Step,
    Uint8CounterEnv,
    assert_complete,
    assert_counted,
    counters,
    one_of,
)

SAME_STEP = AutoresetMode.SAME_STEP
every_mode = pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.name)


def _sync(mode: AutoresetMode = SAME_STEP, num_envs: int = 3, **kwargs: object) -> Vector:
    return SyncVectorEnv(counters(num_envs, **kwargs), autoreset_mode=mode)  # type: ignore[arg-type]


# Trap 1 and 3 at length


@every_mode
def test_ten_thousand_steps_of_varying_episodes_are_stored_truly(mode: AutoresetMode) -> None:
    rules = CounterRules((3, 11, 1, 6, 29), "alternating")
    envs = _sync(mode, 4, episode_length=rules.lengths, ends_by=rules.ends_by)
    rollout = rollout_of(source_of(envs), capacity=10_000)
    rollout.reset(range(4))
    roll(rollout, 2500)
    stored = everything_in(rollout.replay)
    assert len(stored.action) == rollout.env_steps
    assert_counted(stored, rules)
    assert_complete(stored, rules, 4)


# Trap 2, the storage side


@every_mode
def test_a_truncated_step_shows_its_last_observation_and_no_end(mode: AutoresetMode) -> None:
    rollout = rollout_of(source_of(_sync(mode, ends_by="truncated")))
    rollout.reset(range(3))
    roll(rollout, 12)
    stored = everything_in(rollout.replay)
    assert not stored.terminated.any()
    assert stored.truncated.any()
    assert (stored.next_obs[stored.truncated][:, 2] == 3).all()


@every_mode
def test_a_terminated_step_is_not_truncated(mode: AutoresetMode) -> None:
    rollout = rollout_of(source_of(_sync(mode, ends_by="terminated")))
    rollout.reset(range(3))
    roll(rollout, 12)
    stored = everything_in(rollout.replay)
    assert not stored.truncated.any()
    assert (stored.obs[stored.terminated][:, 2] == 2).all()


def test_an_end_by_both_is_a_termination_for_the_episode_and_both_in_the_ring() -> None:
    class BothEnv(OneStateEnv):
        def step(self, action: int) -> Step:
            obs, reward, _, truncated, info = super().step(action)
            return obs, reward, truncated, truncated, info

    rollout = rollout_of(source_of(SyncVectorEnv([BothEnv], autoreset_mode=SAME_STEP)))
    rollout.reset([0])
    (episode,) = roll(rollout, 5)
    stored = everything_in(rollout.replay)
    assert (episode.length, episode.return_, episode.truncated) == (5, 5.0, False)
    assert stored.terminated.tolist() == stored.truncated.tolist() == [True] + [False] * 4


# Dtypes and devices


@pytest.mark.parametrize(
    ("kind", "dtype", "nbytes"),
    [
        (CounterEnv, torch.float32, 12),
        (Float64CounterEnv, torch.float32, 12),
        (Uint8CounterEnv, torch.uint8, 3),
    ],
)
def test_the_ring_keeps_the_dtype_of_the_space_and_halves_float64(
    kind: type[CounterEnv], dtype: torch.dtype, nbytes: int
) -> None:
    rollout = rollout_of(source_of(_sync(num_envs=3, kind=kind)))
    rollout.reset(range(3))
    roll(rollout, 30)
    ring = rollout.replay.ring
    assert ring.frames.dtype == dtype
    assert ring.frames[0].numel() * ring.frames.element_size() == nbytes
    assert {"action": ring.action.dtype, "reward": ring.reward.dtype} == {
        "action": torch.int64,
        "reward": torch.float32,
    }
    assert {ring.terminated.dtype, ring.truncated.dtype} == {torch.bool}
    assert_counted(everything_in(rollout.replay), CounterRules())


@every_mode
@pytest.mark.parametrize("kind", [CounterEnv, Float64CounterEnv, Uint8CounterEnv])
def test_the_policy_sees_what_the_ring_shows_and_the_ring_keeps_what_was_done(
    kind: type[CounterEnv], mode: AutoresetMode
) -> None:
    """Whether it reads the rows themselves or, where the ring stores another dtype, the ring."""
    rollout = rollout_of(source_of(_sync(mode, 3, episode_length=(3, 1, 4), kind=kind)))
    rollout.reset(range(3))
    (group,) = rollout._groups
    assert (group.shown is None) == (kind is Float64CounterEnv)
    policy, replay, done = rollout.policy, rollout.replay, list[int]()
    right = policy.act if group.shown is None else policy.act_on_host

    def choose(obs: torch.Tensor, *given: Any) -> Any:
        assert obs.dtype == replay.ring.frames.dtype
        assert torch.equal(obs, replay.shown())
        chosen = right(obs, *given)
        done.extend((chosen if isinstance(chosen, torch.Tensor) else chosen[1]).tolist())
        return chosen

    setattr(policy, right.__name__, choose)
    roll(rollout, 25)
    assert replay.ring.action[: 25 * 3].tolist() == done


@pytest.mark.parametrize("kind", [CounterEnv, Float64CounterEnv])
def test_acting_looks_up_as_many_places_as_there_are_groups(kind: type[CounterEnv]) -> None:
    rollout = rollout_of(source_of(_sync(num_envs=3, kind=kind)))
    actor = NativeActor(rollout.policy.network)
    rollout.policy.actor = actor
    rollout.reset(range(3))
    roll(rollout, 30, epsilon=0.5)
    assert len(actor._places) == (kind is CounterEnv)


@every_mode
@pytest.mark.parametrize("kind", [CounterEnv, Float64CounterEnv, Uint8CounterEnv])
def test_rows_packed_for_a_device_store_what_shared_rows_store(
    kind: type[CounterEnv], mode: AutoresetMode
) -> None:
    rules = CounterRules((3, 1, 4))
    source = source_of(_sync(mode, episode_length=rules.lengths, kind=kind))
    rollout = rollout_of(source)
    (group,) = rollout._groups
    group.arrived = PackedTransfer(source.rows, torch.device("cpu")).load
    rollout.reset(range(3))
    roll(rollout, 40)
    stored = everything_in(rollout.replay)
    assert_counted(stored, rules)
    assert_complete(stored, rules, 3)


# Counting


@pytest.mark.parametrize(
    ("mode", "env_steps"), [(MODES[0], 3000), (MODES[1], 4000), (MODES[2], 4000)], ids=str
)
def test_a_thousand_vector_steps_of_length_3_are_counted_without_the_resets(
    mode: AutoresetMode, env_steps: int
) -> None:
    rollout = rollout_of(source_of(_sync(mode, 4, episode_length=3)))
    rollout.reset(range(4))
    roll(rollout, 1000)
    assert (rollout.env_steps, len(rollout.replay)) == (env_steps, env_steps)


@every_mode
def test_an_episode_is_reported_at_the_env_step_at_which_it_ended(mode: AutoresetMode) -> None:
    rollout = rollout_of(source_of(_sync(mode, 2, episode_length=3)))
    rollout.reset([0, 1])
    message = roll(rollout, 7)
    told_as = [(e.episode, e.env_step, e.length) for e in message]
    assert told_as == [(1, 6, 3), (2, 6, 3), (3, 12, 3), (4, 12, 3)]


def test_between_send_and_collect_the_ring_is_unchanged() -> None:
    rollout = rollout_of(source_of(_sync()))
    rollout.reset(range(3))
    roll(rollout, 5)
    before = (rollout.env_steps, len(rollout.replay), rollout.replay.ring.frames.clone())
    rollout.send(1.0)
    rollout.collect()
    assert (rollout.env_steps, len(rollout.replay)) == before[:2]
    assert torch.equal(rollout.replay.ring.frames, before[2])
    rollout.write()
    assert rollout.env_steps == before[0] + 3


# Trap 19: nothing that is not finite reaches the ring


def _spoilt(kind: str, what: str, value: float, at: int, mode: AutoresetMode) -> HostRollout:
    """Three counters of length 3; the second one returns `value` at its step `at`."""
    odd = partial(NonFiniteEnv, 1, what=what, at=at, value=value)
    return rollout_of(source_of(vector_of(kind, one_of(odd, 1, 3), mode)))


@every_mode
def test_a_nan_in_the_last_observation_of_an_episode_is_refused(mode: AutoresetMode) -> None:
    """It is shown after the reset in SAME_STEP, only as the final observation."""
    for kind in ("sync", "grouped 0", "grouped 2"):
        rollout = _spoilt(kind, "obs", math.nan, at=3, mode=mode)
        try:
            _assert_refused(rollout, written_steps=2, named="observation")
        finally:
            rollout.source.close()


@pytest.mark.parametrize("value", [math.inf, -math.inf])
@pytest.mark.parametrize(("what", "named"), [("reward", "reward"), ("obs", "observation")])
def test_an_infinity_is_refused_too(what: str, named: str, value: float) -> None:
    _assert_refused(_spoilt("sync", what, value, at=2, mode=SAME_STEP), 1, named)


@pytest.mark.parametrize(("what", "named"), [("reward", "reward"), ("obs", "observation")])
def test_a_number_too_large_for_float32_is_refused_too(what: str, named: str) -> None:
    """It is finite in the block's float64 and infinite in the ring."""
    factories = [partial(_HugeEnv, what), partial(_HugeEnv, "nothing")]
    rollout = rollout_of(source_of(SyncVectorEnv(factories, autoreset_mode=SAME_STEP)))
    rollout.reset([0, 1])
    rollout.send(1.0)
    rollout.collect()
    with pytest.raises(NonFiniteError, match=f"environment 0 returned the {named}"):
        rollout.write()


class _HugeEnv(Float64CounterEnv):
    def __init__(self, what: str) -> None:
        super().__init__()
        self.what = what

    def step(self, action: int) -> Step:
        obs, reward, terminated, truncated, info = super().step(action)
        if self.what == "obs":
            obs[0] = 1e39
        return obs, 1e39 if self.what == "reward" else reward, terminated, truncated, info


@pytest.mark.parametrize("kind", ["sync", "grouped 2"])
def test_a_nan_in_the_first_observation_is_refused_at_reset(kind: str) -> None:
    rollout = _spoilt(kind, "obs", math.nan, at=0, mode=SAME_STEP)
    with pytest.raises(NonFiniteError, match=r"environment 1 returned the observation .* step 0"):
        rollout.reset(range(3))
    rollout.source.close()


@every_mode
def test_after_a_refused_step_a_reset_starts_anew_and_joins_nothing(mode: AutoresetMode) -> None:
    rollout = _spoilt("sync", "reward", math.nan, at=2, mode=mode)
    _assert_refused(rollout, written_steps=1, named="reward")
    rollout.reset(range(3))
    roll(rollout, 10)
    stored = everything_in(rollout.replay)
    assert np.isfinite(stored.reward).all()
    assert_counted(stored, CounterRules())


@pytest.mark.parametrize(("what", "named"), [("reward", "reward"), ("obs", "observation")])
def test_a_nan_in_a_step_is_refused_and_nothing_is_written(what: str, named: str) -> None:
    _assert_refused(_spoilt("sync", what, math.nan, at=2, mode=SAME_STEP), 1, named)


def _assert_refused(rollout: HostRollout, written_steps: int, named: str) -> None:
    rollout.reset(range(3))
    roll(rollout, written_steps)
    replay, done = rollout.replay, 3 * written_steps
    before = [tensor.clone() for tensor in (replay.ring.frames, replay.ring.reward)]
    rollout.send(1.0)
    rollout.collect()
    message = rf"^environment 1 returned the {named} .* after env step {done}: "
    with pytest.raises(NonFiniteError, match=message):
        rollout.write()
    assert (rollout.env_steps, len(replay)) == (done, done)
    for tensor, old in zip((replay.ring.frames, replay.ring.reward), before, strict=True):
        assert torch.equal(tensor, old)
    assert_counted(everything_in(replay), CounterRules())
