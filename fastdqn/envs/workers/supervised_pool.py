"""Worker processes under supervision: one that raises, dies or hangs is replaced, the others go on.

While a replacement starts, the rows of its environments are not `real`: they are no transitions,
and no step waits for them. A fresh worker rebuilds its environments and resets them with new
seeds; what its predecessor had written is dropped. Its environments take part in a step once the
caller has seen their first observations, so that no transition joins the two processes.
"""

from __future__ import annotations

import math
import multiprocessing
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from fastdqn.envs.workers.failures import EnvFailures, raise_failures
from fastdqn.envs.workers.kept_rows import kept_rows
from fastdqn.envs.workers.pool import WorkerPool
from fastdqn.envs.workers.process import LOOK_INTERVAL_S
from fastdqn.envs.workers.settings import EnvFactory, PoolSettings
from fastdqn.envs.workers.supervision import (
    RestartBudget,
    SupervisedWorker,
    Supervision,
    blank,
    fresh_seeds,
    mark_unreal,
    trouble_of,
)
from fastdqn.envs.workers.worker import CALL, DONE
from fastdqn.errors import WorkerError

__all__ = ["SupervisedPool"]

LONGEST_WAIT_S = 0.5
"""With no worker left, a collect returns after this without a step, so that signals are handled."""
GLANCE_S = 0.01


