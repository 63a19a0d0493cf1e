"""EnvPool as a source: its own steps are the reference, and Gymnasium's equations of CartPole.

It is longer than most files: the references that EnvPool is held to stand beside what they judge.
"""

from __future__ import annotations

import importlib.util
import math
import sys
import types
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import pytest

from fastdqn.envs.seeding import Stream, seeds_of
from fastdqn.envs.sources.envpool import EnvPoolSource, describe_envpool
from fastdqn.envs.sources.new_episode import NewEpisode
from fastdqn.errors import UsageError
from tests.drive import everything_in, roll, rollout_of

needs_envpool = pytest.mark.skipif(
    importlib.util.find_spec("envpool") is None,
    reason="EnvPool IS NOT INSTALLED, nothing of it is tested: pip install 'fastdqn[envpool]'",
)

Step = tuple[list[float], int, float, list[float], bool, bool]
"""obs, action, reward, next_obs, terminated, truncated."""
Source = Callable[..., EnvPoolSource]


@pytest.fixture
def source(nothing_left: None) -> Iterator[Source]:
    """Build sources that are closed after the test."""
    built: list[EnvPoolSource] = []

    def build(*args: Any, **kwargs: Any) -> EnvPoolSource:
        built.append(EnvPoolSource(*args, **kwargs))
        return built[-1]

    yield build
    for one in built:
        one.close()


# The reference: EnvPool stepped by hand


