"""States of trainings in memory, as a checkpoint has them, and comparisons of whole agents."""

from __future__ import annotations

import json
import random
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fastdqn import DQN
from fastdqn.foundation.state import PartState
from fastdqn.training.callbacks import Callback
from fastdqn.training.trainer import Trainer

__all__ = ["Saved", "differences", "finish", "restored", "save", "train_to"]


@dataclass
class Saved:
    """What a checkpoint holds: parameters, the ring, and the state as JSON and tensors."""

    parameters: dict[str, Tensor]
    ring: dict[str, Tensor]
    values: str
    tensors: dict[str, Tensor]

    @property
    def state(self) -> PartState:
        return PartState(json.loads(self.values), self.tensors)


def save(agent: DQN, *, replay: bool = True) -> Saved:
    """Copy the state of a training; its values pass through JSON."""
    state = agent.training_state(replay=replay)
    named = agent.parameters(), agent.replay_tensors() if replay else {}, state.tensors
    parameters, ring, tensors = ({k: t.clone() for k, t in each.items()} for each in named)
    return Saved(parameters, ring, json.dumps(state.values, allow_nan=False), tensors)


def restored(agent: DQN, saved: Saved) -> DQN:
    """Let a fresh agent go on from a state."""
    for own, others in (
        (agent.parameters(), saved.parameters),
        (agent.replay_tensors(), saved.ring),
    ):
        for name, tensor in others.items():
            own[name].copy_(tensor)
    agent.restore_training(saved.state)
    return agent


def train_to(agent: DQN, total: int | None, stop_at: int, seen: Callback | None = None) -> Saved:
    """Train until some env steps, and save in the middle; then go on to the end."""
    with agent.trainer(total, seen or Callback()) as trainer:
        trainer.begin(agent.env_seeds())
        while agent._counts()[0] < stop_at:
            trainer.vector_step()
        saved = save(agent)
        _to_the_end(trainer)
    return saved


def finish(agent: DQN, total: int | None = None, seen: Callback | None = None) -> Trainer:
    """Go on with a training that was restored in the middle, to its end."""
    with agent.trainer(total, seen or Callback()) as trainer:
        trainer.run(agent.next_seeds())
    return trainer


def _to_the_end(trainer: Trainer) -> None:
    while trainer.status == "running":
        trainer.vector_step()
    trainer._end()


# Comparing

OF_THE_PROCESS = {
    *("_modes", "_steps", "_background"),  # of a learner: how its steps are run
    *("_runners", "_blocks", "_calls"),  # of a rollout: likewise, and what a call is filled with
    *(
        "_places",
        "_plans",
        "_uniform",
        "_never",
        "actor",
    ),  # memory that is filled before it is read
    *("_rows", "_row", "_act", "_library", "in_c", "_on_host"),
    *("_provider", "description", "_caller_settings", "origin", "config"),  # of the caller
    *("execution", "execution_reason", "_chosen", "_saved_mode", "inexact", "_batch"),
    *("_middle", "_trainer", "_rollout", "_run_dir", "_recorded", "_unsaved_best", "_writer"),
}
"""Attributes that no checkpoint holds: they are memory, or follow from settings and the machine."""


def differences(one: Any, other: Any, ignored: frozenset[str] = frozenset()) -> list[str]:
    """Return where two objects differ, attribute by attribute, down to numbers and tensors.

    Args:
        one: Any object.
        other: Of the same class.
        ignored: Names of attributes that are left out.
    """
    return list(_differ("", one, other, ignored | OF_THE_PROCESS, set()))


def _differ(
    path: str, one: Any, other: Any, ignored: frozenset[str] | set[str], seen: set[int]
) -> Iterator[str]:
    if id(one) in seen:
        return
    seen.add(id(one))
    if type(one) is not type(other):
        yield f"{path}: {type(one).__name__}, {type(other).__name__}"
    elif isinstance(one, Tensor):
        if not _same_tensors(one, other):
            yield path
    elif isinstance(one, torch.Generator):
        if not torch.equal(one.get_state(), other.get_state()):
            yield path
    elif isinstance(one, np.ndarray):
        if not np.array_equal(one, other, equal_nan=one.dtype.kind == "f"):
            yield path
    elif isinstance(one, random.Random):
        if one.getstate() != other.getstate():
            yield path
    elif isinstance(one, Mapping | list | tuple | deque | set | frozenset):
        yield from _differ_in_parts(path, one, other, ignored, seen)
    elif (named := _attributes(one)) is not None:
        others = _attributes(other) or {}
        for name in sorted((named.keys() | others.keys()) - ignored):
            if name not in named or name not in others:
                yield f"{path}.{name}: missing"
            else:
                yield from _differ(f"{path}.{name}", named[name], others[name], ignored, seen)
    elif one != other and not (one != one and other != other):
        yield f"{path}: {one!r}, {other!r}"


def _differ_in_parts(
    path: str, one: Any, other: Any, ignored: frozenset[str] | set[str], seen: set[int]
) -> Iterator[str]:
    if isinstance(one, set | frozenset):
        if one != other:
            yield path
        return
    if len(one) != len(other):
        yield f"{path}: {len(one)} parts, {len(other)}"
        return
    pairs = one.items() if isinstance(one, Mapping) else enumerate(one)
    for key, value in pairs:
        if isinstance(other, Mapping) and key not in other:
            yield f"{path}[{key!r}]: missing"
        else:
            yield from _differ(f"{path}[{key!r}]", value, other[key], ignored, seen)


def _same_tensors(one: Tensor, other: Tensor) -> bool:
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    same: Tensor = (one == other) | ((one != one) & (other != other))
    return bool(same.all())


def _attributes(thing: Any) -> dict[str, Any] | None:
    """Return the attributes of an object of this package, or of PyTorch's modules; else None."""
    if callable(thing) and not isinstance(thing, nn.Module):
        return {} if not type(thing).__module__.startswith("fastdqn.") else vars(thing)
    if is_dataclass(thing) and not hasattr(thing, "__dict__"):
        return {field.name: getattr(thing, field.name) for field in fields(thing)}
    kind = type(thing).__module__
    if isinstance(thing, nn.Module) or kind.startswith(("fastdqn.", "tests.")):
        return dict(vars(thing)) if hasattr(thing, "__dict__") else None
    return None
