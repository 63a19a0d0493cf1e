"""`fastdqn train`: one run, from settings to a folder of results."""

from __future__ import annotations

from pathlib import Path

from fastdqn.agent import DQN
from fastdqn.config import Config
from fastdqn.errors import FastDQNError
from fastdqn.plots import plot_run
from fastdqn.progress import Console
from fastdqn.record import RunRecord
from fastdqn.run_directory import make_run_dir, write_config
from fastdqn.signals import stop_on_signals
from fastdqn.trainer import Trainer

__all__ = ["train"]


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
    agent = DQN.from_config(config)
    run_dir = make_run_dir(config)
    with Console(run_dir / "log.txt") as console:
        with RunRecord(run_dir, agent, console) as record:
            code = _train(agent, record, console, started)
        for path in plot_run(run_dir):
            console.say(f"Plot     {path}")
        console.say(f"Results  {run_dir / 'result.json'}")
        console.say(f"Try it   fastdqn evaluate {run_dir}")
    return code


def _introduce(console: Console, agent: DQN) -> None:
    config = agent.config
    algorithm = "Double DQN" if config.double else "DQN"
    console.say(
        f"{algorithm} on {agent.description.env_id}, seed {config.seed}: {config.num_envs} "
        f"environments, replay ratio {config.replay_ratio:g}, batch {config.batch_size}, "
        f"hidden {' '.join(map(str, config.hidden_sizes)) or 'none'}"
    )
    console.say(
        f"Device {agent.learner.device}, execution {agent.learner.execution} "
        f"({agent.execution_reason})"
    )


def _resolved(run_dir: Path, agent: DQN) -> dict[str, object]:
    return {
        "run_dir": str(run_dir),
        "device": str(agent.learner.device),
        "execution": agent.learner.execution,
        "solved_at": agent.solved_at,
    }


def _train(agent: DQN, record: RunRecord, console: Console, started: float) -> int:
    with agent.trainer(None, record, started=started) as trainer:
        _introduce(console, agent)
        write_config(record.run_dir, agent.config, _resolved(record.run_dir, agent))
        with stop_on_signals(trainer.stop) as request:
            try:
                trainer.run(agent.env_seeds())
                status = trainer.status
            except FastDQNError as error:
                record.end_progress()
                console.say(f"Failed: {error}", style="red")
                status = "failed"
            except KeyboardInterrupt:
                status = "stopped"
            record.save(trainer, status)
            if status in {"completed", "solved"}:
                _evaluate_at_end(trainer, record)
        record.end_progress()
        _conclude(console, trainer, status)
    return 1 if status == "failed" else request.exit_code


def _evaluate_at_end(trainer: Trainer, record: RunRecord) -> None:
    """Play the full evaluation, unless the one that stopped the run was of this very policy."""
    if trainer.status == "completed" and trainer.evaluator is not None:
        trainer.evaluate_fully()
        record.save(trainer, trainer.status)


def _conclude(console: Console, trainer: Trainer, status: str) -> None:
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
