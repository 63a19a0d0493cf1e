"""Draws by priorities beside other libraries, and what is said where none of them is installed."""

from __future__ import annotations

import time
from typing import Any

import pytest

from benchmarks.measure import Effort
from benchmarks.studies import priorities

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.slow
def test_draws_and_write_backs_are_timed_beside_what_is_installed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    peers: dict[str, Any] = {"json": lambda _: lambda: time.sleep(0.005), "no_such_module": None}
    monkeypatch.setattr(priorities, "PEERS", peers)
    measured = priorities.compare(2_000, Effort(1, 0.02))
    assert [guard.name for guard in measured.guards] == [
        "draw and write back 256, in C / json",
        "draw and write back 256, as a part / json",
    ]
    assert all(guard.better == "lower" and guard.median < 1.0 for guard in measured.guards)
    assert measured.data["rates"]["json"] <= 200


def test_without_any_the_command_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(priorities, "PEERS", {"no_such_module": None})
    monkeypatch.setattr("sys.argv", ["priorities"])
    assert priorities.main() == 2
    assert "pip install torchrl tianshou" in capsys.readouterr().err
