"""Sampling beside TorchRL: what is timed, and what is said where TorchRL is not installed."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
import torch

from benchmarks.measure import Effort
from benchmarks.studies import torchrl_replay

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.slow
def test_drawing_and_gathering_are_timed_beside_torchrl(monkeypatch: pytest.MonkeyPatch) -> None:
    def sample(batch_size: int, device: torch.device) -> Callable[[], Any]:
        assert batch_size == 256
        return lambda: time.sleep(0.002)

    monkeypatch.setattr(torchrl_replay, "torchrl_sample", sample)
    measured = torchrl_replay.compare(torch.device("cpu"), Effort(2, 0.02))
    assert [guard.name for guard in measured.guards] == [
        "sample(256) / torchrl",
        "gather(256) / torchrl",
    ]
    assert all(guard.better == "lower" and guard.median < 1.0 for guard in measured.guards)
    assert measured.data["rates"]["torchrl"] <= 500
    assert "| torchrl | " in measured.text


def test_without_torchrl_the_command_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torchrl_replay, "has_torchrl", lambda: False)
    monkeypatch.setattr("sys.argv", ["torchrl_replay"])
    assert torchrl_replay.main() == 2
    assert "pip install torchrl" in capsys.readouterr().err
