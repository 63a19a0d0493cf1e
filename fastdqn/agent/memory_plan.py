"""What a training takes of memory, against what there is: a table, and the largest ring that fits.

On the CPU everything is taken of the host. Elsewhere the device has the ring, the network and the
batches, and the host has the worker processes and what belongs to them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch

from fastdqn.device import available_bytes
from fastdqn.errors import UsageError
from fastdqn.foundation.formatting import format_bytes
from fastdqn.foundation.host_memory import memory_limits
from fastdqn.foundation.search import largest_that
from fastdqn.replay.sizes import RingSizes
from fastdqn.replay.sum_tree import tree_bytes

__all__ = ["LEAST_RESERVE", "RESERVE", "MemoryItem", "MemoryPlan", "Room", "reserve_of", "rooms_of"]

RESERVE, LEAST_RESERVE = 0.1, 512 * 2**20
"""What `--buffer-size auto` leaves of the free memory: this part, and at least so many bytes."""
MARGIN = 0.1
"""Part of the free memory that a capacity named in a refusal leaves."""
RING = "--buffer-size"

Place = Literal["device", "host", "processes"]
"""On the device; in this process on the host; in other processes, or shared with them."""
ON_DEVICE: frozenset[Place] = frozenset({"device"})
HERE: frozenset[Place] = frozenset({"host"})
ELSEWHERE: frozenset[Place] = frozenset({"processes"})


@dataclass(frozen=True)
class MemoryItem:
    """One line of the table.

    Attributes:
        name: What the bytes are for.
        nbytes: How many.
        flag: What makes them fewer.
        place: Where.
    """

    name: str
    nbytes: int
    flag: str
    place: Place = "device"


@dataclass(frozen=True)
class Room:
    """Memory that is left somewhere.

    Attributes:
        name: Where, for messages.
        free: Bytes.
        places: Of the items that are taken from it.
    """

    name: str
    free: int
    places: frozenset[Place]

    def takes(self, items: Sequence[MemoryItem]) -> int:
        """Return the bytes of the items that are taken from it."""
        return sum(item.nbytes for item in items if item.place in self.places)


def rooms_of(device: torch.device) -> list[Room]:
    """Return the memory of a device, and of the host by each of its limits."""
    own = HERE | ON_DEVICE if device.type == "cpu" else HERE
    rooms = []
    if device.type != "cpu":
        rooms.append(Room(str(device), available_bytes(device), ON_DEVICE))
    for limit in memory_limits():
        places = own if limit.of_process else own | ELSEWHERE
        rooms.append(Room(f"the host ({limit.name})", limit.free, places))
    return rooms


def reserve_of(free: int) -> int:
    """Return the bytes that `--buffer-size auto` leaves of those that are free."""
    return max(int(free * RESERVE), LEAST_RESERVE)


def _none(free: int) -> int:  # noqa: ARG001
    return 0


@dataclass(frozen=True)
class MemoryPlan:
    """What a training takes.

    Attributes:
        sizes: Of its ring, with the capacity that is asked for.
        prioritized: Whether the ring has a tree of priorities.
        others: Everything else.
        rooms: What there is.
    """

    sizes: RingSizes
    prioritized: bool
    others: tuple[MemoryItem, ...]
    rooms: tuple[Room, ...]

    def items(self) -> list[MemoryItem]:
        """Return all lines of the table."""
        sizes = self.sizes
        of_ring = [MemoryItem(f"replay: {name}", n, RING) for name, n in sizes.parts().items()]
        if sizes.host_nbytes:
            of_ring.append(MemoryItem("replay: lists on the host", sizes.host_nbytes, RING, "host"))
        if self.prioritized:
            tree = tree_bytes(sizes.slots)
            of_ring.append(MemoryItem("replay: priorities", tree, RING))
            of_ring.append(MemoryItem("replay: a copy of them while modes are tried", tree, RING))
        return [*of_ring, *self.others]

    def overdrawn(self, reserve: Callable[[int], int] = _none) -> Iterator[Room]:
        """Yield the rooms that are too small beside a reserve; see `largest`."""
        items = self.items()
        for room in self.rooms:
            if room.takes(items) > room.free - reserve(room.free):
                yield room

    def holding(self, capacity: int) -> MemoryPlan:
        """Return the plan with a ring of another capacity."""
        return replace(self, sizes=self.sizes.holding(capacity))

    def largest(self, reserve: Callable[[int], int], most: int) -> int:
        """Return the largest capacity that fits beside a reserve of each room, or 0.

        Args:
            reserve: From the free bytes of a room to those that stay free.
            most: Largest capacity that is looked at; the result is it, or whole rows of the ring.
        """
        row = self.sizes.row_size

        def fits(rows: int) -> bool:
            return not any(self.holding(min(rows * row, most)).overdrawn(reserve))

        return min(largest_that(fits, -(-most // row)) * row, most)

    def narrowest(self) -> Room:
        """Return the room of the ring that has the fewest bytes left beside everything."""
        items = self.items()
        holding_it = [room for room in self.rooms if "device" in room.places]
        return min(holding_it, key=lambda room: room.free - room.takes(items))

    @property
    def ring_nbytes(self) -> int:
        """Bytes of the ring, its priorities included."""
        return sum(item.nbytes for item in self.items() if item.flag == RING)

    def table(self, room: Room) -> str:
        """Return the table: each item, and what is taken of a room and left there."""
        items = self.items()
        lines = [(item.name, item.nbytes) for item in items]
        lines += [(f"taken of {room.name}", room.takes(items)), ("left there", room.free)]
        words = [(name, format_bytes(count)) for name, count in lines]
        widest = [max(map(len, column)) for column in zip(*words, strict=True)]
        return "\n".join(f"  {name:<{widest[0]}}  {count:>{widest[1]}}" for name, count in words)

    def refuse_unless_fits(self, spelled: Callable[[str], str], least: int) -> None:
        """Compare what is taken with what is left.

        Args:
            spelled: From a flag to itself with its value, for the message.
            least: Smallest capacity that the other settings allow.

        Raises:
            UsageError: Some room is too small; has the ways out and the table.
        """
        room = next(self.overdrawn(), None)
        if room is None:
            return
        by_flag = self._by_flag(room)
        fits = self.largest(lambda free: int(free * MARGIN), self.sizes.capacity - 1)
        ways = [f"At most {RING} {fits} fits."] if fits >= least else []
        most = max(by_flag.values())
        others = [
            f for f, count in by_flag.items() if count > most / 100 and (f != RING or not ways)
        ]
        ways.append(f"Lower {', '.join(others)}, or free memory." if others else "Or free memory.")
        raise UsageError(
            spelled(next(iter(by_flag))),
            f"the training takes {format_bytes(room.takes(self.items()))} of {room.name}, which "
            f"has {format_bytes(room.free)} left",
            f"{' '.join(ways)}\n{self.table(room)}",
        )

    def _by_flag(self, room: Room) -> dict[str, int]:
        """Return the bytes that are taken of a room by flag, the largest first."""
        taken: dict[str, int] = {}
        for item in self.items():
            if item.place in room.places and item.nbytes:
                taken[item.flag] = taken.get(item.flag, 0) + item.nbytes
        return dict(sorted(taken.items(), key=lambda pair: -pair[1]))
