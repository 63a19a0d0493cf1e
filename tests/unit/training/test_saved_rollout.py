"""A rollout that is saved goes on in other environments as if it had never stopped."""

from __future__ import annotations

import copy
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from fastdqn.envs.grouped import GroupedVectorEnv
from fastdqn.envs.sources.source import source_of
from fastdqn.envs.workers import open_episodes
from fastdqn.envs.workers.allocation import Allocation
from fastdqn.envs.workers.open_episodes import Histories
from fastdqn.envs.workers.origins import GENERATOR, KIND
from fastdqn.errors import CheckpointError
from fastdqn.foundation.state import PartState
from fastdqn.training.host.rollout import HostRollout
from tests.continued import (
    FACTORIES,
    DiesOnce,
    NoiseEnv,
    Silent,
    assert_nothing_is_joined,
    counted,
    keeping,
    noisy,
    resumed,
    rows_of,
    saved_and_read,
)
from tests.drive import MODES, everything_in, roll, rollout_of


def started(
    envs: GroupedVectorEnv, vector_steps: int, seed: int = 3, capacity: int = 2000
) -> HostRollout:
    rollout = rollout_of(source_of(envs), capacity, seed)
    rollout.reset(range(11, 11 + envs.num_envs))
    roll(rollout, vector_steps)
    return rollout


def generators(rollout: HostRollout) -> list[Any]:
    """Return the state of each environment's generator, wherever it lives."""
    envs: Any = rollout.source.envs  # type: ignore[attr-defined]
    return [rng.bit_generator.state for rng in envs.call("np_random")]


def assert_alike(one: HostRollout, other: HostRollout, vector_steps: int = 30) -> None:
    """Check that both bring the same from now on, to the bit."""
    assert roll(one, vector_steps) == roll(other, vector_steps)
    assert one.env_steps == other.env_steps
    for name, cells in one.replay.ring.cells().items():
        assert torch.equal(cells, other.replay.ring.cells()[name]), name
    assert len(one.replay) == len(other.replay)


def close(*rollouts: HostRollout) -> None:
    for rollout in rollouts:
        rollout.source.close()


def check_cut(name: str, cut: int) -> None:
    factories = [FACTORIES[name]] * 2
    rollout = started(keeping(factories), cut)
    twin = resumed(rollout, keeping(factories))
    assert twin.lost == {}
    assert generators(twin) == generators(rollout)
    assert_alike(rollout, twin)
    assert generators(twin) == generators(rollout)
    close(rollout, twin)


@pytest.mark.parametrize("name", FACTORIES)
def test_the_next_transitions_and_the_generators_are_those_of_a_rollout_that_never_stopped(
    name: str,
) -> None:
    check_cut(name, 45)


@pytest.mark.slow
@pytest.mark.parametrize("name", FACTORIES)
def test_they_are_wherever_it_stopped(name: str) -> None:
    for cut in np.random.default_rng(7).integers(1, 300, 12).tolist():
        check_cut(name, cut)


@pytest.mark.parametrize("steps", [0, 1, 2, 3, 40, 41])
@pytest.mark.parametrize("groups", [2, 3])
def test_groups_that_step_while_they_are_saved_go_on_alike(groups: int, steps: int) -> None:
    factories = [NoiseEnv] * 6
    rollout = started(keeping(factories, num_groups=groups), steps)
    never = started(keeping(factories, num_groups=groups), steps)
    twin = resumed(rollout, keeping(factories, num_groups=groups))
    assert twin.lost == {}
    again = resumed(twin, keeping(factories, num_groups=groups))  # nothing was done in between
    assert again.lost == {}
    assert_alike(never, twin)
    for other in (rollout, again):  # the first of which was saved, and waited for its groups
        roll(other, 30)
        assert_alike(never, other, 0)
    assert_alike(twin, again)
    close(rollout, never, twin, again)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("rows", range(4, 9))
