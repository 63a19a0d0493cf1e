"""Timing tensor CartPole: what is printed, and a program timed in the same turns."""

from __future__ import annotations

import sys
import time

import pytest

from benchmarks.studies.tensor_cartpole import BESIDE, Arguments, beside, compare, table

pytestmark = pytest.mark.usefixtures("one_thread")

DOUBLES = f"""{sys.executable} -uc '
import sys
for line in sys.stdin:
    print(2000 * float(line))
'"""


def test_a_program_beside_gets_its_seconds_and_answers_with_its_rate() -> None:
    with beside(DOUBLES) as timers:
        assert [timers[BESIDE](seconds) for seconds in (0.5, 2.0)] == [1000.0, 4000.0]


def test_nothing_beside_is_nothing_to_time() -> None:
    with beside("") as timers:
        assert timers == {}


def test_a_program_beside_is_ended_even_if_it_would_go_on() -> None:
    start = time.perf_counter()
    with beside(f"{sys.executable} -c 'import time; time.sleep(600)'"):
        pass
    assert time.perf_counter() - start < 60


@pytest.mark.slow
def test_a_row_has_all_rates_and_the_ratios_of_the_fast_mode() -> None:
    arguments = Arguments(
        device="cpu", execution="eager", rounds=2, seconds=0.02, repeats=1, beside=DOUBLES
    )
    measured = compare(3, arguments)
    rates = measured["rates"]
    assert set(rates) == {"eager", BESIDE}
    ratio = measured["ratios"][f"eager / {BESIDE}"]
    assert ratio["median"] == pytest.approx(rates["eager"] / rates[BESIDE], rel=0.5)
    head, _, row = table([measured]).splitlines()
    assert head.startswith("| envs | eager, env steps/s | beside, env steps/s | us per iteration |")
    assert row.startswith(f"| 3 | {rates['eager']:,.0f} | {rates[BESIDE]:,.0f} |")
