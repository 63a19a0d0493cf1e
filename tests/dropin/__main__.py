"""Run Gymnasium's own tests of vector environments with GroupedVectorEnv as AsyncVectorEnv.

    git clone --depth 1 --branch v1.4.0 https://github.com/Farama-Foundation/Gymnasium ../gymnasium
    make gymnasium-tests GYMNASIUM=../gymnasium

Take the tag of the installed version: `python -c 'import gymnasium; print(gymnasium.__version__)'`.
The tests are copied out of the clone first, so that they meet the installed Gymnasium and not the
one beside them. They run twice: with as many workers as we take by default, and with two, which
host several environments each. A failure is tried again with Gymnasium's own class, and counts
only if that passes: what fails with both belongs to another version of Gymnasium.

The exit code is 0 if nothing counts as failed, 1 if something does, 2 if nothing could be run.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from fastdqn.device import available_cores
from tests.dropin.grouped_in_place import NUM_WORKERS, OUTCOMES

HERE = Path(__file__).parent
TESTS = ("tests/vector", "tests/envs/registration/test_make_vec.py")
SECONDS_PER_TEST = 60
PYTEST = (
    *("-m", "pytest", "-q", "--no-header", "--tb=no", "-rN", "-p", "no:cacheprovider"),
    *("-p", "grouped_in_place", f"--timeout={SECONDS_PER_TEST}"),
)


@dataclass(frozen=True)
class Outcome:
    """How one test ended.

    Attributes:
        outcome: `passed`, `failed`, `skipped` or `xfailed`.
        test: Its node id.
        why: The first words of what went wrong, or nothing.
    """

    outcome: str
    test: str
    why: str


def run(folder: Path, tests: tuple[str, ...], num_workers: int, arguments: list[str]) -> str:
    """Run tests of the copy and return the lines that the plugin wrote.

    Args:
        folder: Holds the copy of Gymnasium's `tests`.
        tests: Paths or node ids, seen from there.
        num_workers: Workers of each vector; 0 is Gymnasium's own class.
        arguments: More arguments of pytest.
    """
    lines = folder / "outcomes"
    lines.write_text("")
    paths = [str(HERE), str(HERE.parents[1]), os.environ.get("PYTHONPATH", "")]
    given = {NUM_WORKERS: str(num_workers), OUTCOMES: str(lines)}
    subprocess.run(
        [sys.executable, *PYTEST, *arguments, *tests],
        cwd=folder,
        env={**os.environ, **given, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
        stdout=subprocess.DEVNULL if num_workers == 0 else None,
        check=False,
    )
    return lines.read_text(encoding="utf-8")


def outcomes_of(lines: str) -> list[Outcome]:
    """Read what the plugin wrote; the last word on a test holds."""
    message = {}
    for line in lines.splitlines():
        outcome = Outcome(*line.split("\t"))
        message[outcome.test] = outcome
    return list(message.values())


def failures_of_ours(
    folder: Path, outcomes: list[Outcome], arguments: list[str]
) -> tuple[list[Outcome], list[Outcome]]:
    """Split the failed into those that Gymnasium's own class passes and those that it fails too."""
    failed = [outcome for outcome in outcomes if outcome.outcome == "failed"]
    if not failed:
        return [], []
    again = outcomes_of(run(folder, tuple(each.test for each in failed), 0, arguments))
    theirs = {each.test for each in again if each.outcome == "failed"}
    return (
        [each for each in failed if each.test not in theirs],
        [each for each in failed if each.test in theirs],
    )


def report(folder: Path, num_workers: int, arguments: list[str]) -> int:
    """Run everything with so many workers, print the sums and what failed; return an exit code."""
    tests = tuple(test for test in TESTS if (folder / test).exists())
    outcomes = outcomes_of(run(folder, tests, num_workers, arguments))
    ours, both = failures_of_ours(folder, outcomes, arguments)
    sums = Counter(outcome.outcome for outcome in outcomes)
    for each in both:
        sys.stdout.write(f"fails with both classes: {each.test}: {each.why}\n")
    for each in ours:
        sys.stdout.write(f"FAILED: {each.test}: {each.why}\n")
    sys.stdout.write(
        f"{num_workers} workers: {sums['passed']} passed, {sums['xfailed']} xfailed, "
        f"{len(ours)} failed, {sums['skipped']} skipped, {len(both)} fail with both classes\n"
    )
    return 1 if ours else 0 if sums["passed"] else 2


def main() -> int:
    """Read the arguments, copy the tests and run them with each number of workers."""
    parser = argparse.ArgumentParser(prog="python -m tests.dropin", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("checkout", type=Path, help="a clone of Gymnasium")
    parser.add_argument(
        "--num-workers",
        type=int,
        action="append",
        help="workers of each vector (may be given several times); 0 is Gymnasium's own class",
    )
    known, arguments = parser.parse_known_args()
    if not (known.checkout / TESTS[0]).is_dir():
        parser.error(f"{known.checkout} is no clone of Gymnasium: it has no {TESTS[0]}")
    widths = known.num_workers or list(dict.fromkeys((available_cores(), 2)))
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(known.checkout / "tests", Path(folder) / "tests")
        return max(report(Path(folder), width, arguments) for width in widths)


if __name__ == "__main__":
    raise SystemExit(main())
