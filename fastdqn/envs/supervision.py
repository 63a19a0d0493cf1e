"""Supervision: a worker that raises, dies or hangs is replaced, and the others go on.

While a replacement starts, the rows of its environments are not `real`: they are no transitions,
and nobody waits. A fresh worker builds its environments anew and resets them with seeds from a
new branch; what its predecessor had written is forgotten.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastdqn.envs.host import EnvFactory, EnvFailures
from fastdqn.envs.pool import PoolSettings, WorkerPool, WorkerProcess
from fastdqn.envs.rows import Rows, RowSpec
from fastdqn.envs.worker import CALL
from fastdqn.errors import UsageError, WorkerError

__all__ = ["RestartBudget", "SupervisedPool", "Supervision", "branch_of", "silence"]

LONGEST_DELAY_S = 30.0
LONGEST_WAIT_S = 0.5
"""With no worker left, a collect returns after this without a step, so that signals are heard."""
SEEDS_TOLD = 4
RESTARTS_TOLD = 1000


@dataclass(frozen=True)
class Supervision:
    """How much patience workers deserve.

    Attributes:
        deadline_s: Seconds for a step, a reset or a start; longer is a hang.
        max_restarts: Restarts of all workers within `window_s`; one more is an error.
        window_s: Length of that window, seconds.
        max_in_a_row: Restarts of one worker without a step between them; one more is an error.
        delay_s: Delay before the second restart in a row; it doubles from there.

    Raises:
        UsageError: A value below its least.
    """

    deadline_s: float = 120.0
    max_restarts: int = 100
    window_s: float = 600.0
    max_in_a_row: int = 5
    delay_s: float = 0.25

    def __post_init__(self) -> None:
        if not self.deadline_s > 0:
            raise UsageError(
                f"--worker-deadline-s {self.deadline_s}", "it must be positive", "Try 120."
            )
        if self.max_restarts < 0:
            raise UsageError(
                f"--max-worker-restarts {self.max_restarts}", "it is negative", "0 allows none."
            )


class RestartBudget:
    """Counts restarts and says when there were too many.

    Args:
        supervision: The limits.

    Attributes:
        restarts: What befell each worker, the newest thousand.
        count: Restarts so far.
    """

    def __init__(self, supervision: Supervision) -> None:
        self.supervision = supervision
        self.restarts: deque[str] = deque(maxlen=RESTARTS_TOLD)
        self.count = 0
        self._times: deque[float] = deque()

    def spend(self, trouble: str, in_a_row: int) -> float:
        """Count one restart and return the seconds to wait before it.

        Args:
            trouble: What befell the worker.
            in_a_row: Restarts of this worker since its last step, this one included.

        Raises:
            WorkerError: There were too many; tells the trouble.
        """
        now, limits = time.monotonic(), self.supervision
        self._times.append(now)
        while self._times[0] < now - limits.window_s:
            self._times.popleft()
        if in_a_row > limits.max_in_a_row:
            raise WorkerError(f"{trouble}\nIt failed {in_a_row} times without a single step.")
        if len(self._times) > limits.max_restarts:
            raise WorkerError(
                f"{trouble}\nMore than --max-worker-restarts {limits.max_restarts} within "
                f"{limits.window_s:g} s."
            )
        self.count += 1
        self.restarts.append(trouble)
        if in_a_row == 1:
            return 0.0
        return float(min(limits.delay_s * 2.0 ** (in_a_row - 2), LONGEST_DELAY_S))


class _Ward:
    """One worker under supervision.

    Attributes:
        worker: The process that serves now, or the last one that did.
        live: Whether it takes part in steps.
        owed: Answers that a starting worker has yet to give; -1 before it is started.
        act_at: When to start it, or the deadline of its start.
        pending: By group: whether a step was sent and not yet answered.
        silent: By group: whether the rows are marked as not real.
        in_a_row: Restarts since its last step.
        seeds: Seeds of its environments, by group.
    """

    def __init__(self, worker: WorkerProcess) -> None:
        self.worker = worker
        self.live = True
        self.owed = 0
        self.act_at = math.inf
        groups = len(worker.spans)
        self.pending, self.silent = [False] * groups, [False] * groups
        self.in_a_row = 0
        self.seeds: list[list[int | None]] = [[None] * (b - a) for a, b in worker.spans]

    def seeded(self) -> str:
        """Return the first of the seeds, to be told."""
        seeds = [seed for group in self.seeds for seed in group]
        more = ", ..." if len(seeds) > SEEDS_TOLD else ""
        return ", ".join(map(str, seeds[:SEEDS_TOLD])) + more


class SupervisedPool(WorkerPool):
    """A `WorkerPool` that replaces workers instead of raising.

    `collect` after `send_step` raises only when the budget is spent. Failures before the first
    reset are raised at once: a factory that cannot work is no accident.

    Args:
        env_fns: Factories, one per environment; pickled by value.
        spec: Layout of the shared block.
        settings: How the environments are dealt out.
        supervision: How much patience workers deserve.

    Attributes:
        budget: The restarts so far.
    """

    def __init__(
        self,
        env_fns: Sequence[EnvFactory],
        spec: RowSpec,
        settings: PoolSettings,
        supervision: Supervision,
    ) -> None:
        self.supervision, self.budget = supervision, RestartBudget(supervision)
        self._wards: list[_Ward] = []
        self._asked = "make"
        self._steps = 0
        super().__init__(env_fns, spec, settings)
        self._wards = [_Ward(worker) for worker in self.workers]

    # Steps

    def send_step(self, group: int = 0) -> None:
        """Wake every worker that lives for one step of a group; hot path."""
        self._asked = "step"
        self._steps += 1
        signal_ = bytes((group,))
        for ward in self._wards:
            if ward.live:
                if ward.silent[group]:
                    self._speak(ward, group)
                try:
                    ward.worker.send(signal_)
                    ward.pending[group] = True
                except WorkerError as error:
                    self._replace(ward, str(error))

    def collect(self, timeout: float | None, group: int = 0) -> list[Any]:
        """Wait for the workers that live; the rows of the others are not real.

        Raises:
            WorkerError: The budget of restarts is spent.
        """
        if self._asked != "step":
            return self._collect_call(timeout, group)
        deadline = time.monotonic() + self.supervision.deadline_s
        answers = [self._step_of(ward, group, deadline) for ward in self._wards]
        if not any(ward.live for ward in self._wards):
            self._wait_for_one()
        return answers

    def _step_of(self, ward: _Ward, group: int, deadline: float) -> Any:
        if ward.pending[group]:
            trouble = self._trouble_of(ward, deadline)
            if not isinstance(trouble, str):
                ward.pending[group] = False
                ward.in_a_row = 0
                return trouble
            self._replace(ward, trouble)
        if not ward.live or not ward.silent[group]:
            silence(self.rows, *ward.worker.spans[group])
            ward.silent[group] = True
        self._admit(ward)
        return None

    def _trouble_of(self, ward: _Ward, deadline: float) -> Any:
        """Return a worker's answer, or a string that says what befell it."""
        worker = ward.worker
        try:
            if worker.answered(max(deadline - time.monotonic(), 0.0)):
                return worker.receive()
        except WorkerError as error:
            return str(error)
        except EnvFailures as error:
            return "\n".join([f"{worker} failed", *map(str, error.failures)])
        return f"{worker} has not answered within {self.supervision.deadline_s:g} s"

    def _speak(self, ward: _Ward, group: int) -> None:
        """Let the rows of a worker that lives again count as transitions."""
        start, stop = ward.worker.spans[group]
        self.rows.real[start:stop] = True
        ward.silent[group] = False

    # Replacement

    def _replace(self, ward: _Ward, trouble: str) -> None:
        """End a worker, forget what it wrote, and see to it that another one starts.

        Raises:
            WorkerError: The budget of restarts is spent.
        """
        ward.worker.end()
        ward.in_a_row += 1
        ward.live = False
        ward.pending = [False] * len(ward.pending)
        for start, stop in ward.worker.spans:
            self.rows.obs[start:stop] = 0
            self.rows.action_mask[start:stop] = True
        first, *rest = trouble.splitlines()
        told = f"{first} in vector step {self._steps}, its seeds {ward.seeded()}"
        delay_s = self.budget.spend("\n".join([told, *rest]), ward.in_a_row)
        ward.owed, ward.act_at = -1, time.monotonic() + delay_s
        self._admit(ward)

    def _admit(self, ward: _Ward) -> None:
        """Bring a replacement one step nearer to taking part; never waits."""
        if ward.live:
            return
        if ward.owed < 0:
            if time.monotonic() >= ward.act_at:
                self._start_again(ward)
            return
        while ward.owed and ward.worker.answered(0.0):
            trouble = self._trouble_of(ward, time.monotonic())
            if isinstance(trouble, str):
                self._replace(ward, trouble)
                return
            ward.owed -= 1
        ward.live = ward.owed == 0
        if not ward.live and time.monotonic() > ward.act_at:
            self._replace(ward, f"{ward.worker} has not started in time")

    def _start_again(self, ward: _Ward) -> None:
        """Start a fresh process and ask it to build and to reset its environments."""
        index = ward.worker.index
        ward.seeds = [branch_of(seeds, self.budget.count) for seeds in ward.seeds]
        try:
            ward.worker = self.workers[index] = self._start(index)
            for group, seeds in enumerate(ward.seeds):
                for name, arguments in (("make", ()), ("reset", _all_anew(seeds))):
                    ward.worker.send(CALL, self.packed(name, group, arguments))
        except (OSError, WorkerError) as error:
            self._replace(ward, f"worker {index} could not be started ({error})")
            return
        ward.owed = 2 * len(ward.seeds)
        ward.act_at = time.monotonic() + self.supervision.deadline_s

    def _wait_for_one(self) -> None:
        """Wait a moment for any replacement."""
        until = time.monotonic() + LONGEST_WAIT_S
        while time.monotonic() < until and not any(ward.live for ward in self._wards):
            for ward in self._wards:
                if ward.owed > 0:
                    ward.worker.answered(0.01)
                else:
                    time.sleep(0.01)
                self._admit(ward)

    # Calls

    def tell(self, name: str, arguments: Sequence[tuple[Any, ...]], group: int = 0) -> None:
        """Send each worker its arguments, once all of them live."""
        while not all(ward.live for ward in self._wards):
            self._wait_for_one()
            for ward in self._wards:
                self._admit(ward)
        if name == "reset":
            for ward, (seeds, *_) in zip(self._wards, arguments, strict=True):
                ward.seeds[group] = list(seeds)
        self._asked = name
        super().tell(name, arguments, group)

    def _collect_call(self, timeout: float | None, group: int) -> list[Any]:
        """Collect the answers to a call; a worker that fails in a reset is replaced."""
        patience_s = self.supervision.deadline_s if timeout is None else timeout
        if self._asked != "reset" or timeout is not None:
            return super().collect(patience_s, group)
        deadline, answers = time.monotonic() + patience_s, []
        for ward in self._wards:
            answer = self._trouble_of(ward, deadline)
            if isinstance(answer, str):
                self._replace(ward, answer)
                answer = None
            answers.append(answer)
        while not all(ward.live for ward in self._wards):
            self._wait_for_one()
            for ward in self._wards:
                self._admit(ward)
        return answers


def silence(rows: Rows, start: int, stop: int) -> None:
    """Mark the rows of some environments as no transitions: nothing happened there."""
    rows.real[start:stop] = False
    rows.reward[start:stop] = 0.0
    rows.terminated[start:stop] = rows.truncated[start:stop] = False


def branch_of(seeds: Sequence[int | None], branch: int) -> list[int | None]:
    """Return fresh seeds for restarted environments; None stays None."""
    return [
        None
        if seed is None
        else int(np.random.SeedSequence([seed, branch]).generate_state(1)[0] >> np.uint32(1))
        for seed in seeds
    ]


def _all_anew(seeds: list[int | None]) -> tuple[list[int | None], None, list[bool]]:
    return seeds, None, [True] * len(seeds)
