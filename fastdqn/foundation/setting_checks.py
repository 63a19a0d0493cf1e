"""Checks of settings, one by one: the type and range of each value.

They use only names and annotations of the fields, which are in `config`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, fields
from os import PathLike
from pathlib import Path
from typing import Any

from fastdqn.errors import UsageError
from fastdqn.foundation.durations import seconds_of
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
    "plain_value",
    "spelled",
]


def check(config: Any) -> None:
    """Refuse settings that cannot be used, naming flag, value and way out.

    Raises:
        UsageError: A value is of a wrong type or out of its range.
    """
    _demand(config, "hidden_sizes", _is_sequence, "it must be a tuple of whole numbers, as (64,)")
    for field in fields(config):  # types first, for a Config that is built in Python
        if (kind := _kind_of(field)) in _KINDS:
            _, fine, reason = _KINDS[kind]
            _demand(config, field.name, fine, reason)
    for reason, (fine, names) in _RANGES.items():
        for name in names.split():
            _demand(config, name, fine, reason)
    _check_choices(config)


def _demand(config: Any, name: str, fine: Callable[[Any], bool], reason: str) -> None:
    value, field = getattr(config, name), config.__dataclass_fields__[name]
    words = _words_beside(field)
    if (value is None and "None" in str(field.type)) or _is_one_of(words, value) or fine(value):
        return
    reason = " or ".join((reason, *words))
    default = field.default_factory() if field.default is MISSING else field.default
    way_out = f"The default is {spelled(default) or 'none'}."
    raise UsageError(f"{flag_of(name)} {_quoted(value)}", reason, way_out)


def _is_one_of(words: tuple[str, ...], value: Any) -> bool:
    return isinstance(value, str) and value in words


def _quoted(value: Any) -> str:
    """Return a value as `spelled` does, texts in quotes: they are none where they are refused."""
    if isinstance(value, tuple | list):
        return " ".join(map(_quoted, value))
    return repr(value) if isinstance(value, str) else spelled(value)


_RANGES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "it must be at least 1": (
        lambda value: value >= 1,
        "total_timesteps num_envs env_groups n_step buffer_size batch_size epsilon_decay_steps "
        "eval_episodes cpu_threads log_interval checkpoint_interval num_quantiles keep_last",
    ),
    "it must be at least 2, the ends of the support": (lambda value: value >= 2, "num_atoms"),
    "it must not be negative": (
        lambda value: value >= 0,
        "seed target_period target_period_episodes weight_decay learning_starts learning_rate "
        "max_worker_restarts num_workers eval_interval eval_max_steps learning_rate_end "
        "epsilon_ladder_alpha",
    ),
    "it must lie in [0, 1]": (
        lambda value: 0 <= value <= 1,
        "gamma epsilon_start epsilon_end priority_alpha priority_beta_start priority_beta_end "
        "munchausen_alpha",
    ),
    "it must be positive": (
        lambda value: value > 0,
        "replay_ratio clip_norm clip_value worker_deadline_s restore_limit_s priority_eps "
        "munchausen_temperature",
    ),
    "it must be negative": (lambda value: value < 0, "munchausen_clip"),
    "it must lie in (0, 1]": (lambda value: 0 < value <= 1, "tau epsilon_decay_factor"),
    "it must be a time above 0, as 90s, 10m or 1h": (
        lambda value: seconds_of(value) is not None,
        "checkpoint_every",
    ),
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


def _is_sequence(value: Any) -> bool:
    return isinstance(value, tuple | list)


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
        if choices and not (isinstance(value, str) and value in choices):
            raise UsageError(
                f"{flag_of(field.name)} {value}",
                "there is no such choice",
                f"Choose {', '.join(choices)}.",
            )


def choices_of(field: Field[Any]) -> tuple[str, ...]:
    """Return the choices of a Literal field, none for a field of another type."""
    return _quoted_in(str(field.type)) if str(field.type).startswith("Literal") else ()


def _words_beside(field: Field[Any]) -> tuple[str, ...]:
    """Return the words that a field of another type takes, too, as `auto` beside a number."""
    return _quoted_in(str(field.type).partition(" | ")[2])


def _quoted_in(kind: str) -> tuple[str, ...]:
    return tuple(re.findall(r"'([^']+)'", kind))


def flag_of(name: str) -> str:
    """Return the flag of a field: `num_envs` is `--num-envs`."""
    return f"--{name.replace('_', '-')}"


def spelled(value: Any) -> str:
    """Return a value as it is typed after its flag: sizes without brackets."""
    if isinstance(value, dict):
        return " ".join(f"{key}={part}" for key, part in value.items())
    return " ".join(map(str, value)) if isinstance(value, tuple | list) else str(value)
