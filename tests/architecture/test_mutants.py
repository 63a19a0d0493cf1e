"""Each planted bug names tests that there are."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import pytest

from tests.mutants.bugs import MUTANTS
from tests.mutants.native_bugs import altered

ROOT = Path(__file__).parents[2]


@cache
def names_in(file: str) -> frozenset[str]:
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    return frozenset(node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))


@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_planted_bug_names_tests_that_there_are(mutant: str) -> None:
    assert MUTANTS[mutant].tests
    for test in MUTANTS[mutant].tests:
        file, _, name = test.partition("[")[0].rpartition("::")
        assert name in names_in(file), test


def test_what_is_altered_stands_once_in_its_text() -> None:
    for _, _, text, alterations in altered():
        counts = {name: text.count(old) for name, (old, _, _) in alterations.items()}
        assert set(counts.values()) == {1}, counts