def test_they_go_on_alike_over_a_ring_that_holds_the_end_of_their_episodes_alone(
    rows: int, groups: int
) -> None:
    factories = noisy(4)
    rollout = started(keeping(factories, num_groups=groups), 61, capacity=4 * rows)
    assert max(map(len, histories(rollout).actions)) > rows
    twin = resumed(rollout, keeping(factories, num_groups=groups))
    assert twin.lost == {}
    assert_alike(rollout, twin)
    close(rollout, twin)


def test_a_rollout_that_was_resumed_can_be_saved_again() -> None:
    factories = [NoiseEnv] * 4
    rollout = started(keeping(factories), 25)
    twin = resumed(rollout, keeping(factories))
    for steps in (0, 1, 7, 40):
        assert_alike(rollout, twin, steps)
        former, twin = twin, resumed(twin, keeping(factories))
        assert twin.lost == {}
        close(former)
    assert_alike(rollout, twin)
    close(rollout, twin)


def test_environments_go_on_after_other_seeds_than_those_of_the_last_reset(tmp_path: Path) -> None:
    """One that raised has a new seed, which decides its layout in all later episodes, too."""

    def raises_once(env_id: int, path: str) -> NoiseEnv:
        env = DiesOnce(env_id, str(tmp_path / path), how="raises")
        env.fate = "layout"
        return env

    factories = [partial(raises_once, 0, "raised"), partial(NoiseEnv, "layout", 1)]
    rollout = started(keeping(factories), 100)
    assert rollout.num_restarts == 1
    assert rollout.source.rows.origin[:, KIND].tolist() == [GENERATOR] * 2
    twin = resumed(rollout, keeping(factories))
    assert twin.lost == {}
    other = [partial(NoiseEnv, "hidden", 0), factories[1]]  # of which the first one is lost
    again = resumed(twin, keeping(other))
    roll(again, 100)
    last = resumed(again, keeping([partial(NoiseEnv, "layout", 0), factories[1]]))
    assert list(again.lost) == [0]
    assert list(last.lost) == [0]
    close(rollout, twin, again, last)


@pytest.mark.parametrize("steps", [0, 1, 20, 21])
@pytest.mark.parametrize("groups", [1, 2, 3])
def test_what_is_saved_at_once_after_a_resume_is_what_was_saved_before_it(
    groups: int, steps: int
) -> None:
    rollout = started(keeping(noisy(6), num_groups=groups), steps)
    before = saved_and_read(rollout.state())
    twin = resumed(rollout, keeping(noisy(6), num_groups=groups), before)
    after = saved_and_read(twin.state())
    assert after.values == before.values
    assert after.tensors.keys() == before.tensors.keys()
    found = [name for name in after.tensors if not after.tensors[name].equal(before.tensors[name])]
    assert found == []
    close(rollout, twin)


# Workers


@pytest.mark.parametrize(
    ("groups", "given"),
    [
        (2, {"num_workers": 1}),
        pytest.param(1, {"num_workers": 2}, marks=pytest.mark.slow),
        pytest.param(2, {"allocation": Allocation(1, caller_envs=1)}, marks=pytest.mark.slow),
    ],
)
def test_episodes_go_on_with_other_workers_than_before(groups: int, given: Any) -> None:
    factories, here = noisy(4), {"num_groups": groups}
    rollout = started(keeping(factories, **here, **given, context="forkserver"), 31)
    twin = resumed(rollout, keeping(factories, **here))
    back = resumed(twin, keeping(factories, **here, **given, context="forkserver"))
    assert twin.lost == back.lost == {}
    assert_alike(rollout, twin)
    roll(back, 30)
    assert_alike(back, twin, 0)
    close(rollout, twin, back)


# What does not come back

UNLIKE = "played again, it shows something else after "
UNKNOWN = "what its episode began from is not known"
ODD: dict[str, tuple[Any, str]] = {
    "hidden generator": (partial(NoiseEnv, "hidden", 2), UNLIKE),
    "clock": (partial(NoiseEnv, "clock", 2), UNLIKE),
    "state across episodes": (partial(counted, 2), UNLIKE),
    "no generator": (partial(Silent, env_id=2), UNKNOWN),
}