def _action(env: int, t: int, num_actions: int) -> int:
    """Act by the place and the time within the episode, the same way in every drive."""
    return (t // 3 + t * t // 7 + env) % num_actions


def by_hand(env_id: str, seeds: Sequence[int], steps: int, **kwargs: Any) -> list[list[Step]]:
    """Step a pool of EnvPool and return the real transitions of each environment in order."""
    import envpool  # noqa: PLC0415 - an extra

    pool: Any = envpool.make_gymnasium(env_id, num_envs=len(seeds), seed=list(seeds), **kwargs)
    num_actions = int(pool.action_space.n)
    shown, info = pool.reset()
    message: list[list[Step]] = [[] for _ in seeds]
    for _ in range(steps):
        times = info["elapsed_step"].tolist()
        actions = [_action(env, t, num_actions) for env, t in enumerate(times)]
        before = shown
        shown, reward, terminated, truncated, info = pool.step(np.array(actions))
        for env in np.flatnonzero(info["elapsed_step"] > 0).tolist():
            message[env].append(
                (
                    before[env].tolist(),
                    actions[env],
                    float(reward[env]),
                    shown[env].tolist(),
                    bool(terminated[env]),
                    bool(truncated[env]),
                )
            )
    pool.close()
    return message


def by_source(source: EnvPoolSource, seeds: Sequence[int], steps: int) -> list[list[Step]]:
    """Step a source with the same actions and return its real transitions."""
    rows, num_actions = source.rows, source.description.num_actions
    source.reset(seeds)
    message: list[list[Step]] = [[] for _ in seeds]
    times = [0] * len(seeds)
    for _ in range(steps):
        actions = [_action(env, t, num_actions) for env, t in enumerate(times)]
        before = rows.obs.copy()
        source.send(np.array(actions))
        source.recv()
        for env in range(len(seeds)):
            ended = bool(rows.terminated[env]), bool(rows.truncated[env])
            times[env] = 0 if any(ended) or not rows.real[env] else times[env] + 1
            if rows.real[env]:
                reward = float(rows.reward[env])
                now = rows.obs[env].tolist()
                message[env].append((before[env].tolist(), actions[env], reward, now, *ended))
            else:
                assert (rows.reward[env], *ended) == (0.0, False, False)
    return message


def assert_same(ours: list[list[Step]], theirs: list[list[Step]], least: int) -> None:
    """Compare as many transitions as both drives took; rows that are not real differ in number."""
    for mine, reference in zip(ours, theirs, strict=True):
        count = min(len(mine), len(reference))
        assert count >= least
        assert mine[:count] == reference[:count]


# Transitions


@needs_envpool
@pytest.mark.filterwarnings("ignore:.*precision lowered:UserWarning")
@pytest.mark.parametrize("env_id", ["CartPole-v1", "LunarLander-v3", "MountainCar-v0"])
def test_transitions_are_those_of_envpool_stepped_by_hand(source: Source, env_id: str) -> None:
    seeds = [11, 5, 2**31 - 1]
    ours = by_source(source(env_id, 3), seeds, 900)
    assert_same(ours, by_hand(env_id, seeds, 900), least=700)
    for message in ours:
        assert sum(step[4] or step[5] for step in message) >= 4
        for (*_, next_obs, terminated, truncated), after in pairwise(message):
            assert (next_obs == after[0]) != (terminated or truncated)


@needs_envpool
def test_stored_transitions_obey_gymnasiums_equations_of_cartpole(source: Source) -> None:
    rollout = rollout_of(source("CartPole-v1", 4))
    rollout.reset([1, 2, 3, 4])
    episodes = roll(rollout, 1500)
    stored = everything_in(rollout.replay)
    assert len(stored.action) == rollout.env_steps == len(rollout.replay)
    assert rollout.env_steps < 4 * 1500
    expected, over = _cartpole(stored.obs.astype(np.float64), stored.action)
    np.testing.assert_allclose(stored.next_obs, expected, rtol=2e-6, atol=2e-6)
    assert (stored.terminated == over).all()
    assert not stored.truncated.any()
    assert (stored.reward == 1.0).all()
    running = rollout.env_steps - sum(episode.length for episode in episodes)
    assert 0 <= running < 4 * 500
    assert int(stored.terminated.sum()) == len(episodes) > 100
    assert all(episode.return_ == episode.length for episode in episodes)


def _cartpole(obs: npt.NDArray[Any], action: npt.NDArray[Any]) -> tuple[Any, npt.NDArray[Any]]:
    """Return the next states [B, 4] and whether the pole fell, by Gymnasium's constants."""
    env: Any = gym.make("CartPole-v1").unwrapped
    x, speed, angle, spin = obs.T
    force = np.where(action == 1, env.force_mag, -env.force_mag)
    push = (force + env.polemass_length * spin**2 * np.sin(angle)) / env.total_mass
    inertia = 4.0 / 3.0 - env.masspole * np.cos(angle) ** 2 / env.total_mass
    turn = (env.gravity * np.sin(angle) - np.cos(angle) * push) / (env.length * inertia)
    pull = push - env.polemass_length * turn * np.cos(angle) / env.total_mass
    after = np.stack([x + env.tau * speed, speed + env.tau * pull], 1)
    after = np.concatenate([after, np.stack([angle + env.tau * spin, spin + env.tau * turn], 1)], 1)
    fell = np.abs(after[:, 2]) > env.theta_threshold_radians
    return after, fell | (np.abs(after[:, 0]) > env.x_threshold)


@needs_envpool
def test_the_equations_are_gymnasiums() -> None:
    env = gym.make("CartPole-v1")
    obs, _ = env.reset(seed=0)
    for t in range(9):
        before = np.asarray(obs, np.float64)[None]
        obs, _, terminated, *_ = env.step(t % 2)
        after, over = _cartpole(before, np.array([t % 2]))
        np.testing.assert_allclose(after[0], obs, rtol=2e-6, atol=2e-6)
        assert bool(over[0]) == terminated


# Ends


@needs_envpool
def test_an_episode_that_is_cut_goes_on_and_its_return_counts_from_there(source: Source) -> None:
    pool = source("CartPole-v1", 2, time_limit=6)
    pool.reset([7, 8])
    for t in range(1, 7):
        pool.send(np.full(2, t % 2))
        pool.recv()
        if t == 2:
            assert pool.begin_anew(np.array([1])) is NewEpisode.NEVER
    assert pool.rows.truncated.tolist() == [True, True]
    assert pool.rows.episode_return.tolist() == [6.0, 4.0]
    assert pool.rows.episode_length.tolist() == [6, 6]  # the time limit is EnvPool's


@needs_envpool
def test_an_episode_that_ends_by_itself_in_its_last_step_is_terminated_too(source: Source) -> None:
    seeds = [7, 8, 9, 10]
    natural = _push_right(source("CartPole-v1", 4), seeds)
    assert len({length for length, *_ in natural}) > 1
    for limit in (8, 9, 10):
        short = source("CartPole-v1", 4, time_limit=limit)
        cut = _push_right(short, seeds)
        assert _push_right(short, seeds) == cut  # after a reset within the next episode
        for (length, terminated, truncated), (in_full, *_) in zip(cut, natural, strict=True):
            assert length == min(limit, in_full)
            assert terminated == (in_full <= limit)
            assert truncated == (in_full >= limit)


def _push_right(source: EnvPoolSource, seeds: Sequence[int]) -> list[tuple[int, bool, bool]]:
    """Return (length, terminated, truncated) of the first episode of each environment."""
    source.reset(seeds)
    rows, first = source.rows, [(0, False, False)] * len(seeds)
    for t in range(1, 13):
        source.send(np.ones(len(seeds), np.int64))
        source.recv()
        for env in np.flatnonzero(rows.terminated | rows.truncated).tolist():
            if not first[env][0]:
                assert rows.episode_length[env] == rows.episode_return[env] == t
                first[env] = (t, bool(rows.terminated[env]), bool(rows.truncated[env]))
    return first


@needs_envpool
def test_rows_that_are_not_real_are_neither_counted_nor_stored(source: Source) -> None:
    """MountainCar never gets there at random: 200 env steps, then two rows that are not real."""
    rollout = rollout_of(source("MountainCar-v0", 3))
    rollout.reset([0, 1, 2])
    episodes = roll(rollout, 1000)
    assert rollout.env_steps == 3 * (4 * 200 + 192) == len(rollout.replay)
    assert [(e.length, e.return_, e.truncated) for e in episodes] == [(200, -200.0, True)] * 12
    stored = everything_in(rollout.replay)
    assert not stored.terminated.any()
    assert int(stored.truncated.sum()) == 12
    # A car's place moves by its new speed; a reset would move it otherwise.
    moved = stored.next_obs[:, 0] - stored.obs[:, 0]
    free = stored.next_obs[:, 0] > -1.2
    np.testing.assert_allclose(moved[free], stored.next_obs[free, 1], atol=1e-6)


@needs_envpool
def test_after_a_reset_every_row_is_real_even_where_an_episode_had_just_ended(
    source: Source,
) -> None:
    cart = source("CartPole-v1", 2, time_limit=3)
    cart.reset([0, 1])
    for _ in range(3):
        cart.send(np.array([0, 1]))
        cart.recv()
    assert cart.rows.truncated.all()
    cart.reset([0, 1])
    assert not cart.rows.truncated.any()
    cart.send(np.array([0, 1]))
    cart.recv()
    assert cart.rows.real.all()


@needs_envpool
@pytest.mark.filterwarnings("ignore:.*precision lowered:UserWarning")
def test_sums_of_an_episode_are_those_of_its_real_rows(source: Source) -> None:
    seeds = [3, 4]
    message = by_hand("LunarLander-v3", seeds, 600)
    lander = source("LunarLander-v3", 2)
    lander.reset(seeds)
    sums: list[list[tuple[int, float]]] = [[], []]
    times = [0, 0]
    for _ in range(600):
        lander.send(np.array([_action(env, t, 4) for env, t in enumerate(times)]))
        lander.recv()
        rows = lander.rows
        ended = rows.terminated | rows.truncated
        for env in range(2):
            times[env] = 0 if ended[env] or not rows.real[env] else times[env] + 1
            if ended[env]:
                sums[env].append((int(rows.episode_length[env]), float(rows.episode_return[env])))
    for mine, steps in zip(sums, message, strict=True):
        ends = [0, *(i + 1 for i, step in enumerate(steps) if step[4] or step[5])]
        reference = [(b - a, sum(s[2] for s in steps[a:b])) for a, b in pairwise(ends)]
        assert len(mine) == len(reference) > 3
        np.testing.assert_allclose(mine, reference, rtol=1e-12)


# Seeds, threads, places


@needs_envpool
def test_a_seed_gives_the_same_transitions_whatever_place_threads_and_time(source: Source) -> None:
    one, two = source("CartPole-v1", 3, 1), source("CartPole-v1", 3, 2)
    assert (one.num_workers, two.num_workers) == (1, 2)
    message = by_source(one, [5, 6, 7], 200)
    assert by_source(two, [5, 6, 7], 200) == message
    assert by_source(one, [5, 6, 7], 200) == message
    assert by_source(one, [8, 6, 9], 200)[1] == message[1]
    starts = [steps[0][0] for steps in by_source(one, [7, 5, 6], 5)]
    assert starts == [message[env][0][0] for env in (2, 0, 1)]


@needs_envpool
def test_neighbouring_run_seeds_share_no_start(source: Source) -> None:
    pool = source("LunarLander-v3", 8)
    starts = set()
    for run_seed in range(3):
        pool.reset(seeds_of(run_seed, Stream.TRAINING_ENVS, 8))
        starts |= {tuple(obs) for obs in pool.rows.obs.tolist()}
    assert len(starts) == 24


class ShuffledPool:
    """A pool whose answers come in another order, as EnvPool's contract allows."""

    def __init__(self, pool: Any) -> None:
        self.pool, self.order = pool, np.array([2, 0, 1])

    def send(self, actions: Any) -> None:
        self.pool.send(actions)

    def recv(self) -> tuple[Any, ...]:
        self.order = np.roll(self.order, 1)
        *parts, info = self.pool.recv()
        mixed = {name: info[name][self.order] for name in ("env_id", "elapsed_step")}
        return *(part[self.order] for part in parts), mixed

    def close(self) -> None:
        self.pool.close()


@needs_envpool
def test_rows_are_placed_by_the_id_that_each_answer_carries(
    source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    message = by_source(source("CartPole-v1", 3), [5, 6, 7], 300)
    mixed = source("CartPole-v1", 3)
    reset = mixed.reset

    def reset_and_shuffle(seeds: Sequence[int]) -> None:
        reset(seeds)
        monkeypatch.setattr(mixed, "_pool", ShuffledPool(mixed._pool))

    monkeypatch.setattr(mixed, "reset", reset_and_shuffle)
    assert by_source(mixed, [5, 6, 7], 300) == message


@needs_envpool
@pytest.mark.parametrize(
    ("env_id", "shape", "dtype"),
    [("FrozenLake-v1", (), "int64"), ("Pong-v5", (4, 84, 84), "uint8")],
)
def test_other_observations_keep_shape_and_dtype_of_their_space(
    source: Source, env_id: str, shape: tuple[int, ...], dtype: str
) -> None:
    pool = source(env_id, 2)
    message = by_source(pool, [1, 2], 60)
    assert (pool.rows.obs.shape, pool.rows.obs.dtype.name) == ((2, *shape), dtype)
    assert message[0] != message[1]


@needs_envpool
def test_closing_ends_the_threads_even_within_a_step() -> None:
    def threads() -> int:
        return len(list(Path("/proc/self/task").iterdir()))

    pool = EnvPoolSource("CartPole-v1", 2, 2)
    before = threads()
    pool.reset([0, 1])
    assert threads() > before
    pool.send(np.zeros(2, np.int64))
    pool.close()
    pool.close()
    assert threads() == before
    with pytest.raises(RuntimeError, match="none after close"):
        pool.recv()


# What is refused


@needs_envpool
def test_a_description_has_what_envpool_has() -> None:
    lander = describe_envpool("LunarLander-v3")
    assert (lander.obs_shape, lander.obs_dtype, lander.num_actions) == ((8,), "float32", 4)
    assert lander.solved_at == 200.0
    assert np.isinf(getattr(lander.obs_space, "low")).all()  # noqa: B009 - Space has none
    cart = describe_envpool("CartPole-v1")
    assert getattr(cart.obs_space, "high")[2] == pytest.approx(24 * math.pi / 180)  # noqa: B009


@needs_envpool
@pytest.mark.parametrize(
    ("env_id", "message"),
    [
        ("LunarLander-v9", r"Did you mean .*LunarLander-v3.*--vectorizer grouped"),
        ("cartpole-v1", r"Did you mean CartPole-v1"),
        ("xyzzy", r"does not have this id\. --vectorizer grouped"),
        ("Pendulum-v1", r"Discrete"),
        ("Backgammon-v1", r"2 players"),
    ],
)
def test_ids_that_cannot_be_trained_on_are_refused(env_id: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        EnvPoolSource(env_id, 4, None)


@needs_envpool
def test_impossible_numbers_are_refused(source: Source) -> None:
    with pytest.raises(UsageError, match="--num-envs 0"):
        source("CartPole-v1", 0)
    with pytest.raises(UsageError, match="--num-workers 0"):
        source("CartPole-v1", 1, 0)
    pool = source("CartPole-v1", 2)
    with pytest.raises(RuntimeError, match="no step without a reset"):
        pool.send(np.zeros(2, np.int64))
    with pytest.raises(UsageError, match="3 seeds for 2"):
        pool.reset([1, 2, 3])
    with pytest.raises(UsageError, match="environment seed 2147483648"):
        pool.reset([1, 2**31])


def test_without_envpool_the_command_that_installs_it_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "envpool", None)
    with pytest.raises(UsageError, match=r"pip install 'fastdqn\[envpool\]'"):
        describe_envpool("CartPole-v1")


def test_an_environment_that_lacks_a_library_is_refused_with_the_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def make_spec(env_id: str) -> None:
        raise ImportError("no Qt5")

    fake: Any = types.ModuleType("envpool")
    fake.list_all_envs, fake.make_spec = (lambda: ["Bigfish-v0"]), make_spec
    monkeypatch.setitem(sys.modules, "envpool", fake)
    with pytest.raises(UsageError, match=r"cannot build it \(ImportError: no Qt5\)"):
        describe_envpool("Bigfish-v0")
