"""Plants the bug that FASTDQN_MUTANT names, and writes down which tests turned red.

Loaded by `pytest -p tests.mutants.plugin`, before any test module is imported.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.mutants.bugs import MUTANTS

NAME = os.environ.get("FASTDQN_MUTANT")
RED = os.environ.get("FASTDQN_MUTANT_RED")
ASSERTIONS = (AssertionError, pytest.fail.Exception)

if NAME:
    MUTANTS[NAME].plant()


def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> None:
    """Append a line for each failure: the node id where an assertion failed, else the error."""
    if RED and call.excinfo is not None:
        error = call.excinfo.value
        line = item.nodeid if isinstance(error, ASSERTIONS) else f"{type(error).__name__}: {error}"
        with Path(RED).open("a") as lines:
            lines.write(line.splitlines()[0] + "\n")
