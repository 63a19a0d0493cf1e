"""The runner of Gymnasium's own tests: who stands in, what counts as failed, and the exit code."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
STANDS_IN = """
import gymnasium, gymnasium.vector
from gymnasium.vector import AsyncVectorEnv
from gymnasium.vector.async_vector_env import AsyncVectorEnv as Deep

def test_stands_in():
    assert AsyncVectorEnv is Deep is gymnasium.vector.AsyncVectorEnv
    assert any(kind.__name__ == "GroupedVectorEnv" for kind in AsyncVectorEnv.__mro__)

def test_make_vec_uses_it():
    envs = gymnasium.make_vec("CartPole-v1", 3, vectorization_mode="async")
    assert (type(envs), len(envs.processes)) == (AsyncVectorEnv, 2)
    envs.close()
"""
IMPOSSIBLE = "def test_custom_worker_with_semaphore(): assert {holds}\n"
SKEWED = "def test_of_another_version(): assert False\n"
OURS = """
from gymnasium.vector import AsyncVectorEnv
def test_fails_with_ours_only():
    assert AsyncVectorEnv.__name__ == 'AsyncVectorEnv'
"""

pytestmark = pytest.mark.dropin


def run(folder: Path, *tests: str) -> tuple[int, str]:
    """Write a checkout that holds these tests, run them, and return exit code and last line."""
    (folder / "tests/vector").mkdir(parents=True)
    for package in ("tests", "tests/vector"):
        (folder / package / "__init__.py").touch()
    for i, test in enumerate(tests):
        (folder / f"tests/vector/test_{i}.py").write_text(test)
    command = [sys.executable, "-m", "tests.dropin", str(folder), "--num-workers", "2"]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=100
    )
    return done.returncode, (done.stdout.splitlines() or [done.stderr])[-1]


@pytest.mark.slow
def test_our_class_stands_in_everywhere_and_the_impossible_is_expected(tmp_path: Path) -> None:
    code, said = run(tmp_path, STANDS_IN, IMPOSSIBLE.format(holds=False), SKEWED)
    assert said == "2 workers: 2 passed, 1 xfailed, 0 failed, 0 skipped, 1 fail with both classes"
    assert code == 0


@pytest.mark.slow
@pytest.mark.parametrize("test", [OURS, IMPOSSIBLE.format(holds=True)], ids=["ours", "possible"])
def test_a_failure_of_ours_and_a_possible_impossibility_count(tmp_path: Path, test: str) -> None:
    code, said = run(tmp_path, STANDS_IN, test)
    assert said == "2 workers: 2 passed, 0 xfailed, 1 failed, 0 skipped, 0 fail with both classes"
    assert code == 1


def test_a_checkout_without_tests_is_no_success(tmp_path: Path) -> None:
    assert run(tmp_path)[0] == 2
    (tmp_path / "tests/vector").rename(tmp_path / "tests/elsewhere")
    command = [sys.executable, "-m", "tests.dropin", str(tmp_path)]
    refused = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert refused.returncode == 2
    assert "is no clone of Gymnasium" in refused.stderr
