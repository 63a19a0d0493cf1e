"""A training with a run directory: the same from the command line and from Python."""

from __future__ import annotations

import importlib.util
import shlex
import traceback
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fastdqn.agent.learning import Trainable
from fastdqn.config import Config
from fastdqn.device import available_cores
from fastdqn.envs.specs.plain_values import spelled_arguments
from fastdqn.errors import FastDQNError, UsageError, WorkerError
from fastdqn.foundation.formatting import format_figure
from fastdqn.reporting.best_policy import Unsaved
from fastdqn.reporting.console import Console
from fastdqn.reporting.panel import cut_words, mean_words
from fastdqn.reporting.run_recorder import RunRecorder
from fastdqn.training.callbacks import Callback, CallbackList
from fastdqn.training.signals import EXIT_CODES, StopRequest
from fastdqn.training.trainer import Trainer

__all__ = ["RunOutcome", "refuse_missing_tensorboard", "train_recorded"]


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
) -> RunOutcome:
    """Train, and leave a complete run directory however it ends; a second call goes on there.

    Args:
        agent: The agent.
        run_dir: The run's folder; exists.
        total_timesteps: Env steps; None takes the setting.
        started: `time.perf_counter()` at the start of the command.
        request: Handles signals; None leaves them to the caller.
        callback: Called beside the recorder; or None.
        silent: Print nothing on the terminal.
        goes_on: Whether an earlier call wrote the folder, which may hold a best policy.
        unsaved: The best policy of that call, if it could not be written; or None.

    Returns:
        How it ended, errors of the training included: they are not raised, the policy is saved.

    Raises:
        UsageError: A setting cannot be used.
    """
    config = agent.config
    with Console(run_dir / "log.txt", silent=silent) as console:
        before = unsaved if goes_on else None
        record = _recorder_of(agent, run_dir, console, started=started, unsaved=before)
        callbacks = record if callback is None else CallbackList(record, callback)
        best = record.best_so_far() if goes_on else None
        of_run: Any = {"started": started, "recorded": True, "best": best}
        with record, agent.trainer(total_timesteps, callbacks, **of_run) as trainer:
            _introduce(console, agent, trainer, callbacks)
            record.write_config(_resolved(run_dir, agent))
            ended = _train(agent.env_seeds(), trainer, record, request or StopRequest())
        _finish(record, run_dir, config, has_best=trainer.best_policy is not None)
    return replace(ended, unsaved=record.unsaved)


def _recorder_of(agent: Trainable, run_dir: Path, console: Console, **of_call: Any) -> RunRecorder:
    return RunRecorder(
        run_dir,
        console,
        config=agent.config,
        env_id=agent.description.env_id,
        solved_at=agent.solved_at,
        parameters=agent.parameters,
        describe=agent.describe,
        **of_call,
    )


def _finish(record: RunRecorder, run_dir: Path, config: Config, *, has_best: bool) -> None:
    """Print what is missing and what is there, draw the plots, and say how to evaluate."""
    console = record.console
    record.report_missing_files()
    _draw(console, run_dir)
    console.say(f"Results  {run_dir / 'result.json'}")
    console.say(f"Try it   {_command(run_dir, config)}")
    if has_best:
        console.say(f"Or best  {_command(run_dir, config, '--policy', 'best')}")


def _command(run_dir: Path, config: Config, *flags: str) -> str:
    """Return the command that evaluates the run, with the wrappers that no file may name."""
    words = ["fastdqn", "evaluate", str(run_dir), *flags]
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


def _algorithm_of(config: Config) -> str:
    """Return the usual name of what the settings learn by."""
    if config.objective == "munchausen":  # which has no double variant
        return "Munchausen DQN"
    named = {"dqn": "DQN", "c51": "C51", "qr": "QR-DQN", "iqn": "IQN"}[config.objective]
    return f"Double {named}" if config.double else named


