"""Worker processes under supervision: one that raises, dies or hangs is replaced, the others go on.

While a replacement starts, the rows of its environments are not `real`: they are no transitions,
and no step waits for them. A fresh worker rebuilds its environments and resets them with new
seeds; what its predecessor had written is dropped. Its environments take part in a step once the
caller has seen their first observations, so that no transition joins the two processes.

This file is longer than most: the states of a worker and the transitions between them belong side
by side.
"""

from __future__ import annotations

import math
import multiprocessing
import time
from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np

from fastdqn.envs.workers.failures import EnvFailures
from fastdqn.envs.workers.pool import PoolSettings, WorkerPool
from fastdqn.envs.workers.process import LOOK_INTERVAL_S, WorkerProcess
from fastdqn.envs.workers.shared_block import RowSpec
from fastdqn.envs.workers.supervision import (
    RestartBudget,
    Supervision,
    failure_line,
    fresh_seeds,
    mark_unreal,
    seeds_text,
)
from fastdqn.envs.workers.task import EnvFactory
from fastdqn.envs.workers.worker import CALL, DONE
from fastdqn.errors import WorkerError

__all__ = ["SupervisedPool"]

LONGEST_WAIT_S = 0.5
"""With no worker left, a collect returns after this without a step, so that signals are handled."""
GLANCE_S = 0.01
POLITE_S = 1.0
"""Seconds for closing the other environments of a worker after one of them has raised."""


class _SupervisedWorker:
    """One worker under supervision.

    It is in one of three states: it serves (`live`); it has ended and is started again at `act_at`;
    or it has been started and must answer `owed` calls until `act_at`.

    Attributes:
        process: The process that serves now, or the last one that did.
        live: Whether it takes part in steps.
        act_at: When to start it, or the deadline of its start.
        owed: Calls that a starting worker has yet to answer: the group of a reset, or -1.
        in_a_row: Restarts since its last step.
        seeds: Seeds of its environments, by group.
        attributes: What `set_attr` has set, by group and name.
        due: Whether an answer is awaited, by group.
        answers: Answers that were received and not collected yet, by group.
        shown: By group: whether the caller has seen the first observations of this process.
        first: Answers to the first resets of this process, by group.
        seen: The last pickled observations, by group; None where they lie in the block.
    """

    def __init__(self, worker: WorkerProcess) -> None:
        groups = range(len(worker.spans))
        self.process = worker
        self.live = True
        self.act_at = math.inf
        self.owed: deque[int] = deque()
        self.in_a_row = 0
        self.seeds: list[list[int | None]] = [[None] * (b - a) for a, b in worker.spans]
        self.attributes: list[dict[str, Any]] = [{} for _ in groups]
        self.due = [False for _ in groups]
        self.answers: dict[int, Any] = {}
        self.shown = [True for _ in groups]
        self.first: list[Any] = [None for _ in groups]
        self.seen: list[list[Any] | None] = [None for _ in groups]

    def remember(self, name: str, arguments: tuple[Any, ...], group: int) -> None:
        """Keep seeds and attributes, which a replacement needs, too."""
        if name == "set_attr":
            attribute, values = arguments
            self.attributes[group][attribute] = values
        elif name == "reset":
            old, new = self.seeds[group], arguments[0]
            self.seeds[group] = [b if b is not None else a for a, b in zip(old, new, strict=True)]

    def calls(self, group: int) -> list[tuple[str, tuple[Any, ...]]]:
        """Return the first calls to a fresh worker for a group; the reset comes last."""
        seeds = self.seeds[group]
        return [
            ("make", ()),
            *(("set_attr", attribute) for attribute in self.attributes[group].items()),
            ("reset", (seeds, None, [True] * len(seeds))),
        ]

    def seeds_of(self, envs: Sequence[int]) -> list[int | None]:
        """Return the seeds of these environments; of all if `envs` is empty."""
        pairs = [
            (first + i, seed)
            for (first, _), seeds in zip(self.process.spans, self.seeds, strict=True)
            for i, seed in enumerate(seeds)
        ]
        return [seed for env, seed in pairs if env in envs or not envs]