def assert_only_one_began_anew(rollout: HostRollout, twin: HostRollout, env: int, why: str) -> None:
    """Check who lost its episode, and that the others go on as if nothing had happened."""
    assert list(twin.lost) == [env]
    assert twin.lost[env].startswith(why)
    for each in (rollout, twin):
        roll(each, 40)
    stored, others = everything_in(twin.replay), set(range(twin.num_envs)) - {env}
    assert_nothing_is_joined(stored)
    never = everything_in(rollout.replay)
    assert rows_of(stored, others) == rows_of(never, others)
    assert len(rows_of(stored, {env})) >= len(rows_of(never, {env})) - 1


@pytest.mark.parametrize("more", [0, 1])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("kind", ODD)
def test_an_environment_that_something_else_decides_begins_anew_and_is_named(
    kind: str, groups: int, more: int
) -> None:
    odd, why = ODD[kind]
    factories = noisy(4, odd, 2)
    rollout = started(keeping(factories, num_groups=groups), 50 * groups + more)
    twin = resumed(rollout, keeping(factories, num_groups=groups))
    assert_only_one_began_anew(rollout, twin, 2, why)
    close(rollout, twin)


def test_what_was_shown_on_the_way_is_compared_and_not_the_last_observation_alone() -> None:
    """A forged reward in the middle of an episode, which the ring holds, is noticed."""
    rollout = started(keeping(noisy(3)), 0)
    while min(map(len, histories(rollout).actions)) < 5:
        roll(rollout, 1)
    for name, back in (("reward", 2), ("frames", 3), ("terminated", 4), ("truncated", 3)):
        twin_replay = copy.deepcopy(rollout.replay)
        cells = twin_replay.ring.cells()[name]
        place = (twin_replay.valid.mark[1] - back) * 3 + 1
        cells[place] = ~cells[place] if cells.dtype is torch.bool else cells[place] + 1
        twin = resumed(rollout, keeping(noisy(3)), replay=twin_replay)
        assert list(twin.lost) == [1], name
        close(twin)
    close(rollout)


def histories(rollout: HostRollout) -> Histories:
    source: Any = rollout.source
    kept: Histories = source.histories()
    return kept


def test_an_episode_that_takes_too_long_to_play_again_begins_anew() -> None:
    rollout = started(keeping(noisy(3)), 20)
    twin = resumed(rollout, keeping(noisy(3)), limit_s=0.0)
    open_ = [env for env, taken in enumerate(histories(rollout).actions) if len(taken)]
    assert sorted(twin.lost) == open_
    assert all("steps again takes longer than 0 s" in why for why in twin.lost.values())
    roll(twin, 30)
    assert_nothing_is_joined(everything_in(twin.replay))
    close(rollout, twin)


