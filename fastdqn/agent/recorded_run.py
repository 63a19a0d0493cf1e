"""A training with a run directory: the same from the command line and from Python."""

from __future__ import annotations

import importlib.util
import shlex
import time
import traceback
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fastdqn.agent.learning import Trainable
from fastdqn.agent.resumed_run import Resumed, lent_by
from fastdqn.agent.run_words import conclude, introduce, reason_of
from fastdqn.agent.whole_training import holds_training
from fastdqn.config import Config
from fastdqn.envs.specs.plain_values import spelled_arguments
from fastdqn.errors import UsageError
from fastdqn.reporting.best_policy import Unsaved
from fastdqn.reporting.console import Console
from fastdqn.reporting.run_checkpoints import Lent
from fastdqn.reporting.run_directory import make_run_dir
from fastdqn.reporting.run_lock import locked
from fastdqn.reporting.run_recorder import RunRecorder
from fastdqn.training.callbacks import Callback, CallbackList
from fastdqn.training.signals import EXIT_CODES, StopRequest, stop_on_default_signals
from fastdqn.training.trainer import Trainer

__all__ = ["RunOutcome", "learn_recorded", "refuse_missing_tensorboard", "train_recorded"]


@dataclass(frozen=True)
class RunOutcome:
    """How a run ended.

    Attributes:
        status: `completed`, `solved`, `stopped` or `failed`.
        error: The exception that ended it, a KeyboardInterrupt included, or None.
        unsaved: The best policy, if a full disk refused it; or None.
    """

    status: str
    error: BaseException | None
    unsaved: Unsaved | None = None


def learn_recorded(
    agent: Trainable,
    run_dir: Path,
    total_timesteps: int | None,
    *,
    goes_on: bool,
    **of_call: Any,
) -> RunOutcome:
    """Train from Python, with a run directory; a signal that ends it is raised when all is saved.

    Args:
        agent: The agent.
        run_dir: The folder; made where it is missing.
        total_timesteps: Env steps; None takes the setting.
        goes_on: Whether an earlier call wrote the folder.
        of_call: `callback` and `unsaved` of `train_recorded`.

    Raises:
        UsageError: The folder holds another run, or another process writes there.
    """
    started, config = time.perf_counter(), agent.config
    refuse_missing_tensorboard(config)
    make_run_dir(replace(config, run_dir=run_dir), goes_on=goes_on)
    with locked(run_dir), stop_on_default_signals() as request:
        how: Any = {"started": started, "request": request, "goes_on": goes_on, **of_call}
        try:
            outcome = train_recorded(agent, run_dir, total_timesteps, silent=config.quiet, **how)
        except KeyboardInterrupt:  # there was nothing to save yet
            raise request.exception() from None
    by_signal = outcome.error is None or isinstance(outcome.error, KeyboardInterrupt)
    if request.received is not None and by_signal:
        return replace(outcome, error=request.exception())
    return outcome


def train_recorded(
    agent: Trainable,
    run_dir: Path,
    total_timesteps: int | None,
    *,
    started: float,
    request: StopRequest | None = None,
    callback: Callback | None = None,
    silent: bool = False,
    goes_on: bool = False,
    unsaved: Unsaved | None = None,
    resumed: Resumed | None = None,
) -> RunOutcome:
    """Train, and leave a complete run directory however it ends; a second call goes on there.

    Args:
        agent: Trains.
        run_dir: The run's folder; exists.
        total_timesteps: Env steps; None takes the setting.
        started: `time.perf_counter()` at the start of the command.
        request: Handles signals; None leaves them to the caller.
        callback: Called beside the recorder; or None.
        silent: Print nothing on the terminal.
        goes_on: Whether an earlier call wrote the folder, which may hold a best policy.
        unsaved: The best policy of that call, if it could not be written.
        resumed: How the run goes on from the checkpoint that the agent has; or None.

    Returns:
        How it ended, errors of the training included: they are not raised, the policy is saved.

    Raises:
        UsageError: A setting cannot be used.
    """
    with Console(run_dir / "log.txt", silent=silent) as console:
        lent = lent_by(agent, None if resumed is None else resumed.chunks)
        of_run: Any = {"started": started, "unsaved": unsaved if goes_on else None}
        record = _recorder_of(agent, run_dir, console, lent, **of_run)
        callbacks = record if callback is None else CallbackList(record, callback)
        best = record.best_so_far() if goes_on else None
        of_run = {"started": started, "recorded": True, "best": best}
        with record, agent.trainer(total_timesteps, callbacks, **of_run) as trainer:
            trainer.saving = record.checkpoints
            introduce(console, agent, trainer, callbacks)
            if resumed:
                resumed.introduce(trainer, record, best)
            record.write_config(_resolved(run_dir, agent))
            ended = _train(agent.next_seeds(), trainer, record, request or StopRequest())
        has_best = trainer.best_policy is not None
        _finish(record, run_dir, agent.config, ended.status, has_best=has_best)
    return replace(ended, unsaved=record.unsaved)


