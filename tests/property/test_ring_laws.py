"""The replay ring against a plain list of transitions, over random histories."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tensordict import TensorDict
from torch import Tensor

from fastdqn.replay import ReplayBuffer, gather
from fastdqn.replay.prioritized import PrioritizedSampler

GO, TERMINATED, TRUNCATED, RESET = "go", "terminated", "truncated", "reset"
NUM_ACTIONS = 5
GAMMA = 0.5


def masks_of(serials: Tensor) -> Tensor:
    """The mask of a frame [B, 5] bool, the last five bits of its serial number [B]."""
    return (serials.long().unsqueeze(1) >> torch.arange(NUM_ACTIONS)) % 2 == 1


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
        num_rows: Vector steps of a group to keep.
        num_finals: Final frames to keep.
        shown: What each environment of each group shows, by serial number.
        rows: Every vector step of a group so far; the groups take turns.
        finals: For each kept final frame, oldest first, the row that it serves.
        oldest: Rows before this one lost a final frame.
        ended: Environments of each row whose next observation is a kept final frame.
    """

    num_rows: int
    num_finals: int
    shown: list[list[int]]
    rows: list[list[Step]] = field(default_factory=list)
    finals: deque[int] = field(default_factory=deque)
    oldest: int = 0
    ended: list[set[int]] = field(default_factory=list)

    @property
    def group(self) -> int:
        """The group whose turn it is."""
        return len(self.rows) % len(self.shown)

    def write(self, row: list[Step], shown: list[int], ended: set[int]) -> None:
        self._keep(len(self.rows), ended)
        self.shown[self.group] = shown
        self.rows.append(row)
        self.ended.append(ended)

    def leave(self, envs: set[int]) -> None:
        """The next observations of `envs` will not be what they show now."""
        for row in range(max(0, len(self.rows) - len(self.shown)), len(self.rows)):
            self._keep(row, envs - self.ended[row])
            self.ended[row] = self.ended[row] | envs

    def _keep(self, row: int, envs: set[int]) -> None:
        for _ in envs:
            if len(self.finals) == self.num_finals:
                self.oldest = max(self.oldest, self.finals.popleft() + 1)
            self.finals.append(row)

    def continue_(self, steps: list[Step]) -> list[bool]:
        """Return of each step whether the next one of its environment begins where it ends."""
        begun = {(step.env, step.obs) for row in self.rows for step in row}
        return [(s.env, s.next_obs) in begun and not (s.terminated or s.truncated) for s in steps]

    def of_n_steps(self, step: Step, n: int) -> tuple[float, Step, int]:
        """Return the discounted rewards of a step and what continues it, its last, how many."""
        begun = {(later.env, later.obs): later for row in self.rows for later in row}
        total, taken = step.action / 2, 1
        while taken < n and not (step.terminated or step.truncated):
            following = begun.get((step.env, step.next_obs))
            if following is None:
                break
            step, total = following, total + GAMMA**taken * following.action / 2
            taken += 1
        return total, step, taken

    @property
    def drawable(self) -> list[Step]:
        first = max(self.oldest, len(self.rows) - self.num_rows)
        return sorted(step for row in self.rows[first:] for step in row)


