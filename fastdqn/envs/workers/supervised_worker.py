"""A worker process under supervision: its state, and what a replacement needs to know."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from typing import Any

from fastdqn.envs.workers.process import WorkerProcess

__all__ = ["SupervisedWorker"]

POLITE_S = 1.0
"""Seconds for closing the other environments of a worker after one of them has raised."""


class SupervisedWorker:
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
            if group >= 0:
                self.first[group] = answer
                self.seen[group] = answer[1]
        self.live = not self.owed
