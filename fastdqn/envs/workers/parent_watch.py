"""A worker ignores signals to its process group, and ends within seconds of its parent's end.

The parent decides what a signal to the whole group means: the worker goes on until its parent
closes it. Once the parent has ended, the worker closes its environments, which may have
started programs of their own, and exits; a step that waits is interrupted. If it cannot (an
environment hangs in C with the interpreter's lock, or in its `close`, or the process is stopped),
the kernel ends it.
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

__all__ = ["GROUP_SIGNALS", "Parent", "ignore_group_signals"]

GROUP_SIGNALS = frozenset({signal.SIGINT, signal.SIGTERM, signal.SIGHUP})
"""Signals that a terminal or a scheduler sends to a whole process group."""
EXIT_WITHIN_S = int(signal.SIGQUIT)
"""Seconds for closing environments once the parent has ended: the number of the signal that reports
it, since libc's `alarm` itself is its handler, and a handler is called with that number."""
PR_SET_PDEATHSIG = 1


def ignore_group_signals() -> None:
    """Handle the signals of GROUP_SIGNALS by doing nothing, and unblock them.

    They were blocked before this process was started. They are handled rather than ignored,
    since programs that an environment starts inherit ignored signals; what is ignored already
    (`nohup`) stays so.
    """
    for number in GROUP_SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, lambda *_: None)
            signal.siginterrupt(number, False)  # C code of an environment is not interrupted
    signal.pthread_sigmask(signal.SIG_UNBLOCK, GROUP_SIGNALS)


class ParentEnded(BaseException):
    """The parent has ended; raised in the main thread, at most once."""


class Parent:
    """The parent process, which this one survives by at most `EXIT_WITHIN_S` seconds.

    On Linux the kernel reports its end by a signal whose handler needs no interpreter, and which
    also wakes a stopped process. It is sent at the end of the parent, and at the end of the pipe
    that each child of multiprocessing holds, since the parent may be a thread to the kernel. On
    every system a thread watches as well.

    Args:
        pid: The parent; 0 where a thread of the parent, which may end sooner, started this process;
            -1 where a fork server did, which ends with the parent.
    """

    def __init__(self, pid: int) -> None:
        self._pid, self._ppid, self._is_served = pid, os.getppid(), False
        self._process: Any = multiprocessing.parent_process()
        _close_fork_server_pipe()
        signal.signal(signal.SIGCONT, self._look)
        if sys.platform == "linux":
            _set_alarm_on(signal.SIGQUIT)
            self._ask_kernel(signal.SIGQUIT)
            if os.getppid() != pid > 0:
                os._exit(1)
        threading.Thread(target=self._watch, daemon=True).start()

    def serve(self, serve_once: Callable[[], bool]) -> None:
        """Call `serve_once` until it returns False or the parent ends.

        This is no context manager, which an exception that a signal raises could bypass.

        Args:
            serve_once: Serves one message; returns False after the last.
        """
        try:
            try:
                self._is_served = True
                while serve_once():
                    pass
            finally:
                self._is_served = False
        except (ParentEnded, EOFError, OSError):
            _exit_soon()

    def _look(self, *_: Any) -> None:
        """Raise if the parent has ended; the handler of SIGCONT and of the kernel's report."""
        if self._is_served and self._is_gone():
            self._is_served = False
            raise ParentEnded

    def _is_gone(self) -> bool:
        if os.getppid() != self._ppid:
            return True
        return self._process is not None and not self._process.is_alive()

    def _ask_kernel(self, number: int) -> None:
        """Ask the kernel for a signal when the parent ends."""
        if self._pid:
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, number)
        if self._process is None:
            return
        with contextlib.suppress(OSError):  # no /proc: the other means remain
            # Opened once more: a shared file has one signal and one owner.
            pipe = os.open(f"/proc/self/fd/{self._process.sentinel}", os.O_RDONLY | os.O_NONBLOCK)
            fcntl.fcntl(pipe, fcntl.F_SETOWN, os.getpid())
            fcntl.fcntl(pipe, fcntl.F_SETSIG, number)
            fcntl.fcntl(pipe, fcntl.F_SETFL, fcntl.fcntl(pipe, fcntl.F_GETFL) | os.O_ASYNC)

    def _watch(self) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCONT})  # for the main thread
        if sys.platform == "linux":
            self._ask_kernel(signal.SIGCONT)
        if self._process is not None:
            self._process.join()
            if (main := threading.main_thread().ident) is not None:
                signal.pthread_kill(main, signal.SIGCONT)
            time.sleep(EXIT_WITHIN_S)  # the main thread closes the environments meanwhile
            os.kill(os.getpid(), signal.SIGKILL)


def _exit_soon() -> None:
    """Set an alarm of `EXIT_WITHIN_S` seconds, whatever an environment did with alarms."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, EXIT_WITHIN_S)


def _set_alarm_on(number: int) -> None:
    """Let a signal set the alarm that ends this process, without the interpreter."""
    libc = ctypes.CDLL(None)
    libc.signal.argtypes, libc.signal.restype = [ctypes.c_int, ctypes.c_void_p], ctypes.c_void_p
    libc.signal(number, ctypes.cast(libc.alarm, ctypes.c_void_p))


def _close_fork_server_pipe() -> None:
    """Close this process's end of the pipe to the fork server.

    A fork server ends with the parent once no child holds that pipe open.
    """
    module: Any = sys.modules.get("multiprocessing.forkserver")
    server = module and module._forkserver
    if server and server._forkserver_alive_fd is not None:
        os.close(server._forkserver_alive_fd)
        server._forkserver_alive_fd = None
