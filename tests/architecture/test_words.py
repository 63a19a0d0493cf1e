"""Docstrings and comments use the usual terms: words that need a glossary are listed here."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from pathlib import Path
from typing import TYPE_CHECKING

import fastdqn

if TYPE_CHECKING:
    from collections.abc import Iterator

PACKAGE = Path(fastdqn.__file__).parent
INSTEAD = {
    "nobody": "name what does not act, or use the passive",
    "somebody": "name it",
    "whoever": "the caller, the user, another thread",
    "those who": "name them",
    "tell": "report, say, notify",
    "tells": "reports, says",
    "told": "reported, set, configured",
    "befell": "happened to",
    "born": "allocated, initial",
    "birth": "start",
    "witness": "callback",
    "fused": "tensor environments, tensor rollout",
    "captured": "recorded",
    "stands in for": "a fake of",
    "way of running": "mode",
    "ways to run": "modes",
    "leaves no trace": "restores",
}
"""Word -> what to write instead."""
PATTERN = re.compile(rf"\b({'|'.join(INSTEAD)})\b", re.IGNORECASE)


def texts_of(source: str) -> Iterator[tuple[int, str]]:
    """Find comments, docstrings, and strings below an attribute, with their lines."""
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Expr(value=ast.Constant(value=str(text))):
                for number, line in enumerate(text.splitlines()):
                    yield node.lineno + number, line


def riddles_in(source: str) -> list[str]:
    return [
        f"line {line}: {word!r} -> {INSTEAD[word.lower()]}"
        for line, text in texts_of(source)
        for word in PATTERN.findall(text)
    ]


def test_docstrings_and_comments_use_the_usual_terms() -> None:
    found = [
        f"{path.relative_to(PACKAGE)} {riddle}"
        for path in sorted(PACKAGE.rglob("*.py"))
        for riddle in riddles_in(path.read_text(encoding="utf-8"))
    ]
    assert not found, "\n".join(found)


def test_riddles_are_found_in_docstrings_comments_and_below_attributes() -> None:
    source = '"""Nobody."""\nA = 1\n"""Of A,\nas told."""\nB = "born"  # for whoever reads\n'
    assert [riddle.partition(" ->")[0] for riddle in riddles_in(source)] == [
        "line 5: 'whoever'",
        "line 1: 'Nobody'",
        "line 4: 'told'",
    ]
