"""The description that is saved with the parameters of a policy, checked value by value.

A stranger may have written it, with a correct hash. Nothing here builds or allocates anything;
sizes are compared with the tensors in the file.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import Field, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastdqn.config import Config
from fastdqn.envs.specs.construction import Construction
from fastdqn.envs.specs.plain_values import NotPlainError, from_plain
from fastdqn.errors import CheckpointError, UsageError
from fastdqn.foundation.setting_checks import plain_value
from fastdqn.networks.iqn import embedding_shapes
from fastdqn.networks.mlp_options import OF_SHAPES, parameter_shapes
from fastdqn.presets import PRESETS
from fastdqn.training.checkpoint import SavedPolicy, load_policy
from fastdqn.transition import STORAGE_DTYPES

__all__ = [
    "SavedDescription",
    "read_description",
    "read_setting",
    "refuse_other_layers",
    "refuse_other_shapes",
    "saved_policy",
]

LARGEST, LARGEST_SETTING = 2**53, 2**128
"""Largest count, which a float64 holds exactly; and largest setting, which may be a seed."""
MAX_DIMENSIONS, MAX_LENGTH = 64, 1_000
MAX_THREADS = 1_024
MAX_WORDS = 2_000
OWN_NETWORK = "If it was a network of your own, pass it: DQN.load(folder, network=...)"
PREFIXES = {"MLP": "", "IQN": "mlp."}
"""Class of a network that is built from settings -> what the names of its layers begin with."""


def saved_policy(saved: str | Path | SavedPolicy, policy: str) -> SavedPolicy:
    """Read the policy of a folder, or return one that was read.

    Args:
        saved: Its folder, that of a run, or what `load_policy` returned.
        policy: `best` or `last`; which one of a run.

    Raises:
        CheckpointError: There is none, or it cannot be read.
        UsageError: There is no such choice.
    """
    if not isinstance(saved, SavedPolicy):
        return load_policy(Path(saved), policy)
    if policy != "last":
        way_out = f"load_policy(folder, policy={policy!r}) reads another."
        raise UsageError(f"policy={policy!r}", f"{saved.folder} has been read already", way_out)
    return saved


@dataclass(frozen=True)
class SavedDescription:
    """Checked values of a saved policy.

    Attributes:
        settings: By field of Config, each of its type and in its range.
        construction: How the environment of a factory was made; None of an id, and of policies
            that are older than this entry.
        network: Name of the network's class.
        obs_shape: Shape of one observation.
        obs_dtype: Its dtype, by name.
        num_actions: Actions, A.
        objective: Class of the caller's own objective, module and name; None is none, or an older
            file.
        sampler: Likewise.
        env_steps: Real transitions.
        updates: Optimizer steps.
        episodes: Finished episodes.
        rounds: Calls of `learn`, each of which took seeds of its own.
    """

    settings: Mapping[str, Any]
    construction: Construction | None
    network: str
    obs_shape: tuple[int, ...]
    obs_dtype: str
    num_actions: int
    objective: str | None = None
    sampler: str | None = None
    env_steps: int = 0
    updates: int = 0
    episodes: int = 0
    rounds: int = 0


def read_description(description: Mapping[str, Any]) -> SavedDescription:
    """Check a description as the JSON parser gave it.

    Raises:
        CheckpointError: A value is missing, of another type or out of range; names it.
    """
    values = {
        name: _checked(name, description.get(name), *check)
        for name, check in _VALUES.items()
        if name in description or not hasattr(SavedDescription, name)  # it has no default
    }
    settings, noted = _settings(description.get("config")), description.get("env")
    try:
        made = None if noted is None else Construction.read(noted)
    except NotPlainError as error:
        raise CheckpointError(f"its env holds {error}") from None
    return SavedDescription(settings, made, **values)


def refuse_other_shapes(saved: SavedDescription, tensors: Mapping[str, Tensor]) -> None:
    """Compare the layers of an MLP or an IQN in a description with the tensors of the file.

    Raises:
        CheckpointError: They are of another network, or not finite.
    """
    if saved.network not in PREFIXES:
        raise CheckpointError(
            f"it holds the parameters of another network than an MLP, {saved.network}: pass it, "
            "DQN.load(folder, network=...)"
        )
    inner = {name.removeprefix(PREFIXES[saved.network]): tensor for name, tensor in tensors.items()}
    hidden = saved.settings.get("hidden_sizes", Config.hidden_sizes)
    options = {name: saved.settings.get(name, False) for name in OF_SHAPES}
    first = inner.get("layers.0.weight", torch.empty(0))
    one_hot = not saved.obs_shape and not saved.obs_dtype.startswith("float")  # an input per value
    inputs = first.shape[1] if one_hot and first.ndim == 2 else math.prod(saved.obs_shape)
    atoms = _numbers_of(saved, inner, f"layers.{len(hidden)}.bias")
    shapes = parameter_shapes(inputs, hidden, saved.num_actions, num_atoms=atoms, **options)
    if saved.network == "IQN":
        shapes = {f"mlp.{name}": shape for name, shape in shapes.items()}
        shapes |= embedding_shapes((inputs, *hidden)[-1])
    if shapes.keys() != tensors.keys():
        layers = " ".join([f"{len(hidden) + 1} layers", *(f"--{o}" for o in options if options[o])])
        raise CheckpointError(f"it says that it has {layers}, and holds others. {OWN_NETWORK}")
    for name, shape in shapes.items():
        tensor = tensors[name]
        if tuple(tensor.shape) != shape or tensor.dtype != torch.float32:
            raise CheckpointError(
                f"its {name} is of shape {tuple(tensor.shape)} and {tensor.dtype}, "
                f"and {shape} and float32 in its description. {OWN_NETWORK}"
            )
        if not bool(torch.isfinite(tensor).all()):
            raise CheckpointError(f"its {name} holds a number that is not finite")


def refuse_other_layers(saved: SavedDescription, given: Mapping[str, Any], folder: str) -> None:
    """Refuse settings of the caller that ask for other layers than the saved network has.

    Raises:
        UsageError: Names the setting, and what it was.
    """
    for name in ("hidden_sizes", *OF_SHAPES):
        was = saved.settings.get(name, getattr(Config, name))
        found = plain_value(Config.__dataclass_fields__[name], given.get(name, was))
        if type(found) is not type(was) or found != was:
            got = f"{name}={given[name]!r} for {folder}"
            reason = f"its network was trained with {name}={was!r}"
            raise UsageError(got, reason, "Leave it out.")


def _numbers_of(saved: SavedDescription, tensors: Mapping[str, Tensor], last: str) -> int:
    """Return the numbers for each action; of the caller's own objective, those in the file."""
    if saved.network == "IQN":
        return 1
    if saved.objective is not None and last in tensors:
        return max(tensors[last].numel() // saved.num_actions, 1)
    name = {"c51": "num_atoms", "qr": "num_quantiles"}.get(saved.settings.get("objective", ""))
    return int(saved.settings.get(name, getattr(Config, name))) if name else 1


# Settings


def read_setting(name: str, value: Any) -> Any:
    """Check a setting as the JSON parser gave it.

    Raises:
        CheckpointError: It is of another type, or too large.
    """
    return _setting(Config.__dataclass_fields__[name], value)


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
    if value is None and (optional == "None" or kind == "Path"):
        return None
    check = _KINDS.get(field.name) or _KINDS.get(kind, _TEXT)
    value = _checked(f"setting {field.name}", value, *check)
    return from_plain(value) if kind == "dict[str, Any]" else value


def _checked(name: str, value: Any, fine: Callable[[Any], bool], what: str) -> Any:
    """Return a value that is fine, a list as a tuple."""
    if not fine(value):
        text = repr(value)
        short = text if len(text) <= 60 else text[:57] + "..."
        raise CheckpointError(f"its {name} is {short}, and must be {what}")
    return tuple(value) if isinstance(value, list) else value


def _whole_within(least: int, most: int, value: Any) -> bool:
    return type(value) is int and least <= value <= most


_is_whole = partial(_whole_within, -LARGEST_SETTING, LARGEST_SETTING)
_is_count = partial(_whole_within, 0, LARGEST)
_is_size = partial(_whole_within, 1, 2**31 - 1)


def _is_text(value: Any) -> bool:
    return type(value) is str and len(value) <= MAX_WORDS and value.isprintable()


def _is_list(fine: Callable[[Any], bool], value: Any, most: int = MAX_LENGTH) -> bool:
    return isinstance(value, list) and len(value) <= most and all(map(fine, value))


def _is_shape(value: Any) -> bool:
    return _is_list(_is_count, value, MAX_DIMENSIONS) and math.prod(value) <= LARGEST


def _are_arguments(value: Any) -> bool:
    try:
        return isinstance(from_plain(value), dict)
    except NotPlainError:
        return False


_Check = tuple[Callable[[Any], bool], str]
_TEXT: _Check = (_is_text, "a short text")
_VALUES: Mapping[str, _Check] = {
    "network": _TEXT,
    "objective": _TEXT,
    "sampler": _TEXT,
    "obs_shape": (_is_shape, "a shape"),
    "obs_dtype": (lambda v: _is_text(v) and v in STORAGE_DTYPES, "a dtype of tensors"),
    "num_actions": (_is_size, "at least 1"),
    **dict.fromkeys(("env_steps", "updates", "episodes", "rounds"), (_is_count, "a count")),
}
"""The check of a value of a description, and its name in messages."""
_KINDS: Mapping[str, _Check] = {
    "cpu_threads": (partial(_whole_within, 1, MAX_THREADS), f"1 to {MAX_THREADS}"),
    "int": (_is_whole, "a whole number"),
    "float": (lambda value: type(value) is float or _is_whole(value), "a number"),
    "bool": (lambda value: type(value) is bool, "true or false"),
    "tuple[int, ...]": (partial(_is_list, _is_size), "a list of sizes"),
    "tuple[str, ...]": (partial(_is_list, _is_text), "a list of short texts"),
    "dict[str, Any]": (_are_arguments, "names and plain values"),
}
"""Name or type of a field -> the check of a value in a file; all others are short texts."""
