"""The same transitions and the same answers from every vectorizer."""

from __future__ import annotations

from collections import defaultdict
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import AsyncVectorEnv, AutoresetMode

from fastdqn.envs.description import describe
from fastdqn.envs.grouped import GroupedVectorEnv
from fastdqn.envs.sources.source import VECTORIZERS, make_source, source_of
from fastdqn.envs.specs.ids import factory_of
from fastdqn.envs.workers.process import without_main_module
from fastdqn.errors import NonFiniteError
from tests.drive import KINDS, MODES, everything_in, roll, rollout_of, stored_at, vector_of
from tests.oracles import (
    CounterEnv,
    CounterRules,
    NonFiniteEnv,
    QuietCounterEnv,
    SameArrayCounterEnv,
    TalkativeCounterEnv,
    assert_complete,
    assert_counted,
    counters,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from fastdqn.envs.description import EnvFactory
    from fastdqn.envs.sources.source import EnvSource
    from tests.drive import Vector

NUM_ENVS = 4
LENGTHS = (3, 1, 7, 2, 5)
SEEDS = (11, 22, 33, 44)


# Counters: every transition is checked from its contents alone


@pytest.fixture(
    scope="module",
    params=[(k, m) for m in MODES for k in KINDS],
    ids=lambda p: f"{p[0]}, {p[1].name}",
)
def vector(quick_starts: None, request: pytest.FixtureRequest) -> Iterator[Vector]:
    """Four counters behind one kind of vector in one autoreset mode; shared by several tests."""
    kind, mode = request.param
    envs = vector_of(kind, counters(NUM_ENVS, kind=NonFiniteEnv), mode)
    yield envs
    envs.close()


def _source(envs: Vector, rules: CounterRules) -> EnvSource:
    """Give the counters these rules and let them count from the first episode again."""
    envs.set_attr("rules", rules)
    envs.set_attr("episode", -1)
    envs.set_attr("at", -1)
    return source_of(envs)


def _mode(envs: Vector) -> AutoresetMode:
    return AutoresetMode(envs.metadata["autoreset_mode"])


def test_every_stored_transition_is_a_true_one_and_none_is_missing(vector: Vector) -> None:
    rules = CounterRules(LENGTHS, "alternating")
    rollout = rollout_of(_source(vector, rules))
    rollout.reset(SEEDS)
    roll(rollout, 150)
    stored = everything_in(rollout.replay)
    assert len(stored.action) == rollout.env_steps > 300
    assert set(stored.action) == {0, 1, 2}
    assert_counted(stored, rules)
    assert_complete(stored, rules, NUM_ENVS)


def test_every_drawn_transition_is_a_true_one_while_the_ring_turns_over(vector: Vector) -> None:
    rules = CounterRules(LENGTHS, "alternating")
    rollout = rollout_of(_source(vector, rules), capacity=20)
    rollout.reset(SEEDS)
    for _ in range(40):
        roll(rollout, 3)
        assert_counted(everything_in(rollout.replay), rules)
        assert_counted(stored_at(rollout.replay, rollout.replay.draw(1, 200)[0]), rules)


def test_a_reset_is_never_counted_as_an_env_step(vector: Vector) -> None:
    """Length 3, 4 environments, 240 vector steps: NEXT_STEP spends every fourth on a reset."""
    rollout = rollout_of(_source(vector, CounterRules((3,))))
    rollout.reset(SEEDS)
    episodes = roll(rollout, 240)
    expected = 720 if _mode(vector) is AutoresetMode.NEXT_STEP else 960
    assert rollout.env_steps == expected
    assert len(rollout.replay) == expected
    assert len(episodes) == expected // 3


def test_episodes_are_reported_with_their_true_return_length_and_end(vector: Vector) -> None:
    rules = CounterRules(LENGTHS, "alternating")
    rollout = rollout_of(_source(vector, rules))
    rollout.reset(SEEDS)
    message = roll(rollout, 100)
    assert [episode.episode for episode in message] == list(range(1, len(message) + 1))
    expected = _episodes_in(everything_in(rollout.replay))
    assert sorted((e.return_, e.length, e.truncated) for e in message) == sorted(expected)
    assert {e.truncated for e in message} == {True, False}


def _episodes_in(stored: Any) -> list[tuple[float, int, bool]]:
    """Add up the finished episodes of a ring, knowing nothing of rows and modes."""
    rewards: dict[tuple[int, int], list[float]] = defaultdict(list)
    ends: dict[tuple[int, int], bool] = {}
    for i, (env_id, episode, _) in enumerate(stored.obs.astype(int).tolist()):
        rewards[env_id, episode].append(float(stored.reward[i]))
        if stored.terminated[i] or stored.truncated[i]:
            ends[env_id, episode] = bool(stored.truncated[i])
    return [(sum(rewards[key]), len(rewards[key]), cut) for key, cut in ends.items()]


def test_a_reset_cuts_the_running_episodes_and_their_statistics(vector: Vector) -> None:
    rules = CounterRules((5,))
    rollout = rollout_of(_source(vector, rules))
    rollout.reset(SEEDS)
    assert roll(rollout, 3) == []
    rollout.reset(SEEDS)
    message = roll(rollout, 5)
    assert [episode.length for episode in message] == [5] * NUM_ENVS
    assert [e.return_ for e in message] == [
        pytest.approx(sum(_rewards_of(rollout, env_id, episode=1))) for env_id in range(NUM_ENVS)
    ]
    assert len(rollout.replay) == rollout.env_steps == 8 * NUM_ENVS
    assert_counted(everything_in(rollout.replay), rules)


def _rewards_of(rollout: Any, env_id: int, episode: int) -> list[float]:
    stored = everything_in(rollout.replay)
    mine = (stored.obs[:, 0] == env_id) & (stored.obs[:, 1] == episode)
    return [float(reward) for reward in stored.reward[mine]]


def test_a_reset_between_end_and_next_step_starts_a_true_episode(vector: Vector) -> None:
    """The reset comes where NEXT_STEP would have reset by itself; nothing is skipped twice."""
    rules = CounterRules((2,))
    rollout = rollout_of(_source(vector, rules))
    rollout.reset(SEEDS)
    roll(rollout, 2)
    rollout.reset(SEEDS)
    roll(rollout, 2)
    assert rollout.env_steps == len(rollout.replay) == 4 * NUM_ENVS
    assert_counted(everything_in(rollout.replay), rules)


@pytest.mark.parametrize(("what", "named"), [("reward", "reward"), ("obs", "observation")])
def test_a_nan_is_refused_by_environment_and_step_and_nothing_of_it_is_written(
    vector: Vector, what: str, named: str
) -> None:
    rules = CounterRules((5, 2))
    rollout = rollout_of(_source(vector, rules))
    vector.set_attr("what", what)
    vector.set_attr("wakes", 0)
    vector.set_attr("at", [-1, -1, 2, -1])
    rollout.reset(SEEDS)
    roll(rollout, 1)
    frames = rollout.replay.ring.frames.clone()
    rollout.send(1.0)
    rollout.collect()
    message = rf"^environment 2 returned the {named} .* after env step {NUM_ENVS}: "
    with pytest.raises(NonFiniteError, match=message):
        rollout.write()
    assert torch.equal(rollout.replay.ring.frames, frames)
    assert len(rollout.replay) == rollout.env_steps == NUM_ENVS
    rollout.reset(SEEDS)
    roll(rollout, 9)
    assert_counted(everything_in(rollout.replay), rules)


# Environments that reuse their array


SAFE = [
    (kind, mode)
    for kind in ("grouped 0", "grouped 2", "async", "sync")
    for mode in MODES
    # Gymnasium's own vectors hand over the array itself in SAME_STEP, after the reset wrote to it.
    if kind.startswith("grouped") or mode is not AutoresetMode.SAME_STEP
]


@pytest.mark.parametrize(("kind", "mode"), SAFE, ids=str)
def test_an_array_that_its_environment_overwrites_is_copied_in_time(
    kind: str, mode: AutoresetMode
) -> None:
    source = source_of(vector_of(kind, counters(2, LENGTHS, kind=SameArrayCounterEnv), mode))
    _check_rolled_out(source, CounterRules(LENGTHS), 2)


@pytest.mark.parametrize("vectorizer", VECTORIZERS)
def test_every_vectorizer_of_ours_copies_a_reused_array_in_time(vectorizer: str) -> None:
    factory = partial(SameArrayCounterEnv, 0, LENGTHS)
    source = make_source(vectorizer, factory, describe(factory), 1)
    _check_rolled_out(source, CounterRules(LENGTHS), 1)


def _check_rolled_out(source: EnvSource, rules: CounterRules, num_envs: int) -> None:
    try:
        rollout = rollout_of(source)
        rollout.reset(range(num_envs))
        roll(rollout, 60)
    finally:
        source.close()
    stored = everything_in(rollout.replay)
    assert_counted(stored, rules)
    assert_complete(stored, rules, num_envs)


# Real environments: bit for bit what a plain loop over one environment sees


Transition = tuple[list[float], int, float, list[float], bool, bool]


def _actions_of(env_index: int, num_actions: int) -> Iterator[int]:
    generator = np.random.default_rng(env_index)
    while True:
        yield int(generator.integers(num_actions))


def _plain_loop(factory: EnvFactory, seed: int, env_index: int, steps: int) -> list[Transition]:
    env = factory()
    actions = _actions_of(env_index, int(env.action_space.n))  # type: ignore[attr-defined]
    seen: list[Transition] = []
    obs, _ = env.reset(seed=seed)
    for _ in range(steps):
        action = next(actions)
        next_obs, reward, terminated, truncated, _ = env.step(action)
        seen.append((obs.tolist(), action, float(reward), next_obs.tolist(), terminated, truncated))
        obs = env.reset()[0] if terminated or truncated else next_obs
    env.close()
    return seen


def _by_source(source: EnvSource, steps: int) -> list[list[Transition]]:
    """Return at least `steps` transitions of each environment, read from the rows."""
    actions = [_actions_of(i, source.description.num_actions) for i in range(source.num_envs)]
    seen: list[list[Transition]] = [[] for _ in range(source.num_envs)]
    source.reset(SEEDS)
    size = source.num_envs // source.num_groups
    groups = [range(first, first + size) for first in range(0, source.num_envs, size)]
    shown, due = source.rows.obs.tolist(), [next(a) for a in actions]
    for group, envs in enumerate(groups):
        source.send(np.array([due[i] for i in envs]), group)
    while min(map(len, seen)) < steps:
        for group, envs in enumerate(groups):
            source.recv(group)
            for i, row in zip(envs, _rows_as_python(source, group), strict=True):
                if row.real:
                    seen[i].append((shown[i], due[i], *row.transition))
                    due[i] = next(actions[i])
                shown[i] = row.shown
            source.send(np.array([due[i] for i in envs]), group)
    for group in range(source.num_groups):
        source.recv(group)
    return seen


class _Row(NamedTuple):
    """What one environment's row says after a step; a transition without its beginning."""

    real: bool
    transition: tuple[float, list[float], bool, bool]
    shown: list[float]


def _rows_as_python(source: EnvSource, group: int) -> Iterator[_Row]:
    rows = source.rows_of(group)
    for i, shown in enumerate(rows.obs.tolist()):
        terminated, truncated = bool(rows.terminated[i]), bool(rows.truncated[i])
        within = source.resets_within_step and (terminated or truncated)
        last = rows.final_obs[i].tolist() if within else shown
        message = (float(rows.reward[i]), last, terminated, truncated)
        yield _Row(bool(rows.real[i]), message, shown)


def _assert_same_as_plain_loop(source: EnvSource, factory: EnvFactory, steps: int) -> None:
    try:
        seen = _by_source(source, steps)
    finally:
        source.close()
    for i, seed in enumerate(SEEDS):
        expected = _plain_loop(factory, seed, i, steps)
        assert seen[i][:steps] == expected
        assert sum(t[4] or t[5] for t in expected) >= 2


@pytest.mark.parametrize(
    ("kind", "mode"),
    [(kind, AutoresetMode.SAME_STEP) for kind in KINDS]
    + [(kind, mode) for kind in ("grouped 0", "grouped 2", "sync") for mode in MODES[::2]],
    ids=str,
)
def test_cartpole_gives_the_transitions_of_a_plain_loop(kind: str, mode: AutoresetMode) -> None:
    factory = factory_of("CartPole-v1")
    source = source_of(vector_of(kind, [factory] * NUM_ENVS, mode))
    _assert_same_as_plain_loop(source, factory, 200)


@pytest.mark.parametrize(
    ("vectorizer", "num_workers", "num_groups"),
    [("grouped", workers, groups) for workers in (0, 1, 2) for groups in (1, 2)]
    + [("grouped", 4, 1), ("grouped", 0, 4), ("async", None, 1), ("sync", None, 1)],
)
def test_lunar_lander_gives_the_transitions_of_a_plain_loop(
    vectorizer: str, num_workers: int | None, num_groups: int
) -> None:
    factory = factory_of("LunarLander-v3")
    source = make_source(
        vectorizer, factory, describe(factory), NUM_ENVS, num_workers, num_groups=num_groups
    )
    _assert_same_as_plain_loop(source, factory, 300)


def test_time_limits_truncate_as_in_a_plain_loop() -> None:
    factory = factory_of("CartPole-v1", max_episode_steps=7)
    source = make_source("grouped", factory, describe(factory), NUM_ENVS, 2)
    seen = _by_source(source, 60)
    source.close()
    assert seen[1][:60] == _plain_loop(factory, SEEDS[1], 1, 60)
    assert any(t[5] and not t[4] for t in seen[1])


# GroupedVectorEnv answers as Gymnasium's class does


def _pair(kind: type[CounterEnv], mode: AutoresetMode) -> tuple[AsyncVectorEnv, AsyncVectorEnv]:
    factories = counters(NUM_ENVS, LENGTHS, "alternating", kind)
    with without_main_module():
        theirs = AsyncVectorEnv(factories, context="spawn", autoreset_mode=mode)
    return GroupedVectorEnv(factories, autoreset_mode=mode, num_workers=2), theirs


def _assert_equal(ours: Any, theirs: Any, where: str) -> None:
    """Compare nested dicts, tuples and arrays: types, dtypes, shapes and values."""
    assert type(ours) is type(theirs), where
    if isinstance(theirs, dict):
        assert sorted(ours) == sorted(theirs), where
        for key, value in theirs.items():
            _assert_equal(ours[key], value, f"{where}[{key!r}]")
    elif isinstance(theirs, tuple):
        assert len(ours) == len(theirs), where
        for i, value in enumerate(theirs):
            _assert_equal(ours[i], value, f"{where}[{i}]")
    elif isinstance(theirs, np.ndarray):
        assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape), where
        if theirs.dtype == object:
            _assert_equal(tuple(ours), tuple(theirs), where)
        else:
            assert np.array_equal(ours, theirs), where
    else:
        assert ours == theirs, where


