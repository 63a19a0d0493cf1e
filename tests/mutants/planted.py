"""How a file of bugs enters them: by their names, with the tests that must turn red."""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["Planted", "exchange"]

Plant = Callable[[], None]


class Planted(dict[str, tuple[Plant, tuple[str, ...]]]):
    """Name -> what plants the bug, and tests that must turn red."""

    def turns_red(self, *tests: str) -> Callable[[Plant], Plant]:
        """Enter a bug under the name of its function."""

        def enter(plant: Plant) -> Plant:
            self[plant.__name__.replace("_", " ")] = plant, tests
            return plant

        return enter


def exchange(owner: object, name: str, new: object) -> None:
    """Put `new` in the place of what the owner (a module, a class) calls `name`."""
    assert hasattr(owner, name)
    setattr(owner, name, new)
