"""Copies of objects whose parts share memory, or belong to this process.

A deep copy is a whole: what the parts shared is shared among their copies, and what cannot be
copied (compiled steps, graphs, addresses) is made anew. Nothing else may pull them apart.
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
    """What can be copied deeply, or not at all; neither shallowly nor by pickle.

    Attributes:
        kept_by: How it is kept beyond this process instead: the way out of who pickles it.
    """

    kept_by = "It belongs to this process."

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Copy every part; see `copied`."""
        return copied(self, memo)

    def __copy__(self) -> NoReturn:
        """Refuse: half of its parts would be written by two."""
        raise UsageError(
            f"copy.copy of {type(self).__name__}",
            "both would write into the same memory, each by counts of its own",
            "Use copy.deepcopy.",
        )

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        """Refuse: memory that its parts share would come apart."""
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
        memo: What was copied already, as `copy.deepcopy` hands it on; written.
        shared: Attributes that the copy has in common with it.
        anew: Attributes that the caller sets afterwards; the copy has none of them yet.
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
