"""The log of open episodes holds what each environment did since its last reset, and no more."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pytest

from fastdqn.envs.workers import open_episodes
from fastdqn.envs.workers.open_episodes import NOT_STEPPED, EpisodeLog, Histories
from fastdqn.envs.workers.origins import KIND, NUM_WORDS, SEEDED, STEP, TOO_LONG, UNKNOWN
from fastdqn.envs.workers.settings import PoolSettings
from fastdqn.envs.workers.shared_block import RowSpec, SharedBlock

NUM_ENVS = 6


class Logged:
    """A log, its block, and beside them a plain list of actions for each environment."""

    def __init__(self, num_groups: int = 1, first: int = 0, n: int = 3) -> None:
        spec = RowSpec(NUM_ENVS, (1,), "float32", num_origin=NUM_WORDS)
        settings = PoolSettings(spec, num_groups=num_groups, action_range=(first, first + n - 1))
        self.rows = SharedBlock.allocate(spec)
        self.log = EpisodeLog(settings, self.rows)
        self.first, self.n, self.size = first, n, NUM_ENVS // num_groups
        self.taken: list[list[int]] = [[] for _ in range(NUM_ENVS)]
        self.rows.origin[:, KIND] = UNKNOWN

    def begin(self, env: int) -> None:
        """Let an environment begin an episode, as its host would note it."""
        self.rows.origin[env, [KIND, STEP]] = SEEDED, self.rows.steps_sent[env, 0]
        self.taken[env] = []

    def step(self, group: int, actions: npt.NDArray[np.int64], out: list[int]) -> None:
        """Let a group take actions, all but its environments in `out`."""
        span = slice(group * self.size, (group + 1) * self.size)
        self.rows.action[span] = actions
        self.rows.resting[span] = False
        self.rows.resting[out] = True
        self.log.append(group)
        for env, action in enumerate(actions.tolist(), span.start):
            self.taken[env].append(NOT_STEPPED if env in out else action - self.first)

    def assert_kept(self, histories: Histories | None = None) -> None:
        """Compare the histories with the lists."""
        kept = self.log.histories() if histories is None else histories
        assert [actions.tolist() for actions in kept.actions] == self.taken


def random_steps(logged: Logged, steps: int, seed: int = 0) -> Iterator[int]:
    """Take steps in turns of the groups; now and then episodes begin, or an environment rests."""
    rng = np.random.default_rng(seed)
    groups = NUM_ENVS // logged.size
    for env in range(NUM_ENVS):
        logged.begin(env)
    for step in range(steps):
        group = step % groups
        envs = np.arange(group * logged.size, (group + 1) * logged.size)
        actions = rng.integers(logged.first, logged.first + logged.n, logged.size)
        logged.step(group, actions, envs[rng.random(logged.size) < 0.2].tolist())
        for env in envs[rng.random(logged.size) < 0.1].tolist():
            logged.begin(env)
        yield step


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("first", [0, 5, -128, -1, 126, 2**15 - 2, -(2**31)])
def test_it_holds_the_actions_since_each_reset(groups: int, first: int) -> None:
    logged = Logged(groups, first)
    for _ in random_steps(logged, 100):
        logged.assert_kept()
    for env, actions in enumerate(logged.taken):
        until = logged.log.sent[env // logged.size]
        raw = logged.log.raw_actions_of(env, until - len(actions), until)
        assert raw is not None
        assert raw.tolist() == [each + first for each in actions if each != NOT_STEPPED]


def test_every_process_says_the_same_of_an_episode_whenever_it_was_started() -> None:
    """The vector steps before the episode are those of this process."""
    logged = Logged()
    for _ in random_steps(logged, 40):
        assert not logged.log.histories().origin[:, STEP].any()


@pytest.mark.parametrize("longest", [7, 8])
def test_an_episode_of_more_steps_than_are_kept_is_too_long(
    longest: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(open_episodes, "MOST_STEPS", longest)
    monkeypatch.setattr(open_episodes, "FEWEST_STEPS", 1)
    logged, seen = Logged(2), set()
    for _ in random_steps(logged, 200):
        kept = logged.log.histories()
        for env, taken in enumerate(logged.taken):
            short = len(taken) <= longest
            seen.add(short)
            assert kept.actions[env].tolist() == (taken if short else [])
            assert kept.origin[env, KIND] == (SEEDED if short else TOO_LONG)
    assert seen == {True, False}


def test_as_many_steps_are_kept_as_the_memory_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Logged().log.longest == 65_536
    monkeypatch.setattr(open_episodes, "LOG_BYTES", 2_000 * NUM_ENVS)
    assert Logged().log.longest == 2_000
    assert Logged(first=1_000).log.longest == 1_024


@pytest.mark.parametrize("groups", [1, 3])
def test_histories_that_are_placed_go_on(groups: int) -> None:
    """As after a resume: of other lengths than the steps that led here."""
    logged, twin = Logged(groups, 5), Logged(groups, 5)
    for _ in random_steps(logged, 50):
        pass
    histories = logged.log.histories()
    twin.rows.origin[:] = histories.origin
    for group in range(groups):
        for _ in range(2):
            twin.step(group, np.full(twin.size, 6), [])
    twin.log.place(histories)
    twin.taken = [list(each) for each in logged.taken]
    twin.assert_kept()
    for group in range(groups):
        twin.step(group, np.full(twin.size, 7), [])
    twin.assert_kept()
    twin.begin(2)
    twin.step(2 // twin.size, np.full(twin.size, 5), [])
    twin.assert_kept()


def test_a_step_that_left_environments_out_is_none_of_theirs() -> None:
    logged = Logged(2)
    for env in range(NUM_ENVS):
        logged.begin(env)
    logged.step(1, np.array([2, 1, 0]), [])
    logged.log.leave_out(4, 6, 1)
    logged.step(1, np.array([1, 1, 1]), [])
    assert [each.tolist() for each in logged.log.histories().actions[3:]] == [
        [2, 1],
        [NOT_STEPPED, 1],
        [NOT_STEPPED, 1],
    ]


def test_rows_that_are_no_transitions_are_some_again_from_the_next_step_of_their_group_on() -> None:
    logged = Logged(2)
    logged.log.mark_unreal(np.array([1]))
    logged.log.mark_unreal(np.array([2, 5]))
    assert np.flatnonzero(~logged.rows.real).tolist() == [1, 2, 5]
    logged.step(1, np.zeros(3, np.int64), [])
    assert np.flatnonzero(~logged.rows.real).tolist() == [1, 2]
    logged.step(0, np.zeros(3, np.int64), [])
    assert logged.rows.real.all()
    logged.rows.real[3] = False  # by others
    logged.step(1, np.zeros(3, np.int64), [])
    assert not logged.rows.real[3]


def test_environments_whose_origin_is_not_known_have_no_actions() -> None:
    logged = Logged()
    for _ in random_steps(logged, 20):
        pass
    logged.rows.origin[1, KIND] = UNKNOWN
    logged.taken[1] = []
    logged.assert_kept()


def test_histories_are_copies() -> None:
    logged = Logged()
    for _ in random_steps(logged, 20):
        pass
    kept, before = logged.log.histories(), [list(each) for each in logged.taken]
    logged.begin(0)
    logged.step(0, np.full(NUM_ENVS, 2), [])
    logged.taken = before
    logged.assert_kept(kept)
