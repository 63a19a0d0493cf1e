"""Settings that another one leaves without effect: which they are, and their refusal."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fastdqn.errors import UsageError
from fastdqn.foundation.objective_checks import OF_OBJECTIVES
from fastdqn.foundation.setting_checks import flag_of, plain_value

__all__ = ["idle_in", "refuse_idle"]


@dataclass(frozen=True)
class Switch:
    """A setting that decides whether others have an effect.

    Attributes:
        name: Its field.
        on: The values with which they have one.
        reason: Why they have none with another value.
    """

    name: str
    on: tuple[str | bool, ...]
    reason: str

    def is_on(self, value: Any) -> bool:
        """Return whether the others have an effect beside a plain value."""
        return isinstance(value, str | bool) and value in self.on

    def beside(self, value: Any) -> str:
        """Return the words for a value that leaves the others without effect."""
        return (
            f"with {flag_of(self.name)} {value}" if isinstance(value, str) else "without a ladder"
        )

    @property
    def way_out(self) -> str:
        """What gives the others an effect."""
        values = " or ".join(value for value in self.on if isinstance(value, str))
        return f"{flag_of(self.name)} {values}".rstrip()


PRIORITIES = "priority_alpha", "priority_beta_start", "priority_beta_end", "priority_eps"
SWITCHES: Mapping[str, Switch] = {
    **dict.fromkeys(PRIORITIES, Switch("replay", ("prioritized",), "it draws by no priorities")),
    "learning_rate_end": Switch(
        "lr_schedule", ("linear", "cosine"), "a constant learning rate has no other end"
    ),
    "epsilon_ladder_alpha": Switch("epsilon_ladder", (True,), "all environments explore alike"),
    "loss": Switch("objective", ("dqn", "munchausen"), "it has a loss of its own"),
    **{name: Switch("objective", on, "it does not read it") for name, on in OF_OBJECTIVES.items()},
}
"""Setting -> what gives it an effect."""


def idle_in(kind: type[Any], settings: Mapping[str, Any]) -> set[str]:
    """Return the names of settings that others leave without effect.

    Args:
        kind: The dataclass whose fields they are; its defaults count for those that are missing.
        settings: By name, as the caller gave them.
    """
    known: Mapping[str, Any] = kind.__dataclass_fields__
    values = {
        switch.name: plain_value(
            known[switch.name], settings.get(switch.name, known[switch.name].default)
        )
        for switch in SWITCHES.values()
    }
    return {name for name, switch in SWITCHES.items() if not switch.is_on(values[switch.name])}


def refuse_idle(config: Any) -> None:
    """Refuse a setting that another one leaves without effect, if it is not the default.

    Raises:
        UsageError: Names the flags of both.
    """
    for name, switch in SWITCHES.items():
        if config.noisy and name == "epsilon_ladder_alpha":
            continue  # beside noise every setting of epsilon is refused where it is named
        value, of_switch = getattr(config, name), getattr(config, switch.name)
        if not switch.is_on(of_switch) and value != config.__dataclass_fields__[name].default:
            raise UsageError(
                f"{flag_of(name)} {value} {switch.beside(of_switch)}",
                switch.reason,
                f"Add {switch.way_out}, or leave it out.",
            )