def _both(envs: Sequence[AsyncVectorEnv], method: str, *args: Any, **kwargs: Any) -> Any:
    """Call a method of both, compare all that they return, and return it."""
    ours, theirs = (getattr(each, method)(*args, **kwargs) for each in envs)
    _assert_equal(ours, theirs, method)
    return ours


@pytest.mark.parametrize(
    ("kind", "mode"),
    [(TalkativeCounterEnv, mode) for mode in MODES] + [(QuietCounterEnv, MODES[1])],
    ids=str,
)
def test_step_and_reset_return_what_gymnasium_returns(
    kind: type[CounterEnv], mode: AutoresetMode
) -> None:
    envs = _pair(kind, mode)
    generator = np.random.default_rng(0)
    seen: set[str] = set()
    try:
        _both(envs, "reset", seed=5)
        for _ in range(30):
            actions = generator.integers(3, size=NUM_ENVS)
            _, _, terminated, truncated, infos = _both(envs, "step", actions)
            seen |= set(infos)
            ended = terminated | truncated
            if mode is AutoresetMode.DISABLED and ended.any():
                for each in envs:  # Gymnasium takes the mask out of the caller's dict
                    each.reset_async(options={"reset_mask": ended.copy(), "level": 2})
                _both(envs, "reset_wait")
    finally:
        for each in envs:
            each.close()
    assert {"t", "_t", "nested", "_nested", "frame", "word", "rare", "_rare"} <= seen
    if mode is AutoresetMode.SAME_STEP:
        assert {"final_obs", "_final_obs", "final_info", "_final_info"} <= seen


