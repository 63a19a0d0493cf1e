"""The console, its log file, and the progress displays."""

from __future__ import annotations

import io
import math
import re
import sys
import threading
from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

import pytest
from rich.console import Console as RichConsole

from fastdqn.reporting.console import Console
from fastdqn.reporting.panel import build_panel, report_line
from fastdqn.reporting.progress import (
    LiveProgress,
    PlainProgress,
    Progress,
    make_progress,
)
from fastdqn.training.evaluation import Evaluation
from fastdqn.training.events import Report

if TYPE_CHECKING:
    from pathlib import Path

STAMP = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d  "
SHARES = {"act": 0.09, "env_wait": 0.31, "write": 0.05, "learn": 0.52, "other": 0.03}


def _evaluation(
    mean: float,
    std: float,
    episodes: int,
    *,
    num_cut: int = 0,
    max_steps: int = 0,
    num_nonfinite: int = 0,
    best: bool = False,
) -> Evaluation:
    parts = SimpleNamespace(
        mean=mean,
        std=std,
        episodes=episodes,
        num_cut=num_cut,
        max_steps=max_steps,
        num_nonfinite=num_nonfinite,
        best=best,
    )
    return cast("Evaluation", parts)


REACHED = (50_000, _evaluation(231.4, 20.1, 20), True)


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class _Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture(autouse=True)
def terminal_of_100_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("LINES", "40")


def _report(env_steps: int = 52_224, known: float = 1.0) -> Report:
    """Return a report; known = NaN makes its late figures unknown."""
    return Report(
        env_steps=env_steps,
        total_env_steps=300_000,
        updates=26_112,
        episodes=512,
        sps=21_340.4,
        return_mean_100=-45.2 * known,
        epsilon=0.34,
        loss=1.87 * known,
        q_mean=12.3 * known,
        grad_norm=3.0 * known,
        wall_s=2.4,
        time_left_s=11.6 * known,
        time_share=SHARES,
    )


def _plain(terminal: io.StringIO) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", terminal.getvalue())


def _logged(path: Path) -> list[str]:
    lines = path.read_text(encoding="utf-8").splitlines()
    assert all(re.match(STAMP, line) for line in lines)
    return [re.sub(STAMP, "", line, count=1) for line in lines]


def test_console_says_everything_twice(tmp_path: Path) -> None:
    out = io.StringIO()
    with Console(tmp_path / "run" / "log.txt", stream=out) as console:
        console.say("started [bold]ALE/Pong[/] :smile:")
        console.say("two\nlines", style="bold red")
        console.log("for the file only")
    assert out.getvalue() == "started [bold]ALE/Pong[/] :smile:\ntwo\nlines\n"
    assert _logged(tmp_path / "run" / "log.txt") == [
        "started [bold]ALE/Pong[/] :smile:",
        "two",
        "lines",
        "for the file only",
    ]


def test_console_keeps_long_lines_whole_and_colours_terminals_only(tmp_path: Path) -> None:
    out, terminal = io.StringIO(), _Terminal()
    Console(None, stream=out).say("x" * 500, style="red")
    assert out.getvalue() == "x" * 500 + "\n"
    with Console(tmp_path / "log", stream=terminal) as console:
        console.say("hot", style="red")
    assert "\x1b[31mhot" in terminal.getvalue()
    assert _logged(tmp_path / "log") == ["hot"]


def test_console_log_is_on_disk_at_once_and_goes_on(tmp_path: Path) -> None:
    for text in ("first run", "second run"):
        console = Console(tmp_path / "log", stream=io.StringIO())
        console.say(text)
        assert _logged(tmp_path / "log")[-1] == text
        console.close()
        console.close()
        console.say("after close")
    assert _logged(tmp_path / "log") == ["first run", "second run"]


def test_console_writes_to_standard_output_by_default(capsys: pytest.CaptureFixture[str]) -> None:
    Console(None).say("here")
    assert capsys.readouterr() == ("here\n", "")


