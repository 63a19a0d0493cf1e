"""Plant each bug in a process of its own and see that its tests turn red: `make mutants`."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.mutants.bugs import MUTANTS

ROOT = Path(__file__).parents[2]
AT_A_TIME = 2
PYTEST = (
    *("-m", "pytest", "-q", "--no-header", "--tb=no", "-p", "no:cacheprovider"),
    *("-p", "tests.mutants.plugin"),
)


def run(name: str | None, tests: tuple[str, ...]) -> tuple[list[str], int]:
    """Run tests with a bug planted, or none; return the lines of the plugin and pytest's code."""
    with tempfile.TemporaryDirectory() as folder:
        red = Path(folder) / "red"
        red.touch()
        given = {"FASTDQN_MUTANT": name or "", "FASTDQN_MUTANT_RED": str(red)}
        done = subprocess.run(
            [sys.executable, *PYTEST, *tests],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1", **given},
            capture_output=True,
            check=False,
            text=True,
        )
        lines = red.read_text().splitlines()
        return lines or done.stdout.splitlines()[-3:] + done.stderr.splitlines()[-3:], (
            done.returncode
        )


def healthy() -> str | None:
    """Return why the tests of all mutants are not green without one, or None if they are."""
    tests = tuple(sorted({test for mutant in MUTANTS.values() for test in mutant.tests}))
    lines, code = run(None, tests)
    return None if code == 0 else "without a mutant: " + "; ".join(lines)


def verdict(name: str) -> tuple[bool, str]:
    """Plant one bug; return whether all of its tests turned red, and which ones or why not."""
    tests = MUTANTS[name].tests
    lines, code = run(name, tests)
    if code != 1:
        return False, f"pytest ended with {code}: " + "; ".join(lines)
    red = {line.partition("[")[0] for line in lines} | set(lines)
    green = [test for test in tests if test not in red]
    if green:
        others = [line for line in lines if not line.startswith("tests/")]
        return False, "; ".join([f"SURVIVES {test}" for test in green] + others[:1])
    return True, ", ".join(test.rpartition("::test_")[2] for test in tests)


def main() -> int:
    """Print the table; return 1 if a mutant survives or a test is red without one."""
    names = sys.argv[1:] or list(MUTANTS)
    with ThreadPoolExecutor(AT_A_TIME) as pool:
        base = pool.submit(healthy)
        verdicts = pool.map(verdict, names)
        width = max(map(len, names))
        sys.stdout.write(f"{'mutant':{width}} | killed by\n{'-' * width}-|-{'-' * 40}\n")
        failed = 0
        for name, (killed, how) in zip(names, verdicts, strict=True):
            failed += not killed
            sys.stdout.write(f"{name:{width}} | {how}\n")
            sys.stdout.flush()
        problem = base.result()
    if problem:
        failed += 1
        sys.stdout.write(problem + "\n")
    sys.stdout.write(f"{len(names) + bool(problem) - failed} passed, {failed} failed\n")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
