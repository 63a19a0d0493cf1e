"""Workers start quickly here; how they start by default is the matter of tests/faults."""

import pytest


@pytest.fixture(autouse=True)
def workers_start_quickly(forked_workers: None) -> None:
    """Start workers by `forkserver` where a test does not say how."""
