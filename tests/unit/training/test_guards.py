"""Numbers of environments on the host that are not finite: skipped, or replaced."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import pytest
import torch
from gymnasium.spaces import Box
from gymnasium.vector import AutoresetMode

from fastdqn.envs.description import describe
from fastdqn.envs.grouped import GroupedVectorEnv
from fastdqn.envs.sources.new_episode import NewEpisode
from fastdqn.envs.sources.source import EnvSource, make_source, source_of
from fastdqn.envs.sources.vector_source import VectorSource
from fastdqn.envs.workers.supervision import Supervision
from fastdqn.errors import NonFiniteError
from fastdqn.training import nonfinite
from fastdqn.training.evaluation import evaluate
from fastdqn.training.host.rollout import HostRollout
from fastdqn.training.nonfinite import limits_of
from tests.drive import MODES, everything_in, random_policy, roll, rollout_of, vector_of
from tests.frail import GlitchyEnv
from tests.oracles import CounterEnv, CounterRules, Step, Stored, assert_counted

RULES = CounterRules((4,))
STEPS = 60
REWARDS, SHOWS, STARTS = (2, 13, 16), (7, 20, 21, 33), (6,)
"""Steps 4k are the last ones of episodes until the first glitch; 16 and 20 hit some later."""
each_mode = pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.name)


def _factories(num_envs: int = 2, **odd: Any) -> list[Any]:
    """Return counters, of which number 1 is glitchy."""
    what: Any = odd or {"rewards": REWARDS, "shows": SHOWS, "starts": STARTS}
    kinds: list[Any] = [partial(CounterEnv, env, 4) for env in range(num_envs)]
    kinds[1] = partial(GlitchyEnv, 1, **what)
    return kinds


def _rolled(source: EnvSource, on_nonfinite: str, steps: int = STEPS) -> tuple[HostRollout, Any]:
    rollout = rollout_of(source, on_nonfinite=on_nonfinite)
    rollout.reset(range(source.num_envs))
    try:
        return rollout, roll(rollout, steps)
    finally:
        source.close()


def _of_env(stored: Stored, env: int) -> npt.NDArray[Any]:
    """Return [n, 2] episode and time of each stored transition of an environment, in order."""
    seen: npt.NDArray[Any] = stored.obs[::-1]
    times: npt.NDArray[Any] = seen[seen[:, 0] == env][:, 1:]
    return times


# Skipped


@pytest.mark.parametrize("kind", ["sync", "grouped 0"])
@each_mode
def test_skipped_steps_are_no_transitions_and_nothing_joins_across(
    kind: str, mode: AutoresetMode
) -> None:
    """Whatever is stored is right in itself; what is missing are the glitches alone."""
    rollout, episodes = _rolled(source_of(vector_of(kind, _factories(), mode)), "skip")
    stored = everything_in(rollout.replay)
    assert_counted(stored, RULES)
    assert len(stored.action) == rollout.env_steps
    assert torch.isfinite(rollout.replay.ring.frames).all()
    assert torch.isfinite(rollout.replay.ring.reward).all()
    assert rollout.nonfinite >= 8
    times = _of_env(stored, 1)
    assert [time for _, time in times[:3].tolist()] == [0, 0, 1]  # step 2 is cut, and begins anew
    assert (np.diff(times[:, 0]) >= 0).all()
    whole = _of_env(stored, 0)  # its neighbour has lost nothing
    assert len(whole) == len(np.unique(whole, axis=0)) >= STEPS - STEPS // 4
    assert all(math.isfinite(episode.return_) and episode.length == 4 for episode in episodes)


@each_mode
def test_an_environment_begins_anew_at_once_and_loses_its_cut_episode_alone(
    mode: AutoresetMode,
) -> None:
    source = source_of(vector_of("sync", _factories(rewards=[2]), mode))
    rollout, _ = _rolled(source, "skip", 12)
    times = _of_env(everything_in(rollout.replay), 1).tolist()
    assert times[:6] == [[0, 0], [1, 0], [1, 1], [1, 2], [1, 3], [2, 0]]
    others = _of_env(everything_in(rollout.replay), 0).tolist()
    assert others == [[e, t] for e in range(3) for t in range(4)][: len(others)]
    assert len(others) >= 9
    assert rollout.nonfinite == 1
    assert rollout.nonfinite_words() == ("environment 1 returned the reward nan after env step 2")
    assert not rollout.nonfinite_words()


def test_the_last_step_of_an_episode_is_skipped_without_a_second_reset() -> None:
    source = source_of(vector_of("grouped 0", _factories(shows=[4]), AutoresetMode.SAME_STEP))
    rollout, episodes = _rolled(source, "skip", 9)
    times = _of_env(everything_in(rollout.replay), 1).tolist()
    assert times == [[0, 0], [0, 1], [0, 2], *([1, t] for t in range(4)), [2, 0]]
    assert len(episodes) == 3  # two of the neighbour, one of its own


def test_a_bad_start_after_a_good_end_costs_the_start_alone() -> None:
    source = source_of(vector_of("grouped 0", _factories(starts=[1, 2]), AutoresetMode.SAME_STEP))
    rollout, _ = _rolled(source, "skip", 8)
    times = _of_env(everything_in(rollout.replay), 1).tolist()
    assert times == [*([0, t] for t in range(4)), [3, 0], [3, 1]]
    assert rollout.nonfinite == 2


@pytest.mark.parametrize("kind", ["sync", "grouped 0"])
def test_a_bad_first_observation_of_a_training_is_skipped(kind: str) -> None:
    mode = AutoresetMode.DISABLED if kind == "sync" else AutoresetMode.SAME_STEP
    rollout, _ = _rolled(source_of(vector_of(kind, _factories(starts=[0]), mode)), "skip", 5)
    assert _of_env(everything_in(rollout.replay), 1)[0].tolist() == [1, 0]
    assert rollout.nonfinite == 1


class _ResetsTogether(VectorSource):
    """Of a vector that cannot reset a single environment."""

    def begin_anew(self, envs: npt.NDArray[np.int64]) -> NewEpisode:
        self._returns[envs], self._lengths[envs] = 0.0, 0
        return NewEpisode.NEVER


@each_mode
def test_a_vector_that_cannot_reset_one_environment_goes_on_without_its_bad_numbers(
    mode: AutoresetMode,
) -> None:
    """A bad observation costs the two transitions that it belongs to, a bad reward its own."""
    vector = vector_of("sync", _factories(rewards=[2], shows=[6], length=20), mode)
    source = _ResetsTogether(vector, describe(CounterEnv))
    rollout, episodes = _rolled(source, "skip", 20)
    stored = everything_in(rollout.replay)
    times = [time for _, time in _of_env(stored, 1).tolist()]
    assert times[:15] == [0, 2, 3, 4, *range(7, 18)]
    (odd,) = [episode for episode in episodes if episode.length > 4]
    assert math.isfinite(odd.return_)
    assert odd.length == 14 == 20 - 6  # from the last cut on


@pytest.mark.slow
@pytest.mark.parametrize("num_groups", [1, 2])
def test_workers_reset_while_other_groups_step(num_groups: int) -> None:
    envs = GroupedVectorEnv(
        _factories(4),
        autoreset_mode=AutoresetMode.SAME_STEP,
        num_workers=2,
        num_groups=num_groups,
        send_infos=False,
        supervision=Supervision(30.0, 5),
    )
    rollout, _ = _rolled(source_of(envs), "skip", STEPS * num_groups)
    alone = source_of(vector_of("grouped 0", _factories(4), AutoresetMode.SAME_STEP))
    other, _ = _rolled(alone, "skip")
    mine, theirs = (_of_env(everything_in(r.replay), 1) for r in (rollout, other))
    assert mine.tolist() == theirs.tolist()
    assert_counted(everything_in(rollout.replay), RULES)
    assert rollout.num_restarts == 0


def test_a_reset_drops_a_new_episode_that_was_asked_for() -> None:
    source = source_of(vector_of("grouped 0", _factories(rewards=[2]), AutoresetMode.SAME_STEP))
    rollout = rollout_of(source, on_nonfinite="skip")
    rollout.reset([0, 1])
    roll(rollout, 2)
    assert source.rows.restarting.tolist() == [False, True]
    rollout.reset([0, 1])
    roll(rollout, 3)
    assert not source.rows.restarting.any()
    assert _of_env(everything_in(rollout.replay), 1).tolist() == [[0, 0], [1, 0], [1, 1], [1, 2]]


def test_a_thousand_vector_steps_without_a_transition_end_the_run() -> None:
    class AlwaysBad(CounterEnv):
        def step(self, action: int) -> Step:
            obs, _, *rest = super().step(action)
            return obs, math.nan, *rest

    source = source_of(vector_of("sync", [AlwaysBad], AutoresetMode.DISABLED))
    rollout = rollout_of(source, on_nonfinite="skip")
    rollout.reset([0])
    with pytest.raises(NonFiniteError, match=r"environment 0 .* nan .*1,000 vector steps in a row"):
        roll(rollout, 1_001)
    assert rollout.env_steps == 0
    assert rollout.has_nothing


def test_resets_within_a_vector_step_are_no_more_vector_steps(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(nonfinite, "MOST_IN_A_ROW", 10)
    bad = partial(GlitchyEnv, shows=range(100), starts=range(100))
    rollout = rollout_of(
        source_of(vector_of("sync", [bad], AutoresetMode.DISABLED)), on_nonfinite="skip"
    )
    rollout.reset([0])
    roll(rollout, 8)  # the first reset counts as well
    with pytest.raises(NonFiniteError, match="10 vector steps in a row"):
        roll(rollout, 1)
    assert rollout.nonfinite == 2 * 9 + 1


# Replaced


@pytest.mark.parametrize("kind", ["sync", "grouped 0"])
@each_mode
def test_replaced_numbers_are_finite_and_every_step_is_a_transition(
    kind: str, mode: AutoresetMode
) -> None:
    factories = _factories(rewards=[2, 4], shows=[6], starts=[3])
    rollout, episodes = _rolled(source_of(vector_of(kind, factories, mode)), "replace", 24)
    stored = everything_in(rollout.replay)
    reward, next_obs = (
        values[stored.obs[:, 0] == 1][::-1] for values in (stored.reward, stored.next_obs)
    )
    assert reward[[1, 3]].tolist() == [0.0, 0.0]
    assert next_obs[5, 2] == 4096  # the bound of the space in the place of inf
    assert rollout.nonfinite == 4
    firsts = [episode for episode in episodes if episode.length == 4]
    assert float(reward[:4].sum()) in {episode.return_ for episode in firsts}
    assert all(math.isfinite(episode.return_) for episode in episodes)


@pytest.mark.parametrize("kind", ["sync", "grouped 0"])
@pytest.mark.parametrize("reward", [math.nan, math.inf, -1e39])
def test_the_return_of_an_episode_counts_what_took_the_place_of_a_reward(
    kind: str, reward: float
) -> None:
    class Pays(CounterEnv):
        def step(self, action: int) -> Step:
            obs, _, *rest = super().step(action)
            return obs, reward if self.t == 2 else 1.0, *rest

    source = source_of(vector_of(kind, [Pays], AutoresetMode.SAME_STEP))
    rollout, episodes = _rolled(source, "replace", 7)
    assert [(each.return_, each.length) for each in episodes] == [(2.0, 3)] * 2
    assert rollout.nonfinite == 2


@pytest.mark.parametrize(
    ("space", "value", "expected"),
    [
        (Box(-2.0, 3.0, (3,), np.float64), math.inf, 3.0),
        (Box(-2.0, 3.0, (3,), np.float64), -math.inf, -2.0),
        (Box(-2.0, 3.0, (3,), np.float64), math.nan, 0.0),
        (Box(-np.inf, np.inf, (3,), np.float64), 1e39, 1e6),
        (Box(-np.inf, np.inf, (3,), np.float64), -math.inf, -1e6),
        (Box(-1e30, 1e30, (3,), np.float64), math.inf, 1e6),
    ],
)
def test_an_infinity_becomes_the_bound_of_the_space_or_a_million(
    space: Box, value: float, expected: float
) -> None:
    class Shows(gym.Env[Any, Any]):
        observation_space, action_space = space, CounterEnv().action_space

        def reset(self, **_: Any) -> Any:
            return np.zeros(3), {}

        def step(self, action: Any) -> Any:
            return np.array([1.0, value, 2.0]), 1.0, False, False, {}

    source = source_of(vector_of("sync", [Shows], AutoresetMode.SAME_STEP))
    rollout, _ = _rolled(source, "replace", 3)
    assert everything_in(rollout.replay).next_obs[-1].tolist() == [1.0, expected, 2.0]


def test_spaces_of_integers_have_limits_as_well() -> None:
    least, most = limits_of(CounterEnv().action_space)
    assert (float(least), float(most)) == (-1e6, 1e6)


# Evaluations


def _evaluated(on_nonfinite: str, max_steps: int = 50, **odd: Any) -> Any:
    torch.manual_seed(0)
    source = make_source(
        "grouped", partial(GlitchyEnv, **odd), describe(CounterEnv), 2, num_workers=0
    )
    given: Any = {"max_steps": max_steps, "on_nonfinite": on_nonfinite}
    try:
        return evaluate(random_policy(source), source, [0, 1], 5, **given)
    finally:
        source.close()


def test_an_evaluation_raises_what_is_not_finite() -> None:
    with pytest.raises(NonFiniteError, match="environment 0 of an evaluation returned the reward"):
        _evaluated("raise", rewards=[3])


@pytest.mark.parametrize("odd", [{"rewards": [3]}, {"shows": [3]}, {"starts": [0]}])
def test_an_evaluation_plays_a_skipped_episode_again(odd: dict[str, Any]) -> None:
    found = _evaluated("skip", **odd)
    assert found.lengths.tolist() == [4] * 5
    assert np.isfinite(found.returns).all()
    assert found.num_nonfinite == 2
    assert (found + found).num_nonfinite == 4


@pytest.mark.parametrize("starts", [[1], [1, 2, 4]])
def test_a_bad_start_between_two_episodes_of_an_evaluation_is_reset_before_it_is_played(
    starts: list[int],
) -> None:
    """The return of an episode says which one it is: the bad ones are left out."""
    source = make_source(
        "grouped", partial(GlitchyEnv, starts=starts), describe(CounterEnv), 1, num_workers=0
    )
    found = evaluate(random_policy(source), source, [0], 3, on_nonfinite="skip")
    good = [episode for episode in range(6) if episode not in starts][:3]
    least = [sum(RULES.reward(0, each, t, 0) for t in range(4)) for each in good]
    assert ((found.returns >= least) & (found.returns <= np.add(least, 8))).all()
    assert found.lengths.tolist() == [4] * 3
    assert not source.rows.restarting.any()
    source.close()


def test_environments_without_a_part_in_an_evaluation_rest_after_a_bad_start() -> None:
    source: Any = make_source(
        "grouped", partial(GlitchyEnv, starts=[0]), describe(CounterEnv), 3, num_workers=0
    )
    found = evaluate(random_policy(source), source, [0, 1, 2], 1, on_nonfinite="skip")
    assert found.lengths.tolist() == [4]
    assert [env.unwrapped.wakes for env in source.envs._pool.hosts[0].envs] == [4, 0, 0]
    source.close()


@each_mode
@pytest.mark.parametrize(
    ("odd", "cut"),
    [({"rewards": [2]}, 0), ({"shows": [6]}, 1), ({"shows": [8]}, 1), ({"starts": [1]}, 1)],
)
def test_an_evaluation_leaves_out_what_is_left_of_an_episode_that_cannot_be_cut(
    mode: AutoresetMode, odd: dict[str, Any], cut: int
) -> None:
    vector = vector_of("sync", [partial(GlitchyEnv, **odd)], mode)
    source = _ResetsTogether(vector, describe(CounterEnv))
    found = evaluate(random_policy(source), source, [0], 3, on_nonfinite="skip")
    good = [episode for episode in range(4) if episode != cut]
    least = [sum(RULES.reward(0, each, t, 0) for t in range(4)) for each in good]
    assert ((found.returns >= least) & (found.returns <= np.add(least, 8))).all()
    assert found.lengths.tolist() == [4] * 3
    source.close()


def test_the_steps_of_a_skipped_episode_do_not_count_towards_the_limit_of_the_next() -> None:
    found = _evaluated("skip", max_steps=5, rewards=[3])
    assert (found.num_cut, found.lengths.tolist()) == (0, [4] * 5)


def test_an_evaluation_counts_replaced_rewards_as_nothing() -> None:
    bad, good = _evaluated("replace", rewards=[3]), _evaluated("replace")
    assert bad.lengths.tolist() == good.lengths.tolist()
    third = RULES.reward(0, 0, 2, 0)
    missing = good.returns[:2] - bad.returns[:2]
    assert (missing >= third).all()
    assert (missing <= third + 3).all()
    assert (bad.num_nonfinite, good.num_nonfinite) == (2, 0)


def test_an_evaluation_that_finishes_nothing_ends() -> None:
    with pytest.raises(NonFiniteError, match="1,000 vector steps in a row"):
        _evaluated("skip", rewards=range(100))
