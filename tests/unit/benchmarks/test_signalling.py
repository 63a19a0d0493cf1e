"""The study of signals: every line carries them, and overheads are what is beyond the work."""

from __future__ import annotations

import sys

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="eventfd and epoll are Linux's")

if sys.platform == "linux":
    from benchmarks.signal_lines import Cells, SpinLine
    from benchmarks.signalling import Case, Crew, cases, overhead, table

WORK_US = 200.0


@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
@pytest.mark.parametrize("index", range(26))
def test_every_case_steps_waits_for_the_work_and_leaves_nothing(
    index: int, nothing_left: None
) -> None:
    crew = Crew(cases()[index], 2)
    try:
        assert crew.time_step(WORK_US, 0.02) >= WORK_US
        before = crew.step_number
        crew.step()
        assert crew.step_number == before + 1
    finally:
        crew.close()


@pytest.mark.timeout(30)
@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
def test_sleepers_that_never_spin_are_woken_each_time(
    nothing_left: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchmarks.signal_lines.SAFETY_MS", 1000)  # a missed signal costs that
    case = Case("no spin", lambda i, cells: SpinLine(cells, i, 0.0, True))
    crew = Crew(case, 2)
    try:
        for _ in range(300):
            crew.step()
        assert [crew.cells.memory[line.answered] for line in _spinning(crew)] == [300, 300]
    finally:
        crew.close()


def _spinning(crew: Crew) -> list[SpinLine]:
    return [line for line in crew.lines if isinstance(line, SpinLine)]


def test_there_are_as_many_cases_as_are_tested() -> None:
    assert len(cases()) == 26
    assert len({(case.name, case.by_epoll, case.pinned) for case in cases()}) == 26


def test_flags_lie_side_by_side_or_on_lines_of_their_own() -> None:
    cells = Cells(2)
    assert cells.places(1, apart=False) == [12, 13, 14, 15]
    assert cells.places(1, apart=True) == [40, 48, 56, 64]
    assert len(cells.memory) == 72


def test_overheads_are_medians_beyond_the_ideal() -> None:
    assert overhead([60.0, 50.0, 90.0], 40.0) == {"median": 20.0, "lowest": 10.0, "highest": 50.0}


def test_the_table_has_a_row_for_each_case_and_a_column_for_each_m() -> None:
    cost = {"median": 20.0, "lowest": 10.0, "highest": 50.0}
    entry = {"signal": "eventfd", "waiting": "epoll", "pinned": True, "overhead_us": {"4": cost}}
    head, _, row = table([entry]).splitlines()
    assert head == "| signal | parent waits | workers | m = 4 |"
    assert row == "| eventfd | epoll | pinned | 20.0 (10.0 to 50.0) |"
