"""The replay ring against a plain list of transitions, over random histories."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tensordict import TensorDict
from torch import Tensor

from fastdqn.replay import ReplayBuffer, gather

GO, TERMINATED, TRUNCATED, RESET = "go", "terminated", "truncated", "reset"


@dataclass(frozen=True, order=True)
class Step:
    """One transition, known by the serial numbers of its two observations."""

    env: int
    obs: int
    next_obs: int
    action: int
    terminated: bool
    truncated: bool


@dataclass
class ListedRing:
    """What the ring should hold, written for reading: every row ever, and which are still there.

    Attributes:
        num_rows: Vector steps to keep.
        num_finals: Final frames to keep.
        shown: What each environment shows, by serial number.
        rows: Every vector step so far.
        finals: For each kept final frame, oldest first, the row that it serves.
        oldest: Rows before this one lost a final frame.
        ended: Environments of the last row whose next observation is a kept final frame.
    """

    num_rows: int
    num_finals: int
    shown: list[int]
    rows: list[list[Step]] = field(default_factory=list)
    finals: deque[int] = field(default_factory=deque)
    oldest: int = 0
    ended: set[int] = field(default_factory=set)

    def write(self, row: list[Step], shown: list[int], ended: set[int]) -> None:
        self._keep(len(self.rows), ended)
        self.rows.append(row)
        self.shown, self.ended = shown, ended

    def leave(self, envs: set[int]) -> None:
        """The next observations of `envs` will not be what they show now."""
        if self.rows:
            self._keep(len(self.rows) - 1, envs - self.ended)
            self.ended = self.ended | envs

    def _keep(self, row: int, envs: set[int]) -> None:
        for _ in envs:
            if len(self.finals) == self.num_finals:
                self.oldest = max(self.oldest, self.finals.popleft() + 1)
            self.finals.append(row)

    @property
    def drawable(self) -> list[Step]:
        first = max(self.oldest, len(self.rows) - self.num_rows)
        return sorted(step for row in self.rows[first:] for step in row)


class Histories:
    """Plays one random history on the ring and on the list."""

    def __init__(self, capacity: int, num_envs: int, final_capacity: int | None) -> None:
        self.num_envs = num_envs
        self.replay = ReplayBuffer(capacity, num_envs, (2,), final_capacity=final_capacity)
        rows = -(-capacity // num_envs)
        finals = rows * num_envs if final_capacity is None else max(final_capacity, num_envs)
        self.serial = 0
        self.listed = ListedRing(rows, finals, self._fresh())
        self.replay.begin(self._frames(self.listed.shown))

    def _fresh(self) -> list[int]:
        """New serial numbers, one for each environment."""
        self.serial += self.num_envs
        return list(range(self.serial - self.num_envs, self.serial))

    def _frames(self, serials: list[int]) -> Tensor:
        return torch.tensor([[env, serial] for env, serial in enumerate(serials)]).float()

    def write(self, kinds: list[str], within_step: bool) -> None:
        """One vector step; what ended is reset within it, or shows its last frame for a step."""
        before, after, final = self.listed.shown, self._fresh(), self._fresh()
        actions, over = self._fresh(), {TERMINATED, TRUNCATED}
        ended = {e for e, kind in enumerate(kinds) if kind in over} if within_step else set()
        real = np.array([kind != RESET for kind in kinds])
        self.replay.write(
            torch.tensor(actions),
            torch.tensor(actions, dtype=torch.float64) / 2,
            torch.tensor([kind == TERMINATED for kind in kinds]),
            torch.tensor([kind == TRUNCATED for kind in kinds]),
            self._frames(after),
            final_obs=self._frames(final) if within_step else None,
            ended=np.array(sorted(ended), np.int64),
            real=real,
        )
        row = [
            Step(
                env,
                before[env],
                final[env] if env in ended else after[env],
                actions[env],
                kinds[env] == TERMINATED,
                kinds[env] == TRUNCATED,
            )
            for env in range(self.num_envs)
            if real[env]
        ]
        self.listed.write(row, after, ended)

    def extend(self, kinds: list[str], jumps: list[bool]) -> None:
        """One vector step of complete transitions; some start elsewhere than the last one led."""
        jumped = {env for env, jump in enumerate(jumps) if jump}
        fresh, after, actions = self._fresh(), self._fresh(), self._fresh()
        before = [fresh[e] if e in jumped else self.listed.shown[e] for e in range(self.num_envs)]
        self.replay.extend(
            TensorDict(
                {
                    "obs": self._frames(before),
                    "action": torch.tensor(actions),
                    "reward": torch.tensor(actions) / 2,
                    "next_obs": self._frames(after),
                    "terminated": torch.tensor([kind == TERMINATED for kind in kinds]),
                    "truncated": torch.tensor([kind == TRUNCATED for kind in kinds]),
                },
                batch_size=[self.num_envs],
            )
        )
        self.listed.leave(jumped)
        row = [
            Step(e, before[e], after[e], actions[e], kinds[e] == TERMINATED, kinds[e] == TRUNCATED)
            for e in range(self.num_envs)
        ]
        self.listed.write(row, after, set())

    def cut(self) -> None:
        """Start anew everywhere."""
        self.replay.cut()
        self.listed.leave(set(range(self.num_envs)))
        self.listed.shown = self._fresh()
        self.replay.begin(self._frames(self.listed.shown))

    def read(self, index: Tensor) -> list[Step]:
        rows = gather(self.replay.ring, index)
        assert torch.equal(rows.obs[:, 0], rows.next_obs[:, 0])
        assert torch.equal(rows.reward, rows.action / 2)
        columns = (
            rows.obs[:, 0].int(),
            rows.obs[:, 1].int(),
            rows.next_obs[:, 1].int(),
            rows.action,
            rows.terminated,
            rows.truncated,
        )
        return [Step(*values) for values in zip(*(c.tolist() for c in columns), strict=True)]

    def check(self) -> None:
        expected = self.listed.drawable
        assert len(self.replay) == len(expected)
        if expected:
            assert sorted(self.read(self.replay.newest(1, len(expected))[0])) == expected
            assert set(self.read(self.replay.draw(2, 8).flatten())) <= set(expected)


KINDS = (GO, GO, TERMINATED, TRUNCATED, RESET)


def play(data: st.DataObject, capacity: int, num_envs: int, finals: int | None) -> ListedRing:
    """Play a random history and compare after every move; return the list at its end."""
    history = Histories(capacity, num_envs, finals)
    kinds = st.lists(st.sampled_from(KINDS), min_size=num_envs, max_size=num_envs)
    jumps = st.lists(st.booleans(), min_size=num_envs, max_size=num_envs)
    writes = st.tuples(st.just("write"), kinds, st.booleans())
    moves = st.one_of(writes, writes, st.tuples(st.just("extend"), kinds, jumps), st.just(("cut",)))
    for name, *arguments in data.draw(st.lists(moves, max_size=30)):
        getattr(history, name)(*arguments)
        history.check()
    return history.listed


@given(data=st.data(), capacity=st.integers(1, 14), num_envs=st.integers(1, 4))
@settings(max_examples=60, deadline=None)
def test_the_ring_holds_the_newest_transitions_of_any_history(
    data: st.DataObject, capacity: int, num_envs: int
) -> None:
    listed = play(data, capacity, num_envs, None)
    newest = sorted(step for row in listed.rows[-listed.num_rows :] for step in row)
    assert listed.drawable == newest  # enough final frames: nothing is ever lost


@given(
    data=st.data(),
    capacity=st.integers(1, 14),
    num_envs=st.integers(1, 4),
    finals=st.integers(1, 8),
)
@settings(max_examples=60, deadline=None)
def test_with_few_final_frames_the_ring_forgets_exactly_the_rows_that_lost_one(
    data: st.DataObject, capacity: int, num_envs: int, finals: int
) -> None:
    play(data, capacity, num_envs, finals)


class CountingEnvs:
    """Environments that show [episode, t] and end when they have played `lengths[env]` steps."""

    def __init__(self, lengths: list[int]) -> None:
        self.lengths = lengths
        self.episode, self.t = [0] * len(lengths), [0] * len(lengths)

    def obs(self) -> Tensor:
        return torch.tensor([self.episode, self.t]).float().T

    def step(self, env: int) -> bool:
        """Return whether the episode ends with this step."""
        self.t[env] += 1
        return self.t[env] == self.lengths[env]

    def reset(self, env: int) -> None:
        self.episode[env], self.t[env] = self.episode[env] + 1, 0


def run(lengths: list[int], steps: int, within_step: bool) -> ReplayBuffer:
    """Fill a ring from counting environments that reset within the step or in the next one."""
    envs, n = CountingEnvs(lengths), len(lengths)
    replay = ReplayBuffer(steps * n, n, (2,))
    replay.begin(envs.obs())
    ended: list[int] = []
    for _ in range(steps):
        real = np.ones(n, np.bool_)
        if not within_step:
            real[ended] = False
            for env in ended:
                envs.reset(env)
        ended = [env for env in range(n) if real[env] and envs.step(env)]
        final = envs.obs()
        if within_step:
            for env in ended:
                envs.reset(env)
        flags = torch.zeros(n, dtype=torch.bool)
        flags[ended] = True
        replay.write(
            torch.arange(n),
            torch.zeros(n),
            torch.zeros_like(flags),
            flags,
            envs.obs(),
            final_obs=final if within_step else None,
            ended=np.array(ended, np.int64),
            real=None if within_step else real,
        )
    return replay


@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=5), steps=st.integers(1, 30))
@settings(max_examples=40, deadline=None)
def test_resetting_within_the_step_or_in_the_next_one_stores_the_same_transitions(
    lengths: list[int], steps: int
) -> None:
    for within_step in (True, False):
        replay = run(lengths, steps, within_step)
        rows = gather(replay.ring, replay.newest(1, len(replay))[0].flip(0))
        assert torch.equal(rows.obs[:, 0], rows.next_obs[:, 0])  # the same episode
        for env, length in enumerate(lengths):
            mine = rows.action == env
            seen = [(serial // length, serial % length) for serial in range(int(mine.sum()))]
            assert [tuple(pair) for pair in rows.obs[mine].int().tolist()] == seen
            assert torch.equal(rows.next_obs[mine][:, 1], rows.obs[mine][:, 1] + 1)
            ends = [t + 1 == length for _, t in seen]
            assert rows.truncated[mine].tolist() == ends
            assert len(seen) == (steps if within_step else steps - steps // (length + 1))
