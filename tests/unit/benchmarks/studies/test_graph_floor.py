"""The floor of update graphs: timed on a card, refused without one."""

from __future__ import annotations

import pytest
import torch

from benchmarks.measure import Effort
from benchmarks.studies import graph_floor


def test_a_device_without_graphs_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["graph_floor", "--device", "cpu"])
    assert graph_floor.main() == 2
    assert "--device cpu: updates are recorded as graphs on CUDA only" in capsys.readouterr().err


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_graphs_are_timed_beside_empty_ones() -> None:
    measured = graph_floor.measure(64, 64, torch.device("cuda"), Effort(2, 0.02))
    assert {name.split()[1] for name in (g.name for g in measured.guards)} >= {"cudagraph"}
    for guard in measured.guards:
        assert guard.median > (1.0 if "empty" in guard.name else 0.0)
