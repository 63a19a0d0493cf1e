"""Checks of settings: the type and range of each value, and pairs that exclude each other.

They use only names and annotations of the fields, which are in `config`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, Field, fields
from os import PathLike
from pathlib import Path
from typing import Any

from fastdqn.errors import UsageError
from fastdqn.foundation.scalars import (
    are_names,
    as_bool,
    as_names,
    as_whole,
    is_finite,
    is_whole,
    python_scalar,
)

__all__ = [
    "check",
    "choices_of",
    "flag_of",
    "of_epsilon",
    "plain_value",
    "refuse_epsilon",
    "refuse_too_many_steps",
    "spelled",
]


def check(config: Any) -> None:
    """Refuse settings that cannot be used, naming flag, value and way out.

    Raises:
        UsageError: A value is of a wrong type or out of its range, or two exclude each other.
    """
    for field in fields(config):  # types first, for a Config that is built in Python
        if (kind := _kind_of(field)) in _KINDS:
            _, fine, reason = _KINDS[kind]
            _demand(config, field.name, fine, reason)
    for reason, (fine, names) in _RANGES.items():
        for name in names.split():
            _demand(config, name, fine, reason)
    _check_choices(config)
    _check_pairs(config)


def _demand(config: Any, name: str, fine: Callable[[Any], bool], reason: str) -> None:
    value, field = getattr(config, name), config.__dataclass_fields__[name]
    if (value is None and "None" in str(field.type)) or fine(value):
        return
    default = field.default_factory() if field.default is MISSING else field.default
    way_out = f"The default is {spelled(default) or 'none'}."
    raise UsageError(f"{flag_of(name)} {spelled(value)}", reason, way_out)


_RANGES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "it must be at least 1": (
        lambda value: value >= 1,
        "total_timesteps num_envs env_groups n_step buffer_size batch_size epsilon_decay_steps "
        "eval_episodes cpu_threads log_interval checkpoint_interval",
    ),
    "it must not be negative": (
        lambda value: value >= 0,
        "seed target_period target_period_episodes weight_decay learning_starts learning_rate "
        "max_worker_restarts num_workers eval_interval eval_max_steps learning_rate_end "
        "epsilon_ladder_alpha",
    ),
    "it must lie in [0, 1]": (
        lambda value: 0 <= value <= 1,
        "gamma epsilon_start epsilon_end priority_alpha priority_beta_start priority_beta_end",
    ),
    "it must be positive": (
        lambda value: value > 0,
        "replay_ratio clip_norm clip_value worker_deadline_s priority_eps",
    ),
    "it must lie in (0, 1]": (lambda value: 0 < value <= 1, "tau epsilon_decay_factor"),
    "no machine keeps up with it": (lambda value: value <= 10_000, "replay_ratio"),
}
"""Reason of a refusal -> what a value must fulfil, and the fields that it concerns."""


def plain_value(field: Field[Any], value: Any) -> Any:
    """Return a setting as a plain Python value; unchanged if there is none."""
    if field.name == "device":  # which may be a torch.device
        return str(value)
    kind = _kind_of(field)
    return _KINDS[kind][0](value) if kind in _KINDS else value


def _plain_word(value: Any) -> Any:
    return str(value) if isinstance(value, str) else value


def _plain_path(value: Any) -> Any:
    return Path(value) if isinstance(value, str | PathLike) and str(value) else value


def _plain_sizes(value: Any) -> Any:
    """Return sizes that came as a list or an array as a tuple."""
    sizes = value.tolist() if getattr(value, "ndim", None) == 1 else value
    return tuple(map(as_whole, sizes)) if isinstance(sizes, tuple | list) else value


def _are_sizes(value: Any) -> bool:
    return isinstance(value, tuple | list) and all(is_whole(size) and size > 0 for size in value)


def _plain_arguments(value: Any) -> Any:
    return dict(value or {}) if value is None or isinstance(value, Mapping) else value


def _are_arguments(value: Any) -> bool:
    return isinstance(value, dict) and are_names(tuple(value))


def _is(kind: type) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, kind)


_KINDS: dict[str, tuple[Callable[[Any], Any], Callable[[Any], bool], str]] = {
    "int": (as_whole, is_whole, "it must be a whole number (int)"),
    "float": (python_scalar, is_finite, "it must be a finite number"),
    "bool": (as_bool, _is(bool), "it must be True or False"),
    "str": (_plain_word, _is(str), "it must be a word (str)"),
    "Path": (_plain_path, _is(Path), "it must be a path"),
    "tuple[int, ...]": (_plain_sizes, _are_sizes, "a layer has a whole number of units, 1 or more"),
    "tuple[str, ...]": (as_names, are_names, "it must be a name or several (str)"),
    "dict[str, Any]": (_plain_arguments, _are_arguments, "it must map names to values"),
}
"""Type of a field -> what makes a plain value, what that must fulfil, and the reason if not."""


def _kind_of(field: Field[Any]) -> str:
    return str(field.type).partition(" | ")[0]


def _check_choices(config: Any) -> None:
    """Check the Literal fields, for a Config that is built in Python."""
    for field in fields(config):
        choices, value = choices_of(field), getattr(config, field.name)
        if choices and value not in choices:
            raise UsageError(
                f"{flag_of(field.name)} {value}",
                "there is no such choice",
                f"Choose {', '.join(choices)}.",
            )


def _check_pairs(config: Any) -> None:
    """Refuse pairs of values that exclude each other."""
    if config.batch_size > config.buffer_size:
        raise UsageError(
            f"--batch-size {config.batch_size}",
            f"it is larger than --buffer-size {config.buffer_size}",
            "Make the batch smaller or the buffer larger.",
        )
    if config.learning_starts >= config.total_timesteps:
        raise UsageError(
            f"--learning-starts {config.learning_starts}",
            f"the run ends at --total-timesteps {config.total_timesteps}, so nothing is learned",
            "Start earlier or run longer.",
        )
    if config.num_envs > config.buffer_size:
        raise UsageError(
            f"--num-envs {config.num_envs}",
            f"one vector step does not fit into --buffer-size {config.buffer_size}",
            "Use fewer environments or a larger buffer.",
        )
    _check_replay(config)
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
    """Refuse steps that a replay ring does not hold, and priorities without prioritized replay."""
    refuse_too_many_steps(config.n_step, config.buffer_size, config.num_envs)
    if config.n_step > 1 and config.replay == "newest":
        raise UsageError(
            f"--n-step {config.n_step} with --replay newest",
            "the rewards that follow the newest transitions are not there yet",
            "Use --replay uniform or prioritized.",
        )
    if config.replay != "prioritized":
        beside, reason = f"with --replay {config.replay}", "it draws by no priorities"
        _refuse_idle(config, "priority_", beside, reason, "--replay prioritized")


def _check_learning_rate(config: Any) -> None:
    """Refuse a learning rate that does not fall, and an end of one that is constant."""
    start, end, schedule = config.learning_rate, config.learning_rate_end, config.lr_schedule
    beside = f"with --lr-schedule {schedule}"
    if schedule == "constant":
        reason = "a constant learning rate has no other end"
        _refuse_idle(config, "learning_rate_end", beside, reason, "--lr-schedule linear")
    elif not start > 0:
        raise UsageError(
            f"--learning-rate {start} {beside}", "nothing falls from 0", "Start with 5e-4."
        )
    elif end > start:
        raise UsageError(
            f"--learning-rate-end {end} {beside}",
            f"it lies above --learning-rate {start}, where the schedule starts",
            "End at that or below.",
        )


def _check_ladder(config: Any) -> None:
    """Refuse a ladder that starts from no exploration, and a number of one that is not there."""
    if not config.epsilon_ladder:
        reason = "all environments explore alike"
        _refuse_idle(config, "epsilon_ladder_", "without a ladder", reason, "--epsilon-ladder")
        return
    constant = config.epsilon_schedule == "constant"
    if config.epsilon_start == 0 and (constant or config.epsilon_end == 0):
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
            "Leave one of the two out.",
        )


def _refuse_idle(config: Any, prefix: str, beside: str, reason: str, flag: str) -> None:
    """Refuse a setting that another one leaves without effect, if it is not the default.

    Args:
        config: The settings.
        prefix: How the names of the fields begin.
        beside: What leaves them without effect.
        reason: Why.
        flag: What gives them an effect.
    """
    for field in fields(config):
        value = getattr(config, field.name)
        if field.name.startswith(prefix) and value != field.default:
            got = f"{flag_of(field.name)} {value} {beside}"
            raise UsageError(got, reason, f"Add {flag}, or leave it out.")


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


def choices_of(field: Field[Any]) -> tuple[str, ...]:
    """Return the choices of a Literal field, none for a field of another type."""
    return tuple(re.findall(r"'([^']+)'", str(field.type)))


def flag_of(name: str) -> str:
    """Return the flag of a field: `num_envs` is `--num-envs`."""
    return f"--{name.replace('_', '-')}"


def spelled(value: Any) -> str:
    """Return a value as it is typed after its flag: sizes without brackets."""
    if isinstance(value, dict):
        return " ".join(f"{key}={part}" for key, part in value.items())
    return " ".join(map(str, value)) if isinstance(value, tuple | list) else str(value)