def test_an_episode_of_more_steps_than_are_kept_begins_anew(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(open_episodes, "MOST_STEPS", 8)
    monkeypatch.setattr(open_episodes, "FEWEST_STEPS", 8)
    rollout = started(keeping(noisy(8)), 50)
    lengths = [int(group.t) for group in envs_of(rollout)]
    twin = resumed(rollout, keeping(noisy(8)))
    assert min(lengths) <= 8 < max(lengths)
    assert sorted(twin.lost) == [env for env, t in enumerate(lengths) if t > 8]
    assert set(twin.lost.values()) == {"its episode is longer than the steps that are kept"}
    roll(twin, 30)
    assert_nothing_is_joined(everything_in(twin.replay))
    close(rollout, twin)


def envs_of(rollout: HostRollout) -> list[Any]:
    """Return the environments of this process."""
    source: Any = rollout.source
    return [env for host in source.envs._pool.hosts for env in host.envs]


@pytest.mark.parametrize("groups", [1, 2])
def test_a_resumed_run_whose_environments_cannot_say_anything_begins_anew_everywhere(
    groups: int,
) -> None:
    factories = noisy(4)
    rollout = started(keeping(factories, num_groups=groups, keep_episodes=False), 33)
    twin = resumed(rollout, keeping(factories, num_groups=groups, keep_episodes=False))
    assert set(twin.lost.values()) == {"the episodes of these environments are not kept"}
    assert sorted(twin.lost) == [0, 1, 2, 3]
    roll(twin, 60)
    assert_nothing_is_joined(everything_in(twin.replay))
    close(rollout, twin)


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.name)
def test_a_vector_of_the_callers_own_begins_anew_everywhere(mode: AutoresetMode) -> None:
    rollouts = []
    for _ in range(2):
        rollout = rollout_of(source_of(SyncVectorEnv(noisy(3), autoreset_mode=mode)), 500)
        rollouts.append(rollout)
    rollouts[0].reset([1, 2, 3])
    roll(rollouts[0], 25)
    rollouts[1].replay = copy.deepcopy(rollouts[0].replay)
    rollouts[1].restore(saved_and_read(rollouts[0].state()))
    assert sorted(rollouts[1].lost) == [0, 1, 2]
    roll(rollouts[1], 60)
    assert_nothing_is_joined(everything_in(rollouts[1].replay))
    close(*rollouts)


def test_new_episodes_take_other_seeds_than_the_last_ones_and_the_same_in_every_resume() -> None:
    rollout = started(keeping([partial(NoiseEnv, "clock", i) for i in range(2)]), 20)
    tags = []
    for _ in range(2):
        twin = resumed(rollout, keeping(noisy(2)))
        assert len(twin.lost) == 2
        tags.append([env.tag for env in envs_of(twin)])
        roll(twin, 1)
        again = resumed(twin, keeping(noisy(2)), limit_s=0.0)
        assert len(again.lost) == 2
        tags.append([env.tag for env in envs_of(again)])
        close(twin, again)
    assert tags[:2] == tags[2:]
    first = started(keeping(noisy(2)), 0)
    tags.append([env.tag for env in envs_of(first)])
    assert all(len({*each}) == 3 for each in zip(*tags[2:], strict=True))
    close(rollout, first)


def test_an_episode_of_unknown_origin_is_followed_by_one_of_another_seed() -> None:
    rollout = started(keeping(noisy(2)), 0)
    tags = [env.tag for env in envs_of(rollout)]
    state = saved_and_read(rollout.state())
    state.tensors["origins"][1] = 0
    twin = resumed(rollout, keeping(noisy(2)), state)
    assert twin.lost == {1: UNKNOWN}
    assert [env.tag == tag for env, tag in zip(envs_of(twin), tags, strict=True)] == [True, False]
    close(rollout, twin)


def test_a_mask_alone_that_differs_is_noticed_with_the_ring_and_without() -> None:
    factories = [FACTORIES["masks"]] * 3
    rollout = started(keeping(factories), 0)
    while min(map(len, histories(rollout).actions)) < 5:
        roll(rollout, 1)
    for replay in (None, rollout_of(rollout.source).replay):
        state = saved_and_read(rollout.state())
        state.tensors["rows/action_mask"][2, 0] ^= True
        twin = resumed(rollout, keeping(factories), state, replay=replay)
        assert list(twin.lost) == [2]
        close(twin)
    forged_ring = copy.deepcopy(rollout.replay)
    masks = forged_ring.ring.masks
    assert masks is not None
    masks[(forged_ring.valid.mark[1] - 2) * 3 + 1] ^= True
    twin = resumed(rollout, keeping(factories), replay=forged_ring)
    assert list(twin.lost) == [1]
    close(rollout, twin)