@pytest.fixture(scope="module")
def pair() -> Iterator[tuple[AsyncVectorEnv, AsyncVectorEnv]]:
    """Ours and Gymnasium's over the same talkative counters, in NEXT_STEP mode."""
    envs = _pair(TalkativeCounterEnv, AutoresetMode.NEXT_STEP)
    yield envs
    for each in envs:
        each.close()


@pytest.mark.parametrize("seed", [None, 3, [4, 5, 6, 7], [8, None, 9, None]], ids=str)
@pytest.mark.parametrize("options", [None, {}, {"level": 3, "map": "b"}], ids=str)
def test_reset_takes_seeds_and_options_as_gymnasium_does(
    pair: tuple[AsyncVectorEnv, AsyncVectorEnv], seed: Any, options: Any
) -> None:
    _, infos = _both(pair, "reset", seed=seed, options=options)
    assert (
        infos["seed"].tolist()
        == {
            "None": [-1, -1, -1, -1],
            "3": [3, 4, 5, 6],
            "[4, 5, 6, 7]": [4, 5, 6, 7],
            "[8, None, 9, None]": [8, -1, 9, -1],
        }[str(seed)]
    )


def test_reset_mask_resets_the_chosen_environments_only(
    pair: tuple[AsyncVectorEnv, AsyncVectorEnv],
) -> None:
    _both(pair, "reset", seed=1)
    before, *_ = _both(pair, "step", [0] * NUM_ENVS)
    mask = np.array([True, False, False, True])
    for each in pair:
        each.reset_async(seed=[70, 71, 72, 73], options={"reset_mask": mask.copy()})
    after, infos = _both(pair, "reset_wait")
    assert np.array_equal(after[~mask], before[~mask])
    assert (after[mask, 2] == 0).all()
    assert infos["_seed"].tolist() == mask.tolist()
    _both(pair, "step", [1] * NUM_ENVS)


