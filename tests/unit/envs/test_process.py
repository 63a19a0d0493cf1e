"""A worker is started deaf to what is its parent's business, and as the child of its parent."""

from __future__ import annotations

import os
import signal
import threading

from fastdqn.envs.workers.parent_watch import GROUP_SIGNALS
from fastdqn.envs.workers.process import parent_pid, signals_blocked


def test_signals_that_are_the_parents_business_are_held_back_for_a_moment() -> None:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    with signals_blocked():
        assert {signal.SIGINT, signal.SIGTERM, signal.SIGHUP} == GROUP_SIGNALS
        assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) >= GROUP_SIGNALS
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before


def test_the_kernel_is_asked_for_the_end_of_a_parent_that_is_no_thread() -> None:
    message: list[int] = [parent_pid("spawn"), parent_pid("forkserver")]
    thread = threading.Thread(target=lambda: message.append(parent_pid("spawn")))
    thread.start()
    thread.join()
    assert message == [os.getpid(), -1, 0]
