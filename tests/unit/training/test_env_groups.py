"""Groups of environments: their turns, what is counted, and what stays the same."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from fastdqn import DQN, NonFiniteError
from fastdqn.cli import commands
from fastdqn.envs.description import describe
from fastdqn.envs.grouped import GroupedVectorEnv
from fastdqn.envs.sources.source import GroupedSource, make_source, source_of
from fastdqn.policies.policy import Hosted
from fastdqn.training.callbacks import Callback
from fastdqn.training.events import Episode
from fastdqn.training.host.rollout import HostRollout
from tests.drive import everything_in, roll, rollout_of, vector_of
from tests.oracles import (
    CounterEnv,
    CounterRules,
    CrashError,
    CrashingEnv,
    NonFiniteEnv,
    Stored,
    assert_complete,
    assert_counted,
    counters,
    one_of,
)

SAME_STEP = AutoresetMode.SAME_STEP
RULES = CounterRules((3, 1, 7, 2, 5), "alternating")
SMALL: dict[str, Any] = {
    "learning_starts": 40,
    "batch_size": 8,
    "hidden_sizes": (16,),
    "execution": "eager",
    "buffer_size": 2000,
}


def _grouped(
    num_groups: int, num_workers: int = 0, num_envs: int = 6, factories: Any = None, **given: Any
) -> GroupedVectorEnv:
    return GroupedVectorEnv(
        factories or counters(num_envs, RULES.lengths, RULES.ends_by),
        autoreset_mode=SAME_STEP,
        num_workers=num_workers,
        num_groups=num_groups,
        **given,
    )


# Turns


class Tape(GroupedSource):
    """Writes down who steps when."""

    def __init__(self, envs: GroupedVectorEnv) -> None:
        super().__init__(envs, source_of(envs).description)
        self.tape: list[str] = []

    def reset(self, seeds: Sequence[int]) -> None:
        self.tape.append("reset")
        super().reset(seeds)

    def send(self, actions: npt.NDArray[np.int64], group: int = 0) -> None:
        self.tape.append(f"send {group}")
        super().send(actions, group)

    def recv(self, group: int = 0) -> None:
        self.tape.append(f"recv {group}")
        super().recv(group)


def _taped(num_groups: int, vector_steps: int) -> list[str]:
    source = Tape(_grouped(num_groups))
    rollout = rollout_of(source)
    rollout.reset(range(6))
    roll(rollout, vector_steps)
    source.close()
    return source.tape


def test_one_group_is_sent_and_received_in_turn() -> None:
    assert _taped(1, 3) == ["reset", *["send 0", "recv 0"] * 3]


def test_while_one_group_is_waited_for_the_others_step() -> None:
    assert _taped(2, 5) == [
        "reset",
        "send 0",
        "send 1",
        "recv 0",
        "send 0",
        "recv 1",
        "send 1",
        "recv 0",
        "send 0",
        "recv 1",
        "send 1",
        "recv 0",
    ]
    assert _taped(3, 3) == [
        *["reset", "send 0", "send 1", "send 2"],
        *["recv 0", "send 0", "recv 1", "send 1", "recv 2"],
    ]


def test_after_a_reset_in_the_middle_the_group_whose_turn_it_is_begins() -> None:
    source = Tape(_grouped(2))
    rollout = rollout_of(source)
    rollout.reset(range(6))
    roll(rollout, 1)
    source.tape.clear()
    rollout.reset(range(6))
    roll(rollout, 2)
    source.close()
    assert source.tape == [
        *["reset", "recv 1"],  # the step that was under way is received and forgotten
        *["send 1", "send 0", "recv 1", "send 1", "recv 0"],
    ]


# Transitions and counts


def _sequences(stored: Stored) -> dict[tuple[int, ...], tuple[Any, ...]]:
    """Return what followed each observation; counters show each one once."""
    parts = (stored.action, stored.reward, stored.next_obs, stored.terminated, stored.truncated)
    message = zip(*(part.tolist() for part in parts), strict=True)
    return dict(zip(map(tuple, stored.obs.astype(int).tolist()), message, strict=True))


class ByObservation:
    """Acts by what it sees, so that an environment's actions do not depend on its group."""

    def act_on_host(
        self, obs: torch.Tensor, _epsilon: float, _mask: Any = None, _ladder: Any = None
    ) -> Hosted:
        action = (obs @ torch.tensor([5.0, 3.0, 1.0])).long() % 3
        return action, action.numpy()


