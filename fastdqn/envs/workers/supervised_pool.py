"""Worker processes under supervision: one that raises, dies or hangs is replaced, the others go on.

While a replacement starts, the rows of its environments are not `real`: they are no transitions,
and nobody waits. A fresh worker builds its environments anew and resets them with seeds from a
new branch; what its predecessor had written is forgotten. Its environments take part in a step
once the caller has been shown their first observations, so that no transition joins two lives.

It is longer than most files: the states of a worker and what leads from one to the next belong
side by side.
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
    branch_of,
    raised,
    seeds_told,
    silence,
)
from fastdqn.envs.workers.task import EnvFactory
from fastdqn.envs.workers.worker import CALL, DONE
from fastdqn.errors import WorkerError

__all__ = ["SupervisedPool"]

LONGEST_WAIT_S = 0.5
"""With no worker left, a collect returns after this without a step, so that signals are heard."""
GLANCE_S = 0.01
POLITE_S = 1.0
"""What a worker gets to close its other environments in, once one of them has raised."""


class _Ward:
    """One worker under supervision.

    It serves (`live`), or it has ended and waits for `act_at` to be started again, or it has been
    started and owes answers until `act_at`.

    Attributes:
        worker: The process that serves now, or the last one that did.
        live: Whether it takes part in steps.
        act_at: When to start it, or the deadline of its start.
        owed: What a starting worker has yet to answer: the group of a reset, or -1.
        in_a_row: Restarts since its last step.
        seeds: Seeds of its environments, by group.
        attributes: What `set_attr` has set, by group and name.
        due: Whether an answer is to come, by group.
        answers: Answers that came and were not collected yet, by group.
        shown: By group: whether the caller has seen the first observations of this life.
        first: Answers to the resets of this life, by group.
        seen: Observations that travelled last, by group; None where they do not travel.
    """

    def __init__(self, worker: WorkerProcess) -> None:
        groups = range(len(worker.spans))
        self.worker = worker
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
        """Keep what a successor must be told as well."""
        if name == "set_attr":
            attribute, values = arguments
            self.attributes[group][attribute] = values
        elif name == "reset":
            old, new = self.seeds[group], arguments[0]
            self.seeds[group] = [b if b is not None else a for a, b in zip(old, new, strict=True)]

    def calls(self, group: int) -> list[tuple[str, tuple[Any, ...]]]:
        """Return what a fresh worker is to do for a group; the reset comes last."""
        seeds = self.seeds[group]
        return [
            ("make", ()),
            *(("set_attr", attribute) for attribute in self.attributes[group].items()),
            ("reset", (seeds, None, [True] * len(seeds))),
        ]

    def seeds_of(self, envs: Sequence[int]) -> list[int | None]:
        """Return the seeds of these environments, or of all."""
        pairs = [
            (first + i, seed)
            for (first, _), seeds in zip(self.worker.spans, self.seeds, strict=True)
            for i, seed in enumerate(seeds)
        ]
        return [seed for env, seed in pairs if env in envs or not envs]


class SupervisedPool(WorkerPool):
    """A `WorkerPool` that replaces workers instead of raising.

    Failures before the first reset are raised at once: a factory that cannot work is no accident.
    Later, only a spent budget is raised, and what no restart would mend. A call whose worker dies
    or hangs is made again to its successor, which also gets the attributes that were set.

    Args:
        env_fns: Factories, one per environment; pickled by value.
        spec: Layout of the shared block.
        settings: How the environments are dealt out.
        supervision: How much patience workers deserve.

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
        self._wards: list[_Ward] = []
        self._asked: dict[int, tuple[str, Sequence[tuple[Any, ...]]]] = {}
        self._deadlines: dict[int, float] = {}
        self._steps = 0
        super().__init__(env_fns, spec, settings)
        self._wards = [_Ward(worker) for worker in self.workers]

    def _start(self, index: int) -> WorkerProcess:
        worker = super()._start(index)
        worker.wire.limit(self.supervision.deadline_s)
        return worker

    # Asking

    def send_step(self, group: int = 0) -> None:
        """Wake every worker that takes part for one step of a group; hot path.

        Raises:
            WorkerError: The budget of restarts is spent.
        """
        self._begin("step", (), group)
        signal_ = bytes((group,))
        for ward in self._wards:
            if ward.live and ward.shown[group]:
                self._send(ward, group, signal_)

    def tell(self, name: str, arguments: Sequence[tuple[Any, ...]], group: int = 0) -> None:
        """Send each worker its arguments; all but a step waits until all of them live."""
        if not self._wards:
            super().tell(name, arguments, group)
            return
        messages = [self.packed(name, group, part) for part in arguments]
        if name != "step":
            self._wait_for_all()
        self._begin(name, arguments, group)
        for ward, message, part in zip(self._wards, messages, arguments, strict=True):
            ward.remember(name, part, group)
            if name != "step" or (ward.live and ward.shown[group]):
                self._send(ward, group, CALL, message)

    def _begin(self, name: str, arguments: Sequence[tuple[Any, ...]], group: int) -> None:
        self._asked[group] = name, arguments
        self._deadlines.pop(group, None)
        self._steps += name == "step"

    def _send(self, ward: _Ward, group: int, signal_: bytes, message: bytes | None = None) -> None:
        """Ask a worker that lives for something; if it has gone, it is replaced."""
        start, stop = ward.worker.spans[group]
        if self._asked[group][0] == "step" and self.restarted[start]:
            self.rows.real[start:stop] = True
            self.restarted[start:stop] = False
        try:
            ward.worker.send(signal_, message)
            ward.due[group] = True
        except WorkerError as error:
            self._replace(ward, str(error))

    # Collecting

    def collect(self, timeout: float | None, group: int = 0) -> list[Any]:
        """Wait for the workers that take part; after a step the rows of the others are not real.

        Raises:
            TimeoutError: `timeout` seconds passed; the call may be repeated.
            WorkerError: The budget of restarts is spent.
            EnvFailures: Environments raised in a call that is no step and no reset, or returned
                what cannot be used.
        """
        if not self._wards:
            return super().collect(self.supervision.deadline_s, group)
        now, patience_s = time.monotonic(), self.supervision.deadline_s
        deadline = self._deadlines.setdefault(group, now + patience_s)
        until = deadline if timeout is None else min(deadline, now + timeout)
        for ward in self._wards:
            if ward.due[group]:
                heard = ward.worker.hear() if until - now >= LOOK_INTERVAL_S else b""
                if heard == DONE:
                    ward.due[group], ward.answers[group] = False, None
                    continue
                if not heard:
                    self._wait_for(ward, group, until)
                    self._refuse_late(ward, timeout, deadline)
                    now = time.monotonic()
                self._take(ward, group, heard)
        name, arguments = self._asked[group]
        if name == "step":
            return self._answers_to_step(group)
        return self._answers_to_call(name, arguments, group)

    def _wait_for(self, ward: _Ward, group: int, until: float) -> None:
        """Wait for a slow worker; take meanwhile what others have to tell."""
        while (remaining_s := until - time.monotonic()) > 0 and not ward.worker.answered(0.0):
            for other in self._wards:
                if other is not ward and other.due[group] and other.worker.answered(0.0):
                    self._take(other, group)
            if ward.worker.answered(min(remaining_s, LOOK_INTERVAL_S)):
                return

    @staticmethod
    def _refuse_late(ward: _Ward, timeout: float | None, deadline: float) -> None:
        """Raise if the caller's patience has ended before that of the supervision."""
        if ward.worker.answered(0.0) or time.monotonic() >= deadline:
            return
        raise multiprocessing.TimeoutError(f"{ward.worker} has not answered within {timeout} s")

    def _take(self, ward: _Ward, group: int, heard: bytes = b"") -> None:
        """Take the answer that is due from a worker; replace it if there is none."""
        if not ward.due[group]:
            return
        try:
            answer = self._answer_or_hang(ward, heard)
        except EnvFailures as error:
            if self._asked[group][0] in {"step", "reset"} and not error.final():
                self._replace(ward, *_told(ward, error))
                return
            answer = error
        except WorkerError as error:
            self._replace(ward, str(error))
            return
        ward.due[group] = False
        ward.answers[group] = answer

    def _answer_or_hang(self, ward: _Ward, heard: bytes) -> Any:
        """Return what a worker answers.

        Raises:
            WorkerError: It has gone, or there is no answer.
            EnvFailures: Environments raised.
        """
        if heard or ward.worker.answered(0.0):
            return ward.worker.receive(heard)
        deadline_s = self.supervision.deadline_s
        raise WorkerError(f"{ward.worker} has not answered within {deadline_s:g} s")

    def _answers_to_step(self, group: int) -> list[Any]:
        answers = [self._answer_to_step(ward, group) for ward in self._wards]
        _raise_failures(answers)
        if not any(ward.live for ward in self._wards):
            self._wait_for_one()
        return answers

    def _answer_to_step(self, ward: _Ward, group: int) -> Any:
        if group in ward.answers:
            ward.in_a_row = 0
            answer = ward.answers.pop(group)
            if answer is not None and not isinstance(answer, EnvFailures):
                ward.seen[group] = answer[1]
            return answer
        start, stop = ward.worker.spans[group]
        silence(self.rows, start, stop)
        self.restarted[start:stop] = True
        self._admit(ward)
        if ward.live:
            ward.shown[group] = True
            return ward.first[group]
        return None if ward.seen[group] is None else ({}, ward.seen[group])

    def _answers_to_call(
        self, name: str, arguments: Sequence[tuple[Any, ...]], group: int
    ) -> list[Any]:
        """Return the answers to a call; it is made again to workers that had to be replaced."""
        while any(group not in ward.answers for ward in self._wards):
            self._wait_for_all()
            for ward, part in zip(self._wards, arguments, strict=True):
                if group not in ward.answers:
                    self._call_again(ward, name, part, group)
        answers = [ward.answers.pop(group) for ward in self._wards]
        _raise_failures(answers)
        if name == "reset":
            self._show(arguments, answers, group)
        return answers

    def _call_again(self, ward: _Ward, name: str, arguments: tuple[Any, ...], group: int) -> None:
        """Bring the answer of a fresh worker; it has reset its environments by itself."""
        if name == "reset":
            _, options, mask = arguments
            if not options:
                ward.answers[group] = ward.first[group]
                return
            arguments = ward.seeds[group], options, [True] * len(mask)
        self._send(ward, group, CALL, self.packed(name, group, arguments))
        if ward.due[group]:
            ward.worker.answered(self.supervision.deadline_s)
            self._take(ward, group)

    def _show(
        self, arguments: Sequence[tuple[Any, ...]], answers: Sequence[Any], group: int
    ) -> None:
        """Note who is seen after a reset; where it spared some, their cut has yet to be told."""
        for ward, (_, _, mask), (_, travelled) in zip(self._wards, arguments, answers, strict=True):
            ward.seen[group] = travelled
            ward.shown[group] = ward.shown[group] or all(mask)

    # Replacement

    def _replace(self, ward: _Ward, trouble: str, envs: Sequence[int] = ()) -> None:
        """End a worker, forget what it wrote, and see to it that another one starts.

        Args:
            ward: The worker.
            trouble: What befell it; the first line is for everybody.
            envs: Environments whose seeds are told; nothing is all of the worker's.

        Raises:
            WorkerError: The budget of restarts is spent.
        """
        if envs:  # it still hears: its other environments may have started programs
            ward.worker.dismiss()
        ward.worker.end(POLITE_S if envs else 0.0)  # nothing writes its rows from here on
        ward.live, groups = False, len(ward.due)
        ward.due, ward.shown = [False] * groups, [False] * groups
        ward.answers.clear()
        ward.owed.clear()
        ward.in_a_row += 1
        for start, stop in ward.worker.spans:
            self.rows.obs[start:stop] = 0
            self.rows.action_mask[start:stop] = True
        first, newline, rest = trouble.partition("\n")
        when = f"in vector step {self._steps}, {seeds_told(ward.seeds_of(envs))}"
        delay_s = self.budget.spend(f"{first}; {when}{newline}{rest}", ward.in_a_row)
        ward.act_at = time.monotonic() + delay_s
        self._admit(ward)

    def _admit(self, ward: _Ward) -> None:
        """Bring a replacement one step nearer to taking part; never waits."""
        if ward.live:
            return
        if ward.worker.ended:
            if time.monotonic() >= ward.act_at:
                self._start_again(ward)
            return
        try:
            while ward.owed and ward.worker.answered(0.0):
                answer, group = ward.worker.receive(), ward.owed.popleft()
                if group >= 0:
                    ward.first[group] = answer
                    ward.seen[group] = answer[1]
        except EnvFailures as error:
            if final := error.final():
                ward.worker.end()
                ward.owed.clear()
                raise final from None
            self._replace(ward, *_told(ward, error))
            return
        except WorkerError as error:
            self._replace(ward, str(error))
            return
        ward.live = not ward.owed
        if not ward.live and time.monotonic() > ward.act_at:
            deadline_s = self.supervision.deadline_s
            self._replace(ward, f"{ward.worker} has not started within {deadline_s:g} s")

    def _start_again(self, ward: _Ward) -> None:
        """Start a fresh process and ask it to build and to reset its environments."""
        index = ward.worker.index
        ward.seeds = [branch_of(seeds, self.budget.count) for seeds in ward.seeds]
        try:
            ward.worker = self.workers[index] = self._start(index)
            for group in range(len(ward.seeds)):
                for name, arguments in ward.calls(group):
                    ward.worker.send(CALL, self.packed(name, group, arguments))
                    ward.owed.append(group if name == "reset" else -1)
        except (OSError, WorkerError) as error:
            self._replace(ward, f"worker {index} could not be started ({error})")
            return
        ward.act_at = time.monotonic() + self.supervision.deadline_s

    def _wait_for_one(self) -> None:
        """Wait a moment for any replacement."""
        until = time.monotonic() + LONGEST_WAIT_S
        while time.monotonic() < until and not any(ward.live for ward in self._wards):
            self._tend()

    def _wait_for_all(self) -> None:
        """Wait for all replacements."""
        while not all(ward.live for ward in self._wards):
            self._tend()

    def _tend(self) -> None:
        for ward in self._wards:
            if not ward.live:
                if ward.worker.ended:
                    time.sleep(GLANCE_S)
                else:
                    ward.worker.answered(GLANCE_S)
                self._admit(ward)

    def close(self, timeout: float | None) -> None:
        """End the workers; those that are only starting at once."""
        for ward in self._wards:
            if not ward.live:
                ward.worker.end()
        super().close(timeout)


def _raise_failures(answers: Sequence[Any]) -> None:
    """Raise what environments raised, in the order of the workers; mostly there is nothing."""
    if any(answers):
        failures = [f for a in answers if isinstance(a, EnvFailures) for f in a.failures]
        if failures:
            raise EnvFailures(failures)


def _told(ward: _Ward, error: EnvFailures) -> tuple[str, list[int]]:
    """Say what environments of a worker raised, and which ones they are."""
    lines = [f"{ward.worker}: {raised(error.failures)}", *map(str, error.failures)]
    return "\n".join(lines), [failure.env for failure in error.failures]
