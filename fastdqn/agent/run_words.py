"""What a run says of itself at its start and its end."""

from __future__ import annotations

from torch import Tensor

from fastdqn.agent.learning import Trainable
from fastdqn.config import Config
from fastdqn.device import available_cores
from fastdqn.errors import FastDQNError, WorkerError
from fastdqn.foundation.formatting import format_figure
from fastdqn.reporting.console import Console
from fastdqn.reporting.panel import cut_words, mean_words
from fastdqn.training.callbacks import Callback
from fastdqn.training.trainer import Trainer

__all__ = ["conclude", "introduce", "reason_of"]

LARGE_BYTES = 10**9
"""Of a ring, whose checkpoints are worth a word."""


def introduce(console: Console, agent: Trainable, trainer: Trainer, callback: Callback) -> None:
    """Say what is trained, and how."""
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
    if config.save_replay:
        _warn_large(console, sum(map(_bytes_of, agent.replay_tensors().values())), config)


def _algorithm_of(config: Config) -> str:
    """Return the usual name of what the settings learn by."""
    if config.objective == "munchausen":  # which has no double variant
        return "Munchausen DQN"
    named = {"dqn": "DQN", "c51": "C51", "qr": "QR-DQN", "iqn": "IQN"}[config.objective]
    return f"Double {named}" if config.double else named


def _warn_crowded(console: Console, num_workers: int) -> None:
    cores = available_cores()
    if num_workers > cores:
        console.say(
            f"{num_workers} workers share {cores} cores and take turns; "
            f"--num-workers {max(cores - 1, 0)} leaves one core to the learner",
            style="yellow",
        )


def _warn_large(console: Console, ring_bytes: int, config: Config) -> None:
    if ring_bytes > LARGE_BYTES:
        console.say(
            f"Checkpoints hold the replay ring: {ring_bytes / 1e9:.1f} GB each, {config.keep_last} "
            "are kept, which share what did not change; --no-save-replay leaves it out",
            style="yellow",
        )


def _bytes_of(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def reason_of(error: BaseException) -> str:
    """Return one line about what went wrong; it names an environment that raised."""
    if isinstance(error, FastDQNError):
        first, *rest = str(error).splitlines()
        return f"{first} {rest[-1]}" if rest else first
    report = error.__cause__ if isinstance(error.__cause__, WorkerError) else ""
    return " ".join([*str(report).splitlines()[:1], f"{type(error).__name__}: {error}"])


def conclude(console: Console, trainer: Trainer, status: str) -> None:
    """Say how it ended, how long it took, and what the policies are worth."""
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