def _rolled(num_groups: int, num_workers: int, vector_steps: int) -> HostRollout:
    rollout = rollout_of(source_of(_grouped(num_groups, num_workers)))
    rollout.policy = ByObservation()  # type: ignore[assignment]
    rollout.reset(range(6))
    roll(rollout, vector_steps * num_groups)
    rollout.source.close()
    return rollout


@pytest.mark.parametrize(
    ("num_groups", "num_workers"), [(2, 0), (3, 0), (6, 0), (2, 1), (2, 2), (3, 2)]
)
def test_every_environment_goes_through_what_it_does_in_a_single_group(
    num_groups: int, num_workers: int
) -> None:
    one = _sequences(everything_in(_rolled(1, 0, 60).replay))
    rollout = _rolled(num_groups, num_workers, 60)
    stored = everything_in(rollout.replay)
    assert rollout.env_steps == len(stored.action) == 6 * 60
    assert _sequences(stored) == one
    assert_counted(stored, RULES)
    assert_complete(stored, RULES, 6)


@pytest.mark.parametrize("num_groups", [1, 2, 3])
def test_env_steps_and_episodes_are_counted_as_they_are_written(num_groups: int) -> None:
    rollout = rollout_of(source_of(_grouped(num_groups)))
    rollout.reset(range(6))
    message: list[Episode] = []
    for step in range(1, 100):
        episodes = roll(rollout, 1)
        assert rollout.env_steps == step * 6 // num_groups
        assert {episode.env_step for episode in episodes} <= {rollout.env_steps}
        message += episodes
    stored = everything_in(rollout.replay)
    ended = stored.terminated | stored.truncated
    assert [episode.episode for episode in message] == list(range(1, int(ended.sum()) + 1))
    assert rollout.episodes == len(message)
    expected = [RULES.length(*obs[:2]) for obs in stored.obs[ended].astype(int).tolist()]
    assert sorted(episode.length for episode in message) == sorted(expected)
    returns = [_return_of(stored, *obs[:2]) for obs in stored.obs[ended].tolist()]
    assert sorted(episode.return_ for episode in message) == sorted(returns)


def _return_of(stored: Stored, env_id: float, episode: float) -> float:
    mine = (stored.obs[:, 0] == env_id) & (stored.obs[:, 1] == episode)
    return float(stored.reward[mine].sum(dtype=np.float64))


# Resets at any moment


def _sent(rollout: HostRollout) -> None:
    rollout.send(1.0)


def _collected(rollout: HostRollout) -> None:
    rollout.send(1.0)
    rollout.collect()


@pytest.mark.parametrize("moment", [lambda _: None, _sent, _collected], ids=["", "sent", "got"])
@pytest.mark.parametrize(
    ("kind", "num_groups"),
    [
        ("grouped 0", 1),
        ("grouped 0", 2),
        ("grouped 2", 1),
        ("grouped 2", 3),
        ("async", 1),
        ("sync", 1),
    ],
)
def test_a_reset_at_any_moment_joins_nothing_and_loses_nothing_that_was_written(
    kind: str, num_groups: int, moment: Callable[[HostRollout], None]
) -> None:
    if kind.startswith("grouped"):
        envs: Any = _grouped(num_groups, int(kind.split()[1]))
    else:
        envs = vector_of(kind, counters(6, RULES.lengths, RULES.ends_by), SAME_STEP)
    rollout = rollout_of(source_of(envs))
    for round_ in range(1, 4):
        rollout.reset(range(6))
        roll(rollout, 7)
        moment(rollout)
        assert rollout.env_steps == 7 * round_ * 6 // num_groups
    rollout.reset(range(6))
    envs.close()
    stored = everything_in(rollout.replay)
    assert len(stored.action) == rollout.env_steps
    assert_counted(stored, RULES)


def test_what_an_environment_raises_is_raised_once_and_a_reset_goes_on() -> None:
    factories = one_of(partial(CrashingEnv, 3, at=2), 3, 4)
    for num_workers in (0, 2):
        envs = _grouped(2, num_workers, factories=factories)
        rollout = rollout_of(source_of(envs))
        rollout.reset(range(4))
        roll(rollout, 3)
        with pytest.raises(CrashError):
            roll(rollout, 1)
        rollout.reset(range(4))
        roll(rollout, 2)  # its successor would raise in the third
        rollout.source.close()
        assert_counted(everything_in(rollout.replay), CounterRules())


# The vector's own step


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_vector_in_groups_steps_as_gymnasiums_does(num_workers: int) -> None:
    ours = _grouped(3, num_workers)
    theirs = SyncVectorEnv(ours.env_fns, autoreset_mode=SAME_STEP)
    for envs in (ours, theirs):
        envs.reset(seed=0)
    generator = np.random.default_rng(0)
    for _ in range(20):
        actions = generator.integers(3, size=6)
        pairs = zip(ours.step(actions)[:4], theirs.step(actions)[:4], strict=True)
        assert all(np.array_equal(one, other) for one, other in pairs)
    ours.close()


