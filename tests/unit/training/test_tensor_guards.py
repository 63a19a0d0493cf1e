"""Numbers of tensor environments that are not finite: skipped, or replaced, on the device."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box
from torch import Tensor

from fastdqn.envs.tensor import PureTensorEnv
from fastdqn.envs.tensor.protocol import TensorStep
from fastdqn.errors import NonFiniteError, UsageError
from fastdqn.learner.learner import Learner
from fastdqn.networks.mlp import MLP
from fastdqn.replay import gather
from fastdqn.training import nonfinite
from fastdqn.training.tensor.blocks import Block
from fastdqn.training.tensor.rollout import TensorRollout
from fastdqn.transition import Transitions
from tests.hotpath.test_hotpath import Calls
from tests.oracles import CounterRules
from tests.tensor_oracles import NUM_ACTIONS, PureCounter, TensorCounter, assert_counts

RULES = CounterRules((4,), "alternating")
each_kind = pytest.mark.parametrize("kind", ["pure", "impure"])
GLITCHES: dict[str, Any] = {"reward": (1, 2, math.nan), "obs": (2, 7, math.inf)}
"""Environment 1 pays a NaN at its second step, 2 shows an infinity at its seventh."""


class _Pure(PureCounter):
    """Whose glitches come once, since its clock goes on where an episode begins anew."""

    @property
    def state(self) -> tuple[Tensor, ...]:
        return self._episode, self._t, self._obs, self._final


def _env(kind: str, **bad: Any) -> TensorCounter:
    env = (_Pure if kind == "pure" else TensorCounter)(3, RULES)
    env.bad_at.update(bad or GLITCHES)
    return env


def _rolled(env: TensorCounter, on_nonfinite: str, rows: int = 12, **how: Any) -> TensorRollout:
    torch.manual_seed(0)
    learner = Learner(MLP((3,), NUM_ACTIONS, (8,)))
    given: dict[str, Any] = {"capacity": 300, "batch_size": 4, "seed": 0, **how}
    rollout = TensorRollout(env, learner, on_nonfinite=on_nonfinite, **given)
    for _ in range(rows):
        rollout.advance(Block(1, 1), 0.5)
    return rollout


def _stored(rollout: TensorRollout) -> Transitions:
    first, count = rollout.ring.span()
    return gather(rollout.ring.ring, rollout.ring.nth(torch.arange(int(count)), first))


def _of_env(batch: Transitions, env: int) -> list[list[float]]:
    times: list[list[float]] = batch.obs[batch.obs[:, 0] == env][:, 1:].tolist()
    return times


def test_a_pure_environment_begins_anew_in_the_state_of_its_last_start() -> None:
    rollout = _rolled(_env("pure"), "skip")
    batch = _stored(rollout)
    assert_counts(batch, RULES)
    assert _of_env(batch, 0) == [[e, t] for e in range(3) for t in range(4)]
    assert _of_env(batch, 1) == [[0, 0], *([e, t] for e in range(3) for t in range(4))][:11]
    assert _of_env(batch, 2)[:8] == [[0, 0], [0, 1], [0, 2], [0, 3], [1, 0], [1, 1], [1, 0], [1, 1]]
    assert torch.isfinite(rollout.ring.ring.frames).all()
    assert (rollout.nonfinite, rollout.episodes) == (2, 3 + 2 + 2)
    assert int(rollout._learner.state.skipped) == 0
    assert rollout.nonfinite_words().startswith("environment 1 returned a number that is not")


def test_another_environment_goes_on_without_what_its_bad_numbers_belong_to() -> None:
    rollout = _rolled(_env("impure"), "skip")
    batch = _stored(rollout)
    assert_counts(batch, RULES)
    whole = [[e, t] for e in range(3) for t in range(4)]
    assert _of_env(batch, 0) == whole
    assert _of_env(batch, 1) == [place for place in whole if place != [0, 1]]
    # What is shown is repaired: as a next observation, and as the one that follows.
    assert _of_env(batch, 2) == [place for place in whole if place not in ([1, 2], [1, 3])]


@each_kind
def test_the_bad_end_of_an_episode_is_left_out_and_the_next_one_is_whole(kind: str) -> None:
    rollout = _rolled(_env(kind, final_obs=(1, 4, math.nan)), "skip", 8)
    times = _of_env(_stored(rollout), 1)
    assert times == [[0, 0], [0, 1], [0, 2], *([1, t] for t in range(4))]
    assert (rollout.nonfinite, rollout.episodes) == (1, 5)


def test_a_bad_start_is_replaced_by_the_last_good_one() -> None:
    rollout = _rolled(_env("pure", obs=(1, 4, math.nan)), "skip", 8)
    times = _of_env(_stored(rollout), 1)
    assert times == [*([0, t] for t in range(4)), *([0, t] for t in range(4))]


def _advanced(rollout: TensorRollout, calls: int) -> None:
    for _ in range(calls):
        rollout.advance(Block(4, 1, 4), 0.5)


class _BadReset(TensorCounter):
    def reset(self, seed: int) -> Tensor:
        obs = super().reset(seed)
        obs[1, 2] = math.nan
        return obs


@pytest.mark.parametrize("on_nonfinite", ["skip", "replace"])
def test_a_bad_first_observation_of_all_is_no_transition_or_replaced(on_nonfinite: str) -> None:
    rollout = _rolled(_BadReset(3, RULES), on_nonfinite, 5)
    times = _of_env(_stored(rollout), 1)
    assert times[:2] == ([[0, 1], [0, 2]] if on_nonfinite == "skip" else [[0, 0], [0, 1]])
    assert rollout.nonfinite == 1


@each_kind
def test_replaced_numbers_are_those_of_the_space(kind: str) -> None:
    rollout = _rolled(_env(kind, reward=(1, 2, math.nan), final_obs=(2, 2, math.inf)), "replace")
    batch = _stored(rollout)
    assert len(batch.action) == 36
    assert batch.reward[batch.obs[:, 0] == 1][1] == 0.0
    assert torch.isfinite(rollout.ring.ring.frames).all()
    assert rollout.nonfinite == 2
    assert all(math.isfinite(number) for number in rollout._iteration.returns.tolist())


def test_integers_outside_of_their_space_are_an_error_in_any_case() -> None:
    for on_nonfinite in ("raise", "skip", "replace"):
        env = _env("pure", obs=(1, 1, -1))
        env.single_observation_space = Box(0, 4095, (3,), np.int32)
        env._obs, env._final = (torch.zeros((3, 3), dtype=torch.int32) for _ in range(2))
        with pytest.raises(UsageError, match="environment 1 with the observation"):
            _rolled(env, on_nonfinite)


def test_rewards_of_environments_that_show_integers_are_guarded_as_well() -> None:
    env = _env("pure", reward=(1, 2, math.nan))
    env.single_observation_space = Box(0, 4095, (3,), np.int32)
    env._obs, env._final = (torch.zeros((3, 3), dtype=torch.int32) for _ in range(2))
    rollout = _rolled(env, "skip")
    assert_counts(_stored(rollout), RULES)
    assert (rollout.nonfinite, len(_stored(rollout).action)) == (1, 35)


def test_a_thousand_vector_steps_without_a_transition_end_the_run() -> None:
    class Dead(PureCounter):
        def step(self, action: Tensor) -> TensorStep:
            step = super().step(action)
            step.reward.fill_(math.nan)
            return step

    rollout = _rolled(Dead(2, RULES), "skip", 5)
    learned = rollout._learner.state.online.clone()
    with pytest.raises(NonFiniteError, match="1,000 vector steps in a row"):
        _advanced(rollout, 100)
    assert torch.equal(rollout._learner.state.online, learned)
    assert int(rollout._learner.state.skipped) == int(rollout._learner.state.updates) > 0


def test_transitions_between_skipped_steps_keep_a_run_alive(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class EverySecond(_Pure):
        calls = 0

        def step(self, action: Tensor) -> TensorStep:
            step, self.calls = super().step(action), self.calls + 1
            if self.calls % 2:
                step.reward.fill_(math.nan)
            return step

    monkeypatch.setattr(nonfinite, "MOST_IN_A_ROW", 3)
    env = EverySecond(1, CounterRules((50,)))
    rollout = _rolled(env, "skip", 20)
    assert rollout.nonfinite == 10
    assert len(_stored(rollout).action) == 10


def test_a_copy_of_a_rollout_skips_alike() -> None:
    rollout = _rolled(_env("pure"), "skip", 3)
    twin = copy.deepcopy(rollout)
    for _ in range(9):
        for each in (rollout, twin):
            each.advance(Block(1, 1), 0.5)
    pairs = zip(_tensors(rollout), _tensors(twin), strict=True)
    assert all(torch.equal(mine, theirs) for mine, theirs in pairs)
    assert rollout.nonfinite == twin.nonfinite == 2
    assert not any(a is b for a, b in zip(_tensors(rollout), _tensors(twin), strict=True))


def _tensors(rollout: TensorRollout) -> list[Tensor]:
    assert isinstance(rollout.env, PureTensorEnv)
    ring: Any = rollout.ring
    parts = rollout._learner.state.written(), rollout._iteration.state, rollout.env.state
    cells = [torch.nan_to_num(cell) for cell in ring.ring.cells().values()]
    return [*cells, *ring.listed.values(), *(tensor for part in parts for tensor in part)]


@pytest.mark.parametrize("on_nonfinite", ["raise", "skip", "replace"])
def test_the_device_is_looked_at_once_for_a_block(on_nonfinite: str) -> None:
    env = _env("pure", reward=(1, 1000, math.nan))
    rollout = _rolled(env, on_nonfinite, 2)
    with Calls() as calls:
        rollout.advance(Block(1, 1), 0.5)
    assert sum(calls.names.values()) <= 2  # the ends, and the returns where an episode ended
