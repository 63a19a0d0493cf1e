"""States of trainings in memory, as a checkpoint has them, and comparisons of whole agents."""

from __future__ import annotations

import json
import math
import random
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
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

OF_THE_PROCESS: dict[str, str] = {
    "DQN": "_provider description _caller_settings origin config _run_dir _recorded _unsaved_best "
    "execution_reason _chosen _saved_mode inexact _middle _trainer _rollout",
    "Learner": "_modes _steps _background _batch execution",
    "TensorRollout": "_runners _blocks _calls execution",
    "Iteration": "epsilon",  # written before it is read, as are the next ones
    "CartPole": "_uniform",
    "Policy": "_uniform _never actor",
    "UniformSampler": "_places",
    "NewestSampler": "_places",
    "PrioritizedSampler": "_places in_c",
    "ReplayBuffer": "_writer",
    "Rows": "_cells _rows",  # views of the ring
    "ValidTransitions": "_on_host",  # a view of the window
}
"""Class -> attributes that no checkpoint holds: memory, views, and what the machine decides."""
NUMBERS = (Tensor, torch.Generator, np.ndarray, random.Random)


def differences(one: Any, other: Any) -> list[str]:
    """Return where two objects differ, attribute by attribute, down to numbers and tensors."""
    return list(_differ("", one, other, set()))


def _differ(path: str, one: Any, other: Any, seen: set[int]) -> Iterator[str]:
    named = _attributes(one)
    if named is not None or isinstance(one, Mapping | list | tuple | deque):
        if id(one) in seen:
            return
        seen.add(id(one))
    if type(one) is not type(other):
        yield f"{path}: {type(one).__name__}, {type(other).__name__}"
    elif isinstance(one, Mapping | list | tuple | deque):
        yield from _differ_in_parts(path, one, other, seen)
    elif isinstance(one, NUMBERS):
        yield from () if _same_numbers(one, other) else (path,)
    elif named is not None:
        others = _attributes(other) or {}
        kinds = " ".join(OF_THE_PROCESS.get(kind.__name__, "") for kind in type(one).__mro__)
        ignored = kinds.split()
        for name in sorted((named.keys() | others.keys()) - {*ignored}):
            if name not in named or name not in others:
                yield f"{path}.{name}: missing"
            else:
                yield from _differ(f"{path}.{name}", named[name], others[name], seen)
    elif one != other and not (_is_nan(one) and _is_nan(other)):
        yield f"{path}: {one!r}, {other!r}"


def _same_numbers(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return _same_tensors(one, other)
    if isinstance(one, torch.Generator):
        return torch.equal(one.get_state(), other.get_state())
    if isinstance(one, np.ndarray):
        return np.array_equal(one, other, equal_nan=one.dtype.kind == "f")
    return bool(one.getstate() == other.getstate())


def _differ_in_parts(path: str, one: Any, other: Any, seen: set[int]) -> Iterator[str]:
    if len(one) != len(other):
        yield f"{path}: {len(one)} parts, {len(other)}"
        return
    pairs = one.items() if isinstance(one, Mapping) else enumerate(one)
    for key, value in pairs:
        if isinstance(other, Mapping) and key not in other:
            yield f"{path}[{key!r}]: missing"
        else:
            yield from _differ(f"{path}[{key!r}]", value, other[key], seen)


def _same_tensors(one: Tensor, other: Tensor) -> bool:
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    same = one == other
    if one.is_floating_point():
        same |= one.isnan() & other.isnan()
    return bool(same.all())


def _is_nan(number: Any) -> bool:
    return isinstance(number, float) and math.isnan(number)


def _attributes(thing: Any) -> dict[str, Any] | None:
    """Return the attributes of an object of this package or of a module; None of plain values."""
    if isinstance(thing, (*NUMBERS, type)):
        return None
    if isinstance(thing, nn.Module) or type(thing).__module__.startswith(("fastdqn.", "tests.")):
        if hasattr(thing, "__dict__"):
            return dict(vars(thing))
        return {field.name: getattr(thing, field.name) for field in fields(thing)}
    return {} if callable(thing) else None  # functions: two of them are never equal