@pytest.mark.parametrize(("term", "is_terminal"), [("xterm-256color", True), ("dumb", False)])
def test_make_progress_fits_the_console(
    monkeypatch: pytest.MonkeyPatch, term: str, is_terminal: bool
) -> None:
    monkeypatch.setenv("TERM", term)
    terminal = Console(None, stream=_Terminal())
    assert terminal.is_terminal is is_terminal
    assert isinstance(make_progress(terminal), LiveProgress) is is_terminal
    assert isinstance(make_progress(Console(None, stream=io.StringIO())), PlainProgress)
    assert type(make_progress(terminal, quiet=True)) is Progress


def test_quiet_progress_shows_nothing_and_logs_every_event(tmp_path: Path) -> None:
    out = io.StringIO()
    with Console(tmp_path / "log", stream=out) as console:
        _drive(make_progress(console, quiet=True))
    assert out.getvalue() == ""
    line = "evaluation at 50,000 steps: return 231.4 (std 20.1) over 20 episodes, target reached"
    assert _logged(tmp_path / "log") == [report_line(_report()), line]


def _drive(progress: Progress) -> None:
    progress.start()
    progress.report(_report())
    progress.evaluated(*REACHED)
    progress.stop()


def test_report_line_reads_as_documented() -> None:
    assert report_line(_report()) == (
        "   52,224 / 300,000 steps | 21,340 steps/s | return  -45.2"
        " | epsilon 0.34 | loss 1.87 | 0:12 left"
    )
    assert report_line(_report(7, known=math.nan)) == (
        "        7 / 300,000 steps | 21,340 steps/s | return      -"
        " | epsilon 0.34 | loss - | - left"
    )


def test_plain_progress_says_the_first_every_fifth_second_and_the_last() -> None:
    out, clock = io.StringIO(), _Clock()
    progress = PlainProgress(Console(None, stream=out), clock=clock)
    progress.start()
    for step in range(1, 13):
        progress.report(_report(step))
        clock.now_s += 1.0
    assert [int(line.split("/")[0]) for line in out.getvalue().splitlines()] == [1, 6, 11]
    progress.stop()
    progress.stop()
    assert [int(line.split("/")[0]) for line in out.getvalue().splitlines()] == [1, 6, 11, 12]


def test_plain_progress_says_evaluations_at_once(tmp_path: Path) -> None:
    out = io.StringIO()
    with Console(tmp_path / "log", stream=out) as console:
        progress = PlainProgress(console, clock=_Clock())
        progress.evaluated(*REACHED)
        progress.evaluated(60_000, _evaluation(math.nan, math.nan, 0), False)
    said = [
        "evaluation at 50,000 steps: return 231.4 (std 20.1) over 20 episodes, target reached",
        "evaluation at 60,000 steps: return - (std -) over 0 episodes",
    ]
    assert out.getvalue().splitlines() == said
    assert _logged(tmp_path / "log") == said


def test_cut_episodes_and_long_evaluations_are_reported() -> None:
    out = io.StringIO()
    progress = PlainProgress(Console(None, stream=out), clock=_Clock())
    progress.evaluating(3, 100, 123_456)
    cut: dict[str, int] = {"num_cut": 3, "max_steps": 10_000}
    progress.evaluated(7_000, _evaluation(0.955, 0.0123, 100, best=True, **cut), False)
    progress.evaluated(8_000, _evaluation(0.955, 0.0123, 100, num_nonfinite=1), False)
    progress.evaluated(9_000, _evaluation(0.955, 0.0123, 100, num_nonfinite=1_234), False)
    assert out.getvalue().splitlines() == [
        "evaluating: 3 of 100 episodes done, 123,456 steps played",
        "evaluation at 7,000 steps: return 0.955 (std 0.012) over 100 episodes, the best so far; "
        "3 of 100 episodes were cut at 10,000 steps",
        "evaluation at 8,000 steps: return 0.955 (std 0.012) over 100 episodes; "
        "numbers of 1 step were not finite, and were skipped or replaced",
        "evaluation at 9,000 steps: return 0.955 (std 0.012) over 100 episodes; "
        "numbers of 1,234 steps were not finite, and were skipped or replaced",
    ]


