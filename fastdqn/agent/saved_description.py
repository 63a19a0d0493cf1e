"""The description that is saved with the parameters of a policy, checked value by value.

A stranger may have written it, with a correct hash. Nothing here builds or allocates anything;
sizes are compared with the tensors in the file.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import Field, dataclass
from typing import Any

import torch
from torch import Tensor

from fastdqn.config import Config, plain
from fastdqn.envs.description import EnvDescription
from fastdqn.envs.specs.construction import Construction
from fastdqn.envs.specs.plain_values import NotPlainError, from_plain, to_plain
from fastdqn.errors import CheckpointError, UsageError
from fastdqn.presets import PRESETS
from fastdqn.transition import STORAGE_DTYPES

__all__ = ["SavedDescription", "read_description", "refuse_other_shapes", "write_description"]

LARGEST, LARGEST_SETTING = 2**53, 2**128
"""Largest count, which a float64 holds exactly; and largest setting, which may be a seed."""
MAX_DIMENSIONS, MAX_LENGTH = 64, 1_000
MAX_THREADS = 1_024
MAX_WORDS = 2_000


@dataclass(frozen=True)
class SavedDescription:
    """Checked values of a saved policy.

    Attributes:
        settings: By field of Config, each of its type and in its range.
        construction: How the environment of a factory was made; None of an id, and of policies
            that are older than this entry.
        network: Name of the network's class.
        objective: Class of the caller's own objective, module and name; None is none of his, or
            an older file.
        sampler: Likewise.
        obs_shape: Shape of one observation.
        obs_dtype: Its dtype, by name.
        num_actions: Actions, A.
        env_steps: Real transitions.
        updates: Optimizer steps.
        episodes: Finished episodes.
        rounds: Calls of `learn`, each of which took seeds of its own.
    """

    settings: Mapping[str, Any]
    construction: Construction | None
    network: str
    objective: str | None
    sampler: str | None
    obs_shape: tuple[int, ...]
    obs_dtype: str
    num_actions: int
    env_steps: int
    updates: int
    episodes: int
    rounds: int


def write_description(
    config: Config,
    env: EnvDescription,
    network: str,
    *,
    parts: Mapping[str, str],
    by_id: bool,
    env_steps: int,
    episodes: int,
    updates: int,
    rounds: int,
) -> dict[str, Any]:
    """Return the description of a policy: plain JSON values.

    Args:
        config: The settings.
        env: One environment.
        network: Name of the network's class.
        parts: `objective` and `sampler` of the caller's own -> names of their classes.
        by_id: Whether the environment was passed by its id.
        env_steps: See `SavedDescription`, as for the other counts.
        episodes: See there.
        updates: See there.
        rounds: See there.
    """
    made: dict[str, Any] = {} if by_id else {"env": dict(env.construction)}
    return {
        "env_id": env.env_id,
        **made,
        **parts,
        "env_steps": env_steps,
        "episodes": episodes,
        "updates": updates,
        "rounds": rounds,
        "obs_shape": list(env.obs_shape),
        "obs_dtype": env.obs_dtype,
        "num_actions": env.num_actions,
        "network": network,
        "config": {**plain(config), "run_dir": None, "env_kwargs": to_plain(config.env_kwargs)},
    }


def read_description(description: Mapping[str, Any]) -> SavedDescription:
    """Check a description as the JSON parser gave it.

    Raises:
        CheckpointError: A value is missing, of another type or out of range; names it.
    """
    counts = ("env_steps", "updates", "episodes", "rounds")
    return SavedDescription(
        settings=_settings(description.get("config")),
        construction=_construction(description.get("env")),
        network=_checked("network", description.get("network"), _is_text, "a short text"),
        objective=_part("objective", description),
        sampler=_part("sampler", description),
        obs_shape=tuple(_checked("obs_shape", description.get("obs_shape"), _is_shape, "a shape")),
        obs_dtype=_checked(
            "obs_dtype", description.get("obs_dtype"), _is_dtype, "a dtype of tensors"
        ),
        num_actions=_checked("num_actions", description.get("num_actions"), _is_size, "at least 1"),
        **{name: _checked(name, description.get(name, 0), _is_count, "a count") for name in counts},
    )


def refuse_other_shapes(saved: SavedDescription, tensors: Mapping[str, Tensor]) -> None:
    """Compare the layers of an MLP in a description with the tensors of the file.

    Raises:
        CheckpointError: They are of another network, or not finite.
    """
    sizes = (*saved.settings.get("hidden_sizes", Config.hidden_sizes), saved.num_actions)
    names = {f"layers.{i}.{part}" for i in range(len(sizes)) for part in ("weight", "bias")}
    if names != tensors.keys():
        raise CheckpointError(f"it says that it has {len(sizes)} layers, and holds others")
    inputs = _inputs(saved, tensors["layers.0.weight"])
    for i, size in enumerate(sizes):
        for part, shape in (("weight", (size, inputs)), ("bias", (size,))):
            tensor = tensors[f"layers.{i}.{part}"]
            if tuple(tensor.shape) != shape or tensor.dtype != torch.float32:
                raise CheckpointError(
                    f"its layers.{i}.{part} is of shape {tuple(tensor.shape)} and {tensor.dtype}, "
                    f"and {shape} and float32 in its description"
                )
            if not bool(torch.isfinite(tensor).all()):
                raise CheckpointError(f"its layers.{i}.{part} holds a number that is not finite")
        inputs = size


def _inputs(saved: SavedDescription, first: Tensor) -> int:
    """Return the inputs of a network; a single number may be one-hot, with an input per value."""
    one_hot = not saved.obs_shape and not saved.obs_dtype.startswith("float")
    if one_hot and first.ndim == 2:
        return first.shape[1]
    return math.prod(saved.obs_shape)


# Settings


def _settings(config: Any) -> dict[str, Any]:
    if not isinstance(config, dict) or "env_id" not in config:
        raise CheckpointError("it holds no settings")
    known = Config.__dataclass_fields__
    unknown = sorted(config.keys() - known.keys())
    if unknown:
        raise CheckpointError(f"it holds a setting {unknown[0][:60]!r}, which there is not")
    settings = {name: _setting(known[name], value) for name, value in config.items()}
    settings["run_dir"] = None  # only the caller chooses where to write
    if settings.get("preset") not in PRESETS:
        settings["preset"] = ""  # only a name: the settings that it filled in are saved
    try:
        Config(**settings)
    except UsageError as error:
        raise CheckpointError(f"it holds a setting that cannot be: {error}") from None
    return settings


def _setting(field: Field[Any], value: Any) -> Any:
    kind, _, optional = str(field.type).partition(" | ")
    if value is None and (optional or kind == "Path"):
        return None
    fine, what = _KINDS.get("Literal" if kind.startswith("Literal") else kind, _KINDS["str"])
    if field.name == "cpu_threads":
        fine, what = (lambda v: _is_size(v) and v <= MAX_THREADS), f"1 to {MAX_THREADS}"
    _checked(f"setting {field.name}", value, fine, what)
    if kind == "dict[str, Any]":
        return from_plain(value)
    return tuple(value) if isinstance(value, list) else value


def _is_number(value: Any) -> bool:
    return type(value) is float or _is_whole(value)


def _is_whole(value: Any) -> bool:
    return type(value) is int and abs(value) <= LARGEST_SETTING


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value <= LARGEST


def _is_size(value: Any) -> bool:
    return type(value) is int and 1 <= value < 2**31


def _is_text(value: Any) -> bool:
    return type(value) is str and len(value) <= MAX_WORDS and value.isprintable()


def _is_dtype(value: Any) -> bool:
    return _is_text(value) and value in STORAGE_DTYPES


def _is_shape(value: Any) -> bool:
    if not isinstance(value, list) or len(value) > MAX_DIMENSIONS:
        return False
    return all(map(_is_count, value)) and math.prod(value) <= LARGEST


def _are_sizes(value: Any) -> bool:
    return isinstance(value, list) and len(value) <= MAX_LENGTH and all(map(_is_size, value))


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and len(value) <= MAX_LENGTH and all(map(_is_text, value))


def _are_arguments(value: Any) -> bool:
    try:
        return isinstance(from_plain(value), dict)
    except NotPlainError:
        return False


_KINDS: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "int": (_is_whole, "a whole number"),
    "float": (_is_number, "a number"),
    "bool": (lambda value: type(value) is bool, "true or false"),
    "str": (_is_text, "a short text"),
    "Path": (_is_text, "a short text"),
    "Literal": (_is_text, "a short text"),
    "tuple[int, ...]": (_are_sizes, "a list of sizes"),
    "tuple[str, ...]": (_are_texts, "a list of short texts"),
    "dict[str, Any]": (_are_arguments, "names and plain values"),
}
"""Type of a field -> the check of a value in a file, and its name in messages."""


def _checked(name: str, value: Any, fine: Callable[[Any], bool], what: str) -> Any:
    if not fine(value):
        raise CheckpointError(f"its {name} is {_short(value)}, and must be {what}")
    return value


def _part(name: str, description: Mapping[str, Any]) -> str | None:
    if name not in description:
        return None
    text: str = _checked(name, description[name], _is_text, "a short text")
    return text


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _construction(noted: Any) -> Construction | None:
    try:
        return None if noted is None else Construction.read(noted)
    except NotPlainError as error:
        raise CheckpointError(f"its env holds {error}") from None
