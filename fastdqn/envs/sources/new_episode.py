"""When a source begins a new episode in environments whose episode was cut."""

from __future__ import annotations

from enum import Enum

__all__ = ["NewEpisode"]


class NewEpisode(Enum):
    """When environments that were asked to begin anew show a new episode.

    Attributes:
        NOW: Its first observation is in the rows.
        NEXT: The next step resets them; its row is no transition.
        NEVER: They cannot be reset alone, and go on as they are.
    """

    NOW = "now"
    NEXT = "next"
    NEVER = "never"
