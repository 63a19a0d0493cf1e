"""Bugs of a soak: losses that it does not see."""

from __future__ import annotations

from fastdqn.cli import soak, soak_checks, soak_faults
from tests.mutants.planted import Planted, exchange

__all__ = ["PLANTED"]

SOAK = "tests/unit/cli/test_soak.py::test_"

PLANTED = Planted()
turns_red = PLANTED.turns_red


@turns_red(SOAK + "what_is_lost_is_found[twice-episodes.csv: row]")
def episodes_that_come_twice_not_seen() -> None:
    exchange(soak, "losses_of_table", lambda _: [])


@turns_red(
    SOAK + "what_is_lost_is_found[older-it resumed at env step]",
    SOAK + "what_is_lost_is_found[silent-log.txt: 0 resumes of 1]",
)
def resumes_from_older_checkpoints_not_seen() -> None:
    exchange(soak, "losses_of_resume", lambda *_: [])


@turns_red(SOAK + "names_left_in_shared_memory_are_losses")
def shared_memory_not_looked_at() -> None:
    exchange(soak, "_names_in", lambda _: set())


@turns_red(SOAK + "descendants_are_children_and_theirs")
def zombies_taken_for_orphans() -> None:
    exchange(soak_faults, "alive", lambda pids, *_: pids)


@turns_red(SOAK + "growth_is_that_of_the_process_that_ran_longest")
def growth_with_the_start_of_a_process() -> None:
    exchange(soak_checks.Growth, "longest", lambda self: max(self.samples, key=len, default=[]))
