"""The errors that fastdqn raises, each of which says what to do next."""

from __future__ import annotations

__all__ = [
    "CheckpointError",
    "FastDQNError",
    "NonFiniteError",
    "UsageError",
    "WorkerError",
    "first_line",
]


class FastDQNError(Exception):
    """Base of every error that fastdqn raises on purpose."""


class UsageError(FastDQNError, ValueError):
    """A value that cannot be used, refused before anything starts.

    Args:
        got: The value and its name, as the user knows it (``"--num-envs 0"``); or the error
            itself, from which Gymnasium's AsyncVectorEnv makes what it raises.
        reason: Why it cannot be used.
        way_out: What to do instead; names the flag where there is one.
    """

    def __init__(self, got: str | UsageError, reason: str = "", way_out: str = "") -> None:
        if isinstance(got, UsageError):
            reason, way_out, got = got.reason, got.way_out, got.got
        super().__init__(f"{got}: {reason}. {way_out}")
        self.got: str = got
        self.reason: str = reason
        self.way_out: str = way_out

    def __reduce__(self) -> tuple[type[UsageError], tuple[str, str, str]]:
        """Pickle by the three parts, so that a worker can send it."""
        return type(self), (self.got, self.reason, self.way_out)


class WorkerError(FastDQNError, RuntimeError):
    """An environment worker died, or one of its environments raised."""


class NonFiniteError(FastDQNError, FloatingPointError):
    """A reward, an observation or a loss was NaN or infinite."""


class CheckpointError(FastDQNError):
    """A saved policy is missing, incomplete or unlike its description."""


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or the name of its class if that is empty.

    Suggestions of Gymnasium are left out, since messages end with ours.
    """
    first = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return first.partition(" Did you mean")[0].rstrip(".")
