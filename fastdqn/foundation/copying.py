"""Copies of objects whose parts share memory, or belong to this process.

In a deep copy, memory that the parts shared is shared by their copies, and what cannot be copied
(compiled steps, graphs, addresses) is rebuilt. Shallow copies and pickles are refused, since they
would separate parts that share memory.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, NoReturn, Self, TypeVar

from fastdqn.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Whole", "copied", "snapshot"]

T = TypeVar("T")


class Whole:
    """Base of objects that can be copied deeply, but neither shallowly nor by pickle.

    Attributes:
        kept_by: How to save it instead of pickling it; the advice of the refusal.
        built_from: Attributes of which a copy is built anew, as its arguments; without any, every
            part is copied.
    """

    kept_by = "It belongs to this process."
    built_from: tuple[str, ...] = ()

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Copy every part, see `copied`; or build another one of the parts in `built_from`."""
        if not self.built_from:
            return copied(self, memo)
        arguments = [copy.deepcopy(vars(self)[name], memo) for name in self.built_from]
        twin = memo[id(self)] = type(self)(*arguments)
        return twin

    def __copy__(self) -> NoReturn:
        """Refuse: both copies would write into the same memory."""
        raise UsageError(
            f"copy.copy of {type(self).__name__}",
            "both would write into the same memory, each by counts of its own",
            "Use copy.deepcopy.",
        )

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        """Refuse: parts that share memory would be separated."""
        raise UsageError(
            f"pickling {type(self).__name__}",
            "its parts share memory, and some of it is of this process alone",
            self.kept_by,
        )


def copied(
    thing: T, memo: dict[int, Any], *, shared: Iterable[str] = (), anew: Iterable[str] = ()
) -> T:
    """Copy an object deeply, attribute by attribute.

    Args:
        thing: Has a `__dict__`.
        memo: The memo of `copy.deepcopy`; written.
        shared: Attributes that the copy shares.
        anew: Attributes that the caller sets afterwards; they are left out of the copy.
    """
    twin = object.__new__(type(thing))
    memo[id(thing)] = twin
    left_out = set(anew)
    for name in shared:
        value = vars(thing)[name]
        memo[id(value)] = value
    for name, value in vars(thing).items():
        if name not in left_out:
            vars(twin)[name] = copy.deepcopy(value, memo)
    return twin


def snapshot(tensors: Iterable[Tensor]) -> Callable[[], None]:
    """Copy tensors that a trial will write; return what brings their values back, in place."""
    kept = [(tensor, tensor.clone()) for tensor in tensors]

    def restore() -> None:
        for tensor, value in kept:
            tensor.copy_(value)

    return restore
