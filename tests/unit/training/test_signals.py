"""Signals: the first asks, the second aborts, and the caller's handlers come back."""

from __future__ import annotations

import signal
import threading

import pytest

from fastdqn.training.signals import (
    EXIT_CODES,
    StopRequest,
    stop_on_default_signals,
    stop_on_signals,
)

SIGNALS = list(EXIT_CODES)


def test_without_a_signal_nothing_is_called_and_the_exit_code_is_zero() -> None:
    calls: list[str] = []
    with stop_on_signals() as request, request.leads_to(lambda: calls.append("stop")):
        pass
    assert (calls, request.received, request.exit_code) == ([], None, 0)


def test_calls_of_learn_handle_a_terminal_that_goes_away_unless_the_caller_does() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    calls: list[str] = []
    try:
        with stop_on_default_signals() as request, request.leads_to(lambda: calls.append("stop")):
            signal.raise_signal(signal.SIGHUP)
        assert (calls, request.exit_code) == (["stop"], 143)
        signal.signal(signal.SIGHUP, lambda *_: calls.append("own"))
        with stop_on_default_signals() as request, request.leads_to(lambda: calls.append("stop")):
            signal.raise_signal(signal.SIGHUP)
        assert (calls, request.received) == (["stop", "own"], None)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_terminal_that_goes_away_is_a_sigterm_unless_that_is_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    calls: list[str] = []
    try:
        with stop_on_signals() as request, request.leads_to(lambda: calls.append("stop")):
            signal.raise_signal(signal.SIGHUP)
            signal.raise_signal(
                signal.SIGHUP
            )  # as the shell and the kernel do, one after the other
        assert (calls, request.received, request.exit_code) == (["stop"], signal.SIGTERM, 143)
        with stop_on_signals() as request, request.leads_to(lambda: calls.append("and")):
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGHUP)
        assert (calls, request.exit_code) == (["stop", "and"], 130)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
        with stop_on_signals() as request, request.leads_to(lambda: calls.append("stop")):
            signal.raise_signal(signal.SIGHUP)
        assert (calls, request.received) == (["stop", "and"], None)
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["SIGINT", "SIGTERM"]
)
def test_the_first_signal_asks_for_the_end_and_gives_the_exit_code(
    number: signal.Signals, code: int
) -> None:
    calls: list[str] = []
    with stop_on_signals() as request, request.leads_to(lambda: calls.append("stop")):
        signal.raise_signal(number)
    assert (calls, request.received, request.exit_code) == (["stop"], number, code)


@pytest.mark.parametrize("first", SIGNALS)
@pytest.mark.parametrize("second", SIGNALS)
def test_the_second_signal_aborts_and_the_exit_code_stays_that_of_the_first(
    first: signal.Signals, second: signal.Signals
) -> None:
    calls: list[str] = []
    with stop_on_signals() as request, request.leads_to(lambda: calls.append("stop")):
        signal.raise_signal(first)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(second)
    assert (calls, request.exit_code) == (["stop"], EXIT_CODES[first])


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_aborts_where_there_is_nothing_to_finish(number: signal.Signals) -> None:
    with stop_on_signals() as request:
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(number)
        with request.leads_to(lambda: None):
            pass
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(number)
    assert request.exit_code == EXIT_CODES[number]


@pytest.mark.parametrize("error", [None, KeyboardInterrupt, ValueError])
def test_the_callers_handlers_come_back_however_it_ends(
    error: type[BaseException] | None,
) -> None:
    before = [signal.getsignal(number) for number in SIGNALS]
    try:
        with stop_on_signals():
            during = [signal.getsignal(number) for number in SIGNALS]
            if error is not None:
                raise error
    except (KeyboardInterrupt, ValueError):
        pass
    assert [signal.getsignal(number) for number in SIGNALS] == before
    assert all(here is not there for here, there in zip(before, during, strict=True))


def test_a_thread_that_may_not_install_handlers_installs_none() -> None:
    requests: list[StopRequest] = []

    def work() -> None:
        with stop_on_signals() as request:
            requests.append(request)

    before = [signal.getsignal(number) for number in SIGNALS]
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert requests[0].exit_code == 0
    assert [signal.getsignal(number) for number in SIGNALS] == before
