"""The comparison with saved ratios: direction, the boundary, what is new, vanished, remeasured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import __main__ as bench
from benchmarks import compare as comparison
from benchmarks import saved
from benchmarks.compare import compare, conclusion, table
from benchmarks.guards import Guard, Measured, Selection
from benchmarks.measure import Effort
from fastdqn.errors import UsageError

HEADER: dict[str, Any] = {
    "date": "2026-11-20",
    "machine": "a machine",
    "cores": 2,
    "gpu": None,
    "versions": {"torch": "2"},
    "commit": "abc",
    "command": "python -m benchmarks",
}


def higher(name: str, *values: float) -> Guard:
    return Guard(name, "higher", values)


def lower(name: str, *values: float) -> Guard:
    return Guard(name, "lower", values)


# Judging


@pytest.mark.parametrize(
    ("base", "now", "word"),
    [
        (higher("a", 10.0), higher("a", 9.0), "same"),  # 10 % worse to the last digit
        (higher("a", 10.0), higher("a", 8.99), "WORSE"),
        (higher("a", 1.1), higher("a", 0.99), "same"),
        (higher("a", 10.0), higher("a", 11.01), "better"),
        (lower("a", 10.0), lower("a", 11.0), "same"),
        (lower("a", 1.0), lower("a", 1.1), "same"),  # 1.1 / 1.0 - 1 is above 0.1 in floats
        (lower("a", 10.0), lower("a", 11.01), "WORSE"),
        (lower("a", 10.0), lower("a", 8.99), "better"),
        (higher("a", 9.0, 10.0, 99.0), higher("a", 1.0, 9.5, 10.0), "same"),  # medians decide
        (higher("a", 9.0, 10.0, 11.0), higher("a", 10.0, 8.0, 8.5), "WORSE"),
    ],
)
def test_more_than_a_tenth_worse_by_the_median_fails(base: Guard, now: Guard, word: str) -> None:
    (verdict,) = compare([base], [now])
    assert verdict.word == word
    assert verdict.fails == (word == "WORSE")


def test_a_new_ratio_is_reported_and_a_vanished_one_fails() -> None:
    verdicts = compare(
        [higher("a", 1.0), lower("sample / torchrl", 1.0)],
        [higher("a", 1.0), higher("new", 1.0)],
        {"torchrl": "it is not installed here"},
    )
    assert [(v.name, v.word, v.fails) for v in verdicts] == [
        ("sample / torchrl", "VANISHED", True),  # what fails comes first
        ("a", "same", False),
        ("new", "new", False),
    ]
    assert "it is not installed here" in conclusion(verdicts)
    rows = table(verdicts).splitlines()[2:]
    assert rows[0] == (
        "| sample / torchrl | lower | 1.00 (1.00 to 1.00) | it is not installed here | - "
        "| VANISHED |"
    )
    assert rows[2] == "| new | higher | - | 1.00 (1.00 to 1.00) | - | new |"


def test_the_conclusion_names_each_failure() -> None:
    verdicts = compare([higher("a", 2.0), lower("b", 1.0)], [higher("a", 1.0), lower("b", 1.5)])
    message = conclusion(verdicts)
    assert message == "2 of 2 guarded ratios failed: a is 50% worse; b is 50% worse"
    assert conclusion(compare([higher("a", 1.0)], [higher("a", 1.0)])).startswith("No guarded")


def test_a_table_says_what_was_measured_again() -> None:
    now = higher("a", 1.0).measured_again()
    row = table(compare([higher("a", 2.0)], [now])).splitlines()[-1]
    assert row.endswith("| +50% | WORSE, measured again |")


# Files


def written(path: Path, *guards: Guard, kind: str = "cpu", **changed: Any) -> Path:
    saved.save(str(path), kind, HEADER, [Measured("t", "### text", list(guards))])
    content = {**json.loads(path.read_text()), **changed}
    path.write_text(json.dumps(content))
    return path


def test_saved_ratios_are_read_again_and_can_be_read_by_people(tmp_path: Path) -> None:
    guard, text = higher("a x b", 1.0, 2.0, 3.0), "### A table"
    measured = [Measured("t", text, [guard], {"rates": {"a": 1.0}}, {"torchrl": "missing"})]
    path, readable = saved.save(str(tmp_path / "deep" / "x.json"), "cpu", HEADER, measured)
    content = saved.load(path)
    assert saved.guards_of(content) == [guard]
    assert content["kind"] == "cpu"
    assert content["not_run"] == {"torchrl": "missing"}
    assert content["provenance"] == HEADER
    assert content["groups"] == [{"title": "t", "rates": {"a": 1.0}}]
    message = readable.read_text()
    for part in ("a machine", "commit abc", text, "| a x b | higher | 2.00 (1.00 to 3.00) | - |"):
        assert part in message
    assert "- torchrl: missing" in message


@pytest.mark.parametrize(
    ("content", "reason"),
    [(None, "cannot be read"), ("{", "no JSON"), ("[]", "no guarded"), ('{"rows": 1}', "make")],
)
def test_what_cannot_be_compared_is_refused(
    tmp_path: Path, content: str | None, reason: str
) -> None:
    path = tmp_path / "x.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UsageError, match=reason):
        saved.load(path)
    assert comparison.main([str(path), str(path)]) == 2


def test_files_are_compared_without_measuring(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = written(tmp_path / "base.json", higher("a", 2.0), lower("b", 1.0))
    fine = written(tmp_path / "fine.json", higher("a", 1.9), lower("b", 1.0))
    slow = written(tmp_path / "slow.json", higher("a", 1.7), lower("b", 1.0))
    assert comparison.main([str(base), str(fine)]) == 0
    assert comparison.main([str(base), str(slow)]) == 1
    assert "1 of 2 guarded ratios failed: a is 15% worse" in capsys.readouterr().out
    assert comparison.main([str(base), str(slow), "--skip", "a"]) == 0
    assert comparison.main([str(base), str(slow), "--only", "a"]) == 1


def test_another_machine_is_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = written(tmp_path / "base.json", higher("a", 2.0), provenance={**HEADER, "cores": 16})
    now = written(tmp_path / "now.json", higher("a", 2.0))
    assert comparison.main([str(base), str(now)]) == 0
    assert "cores: 16 when saved, 2 now" in capsys.readouterr().out


def test_the_base_is_the_named_one_or_the_newest_of_its_kind(tmp_path: Path) -> None:
    (tmp_path / "older.json").write_text('{"comparisons": []}')  # of an earlier form
    with pytest.raises(UsageError, match="make bench-save"):
        saved.find_base("cpu", tmp_path)
    for name, kind, at in (("b", "cpu", "2026-02"), ("a", "cpu", "2026-03"), ("c", "cuda", "2027")):
        written(tmp_path / f"{name}.json", higher("a", 1.0), kind=kind, saved_at=at)
    assert saved.find_base("cpu", tmp_path).stem == "a"
    assert saved.find_base("cuda", tmp_path).stem == "c"
    (tmp_path / "baseline").write_text("# what CI compares with\ncpu b\n")
    assert saved.find_base("cpu", tmp_path).stem == "b"
    assert saved.find_base("cuda", tmp_path).stem == "c"


def test_a_base_of_another_kind_of_device_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "x.json", higher("a", 1.0), kind="cuda")
    with pytest.raises(UsageError, match="taken on cuda, and this is cpu"):
        saved.load_base(str(path), "cpu")


# Measuring again


class Rehearsed:
    """A group whose measurements are given, one after the other."""

    def __init__(self, *measurements: dict[str, float]) -> None:
        self.measurements = list(measurements)
        self.asked: list[tuple[Effort, Selection]] = []

    def ratios(self) -> list[str]:
        return list(self.measurements[0])

    def measure(self, effort: Effort, selection: Selection) -> Measured:
        self.asked.append((effort, selection))
        values = self.measurements[len(self.asked) - 1]
        guards = selection.among(higher(name, value) for name, value in values.items())
        return Measured("rehearsed", "### Rehearsed", guards)


def run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, group: Rehearsed, *flags: str
) -> tuple[int, dict[str, float]]:
    """Compare with a = 2, b = 2; return the exit status and what was saved."""
    monkeypatch.setattr(bench, "groups_for", lambda arguments: [group])
    base = written(tmp_path / "base.json", higher("a", 2.0), higher("b", 2.0))
    now = tmp_path / "now.json"
    code = bench.main(["--device", "cpu", "--base", str(base), "--save", str(now), *flags])
    return code, {guard.name: guard.median for guard in saved.guards_of(saved.load(now))}


def test_what_is_not_worse_is_measured_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    group = Rehearsed({"a": 1.9, "b": 3.0})
    assert run(monkeypatch, tmp_path, group) == (0, {"a": 1.9, "b": 3.0})
    assert [effort for effort, _ in group.asked] == [Effort(5, 3.0)]


def test_what_seems_worse_is_measured_again_with_twice_the_rounds_and_that_counts(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    group = Rehearsed({"a": 1.0, "b": 1.9}, {"a": 1.95, "b": 0.1})
    assert run(monkeypatch, tmp_path, group) == (0, {"a": 1.95, "b": 1.9})
    assert [effort for effort, _ in group.asked] == [Effort(5, 3.0), Effort(10, 3.0)]
    assert group.asked[1][1] == Selection(names=frozenset({"a"}))
    assert "same, measured again" in capsys.readouterr().out


def test_what_is_worse_twice_is_a_regression(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    group = Rehearsed({"a": 1.0, "b": 2.0}, {"a": 1.7})
    assert run(monkeypatch, tmp_path, group)[0] == 1
    assert "1 of 2 guarded ratios failed: a is 15% worse" in capsys.readouterr().out


def test_what_is_no_longer_measured_fails_unless_it_is_skipped(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert run(monkeypatch, tmp_path, Rehearsed({"a": 2.0}))[0] == 1
    assert run(monkeypatch, tmp_path, Rehearsed({"a": 2.0}), "--skip", "b")[0] == 0
    assert run(monkeypatch, tmp_path, Rehearsed({"a": 2.0}), "--only", "a")[0] == 0


def test_a_pattern_that_leaves_nothing_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench, "groups_for", lambda arguments: [Rehearsed({"a": 1.0})])
    assert bench.main(["--only", "nothing"]) == 2
    assert "--list" in capsys.readouterr().err


def test_names_are_listed_without_measuring(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    group = Rehearsed({"a": 1.0, "b": 1.0})
    monkeypatch.setattr(bench, "groups_for", lambda arguments: [group])
    assert bench.main(["--list", "--skip", "b"]) == 0
    assert capsys.readouterr().out == "a\n"
    assert group.asked == []