class SupervisedPool(WorkerPool):
    """A `WorkerPool` that replaces workers instead of raising.

    Failures before the first reset are raised at once, since a factory that fails then will fail
    again. Later, only a spent budget is raised, and failures that no restart can mend; whatever is
    sent afterwards raises the same. A call whose worker dies or hangs is repeated with its
    replacement, which also gets the attributes that were set.

    Args:
        env_fns, settings: See `Pool`.
        supervision: Deadlines and limits of restarts.
    """

    budget: RestartBudget

    def __init__(
        self, env_fns: Sequence[EnvFactory], settings: PoolSettings, supervision: Supervision
    ) -> None:
        self.deadline_s = supervision.deadline_s
        self._supervised: list[SupervisedWorker] = []
        self._asked: dict[int, tuple[str, Sequence[tuple[Any, ...]]]] = {}
        self._deadlines: dict[int, float] = {}
        self._steps = 0
        super().__init__(env_fns, settings, RestartBudget(supervision))
        self._kept = kept_rows(self.rows, settings, self.episodes, supervision.restore_s)
        self._supervised = [SupervisedWorker(worker) for worker in self.workers]

    # Requests

    def send_step(self, group: int = 0) -> None:
        """Wake every worker that takes part for one step of a group."""
        self.budget.refuse_if_over()
        self._asked[group] = "step", ()
        self._deadlines.pop(group, None)
        self._steps += 1
        self._kept.keep(group)
        signal_ = bytes((group,))
        for member in self._supervised:
            if member.live and member.shown[group]:
                self._send(member, group, signal_)

    def send_call(self, name: str, arguments: Sequence[tuple[Any, ...]], group: int = 0) -> None:
        """Send each worker its arguments of a call; all but a step wait until all workers live."""
        self.budget.refuse_if_over()
        messages = [self.packed(name, group, part) for part in arguments]
        if name == "step":
            self._steps += 1
        else:
            self._wait_until(all)
            self._kept.forget(group)
        self._asked[group] = name, arguments
        self._deadlines.pop(group, None)
        for member, message, part in zip(self._supervised, messages, arguments, strict=True):
            if name == "set_attr":
                attribute, values = part
                member.attributes[group][attribute] = values
            elif name == "reset":
                self._remember_seeds(member.process.spans[group][0], part[0])
            if name != "step" or (member.live and member.shown[group]):
                self._send(member, group, CALL, message)

    def _send(
        self, member: SupervisedWorker, group: int, signal_: bytes, message: bytes | None = None
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
            self._replace(member, error)

    # Answers

    def collect(self, timeout: float | None, group: int = 0) -> list[Any]:
        """Wait for the workers that take part; after a step the rows of the others are not real.

        See `Pool.collect`.
        """
        now = time.monotonic()
        deadline = self._deadlines.setdefault(group, now + self.deadline_s)
        until = deadline if timeout is None else min(deadline, now + timeout)
        for member in self._supervised:
            if member.due[group]:
                received = member.process.next_signal() if until - now >= LOOK_INTERVAL_S else b""
                if received == DONE:
                    member.due[group], member.answers[group] = False, None
                    continue
                if not received:
                    self._wait_for(member, group, until)
                    now = time.monotonic()
                    if now < deadline and not member.process.answered(0.0):
                        raise multiprocessing.TimeoutError(
                            f"{member.process} has not answered within {timeout} s"
                        )
                self._take(member, group, received)
        name, arguments = self._asked[group]
        if name == "step":
            return self._answers_to_step(group)
        return self._answers_to_call(name, arguments, group)

    def _wait_for(self, member: SupervisedWorker, group: int, until: float) -> None:
        """Wait for a slow worker; take the answers of others meanwhile."""
        while (remaining_s := until - time.monotonic()) > 0 and not member.process.answered(0.0):
            for other in self._supervised:
                if other is not member and other.due[group] and other.process.answered(0.0):
                    self._take(other, group)
            if member.process.answered(min(remaining_s, LOOK_INTERVAL_S)):
                return

    def _take(self, member: SupervisedWorker, group: int, received: bytes = b"") -> None:
        """Take the awaited answer of a worker; replace the worker if there is none."""
        if not member.due[group]:
            return
        process, name = member.process, self._asked[group][0]
        try:
            if not received and not process.answered(0.0):
                raise WorkerError(f"{process} has not answered within {self.deadline_s:g} s")
            answer = process.receive(received)
        except WorkerError as error:
            self._replace(member, error)
            return
        except EnvFailures as error:
            if name in {"step", "reset"} and not error.final():
                self._replace(member, error)
                return
            answer = error
        member.due[group], member.answers[group] = False, answer

    def _answers_to_step(self, group: int) -> list[Any]:
        answers = [self._answer_to_step(member, group) for member in self._supervised]
        if any(answers):
            raise_failures(answers)
        if not any(member.live for member in self._supervised):
            self._wait_until(any, LONGEST_WAIT_S)
        self._kept.release(group)
        return answers

    def _answer_to_step(self, member: SupervisedWorker, group: int) -> Any:
        if group in member.answers:
            member.in_a_row = 0
            answer = member.answers.pop(group)
            if answer is not None and not isinstance(answer, EnvFailures):
                member.seen[group] = answer[1]
            return answer
        start, stop = member.process.spans[group]
        mark_unreal(self.rows, start, stop)
        self._kept.leave_out(start, stop, group)
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
            self._wait_until(all)
            for member, part in zip(self._supervised, arguments, strict=True):
                if group not in member.answers:
                    self._repeat_call(member, name, part, group)
        answers = [member.answers.pop(group) for member in self._supervised]
        raise_failures(answers)
        if name == "reset":
            for member, part, answer in zip(self._supervised, arguments, answers, strict=True):
                member.seen[group] = answer[1]
                member.shown[group] |= all(part[2])  # a reset of some shows nothing of the others
        return answers

    def _repeat_call(
        self, member: SupervisedWorker, name: str, part: tuple[Any, ...], group: int
    ) -> None:
        """Get the answer of a fresh worker, which has reset its environments already."""
        if name == "reset":
            _, options, mask = part
            if not options:
                member.answers[group] = member.first[group]
                return
            seeds = self._seeds[slice(*member.process.spans[group])]
            part = seeds, options, [True] * len(mask)
        self._send(member, group, CALL, self.packed(name, group, part))
        if member.due[group]:
            member.process.answered(self.deadline_s)
            self._take(member, group)

    # Replacement

    def _replace(self, member: SupervisedWorker, error: WorkerError | EnvFailures) -> None:
        """End a worker, drop what it wrote, and schedule a replacement of it."""
        member.end(politely=isinstance(error, EnvFailures))
        member.pasts = self._kept.pasts_of(member, error, self._seeds)
        blank(self.rows, member.process.spans)
        trouble = trouble_of(member, error, self._steps, self._seeds)
        delay_s = self.budget.spend(trouble, member.in_a_row)
        member.act_at = time.monotonic() + delay_s
        self._advance(member)

    def _advance(self, member: SupervisedWorker) -> None:
        """Advance a replacement by what it has answered so far; never waits."""
        if member.live:
            return
        if member.process.ended:
            if time.monotonic() >= member.act_at:
                self._start_again(member)
            return
        try:
            member.take_owed()
            self._kept.revived(member, self._seeds)
            if not member.live and time.monotonic() > member.act_at:
                raise WorkerError(f"{member.process} has not started within {self.deadline_s:g} s")
        except (WorkerError, EnvFailures) as error:
            if isinstance(error, EnvFailures) and (final := error.final()):
                member.process.end()
                member.owed.clear()
                self.budget.over = final
                raise final from None
            self._replace(member, error)

    def _start_again(self, member: SupervisedWorker) -> None:
        """Start a fresh process and send it the calls that build and reset its environments."""
        index = member.process.index
        spans = [slice(*span) for span in member.process.spans]
        for span in spans:
            self._seeds[span] = fresh_seeds(self._seeds[span], self.budget.count)
        try:
            member.process = self.workers[index] = self._start(index)
            for group, span in enumerate(spans):
                known = member.attributes[group], self._seeds[span], member.pasts[group]
                member.process.send(CALL, self.packed("revive", group, known))
                member.owed.append(group)
        except (OSError, WorkerError) as error:
            self._replace(member, WorkerError(f"worker {index} could not be started ({error})"))
            return
        member.act_at = time.monotonic() + self.deadline_s

    def _wait_until(
        self, enough: Callable[[Iterable[bool]], bool], longest_s: float = math.inf
    ) -> None:
        """Start workers until `any` or `all` live, or for `longest_s` seconds."""
        until = time.monotonic() + longest_s
        while time.monotonic() < until and not enough(m.live for m in self._supervised):
            for member in [m for m in self._supervised if not m.live]:
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