@pytest.mark.parametrize("name", ["reward", "terminated", "truncated", "obs"])
def test_without_the_ring_the_last_step_is_compared(name: str) -> None:
    rollout = started(keeping(noisy(3)), 0)
    while min(map(len, histories(rollout).actions)) < 5:
        roll(rollout, 1)
    state = saved_and_read(rollout.state())
    rows = state.tensors[f"rows/{name}"]
    rows[1] = ~rows[1] if rows.dtype is torch.bool else rows[1] + 1
    twin = resumed(rollout, keeping(noisy(3)), state, replay=rollout_of(rollout.source).replay)
    assert list(twin.lost) == [1]
    close(rollout, twin)


# An empty ring


@pytest.mark.parametrize("steps", [40, 41, 42])
@pytest.mark.parametrize("groups", [1, 3])
def test_without_the_ring_the_episodes_go_on_and_the_ring_fills_anew(
    groups: int, steps: int
) -> None:
    rollout = started(keeping(noisy(6), num_groups=groups), steps)
    fresh = rollout_of(rollout.source, 2000).replay
    twin = resumed(rollout, keeping(noisy(6), num_groups=groups), replay=fresh)
    assert twin.lost == {}
    assert twin.env_steps == rollout.env_steps
    shown = [env.t for env in envs_of(rollout)]
    assert [env.t for env in envs_of(twin)] == shown
    roll(twin, 4 * groups)
    stored = everything_in(twin.replay)
    assert len(stored.obs) == 4 * 6
    assert_nothing_is_joined(stored)
    first = stored.obs[-6:]  # newest first
    assert sorted(first[:, [4, 2]].astype(int).tolist()) == [[e, t] for e, t in enumerate(shown)]
    close(rollout, twin)


# Values that cannot be


def forged(state: PartState, **changes: Any) -> PartState:
    """Return a state with other values, or tensors where they are given."""
    tensors = {name: each for name, each in changes.items() if isinstance(each, torch.Tensor)}
    values = {name: each for name, each in changes.items() if name not in tensors}
    named = {name.replace("__", "/"): each for name, each in tensors.items()}
    return PartState({**state.values, **values}, {**state.tensors, **named}, "rollout")


LIES: dict[str, dict[str, Any]] = {
    "num_envs": {"num_envs": 4},
    "num_groups": {"num_groups": 3},
    "seeds": {"seeds": [1, 2, 3, -1, 5, 6]},
    "order": {"order": [1, 1]},
    "num_unread": {"num_unread": 3},
    "lengths": {"lengths": [10**12] * 6},
    "actions": {"lengths": [2**31 - 1] * 6},
    "env_steps": {"env_steps": -1},
    "action": {"action": torch.full((6,), 3)},
    "origins": {"origins": torch.full((6, 8), 2)},
    "rows/obs": {"rows__obs": torch.zeros(6, 4, dtype=torch.float64)},
    "rows/episode_length": {"rows__episode_length": torch.full((6,), -1)},
}


@pytest.mark.parametrize("name", LIES)
def test_a_value_that_cannot_be_is_refused_by_name(name: str) -> None:
    rollout = started(keeping(noisy(6), num_groups=2), 9)
    envs = keeping(noisy(6), num_groups=2)
    with pytest.raises(CheckpointError, match=rf"^rollout: its {name} is "):
        resumed(rollout, envs, forged(saved_and_read(rollout.state()), **LIES[name]))
    pool: Any = envs._pool
    assert all(env.t == env.tag == 0 for host in pool.hosts for env in host.envs)  # untouched
    envs.close()
    close(rollout)


def test_a_forged_history_loses_its_episode_and_nothing_else() -> None:
    rollout = started(keeping(noisy(4)), 30)
    state = saved_and_read(rollout.state())
    first = next(i for i, length in enumerate(state.values["lengths"]) if length)
    state.tensors["actions"][0] = (state.tensors["actions"][0] + 1) % 3
    twin = resumed(rollout, keeping(noisy(4)), state)
    again = resumed(twin, keeping(noisy(4)))
    assert again.lost == {}
    assert_only_one_began_anew(rollout, twin, first, UNLIKE)
    close(rollout, twin, again)
