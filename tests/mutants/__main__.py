"""Plant each bug in a process of its own and see that its tests turn red: `make mutants`.

PyTorch and the package are loaded once; each process is a fork that plants its bug and runs pytest.
"""

from __future__ import annotations

import atexit
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path

import pytest

from tests.mutants.bugs import MUTANTS

ROOT = Path(__file__).parents[2]
AT_A_TIME = 2
PYTEST = (
    *("-q", "--no-header", "--tb=no", "-p", "no:cacheprovider"),
    *("-p", "tests.mutants.plugin"),
)
HEALTHY = ""
"""In the place of a mutant's name: no bug, and the tests of all."""


def run_tests(name: str, tests: Sequence[str], folder: Path) -> int:
    """Plant a bug in this process, run tests and return pytest's code.

    What pytest prints goes to `folder`/out, the lines of the plugin to `folder`/red.
    """
    os.environ.update(FASTDQN_MUTANT=name, FASTDQN_MUTANT_RED=str(folder / "red"))
    out = os.open(folder / "out", os.O_WRONLY | os.O_CREAT)
    os.dup2(out, 1)
    os.dup2(out, 2)
    code = pytest.main([*PYTEST, *tests])
    atexit._run_exitfuncs()
    sys.stdout.flush()
    return code


def start(name: str, tests: Sequence[str], folder: Path) -> int:
    """Fork a process that plants a bug and runs tests; return its process id."""
    folder.mkdir()
    (folder / "red").touch()
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        return pid
    code = int(pytest.ExitCode.INTERNAL_ERROR)
    try:
        code = run_tests(name, tests, folder)
    finally:
        os._exit(code)


def lines_of(folder: Path) -> list[str]:
    """Return the lines of the plugin, or the last that pytest printed."""
    return (folder / "red").read_text().splitlines() or (
        (folder / "out").read_text(errors="replace").splitlines()[-3:]
    )


def run(plan: dict[str, Sequence[str]]) -> Iterator[tuple[str, list[str], int]]:
    """Run the tests of each mutant, `AT_A_TIME` mutants at once.

    Args:
        plan: Mutant -> its tests.

    Yields:
        Name, lines of the plugin and pytest's code of each, in the order in which they end.
    """
    waiting, running = list(plan)[::-1], dict[int, tuple[str, Path]]()
    home = Path(
        tempfile.mkdtemp()
    )  # a TemporaryDirectory would be deleted by the first fork's exit
    try:
        while waiting or running:
            while waiting and len(running) < AT_A_TIME:
                name, folder = waiting.pop(), home / str(len(waiting))
                running[start(name, plan[name], folder)] = name, folder
            pid, status = os.wait()
            name, folder = running.pop(pid)
            yield name, lines_of(folder), os.waitstatus_to_exitcode(status)
    finally:
        shutil.rmtree(home, ignore_errors=True)


def verdict(name: str, tests: Sequence[str], lines: list[str], code: int) -> tuple[bool, str]:
    """Return whether all tests of a mutant turned red, and which ones or why not."""
    if name == HEALTHY:
        return code == 0, "all green" if code == 0 else "; ".join(lines)
    if code != 1:
        return False, f"pytest ended with {code}: " + "; ".join(lines)
    red = {line.partition("[")[0] for line in lines} | set(lines)
    green = [test for test in tests if test not in red]
    if green:
        others = [line for line in lines if not line.startswith("tests/")]
        return False, "; ".join([f"SURVIVES {test}" for test in green] + others[:1])
    return True, ", ".join(test.rpartition("::test_")[2] for test in tests)


def main(mutants: Mapping[str, Sequence[str]]) -> int:
    """Print the table; return 1 if a mutant survives or a test is red without one.

    Args:
        mutants: Name -> tests that must turn red.
    """
    plan = {HEALTHY: sorted(set(chain(*mutants.values()))), **mutants}
    width = max(map(len, plan))
    sys.stdout.write(f"{'mutant':{width}} | killed by\n{'-' * width}-|-{'-' * 40}\n")
    passed = 0
    for name, lines, code in run(plan):
        good, how = verdict(name, plan[name], lines, code)
        passed += good
        sys.stdout.write(f"{name or 'no mutant':{width}} | {how}\n")
        sys.stdout.flush()
    sys.stdout.write(f"{passed} passed, {len(plan) - passed} failed\n")
    return int(passed < len(plan))


if __name__ == "__main__":
    raise SystemExit(main({name: MUTANTS[name].tests for name in sys.argv[1:] or MUTANTS}))
