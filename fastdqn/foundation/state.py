"""The state of a part of a training: what another process needs to go on from there.

A part says what it consists of as plain values and tensors, and takes them back. A checkpoint may
come from a stranger: every value is read through a `PartState`, which refuses what the part cannot
hold, by name, before it is used.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from fastdqn.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["LARGEST", "Chunked", "PartState", "Stateful"]

LARGEST = 2**62
"""Of the whole numbers of a state."""


@dataclass(frozen=True)
class PartState:
    """Plain values and tensors of a part of a training, by name.

    Attributes:
        values: What JSON holds: None, flags, numbers, texts, lists, mappings by text. A float that
            is not finite is None.
        tensors: As they are now, not copies; on any device.
        where: The part's name in messages.
    """

    values: dict[str, Any] = field(default_factory=dict)
    tensors: dict[str, Tensor] = field(default_factory=dict)
    where: str = "state"

    @classmethod
    def of_parts(cls, parts: Mapping[str, PartState]) -> PartState:
        """Join the states of parts: tensors are named PART/NAME, values lie below PART."""
        tensors = {
            f"{part}/{name}": tensor
            for part, state in parts.items()
            for name, tensor in state.tensors.items()
        }
        return cls({part: state.values for part, state in parts.items()}, tensors)

    def part(self, name: str) -> PartState:
        """Return the state of a part that `of_parts` joined."""
        values = self.values.get(name)
        if not isinstance(values, dict):
            raise self.refusal(name, "missing")
        prefix = f"{name}/"
        own = {
            full.removeprefix(prefix): tensor
            for full, tensor in self.tensors.items()
            if full.startswith(prefix)
        }
        return PartState(values, own, f"{self.where} {name}")

    def with_parts(self, parts: Mapping[str, PartState]) -> PartState:
        """Return this state and those of the part's own parts, which `part` gives back."""
        joined = PartState.of_parts(parts)
        tensors = {**self.tensors, **joined.tensors}
        return PartState({**self.values, **joined.values}, tensors, self.where)

    # Reading values

    def whole(self, name: str, least: int = 0, most: int = LARGEST) -> int:
        """Return a whole number between two bounds, both included."""
        value = self.values.get(name)
        if type(value) is not int or not least <= value <= most:
            raise self.refusal(name, f"{_shown(value)}, no whole number in [{least}, {most}]")
        return value

    def wholes(self, name: str, count: int, least: int = 0, most: int = LARGEST) -> list[int]:
        """Return a list of so many whole numbers between two bounds, both included."""
        values = self.values.get(name)
        if not isinstance(values, list) or len(values) != count:
            raise self.refusal(name, f"{_shown(values)}, no list of {count} whole numbers")
        for value in values:
            if type(value) is not int or not least <= value <= most:
                raise self.refusal(name, f"a list with {_shown(value)}, not in [{least}, {most}]")
        return values

    def number(self, name: str) -> float:
        """Return a number; None is NaN."""
        value = self.values.get(name, "missing")
        if value is None:
            return math.nan
        within = type(value) is int and -LARGEST <= value <= LARGEST
        if not within and not (type(value) is float and math.isfinite(value)):
            raise self.refusal(name, f"{_shown(value)}, no finite number")
        return float(value)

    def numbers(self, name: str, most: int) -> list[float]:
        """Return a list of at most so many numbers; None is NaN."""
        values = self.values.get(name)
        if not isinstance(values, list) or len(values) > most:
            raise self.refusal(name, f"{_shown(values)}, no list of at most {most} numbers")
        return [PartState({name: value}, {}, self.where).number(name) for value in values]

    def flag(self, name: str) -> bool:
        """Return True or False."""
        value = self.values.get(name)
        if not isinstance(value, bool):
            raise self.refusal(name, f"{_shown(value)}, neither true nor false")
        return value

    def text(self, name: str) -> str:
        """Return a text."""
        value = self.values.get(name)
        if not isinstance(value, str):
            raise self.refusal(name, f"{_shown(value)}, no text")
        return value

    # Reading tensors

    def tensor(self, name: str, like: Tensor) -> Tensor:
        """Return a tensor with the shape and dtype of another one; it may be on another device."""
        found = self.tensors.get(name)
        if found is None:
            raise self.refusal(name, "missing")
        if found.shape != like.shape or found.dtype != like.dtype:
            here, there = (f"{list(each.shape)} {each.dtype}" for each in (like, found))
            raise self.refusal(name, f"{there}, not {here}")
        return found

    def copy_into(self, tensors: Mapping[str, Tensor]) -> None:
        """Copy the tensors of these names in place, once all of them have the right shape."""
        found = {name: self.tensor(name, tensor) for name, tensor in tensors.items()}
        for name, tensor in tensors.items():
            tensor.copy_(found[name])

    def scalar(self, name: str, like: Tensor, least: int = 0, most: int = LARGEST) -> int:
        """Return the whole number that a scalar tensor like another one holds; waits for it."""
        value = int(self.tensor(name, like))
        if not least <= value <= most:
            raise self.refusal(name, f"{value}, not in [{least}, {most}]")
        return value

    def finite(self, name: str, like: Tensor) -> Tensor:
        """Return a tensor like another one, if all of its numbers are finite; waits for it."""
        found = self.tensor(name, like)
        if not bool(found.isfinite().all()):
            raise self.refusal(name, "not finite throughout")
        return found

    def refusal(self, name: str, what: str) -> CheckpointError:
        """Return the error that names a value of this part, and what it is."""
        return CheckpointError(f"{self.where}: its {name} is {what}")


class Stateful(Protocol):
    """A part of a training that says what it consists of, and goes on from what another was."""

    def state(self) -> PartState:
        """Return values and tensors; the tensors change as the training goes on."""
        ...

    def restore(self, state: PartState) -> None:
        """Go on from a state.

        Raises:
            CheckpointError: Names a value that is missing or cannot be.
        """
        ...


class Chunked(Protocol):
    """Tensors too large to copy at once, in chunks that are copied one after the other.

    Between two vector steps the chunks that the next ones write are known, so that a copy of the
    whole is consistent though the training goes on.

    Attributes:
        num_chunks: How many there are.
    """

    num_chunks: int

    def chunk(self, number: int) -> dict[str, Tensor]:
        """Return the tensors of a chunk by name; views, not copies."""
        ...

    def version(self, number: int) -> int:
        """Return a number that grows whenever the contents of a chunk change.

        It is 0 as long as the chunk is as it was allocated.
        """
        ...

    def next_written(self, vector_steps: int) -> set[int]:
        """Return the chunks that may change by the end of so many vector steps from now on.

        Resets and cuts before each of these steps count, too.
        """
        ...

    def refuse(self, number: int, tensors: Mapping[str, Tensor]) -> None:
        """Refuse tensors of a file that cannot be this chunk; nothing is written.

        Raises:
            CheckpointError: Names the tensor, and what is wrong with it.
        """
        ...

    def load(self, number: int, tensors: Mapping[str, Tensor] | None) -> None:
        """Copy tensors that `refuse` let pass into a chunk; None is what was allocated."""
        ...


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
