"""`fastdqn train`: one run, from settings to a folder of results."""

from __future__ import annotations

import importlib.util
import traceback
from pathlib import Path

from fastdqn.agent import DQN
from fastdqn.config import Config
from fastdqn.device import available_cores
from fastdqn.errors import FastDQNError, UsageError, WorkerError
from fastdqn.loop import Loop
from fastdqn.progress import Console
from fastdqn.record import RunRecord
from fastdqn.run_directory import make_run_dir, write_config
from fastdqn.signals import StopRequest, stop_on_signals

__all__ = ["train"]

FAILED = 1


def train(config: Config, started: float) -> int:
    """Train as the settings say and leave a complete run directory.

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
            return _run(config, request, started)
        except KeyboardInterrupt:
            return request.exit_code


def _run(config: Config, request: StopRequest, started: float) -> int:
    _refuse_missing_tensorboard(config)
    agent = DQN.from_config(config)
    run_dir = make_run_dir(config)
    with Console(run_dir / "log.txt") as console:
        with RunRecord(run_dir, agent, console) as record:
            code = _train(agent, record, request, started)
        _draw(console, run_dir)
        console.say(f"Results  {run_dir / 'result.json'}")
        console.say(f"Try it   fastdqn evaluate {run_dir}")
    return code


def _refuse_missing_tensorboard(config: Config) -> None:
    if config.tensorboard and importlib.util.find_spec("tensorboard") is None:
        raise UsageError(
            "--tensorboard",
            "the package tensorboard is not installed",
            'Install it with: pip install "fastdqn[tensorboard]"',
        )


def _introduce(console: Console, agent: DQN) -> None:
    config = agent.config
    algorithm = "Double DQN" if config.double else "DQN"
    console.say(
        f"{algorithm} on {agent.description.env_id}, seed {config.seed}: {config.num_envs} "
        f"environments, replay ratio {config.replay_ratio:g}, batch {config.batch_size}, "
        f"hidden {' '.join(map(str, config.hidden_sizes)) or 'none'}"
    )
    learner = agent.learner
    precision = "" if learner.precision == "float32" else f"precision {learner.precision}, "
    console.say(
        f"Device {learner.device}, {precision}execution {learner.execution} "
        f"({agent.execution_reason})"
    )


def _tell_crowded(console: Console, num_workers: int) -> None:
    cores = available_cores()
    if num_workers > cores:
        console.say(
            f"{num_workers} workers share {cores} cores and take turns; "
            f"--num-workers {max(cores - 1, 0)} leaves one core to the learner",
            style="yellow",
        )


def _resolved(run_dir: Path, agent: DQN) -> dict[str, object]:
    return {
        "run_dir": str(run_dir),
        "device": str(agent.learner.device),
        "execution": agent.learner.execution,
        "solved_at": agent.solved_at,
    }


def _train(agent: DQN, record: RunRecord, request: StopRequest, started: float) -> int:
    with agent.trainer(None, record, started=started) as trainer:
        _introduce(record.console, agent)
        _tell_crowded(record.console, trainer.rollout.num_workers)
        write_config(record.run_dir, agent.config, _resolved(record.run_dir, agent))
        try:
            with request.leads_to(trainer.stop):
                status = trainer.run(agent.env_seeds())
            record.save(trainer, status)
            if status == "completed":
                trainer.evaluate_fully()
        except KeyboardInterrupt:
            status = "stopped"
        except Exception as error:  # whatever an environment raises must not cost the policy
            record.end_progress()
            record.console.log("".join(traceback.format_exception(error)))
            status = "stopped" if request.received else "failed"  # workers may have got it too
            if status == "failed":
                record.console.say(f"Failed: {_reason(error)}", style="red")
        record.save(trainer, status)
        record.end_progress()
        _conclude(record.console, trainer, status)
    return {"stopped": request.exit_code, "failed": FAILED}.get(status, 0)


def _reason(error: Exception) -> str:
    """Say in one line what went wrong; where an environment raised, which one."""
    if isinstance(error, FastDQNError):
        first, *rest = str(error).splitlines()
        return f"{first} {rest[-1]}" if rest else first
    report = error.__cause__ if isinstance(error.__cause__, WorkerError) else ""
    return " ".join([*str(report).splitlines()[:1], f"{type(error).__name__}: {error}"])


def _conclude(console: Console, trainer: Loop, status: str) -> None:
    rollout, evaluation = trainer.rollout, trainer.evaluation
    console.say(
        f"{status.capitalize()} after {rollout.env_steps:,} env steps, "
        f"{trainer.ratio.updates:,} updates, {rollout.episodes:,} episodes"
    )
    console.say(
        f"Time     {trainer.watch.train_s:.1f} s training at {trainer.train_sps:,.0f} env steps/s, "
        f"{trainer.startup_s:.1f} s start, {trainer.watch.seconds['compile']:.1f} s compiling, "
        f"{trainer.watch.seconds['evaluate']:.1f} s evaluating"
    )
    if evaluation is not None:
        console.say(
            f"Greedy   mean return {evaluation.mean:.1f} +- {evaluation.std:.1f} "
            f"over {evaluation.episodes} fresh episodes"
        )


def _draw(console: Console, run_dir: Path) -> None:
    """Draw the plots; a full disk costs them and is told."""
    from fastdqn.plots import plot_run  # noqa: PLC0415 - matplotlib must not delay the start

    try:
        for path in plot_run(run_dir):
            console.say(f"Plot     {path}")
    except OSError as error:
        console.say(f"Could not draw the plots: {error}", style="red")
