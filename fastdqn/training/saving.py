"""What a training loop calls so that it can be saved as a whole: a null object."""

from __future__ import annotations

from typing import Any

__all__ = ["Saving"]


class Saving:
    """Saves nothing; a subclass copies the training between its vector steps."""

    def advance(self, vector_steps: int = 1) -> None:
        """Called before so many vector steps: copy what they are about to overwrite. Hot path."""

    def keep(self, trainer: Any) -> None:
        """Called after the last vector step, before the updates that are still due.

        A training that goes on from here acts before it makes these updates, as one does that was
        never stopped.
        """
