"""The worker process: it answers each signal of its parent with one signal.

A signal is one byte over a socket; all other data of a step lies in the shared block. What does
not fit into a byte follows over the connection beside the socket. When the parent dies, its ends
close, and the worker closes its environments and exits; see `parent_watch` for the time it has.
"""

from __future__ import annotations

import gc
import os
import pickle
import socket
import struct
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import cloudpickle

from fastdqn.envs.specs.registrations import register
from fastdqn.envs.workers.failures import EnvFailures, Failure
from fastdqn.envs.workers.parent_watch import Parent, ignore_group_signals
from fastdqn.envs.workers.revived_envs import RevivedEnvs
from fastdqn.envs.workers.settings import PoolSettings
from fastdqn.envs.workers.shared_block import SharedBlock
from fastdqn.foundation.streams import hold_streams

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

__all__ = [
    "CALL",
    "CLOSE",
    "DONE",
    "FAILED",
    "PAYLOAD",
    "Wire",
    "new_wire",
    "next_signal",
    "run_worker",
]

CALL, CLOSE = b"c", b"q"
"""Signals to a worker: a pickled call follows; leave. A byte below 32 steps that group's host."""
DONE, PAYLOAD, FAILED = b"d", b"p", b"f"
"""Signals from a worker: nothing more; a pickled result follows; pickled Failures follow."""
let_others_run: Callable[[], None] = getattr(os, "sched_yield", partial(time.sleep, 0))


def next_signal(signals: socket.socket, spin_s: float) -> bytes:
    """Return the next signal; poll for `spin_s` seconds before going to sleep. Hot path.

    Waking a process takes tens of microseconds, and on virtual machines far more. Between two
    polls the core is offered to other processes: on a busy machine the sender of the signal is
    often among them.

    Args:
        signals: The socket that the signal comes from.
        spin_s: Seconds to stay awake.
    """
    if spin_s:
        until = time.perf_counter() + spin_s
        while time.perf_counter() < until:
            try:
                return signals.recv(1, socket.MSG_DONTWAIT)
            except BlockingIOError:
                let_others_run()
    return signals.recv(1)


@dataclass(frozen=True)
class Wire:
    """One end of the connection between parent and worker.

    Attributes:
        signals: A stream socket for single bytes.
        messages: A connection for what does not fit into a byte; a signal announces it.
    """

    signals: socket.socket
    messages: Connection

    def send(self, signal_: bytes, message: bytes | None = None) -> None:
        """Send a signal and what it announces."""
        self.signals.send(signal_)
        if message is not None:
            self.messages.send_bytes(message)

    def receive(self, spin_s: float = 0.0) -> bytes:
        """Wait for a signal, awake for `spin_s` seconds.

        Raises:
            EOFError: The other end is closed.
        """
        signal_ = next_signal(self.signals, spin_s)
        if not signal_:
            raise EOFError
        return signal_

    def limit(self, seconds: float) -> None:
        """Raise OSError for a message that gets stuck half-way for so many seconds."""
        patience = struct.pack("ll", int(seconds), int(seconds % 1 * 1e6))
        with socket.socket(fileno=os.dup(self.messages.fileno())) as end:
            for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
                end.setsockopt(socket.SOL_SOCKET, option, patience)

    def close(self) -> None:
        """Close this end."""
        self.signals.close()
        self.messages.close()


def new_wire(context: Any) -> tuple[Wire, Wire]:
    """Return the two ends of a new connection, of a context of multiprocessing."""
    signals, messages = socket.socketpair(), context.Pipe()
    return Wire(signals[0], messages[0]), Wire(signals[1], messages[1])


def run_worker(
    wire: Wire,
    inherited: Sequence[Wire],
    *,
    settings: PoolSettings,
    spans: Sequence[tuple[int, int]],
    env_fns: bytes,
    block: Any,
    semaphore: Any,
    parent_pid: int,
    registry: bytes,
) -> None:
    """Serve until the parent asks to close, or ends.

    Args:
        wire: This worker's end.
        inherited: Ends of other connections that a forked child has inherited; closed first, since
            an open one would hide the parent's death from other workers.
        settings: Of the pool.
        spans: (first, last + 1) environment by group.
        env_fns: Cloudpickled lists of factories, one per group.
        block: Shared memory (a RawArray) for the rows.
        semaphore: Limits how many workers run an environment at a time, or None.
        parent_pid: See `Parent`.
        registry: What the parent has registered with Gymnasium; see `registrations`.
    """
    ignore_group_signals()
    hold_streams()  # printing must not cost the worker
    for end in inherited:
        end.close()
    parent = Parent(parent_pid)
    rows = SharedBlock.over(memoryview(block), settings.spec)
    factories = pickle.loads(env_fns)  # noqa: S301 - written by the parent process
    register(registry)
    hosts = [
        RevivedEnvs(settings, span, fns, rows, semaphore)
        for span, fns in zip(spans, factories, strict=True)
    ]
    gc.freeze()  # imported objects stay; the collector need not scan them
    parent.serve(partial(_serve, wire, hosts, settings.spin_s))
    for host in hosts:
        host.close()


def _serve(wire: Wire, hosts: Sequence[RevivedEnvs], spin_s: float) -> bool:
    """Answer one signal; return False when it was the last."""
    asked = wire.receive(spin_s)
    if asked == CLOSE:
        return False
    try:
        if asked == CALL:
            name, group, arguments = pickle.loads(wire.messages.recv_bytes())  # noqa: S301
            answer = cloudpickle.dumps(getattr(hosts[group], name)(*arguments))
        else:
            message = hosts[asked[0]].step()
            answer = None if message is None else cloudpickle.dumps(message)
    except EnvFailures as error:
        wire.send(FAILED, cloudpickle.dumps([*map(_fit_to_travel, error.failures)]))
    except Exception as error:  # e.g. a result that cannot be pickled
        failure = Failure.of(hosts[0].first_env, error)
        wire.send(FAILED, cloudpickle.dumps([_fit_to_travel(failure)]))
    else:
        wire.send(DONE if answer is None else PAYLOAD, answer)
    return True


def _fit_to_travel(failure: Failure) -> Failure:
    """Return failures without exceptions that the parent could not unpickle."""
    try:
        pickle.loads(cloudpickle.dumps(failure))  # noqa: S301 - what was just written
    except Exception:
        return replace(failure, error=None)
    return failure
