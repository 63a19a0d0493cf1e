"""`fastdqn train`: one run, from settings to a folder of results."""

from __future__ import annotations

from pathlib import Path

from fastdqn.agent.dqn import DQN
from fastdqn.agent.recorded_run import refuse_missing_tensorboard, train_recorded
from fastdqn.config import Config
from fastdqn.reporting.run_directory import make_run_dir
from fastdqn.reporting.run_lock import locked
from fastdqn.training.signals import StopRequest, stop_on_signals

__all__ = ["FAILED", "INTERRUPTED", "train", "train_in"]

FAILED, INTERRUPTED = 1, 130


def train(config: Config, started: float) -> int:
    """Train with the settings and leave a complete run directory.

    Args:
        config: The settings.
        started: `time.perf_counter()` at the start of the command.

    Returns:
        The exit code: 0 done, 1 failed, 130 or 143 stopped by a signal after saving.

    Raises:
        UsageError: A setting cannot be used; nothing has been started.
    """
    with stop_on_signals() as request:
        try:
            refuse_missing_tensorboard(config)
            agent = DQN.from_config(config)
            run_dir = make_run_dir(config)
            with locked(run_dir):
                outcome = train_recorded(agent, run_dir, None, started=started, request=request)
                status = outcome.status
        except KeyboardInterrupt:
            status = "stopped"
        return {"stopped": request.exit_code or INTERRUPTED, "failed": FAILED}.get(status, 0)


def train_in(run_dir: Path, config: Config, started: float, request: StopRequest) -> str:
    """Train in a folder that is locked already, and return how the run ended."""
    refuse_missing_tensorboard(config)
    agent = DQN.from_config(config)
    return train_recorded(agent, run_dir, None, started=started, request=request).status
