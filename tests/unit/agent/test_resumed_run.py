"""Which best policy a run that goes on has to beat."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fastdqn.agent.resumed_run import Resumed
from fastdqn.reporting.cutting_back import Counts
from fastdqn.training.events import BestPolicy

AGO, LATER = (BestPolicy(step, mean, 0.5, 20) for step, mean in ((100, 19.0), (320, 21.5)))


@pytest.mark.parametrize(
    ("of_folder", "until", "how", "to_beat"),
    [
        (LATER, 1000, {}, AGO),  # found again
        (LATER, 1000, {"changed": ["--log-interval 500 -> 1000"]}, AGO),
        (LATER, 1000, {"changed": ["--total-timesteps 320 -> 1000"]}, LATER),  # found at its end
        (LATER, 1000, {"changed": ["--stop-at-return 21.0 -> 30.0"]}, LATER),
        (LATER, 300, {"changed": ["--total-timesteps 1000 -> 300"]}, LATER),
        (LATER, 1000, {"changed": ["--eval-interval 64 -> 200"]}, LATER),
        (LATER, 1000, {"inexact": ["the replay ring was not saved"]}, LATER),
        (BestPolicy(256, 20.0, 0.5, 20), 1000, {}, BestPolicy(256, 20.0, 0.5, 20)),
        (BestPolicy(256, 18.0, 0.5, 20), 1000, {}, AGO),
        (None, 1000, {"inexact": ["so"]}, AGO),
    ],
)
def test_no_best_policy_gives_way_to_a_worse_one(
    of_folder: BestPolicy | None, until: int, how: dict[str, Any], to_beat: BestPolicy
) -> None:
    selection = SimpleNamespace(best=AGO)
    trainer: Any = SimpleNamespace(best_policy=AGO, best=AGO, selection=selection, until=until)
    Resumed(Path("checkpoint"), Counts(256, 9, 256), **how)._adopt(trainer, of_folder)
    assert trainer.best == selection.best == to_beat
