"""Supervision of workers: deadlines, limits of restarts, and the rows of failed workers."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastdqn.envs.workers.failures import EnvFailures, Failure
from fastdqn.envs.workers.origins import UNKNOWN
from fastdqn.envs.workers.process import WorkerProcess
from fastdqn.envs.workers.revived_envs import Past
from fastdqn.envs.workers.shared_block import SharedBlock
from fastdqn.errors import UsageError, WorkerError

__all__ = [
    "RestartBudget",
    "SupervisedWorker",
    "Supervision",
    "blank",
    "failure_text",
    "fresh_seeds",
    "mark_unreal",
    "trouble_of",
    "with_circumstances",
]

LONGEST_DELAY_S = 30.0
POLITE_S = 1.0
"""Seconds for closing the other environments of a worker after one of them has raised."""
SEEDS_SHOWN = 4
RESTARTS_TOLD = 1000


@dataclass(frozen=True)
class Supervision:
    """Deadlines and limits of restarts.

    Attributes:
        deadline_s: Seconds for a step, a reset or a start; longer counts as a hang.
        max_restarts: Restarts of all workers within `window_s`; one more is an error.
        window_s: Length of that window, seconds.
        max_in_a_row: Restarts of one worker without a step between them; one more is an error.
        delay_s: Delay before the second restart in a row; it doubles from there.
        restore_s: Seconds for playing the open episodes of a restarted worker again, so that they
            go on; 0 begins new ones.

    Raises:
        UsageError: A value below its minimum.
    """

    deadline_s: float = 120.0
    max_restarts: int = 100
    window_s: float = 600.0
    max_in_a_row: int = 5
    delay_s: float = 0.25
    restore_s: float = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.deadline_s < math.inf:
            raise UsageError(
                f"--worker-deadline-s {self.deadline_s}", "it must be positive", "Try 120."
            )
        if not 0 <= self.restore_s < math.inf:
            raise UsageError(f"restore_s={self.restore_s}", "it must be positive", "0 is none.")
        if self.max_restarts < 0:
            raise UsageError(
                f"--max-worker-restarts {self.max_restarts}", "it is negative", "0 allows none."
            )


class RestartBudget:
    """Counts restarts and raises when there were too many.

    Args:
        supervision: The limits.

    Attributes:
        restarts: One message per restart, the newest thousand: a line, followed by the traceback
            where an environment raised.
        count: Restarts so far.
        over: What ended the restarts for good, or None.
    """

    def __init__(self, supervision: Supervision) -> None:
        self.supervision = supervision
        self.restarts: deque[str] = deque(maxlen=RESTARTS_TOLD)
        self.count = 0
        self.over: WorkerError | EnvFailures | None = None
        self._times: deque[float] = deque()

    def spend(self, trouble: str, in_a_row: int) -> float:
        """Count one restart and return the seconds to wait before it.

        Args:
            trouble: What happened to the worker.
            in_a_row: Restarts of this worker since its last step, this one included.

        Raises:
            WorkerError: There were too many; the message ends with the limit.
        """
        now, limits = time.monotonic(), self.supervision
        first, newline, rest = trouble.partition("\n")
        message = f"{first}.{newline}{rest}"
        self._times.append(now)
        while self._times[0] < now - limits.window_s:
            self._times.popleft()
        if in_a_row > limits.max_in_a_row:
            self.over = WorkerError(f"{message}\nIt failed {in_a_row} times without a single step.")
            raise self.over
        if len(self._times) > limits.max_restarts:
            self.over = WorkerError(f"{message}\n{self._exceeded()}")
            raise self.over
        self.count += 1
        self.restarts.append(trouble)
        if in_a_row == 1:
            return 0.0
        return float(min(limits.delay_s * 2.0 ** (in_a_row - 2), LONGEST_DELAY_S))

    def refuse_if_over(self) -> None:
        """Raise what ended the restarts: environments are missing since then. Hot path.

        Steps that were under way are in no order any more, so no later one may be collected.
        """
        if self.over is not None:
            raise self.over.with_traceback(None)

    def _exceeded(self) -> str:
        limits = self.supervision
        if limits.max_restarts == 0:
            return "No worker may be restarted (--max-worker-restarts 0)."
        times = "once" if limits.max_restarts == 1 else f"{limits.max_restarts} times"
        return (
            f"Workers were restarted {times} within {limits.window_s:g} s already "
            f"(--max-worker-restarts {limits.max_restarts})."
        )


class SupervisedWorker:
    """One worker under supervision.

    It is in one of three states: it serves (`live`); it has ended and is started again at `act_at`;
    or it has been started and must answer `owed` calls until `act_at`.

    Attributes:
        process: The process that serves now, or the last one that did.
        live: Whether it takes part in steps.
        act_at: When to start it, or the deadline of its start.
        owed: Groups whose first reset a starting worker has yet to answer.
        in_a_row: Restarts since its last step.
        attributes: What `set_attr` has set, by group and name.
        due: Whether an answer is awaited, by group.
        answers: Answers that were received and not collected yet, by group.
        shown: By group: whether the caller has seen the first observations of this process.
        first: Answers to the first resets of this process, by group.
        seen: The last pickled observations, by group; None where they lie in the block.
        pasts: By group, the open episodes that a replacement may go on with.
    """

    def __init__(self, worker: WorkerProcess) -> None:
        groups = range(len(worker.spans))
        self.process = worker
        self.live = True
        self.act_at = math.inf
        self.owed: deque[int] = deque()
        self.in_a_row = 0
        self.attributes: list[dict[str, Any]] = [{} for _ in groups]
        self.due = [False for _ in groups]
        self.answers: dict[int, Any] = {}
        self.shown = [True for _ in groups]
        self.first: list[Any] = [None for _ in groups]
        self.seen: list[list[Any] | None] = [None for _ in groups]
        self.pasts: list[Past | None] = [None for _ in groups]

    def end(self, *, politely: bool) -> None:
        """End the process, and drop what it has answered and still owes."""
        if politely:  # it still runs: its other environments may have started programs
            self.process.request_close()
        self.process.end(POLITE_S if politely else 0.0)  # nothing writes its rows from here on
        self.live, groups = False, len(self.due)
        self.due, self.shown = [False] * groups, [False] * groups
        self.answers.clear()
        self.owed.clear()
        self.in_a_row += 1

    def take_owed(self) -> None:
        """Take what a starting process has answered so far; it lives once it owes nothing.

        Raises:
            WorkerError: It has ended.
            EnvFailures: Environments raised.
        """
        while self.owed and self.process.answered(0.0):
            answer, group = self.process.receive(), self.owed.popleft()
            self.first[group], self.seen[group] = answer, answer[1]
        self.live = not self.owed


def mark_unreal(rows: SharedBlock, start: int, stop: int) -> None:
    """Mark the rows of some environments as no transitions."""
    rows.real[start:stop] = False
    rows.reward[start:stop] = 0.0
    rows.terminated[start:stop] = rows.truncated[start:stop] = False


def blank(rows: SharedBlock, spans: Sequence[tuple[int, int]]) -> None:
    """Drop what environments have shown, by group."""
    for start, stop in spans:
        rows.obs[start:stop] = 0
        rows.action_mask[start:stop] = True
        rows.origin[start:stop] = UNKNOWN


def fresh_seeds(seeds: Sequence[int | None], branch: int) -> list[int | None]:
    """Return new seeds for restarted environments; None stays None."""
    return [
        None
        if seed is None
        else int(np.random.SeedSequence([seed, branch]).generate_state(1)[0] >> np.uint32(1))
        for seed in seeds
    ]


def failure_text(failures: Sequence[Failure]) -> str:
    """Return a line: which environments raised, and the last of their errors; and all in full."""
    envs = ", ".join(str(failure.env) for failure in failures)
    last, many = failures[-1], "s" * (len(failures) > 1)
    line = f"environment{many} {envs} raised{last.doing}: {last.reason}"
    return "\n".join([line, *map(str, failures)])


def trouble_of(
    member: SupervisedWorker,
    error: WorkerError | EnvFailures,
    step: int,
    seeds: Sequence[int | None],
) -> str:
    """Return what happened to a worker, when, and the seeds of the environments concerned.

    Args:
        member: The worker.
        error: Of the worker, or of some of its environments.
        step: The vector step.
        seeds: Of all environments.
    """
    raised = error.failures if isinstance(error, EnvFailures) else []
    trouble = f"{member.process}: {failure_text(raised)}" if raised else str(error)
    hosted = [env for span in member.process.spans for env in range(*span)]
    envs = [failure.env for failure in raised] or hosted
    return with_circumstances(trouble, step, [seeds[env] for env in envs])


def with_circumstances(trouble: str, step: int, seeds: Sequence[int | None]) -> str:
    """Return a message whose first line ends with the vector step and the first of the seeds."""
    first, newline, rest = trouble.partition("\n")
    shown, more = ", ".join(map(str, seeds[:SEEDS_SHOWN])), ", ..." * (len(seeds) > SEEDS_SHOWN)
    many = "s" * (len(seeds) > 1)
    return f"{first}; in vector step {step}, seed{many} {shown}{more}{newline}{rest}"
