"""The compiler in this process: Python ends while its thread compiles."""

from __future__ import annotations

import subprocess
import sys

import pytest

SCRIPT = """
from fastdqn import DQN
agent = DQN("CartPole-v1", vectorizer="tensor", num_envs=8, learning_starts=100, replay_ratio=0.25)
agent.learn(12_000)
"""


@pytest.mark.slow
@pytest.mark.parametrize("_attempt", range(3))
def test_python_ends_while_a_thread_compiles(_attempt: int) -> None:
    """Without the handler at exit about two of three processes abort."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=False, timeout=100
    )
    assert done.returncode == 0, done.stderr