def _recorder_of(
    agent: Trainable, run_dir: Path, console: Console, lent: Lent, **of_call: Any
) -> RunRecorder:
    return RunRecorder(
        run_dir,
        console,
        config=agent.config,
        env_id=agent.description.env_id,
        solved_at=agent.solved_at,
        lent=lent,
        **of_call,
    )


def _finish(
    record: RunRecorder, run_dir: Path, config: Config, status: str, *, has_best: bool
) -> None:
    """Print what is missing and what is there, draw the plots, say how to evaluate and go on."""
    console = record.console
    record.report_missing_files()
    _draw(console, run_dir)
    console.say(f"Results  {run_dir / 'result.json'}")
    if status == "stopped" and holds_training(run_dir):
        console.say(f"Go on    {_command('resume', run_dir, config)}")
    console.say(f"Try it   {_command('evaluate', run_dir, config)}")
    if has_best:
        console.say(f"Or best  {_command('evaluate', run_dir, config, '--policy', 'best')}")


def _command(verb: str, run_dir: Path, config: Config, *flags: str) -> str:
    """Return a command for the run, with the environment and wrappers that no file may name."""
    words = ["fastdqn", verb, str(run_dir), *flags]
    if any(":" in name for name in (config.env_id, *config.wrapper)):
        words += ["--env-id", config.env_id]
        if config.env_kwargs:
            words += ["--env-kwargs", *spelled_arguments(config.env_kwargs)]
        if config.wrapper:
            words += ["--wrapper", *config.wrapper]
    return shlex.join(words)


def refuse_missing_tensorboard(config: Config) -> None:
    """Refuse `--tensorboard` where the package is not installed.

    Raises:
        UsageError: Names the package.
    """
    if config.tensorboard and importlib.util.find_spec("tensorboard") is None:
        raise UsageError(
            "--tensorboard",
            "the package tensorboard is not installed",
            'Install it with: pip install "fastdqn[tensorboard]"',
        )


def _resolved(run_dir: Path, agent: Trainable) -> dict[str, object]:
    return {
        "run_dir": str(run_dir),
        "device": str(agent.learner.device),
        "execution": agent.learner.execution,
        "buffer_size": agent.config.buffer_size,
        "solved_at": agent.solved_at,
        "num_parameters": sum(tensor.numel() for tensor in agent.parameters().values()),
        **agent.origin,
    }


def _train(
    seeds: list[int] | None, trainer: Trainer, record: RunRecorder, request: StopRequest
) -> RunOutcome:
    failure: BaseException | None = None
    try:
        with request.leads_to(trainer.stop):
            status = trainer.run(seeds)
            last = status == "completed" and trainer.selection is not None
            record.save(trainer, "running" if last else status)
        if request.received:
            status = "stopped"
        elif last:
            trainer.evaluate_fully()
    except KeyboardInterrupt as interrupt:
        status, failure = "stopped", interrupt
    except (Exception, SystemExit) as error:  # that of an environment must not cost the policy
        record.end_progress()
        record.console.log("".join(traceback.format_exception(error)))
        by_signal = request.received or getattr(error, "code", None) in EXIT_CODES.values()
        status = "stopped" if by_signal else "failed"  # workers may have received it, too
        failure = error
        if status == "failed":
            record.console.say(f"Failed: {reason_of(error)}", style="red")
    if failure is not None:
        record.checkpoints.abandon()
    record.save(trainer, status)
    record.end_progress()
    conclude(record.console, trainer, status)
    return RunOutcome(status, failure)


def _draw(console: Console, run_dir: Path) -> None:
    """Draw the plots; on a full disk print why there are none."""
    from fastdqn.reporting.plots import plot_run  # noqa: PLC0415 - matplotlib must not delay the start

    try:
        for path in plot_run(run_dir):
            console.say(f"Plot     {path}")
    except (OSError, UsageError) as error:  # or a log that a full disk left empty
        console.say(f"Could not draw the plots: {error}", style="red")