@pytest.mark.parametrize(
    "mask",
    [
        [True] * NUM_ENVS,
        np.ones(NUM_ENVS, np.int64),
        np.ones(NUM_ENVS + 1, np.bool_),
        np.zeros(NUM_ENVS, np.bool_),
    ],
    ids=["list", "int", "too long", "none"],
)
def test_a_wrong_reset_mask_is_refused_as_in_gymnasium(
    pair: tuple[AsyncVectorEnv, AsyncVectorEnv], mask: Any
) -> None:
    errors = []
    for each in pair:
        with pytest.raises((TypeError, ValueError), match="reset_mask") as refused:
            each.reset(options={"reset_mask": mask})
        errors.append(refused.type)
    assert errors[0] is errors[1]
    _both(pair, "reset", seed=2)


def test_our_reset_leaves_the_callers_options_alone(
    pair: tuple[AsyncVectorEnv, AsyncVectorEnv],
) -> None:
    options = {"reset_mask": np.array([True, False, False, False]), "level": 1}
    pair[0].reset(options=options)
    assert sorted(options) == ["level", "reset_mask"]
    pair[1].reset(options=dict(options))
    _both(pair, "reset", seed=2)


def test_calls_attributes_and_frames_are_those_of_gymnasium(
    pair: tuple[AsyncVectorEnv, AsyncVectorEnv],
) -> None:
    _both(pair, "reset", seed=list(SEEDS))
    _both(pair, "step", [0] * NUM_ENVS)
    assert _both(pair, "call", "now") == (1,) * NUM_ENVS
    assert _both(pair, "call", "now", 4, scale=10) == (50,) * NUM_ENVS
    assert _both(pair, "get_attr", "env_id") == (0, 1, 2, 3)
    assert len(_both(pair, "render")) == NUM_ENVS
    assert pair[0].np_random_seed == pair[1].np_random_seed == SEEDS
    _both(pair, "set_attr", "colour", "red")
    assert _both(pair, "get_attr", "colour") == ("red",) * NUM_ENVS
    _both(pair, "set_attr", "colour", ["a", "b", "c", "d"])
    assert _both(pair, "get_attr", "colour") == ("a", "b", "c", "d")


def test_what_describes_the_vector_is_what_gymnasium_says(
    pair: tuple[AsyncVectorEnv, AsyncVectorEnv],
) -> None:
    ours, theirs = pair
    for name in (
        "num_envs",
        "single_observation_space",
        "observation_space",
        "single_action_space",
        "action_space",
        "metadata",
        "render_mode",
        "autoreset_mode",
        "spec",
        "closed",
    ):
        assert getattr(ours, name) == getattr(theirs, name), name


def test_vector_wrappers_of_gymnasium_go_over_ours() -> None:
    mode = AutoresetMode.SAME_STEP
    envs = gym.wrappers.vector.RecordEpisodeStatistics(
        GroupedVectorEnv(counters(2, 2), autoreset_mode=mode, num_workers=1)
    )
    envs.reset(seed=0)
    envs.step(np.array([0, 0]))
    *_, infos = envs.step(np.array([0, 0]))
    envs.close()
    assert infos["episode"]["l"].tolist() == [2, 2]