def test_what_is_left_is_at_most_that_where_the_run_may_stop_early() -> None:
    assert report_line(_report(), may_stop_early=True).endswith("| at most 0:12 left")
    for width in (60, 80, 120):
        screen = RichConsole(record=True, width=width, force_terminal=True, file=io.StringIO())
        screen.print(build_panel(_report(), "", width=width, may_stop_early=True))
        assert "up to 0:12" in screen.export_text()


def test_live_progress_shows_a_long_evaluation_in_its_frame_and_logs_it(tmp_path: Path) -> None:
    terminal = _Terminal()
    with Console(tmp_path / "log", stream=terminal) as console:
        progress = LiveProgress(console, clock=_Clock())
        progress.start()
        progress.report(_report())
        progress.evaluating(3, 100, 9_000)
        progress.stop()
    line = "evaluating: 3 of 100 episodes done, 9,000 steps played"
    assert f" {line.removesuffix(' played')} ─╯" in _plain(terminal)
    assert line in _logged(tmp_path / "log")


@pytest.mark.parametrize("width", [40, 60, 80])
def test_activities_are_named_in_words_that_no_line_breaks(width: int) -> None:
    screen = RichConsole(record=True, width=width, force_terminal=True, file=io.StringIO())
    screen.print(build_panel(_report(), "", width=width))
    text = screen.export_text()
    assert "waiting for environments 31%" in text
    assert "env_wait" not in text


class _Gone(io.StringIO):
    """A terminal that goes away after the first line."""

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> int:
        if "\n" in self.getvalue():
            raise OSError(5, "Input/output error")
        return super().write(text)


def test_a_terminal_that_goes_away_costs_nothing_but_what_it_would_have_shown(
    tmp_path: Path,
) -> None:
    with Console(tmp_path / "log", stream=_Gone()) as console:
        console.say("one")
        _drive(make_progress(console))
        console.say("two")
    assert _logged(tmp_path / "log")[0::3] == ["one", "two"]


def test_a_log_on_a_full_disk_is_reported_once_and_goes_on_when_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(file: int, content: bytes) -> int:
        raise OSError(28, "No space left on device")

    out = io.StringIO()
    with Console(tmp_path / "log", stream=out) as console:
        with monkeypatch.context() as patch:
            patch.setattr("fastdqn.foundation.line_file.os.write", full)
            console.say("one")
            console.say("two")
        console.say("three")
    assert out.getvalue().splitlines() == [
        "one",
        "Could not write log.txt: [Errno 28] No space left on device",
        "two",
        "three",
    ]
    assert _logged(tmp_path / "log") == ["one", "two", "three"]


def test_live_panel_shows_every_figure() -> None:
    screen = RichConsole(record=True, width=100, force_terminal=True, file=io.StringIO())
    screen.print(build_panel(_report(), "evaluation 231.4 at 50,000 steps", width=100))
    text = " ".join(screen.export_text().split())
    for shown in (
        "fastdqn",
        "52,224 / 300,000 steps 17%",
        "return -45.2 steps/s 21,340 left 0:12",
        "epsilon 0.34 updates 26,112 elapsed 0:02",
        "loss 1.87 episodes 512 Q mean 12.3",
        "acting 9% waiting for environments 31% writing 5% learning 52% │ │ other 3%",
        "evaluation 231.4 at 50,000 steps",
    ):
        assert shown in text