# Numbers that are not finite


@pytest.mark.parametrize(
    ("what", "at"), [("reward", 2), ("obs", 2), ("obs", 3), ("obs", 0)], ids=str
)
def test_a_nan_is_reported_by_the_environments_own_number(what: str, at: int) -> None:
    """At step 3 it is the last observation of an episode, at 0 the first of all."""
    odd = partial(NonFiniteEnv, 4, what=what, at=at)
    rollout = rollout_of(source_of(_grouped(2, factories=one_of(odd, 4, 6))))
    named = "reward" if what == "reward" else "observation"
    with pytest.raises(NonFiniteError, match=rf"^environment 4 returned the {named} "):
        _reset_and_roll(rollout, 2 * at)
    rollout.source.close()
    assert rollout.env_steps == max(2 * at - 1, 0) * 3
    if at:
        assert_counted(everything_in(rollout.replay), CounterRules())


def _reset_and_roll(rollout: HostRollout, vector_steps: int) -> None:
    rollout.reset(range(6))
    roll(rollout, vector_steps)


# Agents


class Returns(Callback):
    """Keeps the episodes that it sees."""

    def __init__(self) -> None:
        self.episodes: list[Episode] = []

    def on_episodes(self, episodes: Sequence[Episode]) -> None:
        self.episodes += episodes


def _trained(**settings: Any) -> tuple[list[float], list[Episode]]:
    callback = Returns()
    agent = DQN("CartPole-v1", num_envs=4, **{**SMALL, **settings})
    agent.learn(400, callback=callback)
    agent.learn(200, callback=callback)
    assert agent.describe()["env_steps"] == 600
    return torch.cat([p.flatten() for p in agent.parameters().values()]).tolist(), callback.episodes


def test_training_in_groups_repeats_with_any_number_of_workers(nothing_left: None) -> None:
    first = _trained(env_groups=2, num_workers=0)
    for num_workers in (0, 1, 2):
        assert _trained(env_groups=2, num_workers=num_workers) == first
    assert _trained(env_groups=1, num_workers=0) != first


@pytest.mark.parametrize("ratio", [0.25, 1.0, 3.0])
@pytest.mark.parametrize(("num_envs", "num_groups"), [(2, 2), (6, 1), (6, 2), (6, 3), (64, 4)])
def test_updates_per_env_step_are_exact_at_every_moment(
    num_envs: int, num_groups: int, ratio: float
) -> None:
    settings = {"num_envs": num_envs, "env_groups": num_groups, "replay_ratio": ratio}
    agent = DQN(CounterEnv, num_workers=0, **{**SMALL, **settings})
    with agent.trainer(200, Callback()) as trainer:
        trainer.begin(agent.env_seeds())
        steps = 0
        while trainer.status == "running":
            trainer.vector_step()
            assert agent.describe()["updates"] == math.floor(max(ratio * (steps - 40), 0))
            steps += num_envs // num_groups
            assert trainer.rollout.env_steps == steps
        assert 200 <= steps < 200 + num_envs // num_groups


@pytest.mark.parametrize("num_workers", [0, 2])
def test_an_agent_learns_again_and_again_in_a_vector_of_the_callers_own(num_workers: int) -> None:
    """Between two calls a step of one group is under way."""
    envs = _grouped(2, num_workers)
    agent = DQN(envs, **SMALL)
    assert (agent.config.num_envs, agent.config.env_groups) == (6, 2)
    for round_ in (1, 2, 3):
        agent.learn(99)
        assert agent.describe()["env_steps"] == 99 * round_
    stored = everything_in(agent.replay)
    envs.close()
    assert len(stored.action) == 297
    assert_counted(stored, RULES)


def test_workers_host_environments_of_every_group() -> None:
    source = make_source("grouped", CounterEnv, describe(CounterEnv), 6, 9, num_groups=2)
    source.close()
    assert (source.num_workers, source.num_groups) == (3, 2)


@pytest.mark.parametrize(
    "flags",
    [["--env-groups", "3"], ["--env-groups", "2", "--vectorizer", "sync"], ["--env-groups", "0"]],
)
def test_groups_that_cannot_be_are_refused_before_anything_starts(
    flags: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert commands.main(["train", "--num-envs", "16", *flags]) == 2
    assert f"--env-groups {flags[1]}" in capsys.readouterr().err
