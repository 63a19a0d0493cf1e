"""What is kept of the open episodes of a worker that ends, at each moment at which it may end."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from fastdqn.envs.workers.failures import EnvFailures, Failure
from fastdqn.envs.workers.kept_rows import KeptRows, NoKeptRows, kept_rows
from fastdqn.envs.workers.open_episodes import EpisodeLog
from fastdqn.envs.workers.origins import KIND, NUM_WORDS, SEEDED, STEP, UNKNOWN
from fastdqn.envs.workers.revived_envs import Past
from fastdqn.envs.workers.settings import PoolSettings
from fastdqn.envs.workers.shared_block import RowSpec, SharedBlock
from fastdqn.envs.workers.supervision import SupervisedWorker
from fastdqn.errors import WorkerError

SEEDS = [11, 12, 13, 14]
GONE = WorkerError("gone")


@dataclass
class Process:
    """A process that hosts the second half of each group."""

    spans: tuple[tuple[int, int], ...] = ((1, 2), (3, 4))


class Watched:
    """Two groups of two environments whose observation is the count of their steps."""

    def __init__(self) -> None:
        spec = RowSpec(4, (1,), "float32", num_masked=2, num_origin=NUM_WORDS)
        settings = PoolSettings(spec, num_groups=2, action_range=(0, 9))
        self.rows = SharedBlock.allocate(spec)
        self.log = EpisodeLog(settings, self.rows)
        kept = kept_rows(self.rows, settings, self.log, 7.0)
        assert isinstance(kept, KeptRows)
        self.kept = kept
        self.member = SupervisedWorker(Process())  # type: ignore[arg-type]
        self.rows.origin[:, KIND] = SEEDED

    def send(self, action: int, group: int = 0) -> None:
        self.rows.columns(2 * group, 2 * group + 2).action[:] = action
        self.log.append(group)
        self.kept.keep(group)

    def serve(self, group: int = 0) -> None:
        """Write what environments show after a step, as their workers do."""
        rows = self.rows.columns(2 * group, 2 * group + 2)
        rows.obs[:] += 1
        rows.action_mask[:] = ~rows.action_mask

    def step(self, action: int, group: int = 0) -> None:
        self.send(action, group)
        self.serve(group)
        self.kept.release(group)

    def pasts(self, error: Any = GONE) -> list[Past | None]:
        return self.kept.pasts_of(self.member, error, SEEDS)

    def past(self, group: int = 0) -> Past:
        past = self.pasts()[group]
        assert past is not None
        return past


def assert_past(past: Past, steps: int, actions: list[int]) -> None:
    assert past.obs.tolist() == [[steps]]
    assert past.action_mask.tolist() == [[steps % 2 == 1] * 2]
    assert past.actions[0].tolist() == actions
    assert past.origin[0, KIND] == SEEDED
    assert past.limit_s == 7.0


@pytest.mark.parametrize("group", [0, 1])
def test_a_worker_that_ends_within_a_step_goes_on_from_before_it(group: int) -> None:
    watched = Watched()
    for action in (4, 5):
        watched.step(action, group)
    watched.send(6, group)
    assert_past(watched.past(group), 2, [4, 5])
    watched.serve(group)
    assert_past(watched.past(group), 2, [4, 5])
    watched.kept.release(group)  # its answer was collected
    assert_past(watched.past(group), 3, [4, 5, 6])
    assert watched.past(group).seeds == [SEEDS[2 * group + 1]]
    assert watched.pasts()[1 - group] is None  # it has not stepped yet


def test_what_is_kept_is_a_copy() -> None:
    watched = Watched()
    watched.step(4)
    past = watched.past()
    watched.step(5)
    assert_past(past, 1, [4])


def test_an_episode_that_began_within_the_step_is_none_yet() -> None:
    watched = Watched()
    watched.step(4)
    watched.send(5)
    watched.rows.origin[1, 2], watched.rows.origin[1, STEP] = 99, 2
    past = watched.past()
    assert_past(past, 1, [4])
    assert past.origin[0, 2] == 0
    watched.kept.release(0)
    past = watched.past()
    assert past.origin[0, 2] == 99
    assert past.actions[0].tolist() == []


def test_a_step_that_left_the_environment_out_is_not_played_again() -> None:
    watched = Watched()
    for action in (4, 5, 6):
        watched.step(action)
        if action == 5:
            watched.kept.leave_out(1, 2, 0)
    assert watched.past().actions[0].tolist() == [4, 6]


def test_another_call_than_a_step_ends_what_is_kept_of_its_group() -> None:
    """A reset may begin new episodes, and a worker that ends meanwhile may have begun them."""
    watched = Watched()
    for group in (0, 1):
        watched.step(4, group)
    watched.kept.forget(0)
    assert watched.pasts()[0] is None
    assert_past(watched.past(1), 1, [4])
    watched.step(5)
    assert watched.past().actions[0].tolist() == [4, 5]


def test_a_worker_that_ended_twice_without_a_step_has_no_past() -> None:
    watched = Watched()
    watched.step(4)
    watched.member.in_a_row = 1
    assert_past(watched.past(), 1, [4])
    watched.member.in_a_row = 2
    assert watched.pasts() == [None, None]


def test_environments_that_raised_or_were_cut_have_no_past() -> None:
    watched = Watched()
    watched.step(4)
    for group in (0, 1):
        watched.step(4, group)
    (past, other) = watched.pasts(EnvFailures([Failure.of(1, ValueError("out of luck"))]))
    assert past is not None
    assert other is not None
    assert (past.origin[0, KIND], other.origin[0, KIND]) == (UNKNOWN, SEEDED)
    watched.rows.restarting[3] = True
    assert watched.past(1).origin[0, KIND] == UNKNOWN
    watched.send(5, 1)
    watched.rows.restarting[3] = False  # it was reset within the step
    assert watched.past(1).origin[0, KIND] == UNKNOWN


def test_without_a_limit_nothing_is_kept() -> None:
    watched = Watched()
    spec = RowSpec(4, (1,), "float32", num_origin=NUM_WORDS)
    settings = PoolSettings(spec, action_range=(0, 9))
    for log, limit_s in ((watched.log, 0.0), (None, 7.0)):
        kept = kept_rows(watched.rows, settings, log, limit_s)
        assert type(kept) is NoKeptRows
        kept.keep(0)
        kept.release(0)
        assert kept.pasts_of(watched.member, GONE, SEEDS) == [None, None]
    watched.step(4)
    NoKeptRows(watched.log).leave_out(1, 2, 0)
    assert watched.past().actions[0].tolist() == []