class SupervisedPool(WorkerPool):
    """A `WorkerPool` that replaces workers instead of raising.

    Failures before the first reset are raised at once, since a factory that fails then will fail
    again. Later, only a spent budget is raised, and failures that no restart can mend. A call whose
    worker dies or hangs is repeated with its replacement, which also gets the attributes that were
    set.

    Args:
        env_fns: Factories, one per environment; pickled by value.
        spec: Layout of the shared block.
        settings: How the environments are dealt out.
        supervision: Deadlines and limits of restarts.

    Attributes:
        budget: The restarts so far.
        restarted: [N] bool, whose last row is no transition since its worker was restarted.
    """

    def __init__(
        self,
        env_fns: Sequence[EnvFactory],
        spec: RowSpec,
        settings: PoolSettings,
        supervision: Supervision,
    ) -> None:
        self.supervision, self.budget = supervision, RestartBudget(supervision)
        self.restarted = np.zeros(len(env_fns), np.bool_)
        self._supervised: list[_SupervisedWorker] = []
        self._asked: dict[int, tuple[str, Sequence[tuple[Any, ...]]]] = {}
        self._deadlines: dict[int, float] = {}
        self._steps = 0
        super().__init__(env_fns, spec, settings)
        self._supervised = [_SupervisedWorker(worker) for worker in self.workers]

    def _start(self, index: int) -> WorkerProcess:
        worker = super()._start(index)
        worker.wire.limit(self.supervision.deadline_s)
        return worker

    # Requests

    def send_step(self, group: int = 0) -> None:
        """Wake every worker that takes part for one step of a group; hot path.

        Raises:
            WorkerError: The budget of restarts is spent.
        """
        self._begin("step", (), group)
        signal_ = bytes((group,))
        for member in self._supervised:
            if member.live and member.shown[group]:
                self._send(member, group, signal_)

    def send_call(self, name: str, arguments: Sequence[tuple[Any, ...]], group: int = 0) -> None:
        """Send each worker its arguments of a call; all but a step wait until all workers live."""
        if not self._supervised:
            super().send_call(name, arguments, group)
            return
        messages = [self.packed(name, group, part) for part in arguments]
        if name != "step":
            self._wait_for_all()
        self._begin(name, arguments, group)
        for member, message, part in zip(self._supervised, messages, arguments, strict=True):
            member.remember(name, part, group)
            if name != "step" or (member.live and member.shown[group]):
                self._send(member, group, CALL, message)

    def _begin(self, name: str, arguments: Sequence[tuple[Any, ...]], group: int) -> None:
        self._asked[group] = name, arguments
        self._deadlines.pop(group, None)
        self._steps += name == "step"

    def _send(
        self, member: _SupervisedWorker, group: int, signal_: bytes, message: bytes | None = None
    ) -> None:
        """Send a live worker a signal; replace it if it has ended."""
        start, stop = member.process.spans[group]
        if self._asked[group][0] == "step" and self.restarted[start]:
            self.rows.real[start:stop] = True
            self.restarted[start:stop] = False
        try:
            member.process.send(signal_, message)
            member.due[group] = True
        except WorkerError as error:
            self._replace(member, str(error))

    # Answers

    def collect(self, timeout: float | None, group: int = 0) -> list[Any]:
        """Wait for the workers that take part; after a step the rows of the others are not real.

        Raises:
            TimeoutError: `timeout` seconds passed; the call may be repeated.
            WorkerError: The budget of restarts is spent.
            EnvFailures: Environments raised in a call that is no step and no reset, or returned
                what cannot be used.
        """
        if not self._supervised:
            return super().collect(self.supervision.deadline_s, group)
        now, patience_s = time.monotonic(), self.supervision.deadline_s
        deadline = self._deadlines.setdefault(group, now + patience_s)
        until = deadline if timeout is None else min(deadline, now + timeout)
        for member in self._supervised:
            if member.due[group]:
                received = member.process.next_signal() if until - now >= LOOK_INTERVAL_S else b""
                if received == DONE:
                    member.due[group], member.answers[group] = False, None
                    continue
                if not received:
                    self._wait_for(member, group, until)
                    self._refuse_late(member, timeout, deadline)
                    now = time.monotonic()
                self._take(member, group, received)
        name, arguments = self._asked[group]
        if name == "step":
            return self._answers_to_step(group)
        return self._answers_to_call(name, arguments, group)

    def _wait_for(self, member: _SupervisedWorker, group: int, until: float) -> None:
        """Wait for a slow worker; take the answers of others meanwhile."""
        while (remaining_s := until - time.monotonic()) > 0 and not member.process.answered(0.0):
            for other in self._supervised:
                if other is not member and other.due[group] and other.process.answered(0.0):
                    self._take(other, group)
            if member.process.answered(min(remaining_s, LOOK_INTERVAL_S)):
                return

    @staticmethod
    def _refuse_late(member: _SupervisedWorker, timeout: float | None, deadline: float) -> None:
        """Raise if the caller's timeout ended before the deadline of the supervision."""
        if member.process.answered(0.0) or time.monotonic() >= deadline:
            return
        raise multiprocessing.TimeoutError(f"{member.process} has not answered within {timeout} s")

    def _take(self, member: _SupervisedWorker, group: int, received: bytes = b"") -> None:
        """Take the awaited answer of a worker; replace the worker if there is none."""
        if not member.due[group]:
            return
        try:
            answer = self._answer_or_hang(member, received)
        except EnvFailures as error:
            if self._asked[group][0] in {"step", "reset"} and not error.final():
                self._replace(member, *_failure_message(member, error))
                return
            answer = error
        except WorkerError as error:
            self._replace(member, str(error))
            return
        member.due[group] = False
        member.answers[group] = answer

    def _answer_or_hang(self, member: _SupervisedWorker, received: bytes) -> Any:
        """Return the answer of a worker.

        Raises:
            WorkerError: It has ended, or there is no answer.
            EnvFailures: Environments raised.
        """
        if received or member.process.answered(0.0):
            return member.process.receive(received)
        deadline_s = self.supervision.deadline_s
        raise WorkerError(f"{member.process} has not answered within {deadline_s:g} s")

    def _answers_to_step(self, group: int) -> list[Any]:
        answers = [self._answer_to_step(member, group) for member in self._supervised]
        _raise_failures(answers)
        if not any(member.live for member in self._supervised):
            self._wait_for_one()
        return answers

    def _answer_to_step(self, member: _SupervisedWorker, group: int) -> Any:
        if group in member.answers:
            member.in_a_row = 0
            answer = member.answers.pop(group)
            if answer is not None and not isinstance(answer, EnvFailures):
                member.seen[group] = answer[1]
            return answer
        start, stop = member.process.spans[group]
        mark_unreal(self.rows, start, stop)
        self.restarted[start:stop] = True
        self._advance(member)
        if member.live:
            member.shown[group] = True
            return member.first[group]
        return None if member.seen[group] is None else ({}, member.seen[group])

    def _answers_to_call(
        self, name: str, arguments: Sequence[tuple[Any, ...]], group: int
    ) -> list[Any]:
        """Return the answers to a call; it is repeated with workers that had to be replaced."""
        while any(group not in member.answers for member in self._supervised):
            self._wait_for_all()
            for member, part in zip(self._supervised, arguments, strict=True):
                if group not in member.answers:
                    self._repeat_call(member, name, part, group)
        answers = [member.answers.pop(group) for member in self._supervised]
        _raise_failures(answers)
        if name == "reset":
            self._note_shown(arguments, answers, group)
        return answers

    def _repeat_call(
        self, member: _SupervisedWorker, name: str, arguments: tuple[Any, ...], group: int
    ) -> None:
        """Get the answer of a fresh worker, which has reset its environments already."""
        if name == "reset":
            _, options, mask = arguments
            if not options:
                member.answers[group] = member.first[group]
                return
            arguments = member.seeds[group], options, [True] * len(mask)
        self._send(member, group, CALL, self.packed(name, group, arguments))
        if member.due[group]:
            member.process.answered(self.supervision.deadline_s)
            self._take(member, group)

    def _note_shown(
        self, arguments: Sequence[tuple[Any, ...]], answers: Sequence[Any], group: int
    ) -> None:
        """Note whose first observations the caller sees after a reset; a partial one shows none."""
        for member, (_, _, mask), (_, travelled) in zip(
            self._supervised, arguments, answers, strict=True
        ):
            member.seen[group] = travelled
            member.shown[group] = member.shown[group] or all(mask)

    # Replacement

    def _replace(self, member: _SupervisedWorker, trouble: str, envs: Sequence[int] = ()) -> None:
        """End a worker, drop what it wrote, and schedule a replacement.

        Args:
            member: The worker.
            trouble: What happened; the first line goes to the console.
            envs: Environments whose seeds are reported; empty is all of the worker's.

        Raises:
            WorkerError: The budget of restarts is spent.
        """
        if envs:  # it still runs: its other environments may have started programs
            member.process.request_close()
        member.process.end(POLITE_S if envs else 0.0)  # nothing writes its rows from here on
        member.live, groups = False, len(member.due)
        member.due, member.shown = [False] * groups, [False] * groups
        member.answers.clear()
        member.owed.clear()
        member.in_a_row += 1
        for start, stop in member.process.spans:
            self.rows.obs[start:stop] = 0
            self.rows.action_mask[start:stop] = True
        first, newline, rest = trouble.partition("\n")
        when = f"in vector step {self._steps}, {seeds_text(member.seeds_of(envs))}"
        delay_s = self.budget.spend(f"{first}; {when}{newline}{rest}", member.in_a_row)
        member.act_at = time.monotonic() + delay_s
        self._advance(member)

    def _advance(self, member: _SupervisedWorker) -> None:
        """Advance a replacement by what it has answered so far; never waits."""
        if member.live:
            return
        if member.process.ended:
            if time.monotonic() >= member.act_at:
                self._start_again(member)
            return
        try:
            while member.owed and member.process.answered(0.0):
                answer, group = member.process.receive(), member.owed.popleft()
                if group >= 0:
                    member.first[group] = answer
                    member.seen[group] = answer[1]
        except EnvFailures as error:
            if final := error.final():
                member.process.end()
                member.owed.clear()
                raise final from None
            self._replace(member, *_failure_message(member, error))
            return
        except WorkerError as error:
            self._replace(member, str(error))
            return
        member.live = not member.owed
        if not member.live and time.monotonic() > member.act_at:
            deadline_s = self.supervision.deadline_s
            self._replace(member, f"{member.process} has not started within {deadline_s:g} s")

    def _start_again(self, member: _SupervisedWorker) -> None:
        """Start a fresh process and send it the calls that build and reset its environments."""
        index = member.process.index
        member.seeds = [fresh_seeds(seeds, self.budget.count) for seeds in member.seeds]
        try:
            member.process = self.workers[index] = self._start(index)
            for group in range(len(member.seeds)):
                for name, arguments in member.calls(group):
                    member.process.send(CALL, self.packed(name, group, arguments))
                    member.owed.append(group if name == "reset" else -1)
        except (OSError, WorkerError) as error:
            self._replace(member, f"worker {index} could not be started ({error})")
            return
        member.act_at = time.monotonic() + self.supervision.deadline_s

    def _wait_for_one(self) -> None:
        """Wait a moment until one worker lives."""
        until = time.monotonic() + LONGEST_WAIT_S
        while time.monotonic() < until and not any(member.live for member in self._supervised):
            self._advance_all()

    def _wait_for_all(self) -> None:
        """Wait until all workers live."""
        while not all(member.live for member in self._supervised):
            self._advance_all()

    def _advance_all(self) -> None:
        for member in self._supervised:
            if not member.live:
                if member.process.ended:
                    time.sleep(GLANCE_S)
                else:
                    member.process.answered(GLANCE_S)
                self._advance(member)

    def close(self, timeout: float | None) -> None:
        """End the workers; kill those that are only starting."""
        for member in self._supervised:
            if not member.live:
                member.process.end()
        super().close(timeout)


def _raise_failures(answers: Sequence[Any]) -> None:
    """Raise the failures among the answers, in the order of the workers."""
    if any(answers):
        failures = [f for a in answers if isinstance(a, EnvFailures) for f in a.failures]
        if failures:
            raise EnvFailures(failures)


def _failure_message(member: _SupervisedWorker, error: EnvFailures) -> tuple[str, list[int]]:
    """Return the message about a worker's failures, and the environments that raised."""
    lines = [f"{member.process}: {failure_line(error.failures)}", *map(str, error.failures)]
    return "\n".join(lines), [failure.env for failure in error.failures]
