"""How a worker lives with signals, and how it outlives its parent by a few seconds at most.

A signal to the whole process group is the parent's business: the worker goes on serving until its
parent says close. Once the parent is gone, the worker closes its environments, which may have
started programs of their own, and leaves; a step that waits for something is interrupted. Whatever
state it is in by then (an environment hangs in C with the interpreter's lock, or in its `close`;
the process is stopped), the kernel ends it.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

__all__ = ["HEARD_BY_PARENT", "LEAVE_S", "Parent", "ParentGone", "leave_signals_to_parent"]

HEARD_BY_PARENT = frozenset({signal.SIGINT, signal.SIGTERM, signal.SIGHUP})
"""Signals that a terminal or a scheduler sends to a whole process group."""
LEAVE_S = int(signal.SIGQUIT)
"""Seconds for closing environments once the parent is gone: the number of the signal that tells of
it, since libc's `alarm` itself is its handler, and a handler is called with that number."""
PR_SET_PDEATHSIG = 1


def leave_signals_to_parent() -> None:
    """Hear the signals that are the parent's business, do nothing, and let them through again.

    They were held back since before this process was started. They are handled rather than
    ignored, since programs that an environment starts inherit what is ignored; what is ignored
    already (`nohup`) stays so.
    """
    for number in HEARD_BY_PARENT:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _do_nothing)
            signal.siginterrupt(number, False)  # C code of an environment is not interrupted
    signal.pthread_sigmask(signal.SIG_UNBLOCK, HEARD_BY_PARENT)


def _do_nothing(*_: Any) -> None:
    """Hear a signal."""


class ParentGone(BaseException):
    """The parent is gone; raised in the main thread, at most once, in whatever serves it."""


class Parent:
    """The process that this one serves and must not survive by more than `LEAVE_S` seconds.

    On Linux the kernel tells of its end by a signal whose handler needs no interpreter, and wakes
    this process if it is stopped: at the end of the very parent, and at that of the pipe which
    each child of multiprocessing holds, for a parent that is a thread to the kernel. A thread
    watches as well, everywhere.

    Args:
        pid: The parent; 0 where a thread of it is the parent to the kernel, and may end before; -1
            where a fork server is, which ends with it.
    """

    def __init__(self, pid: int) -> None:
        self._pid, self._ppid, self._is_served = pid, os.getppid(), False
        self._process: Any = multiprocessing.parent_process()
        _let_go_of_fork_server()
        signal.signal(signal.SIGCONT, self._look)
        if sys.platform == "linux":
            _set_alarm_on(signal.SIGQUIT)
            self._ask_kernel(signal.SIGQUIT)
            if os.getppid() != pid > 0:
                os._exit(1)
        threading.Thread(target=self._watch, daemon=True).start()

    def serve(self, serve_once: Callable[[], bool]) -> None:
        """Serve again and again; the end of the parent ends it, whatever it waits for by then.

        No context manager: what a signal raises in one's own lines would pass it by.

        Args:
            serve_once: Returns False when it was the last time.
        """
        try:
            try:
                self._is_served = True
                while serve_once():
                    pass
            finally:
                self._is_served = False
        except (ParentGone, EOFError, OSError):
            _leave_soon()

    def _look(self, *_: Any) -> None:
        """End what serves the parent if that is gone; called where this process goes on."""
        if self._is_served and self._is_gone():
            self._is_served = False
            raise ParentGone

    def _is_gone(self) -> bool:
        if os.getppid() != self._ppid:
            return True
        return self._process is not None and not self._process.is_alive()

    def _ask_kernel(self, number: int) -> None:
        """Ask for a signal when the parent is gone; each thread may ask for one."""
        if self._pid:
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, number)
        if self._process is None:
            return
        with contextlib.suppress(OSError):  # no /proc: the other ways remain
            # Opened once more: a file that is shared knows one signal and one owner.
            pipe = os.open(f"/proc/self/fd/{self._process.sentinel}", os.O_RDONLY | os.O_NONBLOCK)
            fcntl.fcntl(pipe, fcntl.F_SETOWN, os.getpid())
            fcntl.fcntl(pipe, fcntl.F_SETSIG, number)
            fcntl.fcntl(pipe, fcntl.F_SETFL, fcntl.fcntl(pipe, fcntl.F_GETFL) | os.O_ASYNC)

    def _watch(self) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCONT})  # the main thread is to have it
        if sys.platform == "linux":
            self._ask_kernel(signal.SIGCONT)
        if self._process is not None:
            self._process.join()
            _wake(threading.main_thread())
            time.sleep(LEAVE_S)  # the main thread closes the environments meanwhile
            os.kill(os.getpid(), signal.SIGKILL)


def _wake(thread: threading.Thread) -> None:
    if thread.ident is not None:
        signal.pthread_kill(thread.ident, signal.SIGCONT)


def _leave_soon() -> None:
    """Bound what is left to do by `LEAVE_S` seconds, whatever an environment did with alarms."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, LEAVE_S)


def _set_alarm_on(number: int) -> None:
    """Let a signal set the alarm that ends this process, without any help of the interpreter."""
    libc = ctypes.CDLL(None)
    libc.signal.argtypes, libc.signal.restype = [ctypes.c_int, ctypes.c_void_p], ctypes.c_void_p
    libc.signal(number, ctypes.cast(libc.alarm, ctypes.c_void_p))


def _let_go_of_fork_server() -> None:
    """Close the end that a child of a fork server, or a fork of its owner, holds open.

    A fork server ends with the parent, once none of its children holds the line to it.
    """
    module: Any = sys.modules.get("multiprocessing.forkserver")
    server = module and module._forkserver
    if server and server._forkserver_alive_fd is not None:
        os.close(server._forkserver_alive_fd)
        server._forkserver_alive_fd = None