class Histories:
    """Plays one random history on the ring and on the list."""

    def __init__(
        self, capacity: int, num_groups: int, row_size: int, final_capacity: int | None
    ) -> None:
        self.row_size, num_envs = row_size, num_groups * row_size
        self.replay = ReplayBuffer(
            capacity,
            num_envs,
            (2,),
            final_capacity=final_capacity,
            num_masked=NUM_ACTIONS,
            num_groups=num_groups,
        )
        self.sampler = PrioritizedSampler(self.replay, 8)
        self.sampler.in_c = None if capacity % 2 else self.sampler.in_c
        self.drawn: deque[tuple[Tensor, Tensor]] = deque(maxlen=6)
        rows = -(-capacity // row_size)
        late = num_envs - row_size  # those that a cut keeps after the ends of younger rows
        finals = late + rows * row_size
        if final_capacity is not None:
            finals = max(final_capacity, num_envs)
        self.serial = 0
        self.listed = ListedRing(rows, finals, [[] for _ in range(num_groups)])
        self._begin()

    def _begin(self) -> None:
        for group in range(len(self.listed.shown)):
            self.listed.shown[group] = self._fresh()
            obs, mask = self._frames(self.listed.shown[group], group)
            self.replay.begin(obs, mask, group)

    def _fresh(self) -> list[int]:
        """New serial numbers, one for each environment of a group."""
        self.serial += self.row_size
        return list(range(self.serial - self.row_size, self.serial))

    def _frames(self, serials: list[int], group: int) -> tuple[Tensor, Tensor]:
        """The observations [environment, serial] of a group, and their masks."""
        first = group * self.row_size
        pairs = [[first + column, serial] for column, serial in enumerate(serials)]
        return torch.tensor(pairs).float(), masks_of(torch.tensor(serials))

    def write(self, kinds: list[str], within_step: bool) -> None:
        """One vector step; what ended is reset within it, or shows its last frame for a step.

        Where nothing but a reset happened, all else that is written is nonsense.
        """
        group = self.listed.group
        before, after, final = self.listed.shown[group], self._fresh(), self._fresh()
        actions, over = self._fresh(), {TERMINATED, TRUNCATED}
        ended = {e for e, kind in enumerate(kinds) if kind in over} if within_step else set()
        real = np.array([kind != RESET for kind in kinds])
        nonsense = torch.from_numpy(~real)
        (obs, mask), (final_obs, final_mask) = (self._frames(s, group) for s in (after, final))
        stays = torch.tensor([e not in ended for e in range(self.row_size)])
        final_obs[stays], final_mask[stays] = torch.nan, True
        self.replay.write(
            torch.tensor(actions).masked_fill(nonsense, -99),
            (torch.tensor(actions, dtype=torch.float64) / 2).masked_fill(nonsense, torch.nan),
            torch.tensor([kind in {TERMINATED, RESET} for kind in kinds]),
            torch.tensor([kind in {TRUNCATED, RESET} for kind in kinds]),
            obs,
            final_obs=final_obs if within_step else None,
            ended=np.array(sorted(ended), np.int64),
            real=real,
            action_mask=mask,
            final_action_mask=final_mask if within_step else None,
        )
        row = [
            Step(
                group * self.row_size + env,
                before[env],
                final[env] if env in ended else after[env],
                actions[env],
                kinds[env] == TERMINATED,
                kinds[env] == TRUNCATED,
            )
            for env in range(self.row_size)
            if real[env]
        ]
        self.listed.write(row, after, ended)

    def extend(self, kinds: list[str], jumps: list[bool]) -> None:
        """One vector step of complete transitions; some start elsewhere than the last one led."""
        jumped = {env for env, jump in enumerate(jumps) if jump}
        fresh, after, actions = self._fresh(), self._fresh(), self._fresh()
        shown = self.listed.shown[0]
        before = [fresh[e] if e in jumped else shown[e] for e in range(self.row_size)]
        next_obs, next_mask = self._frames(after, 0)
        self.replay.extend(
            TensorDict(
                {
                    "obs": self._frames(before, 0)[0],
                    "action": torch.tensor(actions),
                    "reward": torch.tensor(actions) / 2,
                    "next_obs": next_obs,
                    "terminated": torch.tensor([kind == TERMINATED for kind in kinds]),
                    "truncated": torch.tensor([kind == TRUNCATED for kind in kinds]),
                    "next_action_mask": next_mask,
                },
                batch_size=[self.row_size],
            )
        )
        self.listed.leave(jumped)
        row = [
            Step(e, before[e], after[e], actions[e], kinds[e] == TERMINATED, kinds[e] == TRUNCATED)
            for e in range(self.row_size)
        ]
        self.listed.write(row, after, set())

    def cut(self) -> None:
        """Start anew everywhere."""
        self.replay.cut()
        self.listed.leave(set(range(self.row_size)))
        self._begin()

    def read(self, index: Tensor) -> list[Step]:
        rows = gather(self.replay.ring, index)
        assert torch.equal(rows.obs[:, 0], rows.next_obs[:, 0])
        assert torch.equal(rows.reward, rows.action / 2)
        assert rows.next_action_mask is not None
        assert torch.equal(rows.next_action_mask, masks_of(rows.next_obs[:, 1]))
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
            newest = self.replay.newest(1, len(expected))[0]
            steps = self.read(newest)
            assert sorted(steps) == expected
            assert self.replay.ring.continues[newest].tolist() == self.listed.continue_(steps)
            assert set(self.read(self.replay.draw(2, 8).flatten())) <= set(expected)
            self.check_n_steps(newest, steps)
        self.check_priorities()
        for group, serials in enumerate(self.listed.shown):
            obs, mask = self._frames(serials, group)
            shown_mask = self.replay.shown_mask(group)
            head = self.replay._rows.place(self.replay._next_row(group))
            assert not self.replay.ring.continues[head].any()
            assert torch.equal(self.replay.shown(group), obs)
            assert shown_mask is not None
            assert torch.equal(shown_mask, mask)

    def check_n_steps(self, rows: Tensor, steps: list[Step]) -> None:
        """Compare sums of rewards, what follows and its discount with those of the list."""
        n = 1 + self.serial % 5
        stride = self.row_size * len(self.listed.shown)
        batch = gather(replace(self.replay.ring, n_step=n, stride=stride), rows, GAMMA)
        assert batch.discount is not None
        assert torch.equal(batch.obs[:, 1].int(), torch.tensor([step.obs for step in steps]))
        for row, step in enumerate(steps):
            total, last, taken = self.listed.of_n_steps(step, n)
            assert batch.reward[row] == total
            assert batch.next_obs[row, 1] == last.next_obs
            flags = bool(batch.terminated[row]), bool(batch.truncated[row])
            assert flags == (last.terminated, last.truncated)
            assert batch.discount[row] == (0 if last.terminated else GAMMA**taken)

    def check_priorities(self) -> None:
        """The tree holds a priority for what may be drawn, and nothing else; sums are exact."""
        sampler, listed = self.sampler, self.listed.drawable
        sampler.follow()
        leaves = sampler.tree.leaves
        rows = torch.nonzero(leaves)[:, 0]
        assert sorted(self.read(rows)) == listed
        assert math.isclose(sampler.tree.total(), leaves.double().sum(), rel_tol=1e-6)
        assert sampler.tree.most() == leaves.max()
        if not listed:
            return
        batch, numbers = sampler.sample()
        self.drawn.append((numbers, batch.obs[:, 1].int()))
        for index, obs in (self.drawn[0], self.drawn[-1]):
            before, there = leaves.clone(), {step.obs for step in listed}
            sampler.update_priorities(index, 1.0 + obs % 7)
            changed = torch.nonzero(leaves != before)[:, 0]
            assert {step.obs for step in self.read(changed)} <= set(obs.tolist()) & there
            for step, leaf in zip(self.read(rows), leaves[rows].tolist(), strict=True):
                if step.obs in obs:
                    assert math.isclose(leaf, (1 + step.obs % 7 + 1e-6) ** 0.6, rel_tol=1e-5)


KINDS = (GO, GO, TERMINATED, TRUNCATED, RESET)


def play(data: st.DataObject, finals: int | None) -> ListedRing:
    """Play a random history and compare after every move; return the list at its end."""
    num_groups, row_size = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 3))
    history = Histories(data.draw(st.integers(1, 14)), num_groups, row_size, finals)
    some = st.one_of(
        st.just([GO] * row_size),  # whole rows in plenty, so that the draw returns to its order
        st.lists(st.sampled_from(KINDS), min_size=row_size, max_size=row_size),
    )
    jumps = st.lists(st.booleans(), min_size=row_size, max_size=row_size)
    writes = st.tuples(st.just("write"), some, st.booleans())
    extends = st.tuples(st.just("extend"), some, jumps) if num_groups == 1 else writes
    moves = st.one_of(writes, writes, extends, st.just(("cut",)))
    for name, *arguments in data.draw(st.lists(moves, max_size=30)):
        getattr(history, name)(*arguments)
        history.check()
    return history.listed


@given(data=st.data())
@settings(max_examples=120, deadline=None, report_multiple_bugs=False)
def test_the_ring_holds_the_newest_transitions_of_any_history(data: st.DataObject) -> None:
    listed = play(data, None)
    newest = sorted(step for row in listed.rows[-listed.num_rows :] for step in row)
    assert listed.drawable == newest  # enough final frames: nothing is ever lost


@given(data=st.data(), finals=st.integers(1, 8))
@settings(max_examples=80, deadline=None, report_multiple_bugs=False)
def test_with_few_final_frames_the_ring_forgets_exactly_the_rows_that_lost_one(
    data: st.DataObject, finals: int
) -> None:
    play(data, finals)


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
@settings(max_examples=40, deadline=None, report_multiple_bugs=False)
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
