"""README and docs: their code runs; commands, flags, targets and files in them exist."""

from __future__ import annotations

import re
import runpy
import shlex
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from fastdqn.cli.arguments import parse, words_after
from fastdqn.cli.commands import (
    COMMANDS,
    TRAINING,
    DoctorArguments,
    EvaluateArguments,
    PlotArguments,
    PresetsArguments,
)
from fastdqn.cli.resuming import ResumeArguments, TrainArguments
from fastdqn.cli.soak import SoakArguments
from fastdqn.config import Config, flag_of
from fastdqn.presets import preset_config

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = {page.name: page.read_text(encoding="utf-8") for page in (ROOT / "docs").glob("*.md")}
EXECUTED = ("environments.md", "extending.md", "objectives.md", "replay.md")
"""Pages whose Python code is run."""
ENVIRONMENTS, ARCHITECTURE = PAGES["environments.md"], PAGES["architecture.md"]
PACKAGE = ROOT / "fastdqn"
SMALL_BUDGET = 10_000
KINDS: dict[str, type[Any]] = {
    "train": TrainArguments,
    "resume": ResumeArguments,
    "evaluate": EvaluateArguments,
    "plot": PlotArguments,
    "presets": PresetsArguments,
    "doctor": DoctorArguments,
    "soak": SoakArguments,
}


def blocks(language: str, text: str = README) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def spans(text: str = README) -> list[str]:
    """Return what stands between single backticks outside of blocks."""
    prose = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    return re.findall(r"`([^`\n]+)`", prose)


def commands(text: str = README) -> list[list[str]]:
    """Return the words of every command in bash blocks and in spans, without comments."""
    lines = "".join(blocks("bash", text)).replace("\\\n", " ").splitlines()
    lines += [span for span in spans(text) if span.startswith(("make ", "fastdqn "))]
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def refuse_unknown_command(words: list[str]) -> None:
    """Parse a `fastdqn` command without running it."""
    command, argv = words[1], words[2:]
    default = None
    if command == "train":
        named = words_after(argv, "--preset")
        preset = preset_config(named[0]) if named else Config()
        default = TrainArguments(**vars(preset))
    try:
        parse(KINDS[command], command, argv, default)
    except SystemExit as stop:
        assert stop.code == 0, words  # noqa: PT017 - only --help ends like this


def refuse_unknown_targets(words: list[str]) -> None:
    targets = re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    named = [word for word in words[1:] if "=" not in word and not word.startswith("-")]
    assert set(named) <= set(targets), words


def test_readme_has_something_to_check() -> None:
    assert len(blocks("python")) >= 2
    assert len([words for words in commands() if words[0] == "fastdqn"]) >= 5
    assert len([words for words in commands() if words[0] == "make"]) >= 5


def test_the_commands_known_here_are_those_of_the_command_line() -> None:
    assert set(KINDS) == {*TRAINING, *COMMANDS}


