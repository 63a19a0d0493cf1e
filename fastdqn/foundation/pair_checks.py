"""Refuses settings that exclude each other, or that others leave without effect."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from fastdqn.errors import UsageError
from fastdqn.foundation.idle_settings import refuse_idle
from fastdqn.foundation.objective_checks import refuse_support
from fastdqn.foundation.setting_checks import flag_of, spelled

__all__ = ["check_pairs", "of_epsilon", "refuse_epsilon", "refuse_too_many_steps"]


def check_pairs(config: Any) -> None:
    """Refuse pairs of values that exclude each other."""
    if config.buffer_size != "auto":  # which is chosen large enough
        _check_buffer(config)
    if config.learning_starts >= config.total_timesteps:
        raise UsageError(
            f"--learning-starts {config.learning_starts}",
            f"the run ends at --total-timesteps {config.total_timesteps}, so nothing is learned",
            "Start earlier or run longer.",
        )
    refuse_idle(config)
    _check_replay(config)
    refuse_support(config.v_min, config.v_max, config.num_atoms)
    _check_learning_rate(config)
    _check_ladder(config)
    _refuse_idle_stop(config)
    if config.dueling and tuple(config.hidden_sizes)[-1:] == (1,):
        raise UsageError(
            f"--dueling with --hidden-sizes {spelled(config.hidden_sizes)}",
            "it divides the units of the last hidden layer, which has 1",
            "Give that 2 or more.",
        )
    if config.num_envs % config.env_groups:
        raise UsageError(
            f"--env-groups {config.env_groups}",
            f"--num-envs {config.num_envs} do not fall into that many equal groups",
            "Choose --num-envs as a multiple of it.",
        )
    if config.env_groups > 1 and config.vectorizer != "grouped":
        raise UsageError(
            f"--env-groups {config.env_groups} with --vectorizer {config.vectorizer}",
            "only our own workers step in groups",
            "Leave one of the two out.",
        )
    if config.target == "hard" and not (config.target_period or config.target_period_episodes):
        raise UsageError(
            "--target hard",
            "the target would never be copied",
            "Give --target-period (updates) or --target-period-episodes.",
        )


def _check_buffer(config: Any) -> None:
    """Refuse a batch, environments or steps that the replay ring does not hold."""
    if config.batch_size > config.buffer_size:
        raise UsageError(
            f"--batch-size {config.batch_size}",
            f"it is larger than --buffer-size {config.buffer_size}",
            "Make the batch smaller or the buffer larger.",
        )
    if config.num_envs > config.buffer_size:
        raise UsageError(
            f"--num-envs {config.num_envs}",
            f"one vector step does not fit into --buffer-size {config.buffer_size}",
            "Use fewer environments or a larger buffer.",
        )
    refuse_too_many_steps(config.n_step, config.buffer_size, config.num_envs)


def refuse_too_many_steps(n_step: int, capacity: int, num_envs: int) -> None:
    """Refuse more steps than a ring of so many transitions holds of each environment.

    Raises:
        UsageError: Names both.
    """
    if n_step > 1 and n_step * num_envs >= capacity:
        raise UsageError(
            f"--n-step {n_step}",
            f"--buffer-size {capacity} holds {capacity // num_envs} transitions of each of "
            f"{num_envs} environments",
            "Choose a smaller --n-step or a larger buffer.",
        )


def _check_replay(config: Any) -> None:
    """Refuse steps whose rewards are still missing."""
    if config.n_step > 1 and config.replay == "newest":
        raise UsageError(
            f"--n-step {config.n_step} with --replay newest",
            "the rewards that follow the newest transitions are not there yet",
            "Use --replay uniform or prioritized.",
        )


def _check_learning_rate(config: Any) -> None:
    """Refuse a learning rate that is scheduled and does not fall."""
    start, end, schedule = config.learning_rate, config.learning_rate_end, config.lr_schedule
    beside = f"with --lr-schedule {schedule}"
    if schedule == "constant":
        return
    if not start > 0:
        raise UsageError(
            f"--learning-rate {start} {beside}", "nothing falls from 0", "Start with 5e-4."
        )
    if end > start:
        raise UsageError(
            f"--learning-rate-end {end} {beside}",
            f"it lies above --learning-rate {start}, where the schedule starts",
            "End at that or below.",
        )


def _check_ladder(config: Any) -> None:
    """Refuse a ladder that starts from no exploration."""
    constant = config.epsilon_schedule == "constant"
    none = config.epsilon_start == 0 and (constant or config.epsilon_end == 0)
    if config.epsilon_ladder and none:
        raise UsageError(
            f"--epsilon-ladder with --epsilon-start {config.epsilon_start}",
            "every power of 0 is 0, so no environment would explore",
            "Start with 0.4, or leave the ladder out.",
        )


def _refuse_idle_stop(config: Any) -> None:
    """Refuse a return to stop at where no evaluation can reach it."""
    if config.stop_at_return is not None and not config.eval_interval:
        raise UsageError(
            f"--eval-interval 0 with --stop-at-return {config.stop_at_return:g}",
            "only an evaluation stops the run, and there would be none",
            "Add --stop-at-return None to train to the end, or leave --eval-interval out.",
        )


def of_epsilon(name: str) -> bool:
    """Return whether a setting says how far epsilon-greedy exploration goes."""
    return name.startswith("epsilon_")


def refuse_epsilon(named: Iterable[str], way_out: str) -> None:
    """Refuse settings of epsilon beside a noisy network.

    Args:
        named: Names of the caller's settings.
        way_out: How to leave the noise out.

    Raises:
        UsageError: Names the first of them.
    """
    for name in filter(of_epsilon, named):
        raise UsageError(
            f"{flag_of(name)} with --noisy",
            "a noisy network explores by its own noise, and epsilon is 0",
            f"Leave it out, or {way_out}.",
        )
