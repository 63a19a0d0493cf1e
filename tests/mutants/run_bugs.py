"""Bugs of runs that go on: in their files, settings, lock and checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastdqn.agent import from_checkpoint, resumed_run
from fastdqn.agent.resumed_run import Resumed
from fastdqn.cli import resume
from fastdqn.config import Config
from fastdqn.foundation import changed_settings
from fastdqn.reporting import cutting_back, run_lock
from fastdqn.reporting.cutting_back import Counts
from fastdqn.reporting.run_checkpoints import RunCheckpoints
from fastdqn.training.trainer import Trainer
from tests.mutants.planted import Planted, exchange

__all__ = ["PLANTED"]

RESUME = "tests/unit/cli/test_resume.py::test_"
CUTTING = "tests/unit/reporting/test_cutting_back.py::test_"
LOCK = "tests/unit/reporting/test_run_lock.py::test_"

PLANTED = Planted()
turns_red = PLANTED.turns_red


@turns_red(RESUME + "the_last_updates_and_report_of_a_run_that_goes_on_are_made_where_they_belong")
def a_run_that_goes_on_after_its_last_updates() -> None:
    right = RunCheckpoints._save_kept

    def late(self: RunCheckpoints, trainer: Trainer, state: Any, _: Any) -> None:
        right(self, trainer, state, dict(self._lent.parameters()))

    exchange(RunCheckpoints, "_save_kept", late)


@turns_red(RESUME + "the_last_updates_and_report_of_a_run_that_goes_on_are_made_where_they_belong")
def the_report_of_a_stop_left_in_the_metrics() -> None:
    right = cutting_back.cut_back

    def cut(run_dir: Path, counts: Counts) -> list[str]:
        return right(run_dir, Counts(counts.env_steps, counts.episodes, counts.env_steps))

    exchange(resumed_run, "cut_back", cut)


@turns_red(RESUME + "a_damaged_checkpoint_is_named_and_an_older_one_taken")
def rows_of_after_the_checkpoint_left_in_the_files() -> None:
    exchange(Resumed, "cut_back", lambda *_: None)


@turns_red(CUTTING + "episodes_of_after_the_checkpoint_and_a_torn_line_go")
def a_torn_line_that_stays() -> None:
    right = cutting_back._cell
    exchange(cutting_back, "_cell", lambda line: max(right(line), 0))


@turns_red(RESUME + "what_may_not_change_is_refused_and_nothing_is_touched")
def every_setting_may_change() -> None:
    exchange(changed_settings, "MAY_CHANGE", frozenset(Config.__dataclass_fields__))


@turns_red(RESUME + "what_changed_holds_though_the_run_was_killed_before_its_next_checkpoint")
def what_changed_forgotten_by_the_next_resume() -> None:
    exchange(from_checkpoint, "_as_told", lambda _, config: (config, []))


@turns_red(
    RESUME + "a_folder_to_which_another_process_writes_is_refused",
    LOCK + "another_process_holds_it_until_it_is_killed",
)
def a_lock_that_is_never_taken() -> None:
    exchange(run_lock, "_take", lambda *_: None)


@turns_red(LOCK + "a_lock_that_was_removed_meanwhile_is_not_taken_for_the_new_one")
def a_lock_of_a_file_that_is_gone() -> None:
    exchange(run_lock, "_is_still_there", lambda *_: True)


@turns_red(LOCK + "a_process_id_that_another_process_has_now_is_taken_over")
def a_process_taken_for_the_one_that_had_its_id() -> None:
    exchange(run_lock, "_started", lambda _: None)


@turns_red(RESUME + "a_finished_run_has_nothing_left_to_do")
def a_finished_run_that_ends_again() -> None:
    exchange(resume, "is_finished", lambda *_: None)
