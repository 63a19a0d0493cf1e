"""The values that a learner's settings may have."""

from __future__ import annotations

from fastdqn.errors import UsageError
from fastdqn.foundation.scalars import refuse_unless_finite

__all__ = ["TARGETS", "refuse_settings"]

TARGETS = ("soft", "hard", "none")


def refuse_settings(
    *,
    gamma: float,
    learning_rate: float,
    target: str,
    tau: float,
    clip_norm: float | None,
    clip_value: float | None,
) -> None:
    """Refuse settings that cannot be used; see `fastdqn.learner.learner.Learner`.

    Raises:
        UsageError: Names the flag.
    """
    bounded = {"--clip-norm": (clip_norm, "Try 10."), "--clip-value": (clip_value, "Try 1.")}
    refuse_unless_finite("--gamma", gamma, "Try 0.99.")
    refuse_unless_finite("--learning-rate", learning_rate, "Try 5e-4.")
    refuse_unless_finite("--tau", tau, "Try 0.005.")
    for flag, (bound, way_out) in bounded.items():
        if bound is not None:
            refuse_unless_finite(flag, bound, "None leaves the gradient as it is.")
            _refuse_unless(bound > 0, f"{flag} {bound}", "not positive", way_out)
    way_out = f"Choose {', '.join(TARGETS)}."
    _refuse_unless(target in TARGETS, f"--target {target}", "there is no such target", way_out)
    rate = f"--learning-rate {learning_rate}"
    _refuse_unless(0 <= gamma <= 1, f"--gamma {gamma}", "it is a discount in [0, 1]", "Try 0.99.")
    _refuse_unless(learning_rate >= 0, rate, "it is negative", "Try 5e-4.")
    _refuse_unless(0 < tau <= 1, f"--tau {tau}", "it is a fraction in (0, 1]", "Try 0.005.")


def _refuse_unless(fine: bool, got: str, reason: str, way_out: str) -> None:
    if not fine:
        raise UsageError(got, reason, way_out)
