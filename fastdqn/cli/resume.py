"""`fastdqn resume`, and `fastdqn train --resume`: a run goes on in its folder."""

from __future__ import annotations

import shlex
import sys
from typing import Any

from rich.console import Console

from fastdqn.agent.from_checkpoint import Found, clear_for_a_new_beginning, find, is_finished
from fastdqn.agent.recorded_run import refuse_missing_tensorboard, train_recorded
from fastdqn.cli.resuming import NAMED_AGAIN, Asked
from fastdqn.cli.train import FAILED, INTERRUPTED, train_in
from fastdqn.config import Config
from fastdqn.reporting.run_directory import make_run_dir
from fastdqn.reporting.run_lock import locked
from fastdqn.training.signals import StopRequest, stop_on_signals

__all__ = ["resume"]


def resume(asked: Asked, started: float) -> int:
    """Go on with a run, or begin it where it is asked for and there is nothing to go on from.

    Args:
        asked: The run, and the settings that are to be others.
        started: `time.perf_counter()` at the start of the command.

    Returns:
        The exit code, as of `train`; 0 too where there is nothing left to do.

    Raises:
        CheckpointError: No checkpoint can be read.
        UsageError: A setting may not change, or another process writes to the folder.
    """
    with stop_on_signals() as request:
        try:
            make_run_dir(Config(run_dir=asked.run_dir), goes_on=True)
            with locked(asked.run_dir):
                status = _go_on(asked, started, request)
        except KeyboardInterrupt:
            status = "stopped"
        return {"stopped": request.exit_code or INTERRUPTED, "failed": FAILED}.get(status, 0)


def _go_on(asked: Asked, started: float, request: StopRequest) -> str:
    run_dir = asked.run_dir
    if asked.anew is not None and clear_for_a_new_beginning(run_dir):
        return train_in(run_dir, asked.anew, started, request)
    found = find(run_dir, from_policy=asked.from_policy)
    config, changes = asked.changed(found.config)
    refuse_missing_tensorboard(config)
    done = is_finished(found, config)
    if done is not None:
        Console().print(f"{run_dir}: {done}", highlight=False, markup=False, soft_wrap=True)
        return "completed"
    agent, resumed = found.agent(config, changes, *_environment(asked))
    resumed.command = shlex.join(["fastdqn", *sys.argv[1:]])
    resumed.cut_back(run_dir)
    left = _left(found, config)
    options: Any = {"goes_on": True, "resumed": resumed, "request": request}
    return train_recorded(agent, run_dir, left, started=started, **options).status


def _left(found: Found, config: Config) -> int:
    """Return the env steps until the total is reached."""
    return max(found.until(config) - found.env_steps, 0)


def _environment(asked: Asked) -> tuple[str | None, dict[str, Any]]:
    """Return the id of the environment and what else the caller names of it, or None and none.

    What a file names is not imported; what the caller names is.
    """
    named = {name: asked.settings[name] for name in NAMED_AGAIN if name in asked.named}
    return named.pop("env_id", None), named
