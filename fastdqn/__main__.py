"""`python -m fastdqn`."""

from __future__ import annotations

import os
import signal
import sys

from fastdqn.foundation.streams import hold_streams

__all__ = ["run"]

INTERRUPTED, TERMINATED = 130, 143


def run() -> int:
    """Run one command; a signal with nothing to save ends it at once, without a traceback."""
    signal.signal(signal.SIGINT, lambda *_: os._exit(INTERRUPTED))
    signal.signal(signal.SIGTERM, lambda *_: os._exit(TERMINATED))
    hold_streams()
    from fastdqn.cli.commands import main  # noqa: PLC0415 - PyTorch takes seconds to load

    return main()


if __name__ == "__main__":
    sys.exit(run())