@pytest.mark.parametrize(
    "words",
    commands() + [words for page in PAGES.values() for words in commands(page)],
    ids=" ".join,
)
def test_every_command_in_the_readme_and_the_docs_exists(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    if words[0] == "make":
        refuse_unknown_targets(words)
    if words[0] == "fastdqn" and len(words) > 1:
        refuse_unknown_command(words)


def test_every_flag_in_the_prose_of_the_readme_exists() -> None:
    known = {"--help", "--version"}.union(
        *(
            {flag_of(f.name), flag_of(f"no_{f.name}")}
            for kind in KINDS.values()
            for f in fields(kind)
        )
    )
    named = {
        flag
        for span in spans() + [span for page in PAGES.values() for span in spans(page)]
        if not span.startswith(("make ", "python -m benchmarks"))  # flags of other programs
        for flag in re.findall(r"(?<![\w-])--[a-z][\w-]*", span)
    }
    assert named
    assert named <= known


@pytest.mark.parametrize(
    "code",
    [
        *blocks("python"),
        *(code for page in EXECUTED for code in blocks("python", PAGES[page])),
    ],
    ids=lambda code: code.splitlines()[-1],
)
@pytest.mark.usefixtures("nothing_left", "one_thread")
def test_the_python_code_of_the_readme_runs(
    code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it is, if it trains for a moment; else with fewer env steps, or fewer vector steps."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", "")  # no compiler, so nothing is compiled
    script = tmp_path / "readme.py"
    code = re.sub(r"(total_timesteps=)([\d_]+)", _smaller, code)
    code = re.sub(r"^for _ in range\(\d+\):", "for _ in range(10):", code, flags=re.MULTILINE)
    script.write_text(code, encoding="utf-8")
    runpy.run_path(str(script), run_name="__main__")


def _smaller(found: re.Match[str]) -> str:
    return found[0] if int(found[2]) <= SMALL_BUDGET else f"{found[1]}2_000"


@pytest.mark.parametrize(
    ("text", "folder"),
    [(README, ROOT), *((page, ROOT / "docs") for page in PAGES.values())],
    ids=["README.md", *PAGES],
)
def test_every_file_that_a_page_links_to_exists(text: str, folder: Path) -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)", text)
    assert links
    assert [link for link in links if not (folder / link).exists()] == []


# The map of docs/architecture.md


def rooms_on_the_map() -> dict[str, set[str]]:
    """Return the modules of each room; what stands in brackets says what they hold."""
    rows = re.findall(r"^\| `([a-z/]+)` \| [^|]* \| ([^|]*) \|$", ARCHITECTURE, re.MULTILINE)
    return {room: set(spans(re.sub(r"\([^()]*\)", "", modules))) for room, modules in rows}


def rooms_of_the_package() -> dict[str, set[str]]:
    rooms: dict[str, set[str]] = {}
    for path in PACKAGE.rglob("*"):
        if path.suffix in {".py", ".c", ".cu"} and path.stem != "__init__":
            room = path.parent.relative_to(PACKAGE).as_posix()
            rooms.setdefault(room, set()).add(path.stem if path.suffix == ".py" else path.name)
    return rooms


def test_the_map_names_every_room_and_every_module() -> None:
    package = rooms_of_the_package()
    flat = package.pop(".")
    assert rooms_on_the_map() == package
    first = ARCHITECTURE.split("\n\n")[3]
    assert flat <= set(spans(first))


def test_every_path_that_the_architecture_names_exists() -> None:
    named = {
        span for span in spans(ARCHITECTURE) if re.fullmatch(r"[a-z_]+(/[a-z_]+)+(\.py)?", span)
    }
    assert len(named) > 30
    places = [ROOT, PACKAGE]
    missing = [
        path
        for path in sorted(named)
        if not any((place / f"{path}{end}").exists() for place in places for end in ("", ".py"))
    ]
    assert missing == []


# The checks themselves


@pytest.mark.parametrize(
    "line",
    [
        "fastdqn train --num-environments 3",
        "fastdqn train --preset moonlander",
        "fastdqn train --loss hubr",
        "fastdqn trian",
        "fastdqn evaluate",
    ],
)
def test_a_command_that_does_not_exist_would_be_found(line: str) -> None:
    (words,) = commands(f"```bash\n{line}  # a comment\n```\n")
    with pytest.raises((KeyError, ValueError)):
        refuse_unknown_command(words)


def test_a_target_that_does_not_exist_would_be_found() -> None:
    (words,) = commands("Say `make everything ARGS=-x` and wait.")
    with pytest.raises(AssertionError):
        refuse_unknown_targets(words)


def test_a_long_training_is_shortened_and_a_short_one_is_not() -> None:
    code = "learn(total_timesteps=300_000); learn(total_timesteps=4_000)"
    shortened = re.sub(r"(total_timesteps=)([\d_]+)", _smaller, code)
    assert shortened == "learn(total_timesteps=2_000); learn(total_timesteps=4_000)"