@pytest.mark.parametrize("width", [40, 63, 64, 79, 80, 200])
def test_live_panel_fits_the_terminal_and_cuts_no_value(width: int) -> None:
    screen = RichConsole(record=True, width=width, force_terminal=True, file=io.StringIO())
    screen.print(build_panel(_report(), "", width=width))
    text = screen.export_text()
    assert {len(line) for line in text.splitlines()} == {min(width, 80)}
    assert "…" not in text
    for value in ("-45.2", "21,340", "0:12", "26,112", "12.3"):
        assert value in text


def test_live_panel_shows_unknown_figures_as_dashes_and_no_empty_shares() -> None:
    screen = RichConsole(record=True, width=80, force_terminal=True, file=io.StringIO())
    nan = math.nan
    unknown = Report(1, 0, 0, 0, nan, nan, nan, nan, nan, nan, nan, nan)
    screen.print(build_panel(unknown, "", width=80))
    text = screen.export_text()
    assert "nan" not in text
    assert "%" in text
    assert "learn" not in text
    assert re.search(r"loss +- ", text)


def test_share_bar_colours_the_line_in_proportion() -> None:
    out = io.StringIO()
    screen = RichConsole(width=56, force_terminal=True, color_system="standard", file=out)
    half = replace(_report(), time_share={"act": 0.5, "learn": 0.3, "other": 0.2})
    screen.print(build_panel(half, "", width=56))
    bars = [line for line in out.getvalue().splitlines() if line.count("━") == 50]
    (bar,) = (re.findall(r"\x1b\[(\d+)m(━+)", line) for line in bars)
    assert [(color, len(part)) for color, part in bar] == [("36", 25), ("33", 15), ("35", 10)]


def test_live_progress_draws_at_most_four_times_a_second(tmp_path: Path) -> None:
    terminal, clock = _Terminal(), _Clock()
    threads = threading.active_count()
    streams = sys.stdout, sys.stderr
    with Console(tmp_path / "log", stream=terminal) as console:
        progress = LiveProgress(console, clock=clock)
        progress.start()
        for step in range(1, 101):
            progress.report(_report(step * 1000))
            clock.now_s += 0.1
        assert threading.active_count() == threads
        drawn = _drawn_steps(terminal)
        assert drawn[:4] == [1000, 4000, 7000, 10_000]
        assert len(drawn) == 34
        progress.stop()
        progress.stop()
    assert _drawn_steps(terminal)[-1] == 100_000
    assert (sys.stdout, sys.stderr) == streams
    assert terminal.getvalue().rstrip("\n").endswith("\x1b[?25h")


def _drawn_steps(terminal: io.StringIO) -> list[int]:
    found = re.findall(r"([\d,]+) / 300,000 steps", _plain(terminal))
    return [int(step.replace(",", "")) for step in found]


def test_live_progress_logs_a_line_every_fifth_second_and_the_last(tmp_path: Path) -> None:
    clock = _Clock()
    with Console(tmp_path / "log", stream=_Terminal()) as console:
        progress = LiveProgress(console, clock=clock)
        progress.start()
        for step in range(1, 13):
            progress.report(_report(step))
            clock.now_s += 1.0
        progress.stop()
    logged = _logged(tmp_path / "log")
    assert logged == [report_line(_report(step)) for step in (1, 6, 11, 12)]


def test_live_progress_says_evaluations_above_the_panel_and_in_its_frame(tmp_path: Path) -> None:
    terminal = _Terminal()
    with Console(tmp_path / "log", stream=terminal) as console:
        _drive(LiveProgress(console, clock=_Clock()))
    text = _plain(terminal)
    line = "evaluation at 50,000 steps: return 231.4 (std 20.1) over 20 episodes, target reached"
    assert text.index(line) < text.rindex("╭─ fastdqn")
    assert " evaluation 231.4 at 50,000 steps ─╯" in text
    assert _logged(tmp_path / "log") == [report_line(_report()), line]


def test_live_progress_without_a_report_shows_nothing() -> None:
    terminal = _Terminal()
    progress = LiveProgress(Console(None, stream=terminal))
    progress.start()
    progress.stop()
    assert _plain(terminal).strip() == ""
