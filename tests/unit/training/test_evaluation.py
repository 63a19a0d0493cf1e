"""Greedy evaluation: which episodes count, and on which seeds they run."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from fastdqn.envs.grouped import GroupedVectorEnv
from fastdqn.envs.seeding import Stream, seeds_of
from fastdqn.envs.sources.source import VectorSource, source_of
from fastdqn.errors import UsageError
from fastdqn.training.evaluation import (
    Evaluation,
    EvaluationStopped,
    Evaluator,
    evaluate,
    step_limit,
)
from tests.drive import MODES, random_policy, vector_of
from tests.oracles import ChainEnv, CounterEnv, CounterRules, Float64CounterEnv, counters

if TYPE_CHECKING:
    from fastdqn.envs.sources.source import EnvSource

SAME_STEP = AutoresetMode.SAME_STEP


def _source(num_envs: int = 3, mode: AutoresetMode = SAME_STEP, **kwargs: Any) -> EnvSource:
    return source_of(SyncVectorEnv(counters(num_envs, **kwargs), autoreset_mode=mode))


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.name)
@pytest.mark.parametrize("kind", ["grouped 0", "grouped 2", "sync"])
def test_returns_and_lengths_are_those_of_whole_episodes(kind: str, mode: AutoresetMode) -> None:
    rules = CounterRules((2, 5, 1))
    source = source_of(vector_of(kind, counters(2, rules.lengths), mode))
    policy = random_policy(source)
    result = evaluate(policy, source, [1, 2], episodes=6)
    source.close()
    begun = [(0, 0), (1, 0), (0, 1), (1, 1), (1, 2), (0, 2)]  # env and episode, in this order
    assert (
        result.lengths.tolist() == [rules.length(*which) for which in begun] == [2, 5, 5, 1, 2, 1]
    )
    expected = [
        sum(rules.reward(env_id, episode, t, _greedy(policy, env_id, episode, t)) for t in
            range(rules.length(env_id, episode)))
        for env_id, episode in begun
    ]  # fmt: skip
    assert result.returns.tolist() == expected
    assert result.episodes == 6


def test_environments_in_groups_are_evaluated_like_others() -> None:
    policy, results = random_policy(_source(1)), []
    for num_groups in (1, 2, 4):
        envs = GroupedVectorEnv(
            counters(4, (2, 5, 1)), autoreset_mode=SAME_STEP, num_workers=0, num_groups=num_groups
        )
        source = source_of(envs)
        result = evaluate(policy, source, range(4), episodes=12)
        source.close()
        results.append((result.returns.tolist(), result.lengths.tolist()))
    assert results[0] == results[1] == results[2]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_environments_with_nothing_left_to_play_rest_until_the_next_evaluation(
    num_workers: int,
) -> None:
    """Two episodes of 2 and of 5 steps, two each: not one step more is made, twice over."""
    factories = [partial(CounterEnv, 0, 2), partial(CounterEnv, 1, 5)]
    envs = GroupedVectorEnv(factories, autoreset_mode=SAME_STEP, num_workers=num_workers)
    source = source_of(envs)
    policy = random_policy(source)
    for rounds in (1, 2):
        result = evaluate(policy, source, [1, 2], episodes=4)
        assert result.lengths.tolist() == [2, 5, 2, 2]
        assert envs.get_attr("wakes") == (6 * rounds, 5 * rounds)
    envs.step(np.zeros(2, np.int64))
    assert envs.get_attr("wakes") == (13, 11)
    source.close()


@pytest.mark.parametrize(
    ("episodes", "playing"), [(1, [0]), (2, [0, 3]), (3, [0, 2, 4]), (5, [0, 1, 2, 3, 4])]
)
def test_few_episodes_are_dealt_out_evenly(episodes: int, playing: list[int]) -> None:
    """Neighbours share a process: side by side they would keep one core busy, and the other not."""
    envs = GroupedVectorEnv(counters(6, 4), autoreset_mode=SAME_STEP, num_workers=0)
    source = source_of(envs)
    result = evaluate(random_policy(source), source, range(6), episodes)
    assert result.lengths.tolist() == [4] * episodes
    wakes = envs.get_attr("wakes")
    source.close()
    assert [env for env, count in enumerate(wakes) if count] == playing
    assert sum(wakes) == 4 * episodes


def _greedy(policy: Any, *obs: int) -> int:
    return int(policy.greedy(torch.tensor([obs], dtype=torch.float32))[0])


def test_a_long_episode_that_began_in_time_is_waited_for_and_a_late_one_is_not_counted() -> None:
    """While the second episode lasts, three short ones count and six more begin and end."""
    factories = [partial(CounterEnv, 0, 1), partial(CounterEnv, 1, 9)]
    source = source_of(SyncVectorEnv(factories, autoreset_mode=SAME_STEP))
    result = evaluate(random_policy(source), source, [1, 2], episodes=4)
    assert result.lengths.tolist() == [1, 9, 1, 1]


def test_the_mean_length_is_that_of_all_episodes_whatever_their_lengths() -> None:
    """Episodes of 1 and of 19 steps, half of each: neither kind is met more often."""
    rng = np.random.default_rng(0)
    lengths = [tuple(int(n) for n in rng.choice([1, 19], 60)) for _ in range(10)]
    factories = [partial(CounterEnv, i, mine) for i, mine in enumerate(lengths)]
    source = source_of(SyncVectorEnv(factories, autoreset_mode=SAME_STEP))
    result = evaluate(random_policy(source), source, range(10), episodes=200)
    assert abs(result.lengths.mean() - 10) < 3 * 9 / 200**0.5


@pytest.mark.parametrize("episodes", [1, 3, 4, 6])
def test_as_many_episodes_count_as_are_asked_for(episodes: int) -> None:
    source = _source(3)
    result = evaluate(random_policy(source), source, [1, 2, 3], episodes)
    assert (result.episodes, len(result.lengths)) == (episodes, episodes)
    assert np.isfinite(result.returns).all()


def test_running_episodes_of_an_earlier_evaluation_do_not_count() -> None:
    """The second call resets; nothing of the longer episodes that still ran is added."""
    source = _source(2, episode_length=(1, 9))
    policy = random_policy(source)
    evaluate(policy, source, [1, 2], 2)
    result = evaluate(policy, source, [1, 2], 2)
    assert sorted(result.lengths.tolist()) == [1, 9]


def test_acting_is_greedy_and_draws_nothing() -> None:
    source = source_of(SyncVectorEnv([ChainEnv], autoreset_mode=SAME_STEP))
    policy = random_policy(source)
    with torch.no_grad():
        policy.network.flat.zero_()
        policy.network.flat[-1] = 1.0  # the bias of `right`
    before = policy._generator.get_state()
    result = evaluate(policy, source, [0], 5)
    assert result.lengths.tolist() == [2] * 5
    assert result.returns.tolist() == [1.0] * 5
    assert torch.equal(policy._generator.get_state(), before)


def test_float64_observations_reach_the_network_as_float32() -> None:
    source = _source(2, kind=Float64CounterEnv)
    seen = []
    policy = random_policy(source)
    greedy = policy.greedy

    def watch(obs: torch.Tensor, action_mask: torch.Tensor | None = None) -> torch.Tensor:
        seen.append(obs.dtype)
        return greedy(obs, action_mask)

    policy.greedy = watch  # type: ignore[method-assign]
    evaluate(policy, source, [1, 2], 2)
    assert set(seen) == {torch.float32}


def test_mean_and_deviation_are_over_episodes() -> None:
    result = Evaluation(np.array([1.0, 2.0, 6.0]), np.array([1, 2, 3]))
    assert (result.mean, result.episodes) == (3.0, 3)
    assert result.std == pytest.approx((14 / 3) ** 0.5)


# Episodes that do not end


def _brought(policy: Any, env_id: int, episode: int, steps: int) -> float:
    reward = CounterRules((steps,)).reward
    return sum(
        reward(env_id, episode, t, _greedy(policy, env_id, episode, t)) for t in range(steps)
    )


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.name)
@pytest.mark.parametrize("kind", ["grouped 0", "grouped 2", "sync"])
def test_an_episode_that_does_not_end_is_cut_and_counts_with_what_it_has_brought(
    kind: str, mode: AutoresetMode
) -> None:
    """Beside it short episodes are played on; nothing of its rest is counted."""
    factories = [partial(CounterEnv, 0, 1000), partial(CounterEnv, 1, 2)]
    source = source_of(vector_of(kind, factories, mode))
    policy = random_policy(source)
    result = evaluate(policy, source, [1, 2], episodes=6, max_steps=5)
    source.close()
    assert result.lengths.tolist() == [5, 2, 2, 2, 2, 2]
    assert (result.num_cut, result.max_steps) == (1, 5)
    whole = [_brought(policy, 1, episode, 2) for episode in range(5)]
    assert result.returns.tolist() == [_brought(policy, 0, 0, 5), *whole]


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.name)
@pytest.mark.parametrize("kind", ["grouped 0", "grouped 2", "sync"])
def test_where_all_episodes_were_cut_the_environments_begin_new_ones(
    kind: str, mode: AutoresetMode
) -> None:
    source = source_of(vector_of(kind, counters(2, 1000), mode))
    policy = random_policy(source)
    result = evaluate(policy, source, [1, 2], episodes=5, max_steps=3)
    source.close()
    assert (result.lengths.tolist(), result.num_cut) == ([3] * 5, 5)
    begun = [(0, 0), (1, 0), (0, 1), (1, 1), (0, 2)]
    assert result.returns.tolist() == [_brought(policy, *which, 3) for which in begun]


def test_every_reset_of_an_evaluation_has_seeds_of_its_own() -> None:
    tape = _SeedTape(2)
    tape.envs = SyncVectorEnv(counters(2, 1000), autoreset_mode=SAME_STEP)
    evaluate(random_policy(tape), tape, [1, 2], episodes=6, max_steps=2)
    first, *others = tape.seeds
    assert first == [1, 2]
    assert len({seed for seeds in others for seed in seeds}) == 4
    assert all(0 <= seed < 2**31 for seeds in others for seed in seeds)


def test_an_episode_as_long_as_the_bound_is_whole() -> None:
    source = _source(2, episode_length=4)
    result = evaluate(random_policy(source), source, [1, 2], episodes=4, max_steps=4)
    assert (result.lengths.tolist(), result.num_cut) == ([4] * 4, 0)


@pytest.mark.parametrize(
    ("asked", "longest", "limit"),
    [
        (None, None, 10_000),
        (None, 500, 10_000),
        (None, 27_000, 27_000),
        (0, 27_000, 0),
        (70, 27_000, 70),
    ],
)
def test_the_bound_is_the_callers_or_at_least_the_environments_own(
    asked: int | None, longest: int | None, limit: int
) -> None:
    assert step_limit(asked, longest) == limit


def test_a_long_evaluation_reports_its_progress_now_and_then(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seconds = iter(range(1000))
    monkeypatch.setattr("time.monotonic", lambda: 0.5 * next(seconds))
    seen: list[tuple[int, int, int]] = []
    source = _source(2, episode_length=10)
    evaluate(
        random_policy(source),
        source,
        [1, 2],
        episodes=6,
        on_progress=lambda *figures: seen.append(figures),
    )
    assert seen == [(2, 6, 20), (4, 6, 40), (6, 6, 60)]


def test_an_evaluation_stops_before_the_next_step_and_the_next_one_is_as_ever() -> None:
    source = _source(2, episode_length=1000)
    policy, asked = random_policy(source), iter([False, False, False, True])
    with pytest.raises(EvaluationStopped):
        evaluate(policy, source, [1, 2], 2, stopped=lambda: next(asked))
    result = evaluate(policy, source, [1, 2], 2, max_steps=5)
    assert result.lengths.tolist() == [5, 5]


def test_cut_episodes_of_two_evaluations_add_up() -> None:
    one = Evaluation(np.array([1.0]), np.array([7]), num_cut=1, max_steps=7)
    two = Evaluation(np.array([1.0, 2.0]), np.array([7, 7]), num_cut=2, max_steps=7)
    assert ((one + two).num_cut, (one + two).max_steps) == (3, 7)


# The evaluator


class _SeedTape(VectorSource):
    """Keeps the seeds of every reset."""

    def __init__(self, num_envs: int = 2) -> None:
        inner = _source(num_envs)
        assert isinstance(inner, VectorSource)
        super().__init__(inner.envs, inner.description)
        self.seeds: list[list[int]] = []
        self.closed = 0

    def reset(self, seeds: Any) -> None:
        self.seeds.append(list(seeds))
        super().reset(seeds)

    def close(self) -> None:
        self.closed += 1
        super().close()


def test_every_evaluation_runs_on_seeds_that_no_other_one_used() -> None:
    tape = _SeedTape()
    evaluator = Evaluator(random_policy(tape), lambda: tape, seed=4, episodes=4)
    evaluator.screen(-1e9)
    evaluator.full()
    evaluator.screen(-1e9)
    evaluator.close()
    expected = [seeds_of(4, Stream.EVALUATION_ENVS, 2, round_) for round_ in (1, 2, 3)]
    assert tape.seeds == expected
    assert len({seed for seeds in tape.seeds for seed in seeds}) == 6


def test_evaluations_of_another_stream_move_none_of_the_usual_seeds() -> None:
    tape = _SeedTape()
    evaluator = Evaluator(random_policy(tape), lambda: tape, seed=4, episodes=4)
    for stream in (Stream.BEST_POLICY_ENVS, Stream.EVALUATION_ENVS, Stream.BEST_POLICY_ENVS):
        evaluator.full(None, stream)
    evaluator.close()
    assert tape.seeds == [
        seeds_of(4, Stream.BEST_POLICY_ENVS, 2, 1),
        seeds_of(4, Stream.EVALUATION_ENVS, 2, 1),
        seeds_of(4, Stream.BEST_POLICY_ENVS, 2, 2),
    ]


def test_each_call_of_learn_has_evaluations_on_seeds_of_its_own() -> None:
    tape = _SeedTape()
    for call in (0, 1, 2):
        evaluator = Evaluator(random_policy(tape), lambda: tape, seed=4, episodes=4, call=call)
        for stream in (Stream.EVALUATION_ENVS, Stream.LAST_POLICY_ENVS, Stream.EVALUATION_ENVS):
            evaluator.full(None, stream)
    assert tape.seeds[0] == seeds_of(4, Stream.EVALUATION_ENVS, 2, 1)
    assert len({seed for seeds in tape.seeds for seed in seeds}) == 2 * 9


@pytest.mark.parametrize(
    ("episodes", "goal", "played"),
    [(30, -1e9, 20), (30, 1e9, 5), (8, -1e9, 8), (8, 1e9, 5), (3, -1e9, 3), (1, 1e9, 1)],
)
def test_a_screening_looks_longer_only_where_the_goal_is_within_reach(
    episodes: int, goal: float, played: int
) -> None:
    tape = _SeedTape(3)
    evaluator = Evaluator(random_policy(tape), lambda: tape, seed=0, episodes=episodes)
    assert evaluator.screen(goal).episodes == played
    assert evaluator.full().episodes == episodes
    assert len({seed for seeds in tape.seeds for seed in seeds}) == 3 * len(tape.seeds)


@pytest.mark.parametrize(
    ("episodes", "goal", "played"),
    [(100, None, 100), (100, -1e9, 100), (100, 1e9, 40), (41, 1e9, 40), (40, 1e9, 40), (7, 1e9, 7)],
)
def test_a_full_evaluation_ends_early_only_where_the_goal_is_out_of_reach(
    episodes: int, goal: float | None, played: int
) -> None:
    tape = _SeedTape(3)
    evaluator = Evaluator(random_policy(tape), lambda: tape, seed=0, episodes=episodes)
    assert evaluator.full(goal).episodes == played
    assert len({seed for seeds in tape.seeds for seed in seeds}) == 3 * len(tape.seeds)


def test_a_goal_is_within_reach_of_two_standard_errors() -> None:
    """Returns 0 and 10, twice each: mean 5, standard error 5 / sqrt(3)."""
    seen = Evaluation(np.array([0.0, 10.0, 0.0, 10.0]), np.ones(4, np.int64))
    edge = 5 + 2 * 5 / 3**0.5
    assert seen.within_reach(edge - 0.01)
    assert not seen.within_reach(edge + 0.01)


def test_evaluations_add_up_to_all_their_episodes() -> None:
    one, two = (Evaluation(np.array([x]), np.array([n])) for x, n in ((1.0, 3), (4.0, 5)))
    assert ((one + two).returns.tolist(), (one + two).lengths.tolist()) == ([1.0, 4.0], [3, 5])


@pytest.mark.parametrize("episodes", [0, -1])
def test_an_evaluator_of_no_episodes_is_refused(episodes: int) -> None:
    source = _source(1)
    with pytest.raises(UsageError, match=f"episodes {episodes}: it must be at least 1"):
        Evaluator(random_policy(source), lambda: source, seed=0, episodes=episodes)


def test_the_environments_are_built_at_the_first_call_and_closed_once() -> None:
    tape = _SeedTape()
    built = []

    def make() -> EnvSource:
        built.append(tape)
        return tape

    evaluator = Evaluator(random_policy(tape), make, seed=0, episodes=2)
    evaluator.close()
    assert built == []
    evaluator.full()
    evaluator.full()
    assert built == [tape]
    evaluator.close()
    evaluator.close()
    assert tape.closed == 1


def test_counters_that_never_met_count_from_their_first_episode() -> None:
    """The oracle itself: a fresh counter shows episode 0 after its first reset."""
    assert CounterEnv(3).reset()[0].tolist() == [3, 0, 0]