def _introduce(console: Console, agent: Trainable, trainer: Trainer, callback: Callback) -> None:
    config = agent.config
    algorithm = agent.origin.get("objective", _algorithm_of(config))
    named = {"dueling": config.dueling, "noisy": config.noisy, "LayerNorm": config.layer_norm}
    options = [name for name, used in named.items() if used]
    options += [config.activation] * (config.activation != Config.activation)
    hidden = " ".join(["hidden", *(map(str, config.hidden_sizes or ("none",))), *options])
    console.say(
        f"{algorithm} on {agent.description.env_id}, seed {config.seed}: {config.num_envs} "
        f"environments, replay ratio {config.replay_ratio:g}, batch {config.batch_size}, "
        f"{agent.origin.get('network', hidden)}"
    )
    learner = agent.learner
    precision = "" if learner.precision == "float32" else f"precision {learner.precision}, "
    console.say(
        f"Device {learner.device}, {precision}execution {learner.execution} "
        f"({agent.execution_reason})"
    )
    if agent.memory_line:
        console.say(agent.memory_line)
    if trainer.selection is None and config.eval_interval:
        callback.on_no_evaluations("the caller built those of the training")
    _warn_crowded(console, trainer.rollout.num_workers)


def _warn_crowded(console: Console, num_workers: int) -> None:
    cores = available_cores()
    if num_workers > cores:
        console.say(
            f"{num_workers} workers share {cores} cores and take turns; "
            f"--num-workers {max(cores - 1, 0)} leaves one core to the learner",
            style="yellow",
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
    seeds: list[int], trainer: Trainer, record: RunRecorder, request: StopRequest
) -> RunOutcome:
    failure: BaseException | None = None
    try:
        with request.leads_to(trainer.stop):
            status = trainer.run(seeds)
        record.save(trainer, status)
        if status == "completed":
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
            record.console.say(f"Failed: {_reason(error)}", style="red")
    record.save(trainer, status)
    record.end_progress()
    _conclude(record.console, trainer, status)
    return RunOutcome(status, failure)


def _reason(error: BaseException) -> str:
    """Return one line about what went wrong; it names an environment that raised."""
    if isinstance(error, FastDQNError):
        first, *rest = str(error).splitlines()
        return f"{first} {rest[-1]}" if rest else first
    report = error.__cause__ if isinstance(error.__cause__, WorkerError) else ""
    return " ".join([*str(report).splitlines()[:1], f"{type(error).__name__}: {error}"])


def _conclude(console: Console, trainer: Trainer, status: str) -> None:
    rollout, evaluation = trainer.rollout, trainer.evaluation
    console.say(
        f"{status.capitalize()} after {rollout.env_steps:,} env steps, "
        f"{trainer.ratio.updates:,} updates, {rollout.episodes:,} episodes"
    )
    sps = format_figure(trainer.overall_sps, 0)
    console.say(
        f"Time     {trainer.watch.train_s:.1f} s training at {sps} env steps/s, "
        f"{trainer.startup_s:.1f} s start, {trainer.watch.seconds['compile']:.1f} s compiling, "
        f"{trainer.watch.seconds['evaluate']:.1f} s evaluating"
    )
    if evaluation is not None:
        mean, std = mean_words(evaluation)
        console.say(
            f"Greedy   mean return {mean} +- {std} over {evaluation.episodes} fresh episodes"
            f"{cut_words(evaluation)}"
        )
    if (best := trainer.best_policy) is not None:
        mean, std = mean_words(best)
        console.say(
            f"Best     mean return {mean} +- {std} over {best.episodes} fresh episodes, "
            f"policy of env step {best.env_step:,}"
        )


def _draw(console: Console, run_dir: Path) -> None:
    """Draw the plots; on a full disk print why there are none."""
    from fastdqn.reporting.plots import plot_run  # noqa: PLC0415 - matplotlib must not delay the start

    try:
        for path in plot_run(run_dir):
            console.say(f"Plot     {path}")
    except (OSError, UsageError) as error:  # or a log that a full disk left empty
        console.say(f"Could not draw the plots: {error}", style="red")
