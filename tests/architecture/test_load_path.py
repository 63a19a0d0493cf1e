"""What reads saved policies and checkpoints neither unpickles nor imports what a file names."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import fastdqn

if TYPE_CHECKING:
    from collections.abc import Iterator

PACKAGE = Path(fastdqn.__file__).parent
LOAD_PATH = [
    *(f"checkpoint/{path.name}" for path in sorted((PACKAGE / "checkpoint").glob("*.py"))),
    "foundation/state.py",
    "foundation/saved_files.py",
    "foundation/policy_folders.py",
    "foundation/setting_checks.py",
    "training/checkpoint.py",
    "agent/loading.py",
    "agent/saved_description.py",
    "agent/saved_parts.py",
    "agent/arguments.py",
    "replay/chunks.py",
    "envs/specs/construction.py",
    "envs/specs/plain_values.py",
    "envs/specs/wrapping.py",
    "envs/specs/ids.py",
]
"""Modules that see what a file of a stranger holds."""
FORBIDDEN_MODULES = {"pickle", "cloudpickle", "dill", "shelve", "marshal", "importlib", "runpy"}
FORBIDDEN_CALLS = {
    *("eval", "exec", "compile", "__import__", "globals"),
    *("torch.load", "np.load", "numpy.load", "joblib.load", "pickle.load", "pickle.loads"),
    *("importlib.import_module", "yaml.load", "os.system", "os.popen"),
}
OF_THE_CALLER = "imports the module of an id that the caller wrote; see the test below"
REVIEWED = {
    ("envs/specs/ids.py", "import importlib"): OF_THE_CALLER,
    ("envs/specs/ids.py", "importlib.import_module"): OF_THE_CALLER,
    (
        "checkpoint/manifest.py",
        "import importlib.metadata",
    ): "reads the versions of installed packages, by names that are written there",
}
"""What is allowed, with the reason."""


def dotted(node: ast.expr) -> str:
    match node:
        case ast.Name(id=name):
            return name
        case ast.Attribute(value=value, attr=name):
            return f"{dotted(value)}.{name}"
    return ""


def dangers_in(source: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Import(names=names):
                for name in names:
                    if name.name.partition(".")[0] in FORBIDDEN_MODULES:
                        yield f"import {name.name}"
            case ast.ImportFrom(module=str(module)) if (
                module.partition(".")[0] in FORBIDDEN_MODULES
            ):
                yield f"import {module}"
            case ast.Call(func=function) if dotted(function) in FORBIDDEN_CALLS:
                yield dotted(function)
            case ast.keyword(arg="allow_pickle"):
                yield "allow_pickle"
            case ast.Attribute(attr="__reduce__" | "__reduce_ex__" | "__globals__" as name):
                yield name


@pytest.mark.parametrize("name", LOAD_PATH)
def test_nothing_on_the_load_path_unpickles_or_imports_by_name(name: str) -> None:
    found = set(dangers_in((PACKAGE / name).read_text(encoding="utf-8")))
    assert found - {danger for file, danger in REVIEWED if file == name} == set()


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "import importlib.util",
        "from importlib import import_module",
        "from cloudpickle import loads",
        "torch.load(path)",
        "np.load(path, allow_pickle=True)",
        "eval(text)",
        "exec(text)",
        "__import__(name)",
        "f(allow_pickle=flag)",
        "def inner():\n    import pickle",
    ],
)
def test_every_danger_is_found(source: str) -> None:
    assert list(dangers_in(source))


def test_what_was_reviewed_is_still_there() -> None:
    for file, danger in REVIEWED:
        assert danger in set(dangers_in((PACKAGE / file).read_text(encoding="utf-8")))


def test_an_id_of_a_file_reaches_no_import() -> None:
    """That it is refused is shown by tests/property/test_forged_policies.py."""
    source = (PACKAGE / "agent/loading.py").read_text(encoding="utf-8")
    assert "if module and module not in sys.modules and not named:" in source
    assert "import_from_here" not in source


def test_the_room_of_checkpoints_imports_nothing_else_that_reads_files() -> None:
    """Its own imports within the package are on the list above, or know no file."""
    without_files = {"device", "errors", "config", "transition"}
    for path in (PACKAGE / "checkpoint").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and str(node.module).startswith("fastdqn."):
                module = str(node.module).removeprefix("fastdqn.").replace(".", "/")
                assert f"{module}.py" in LOAD_PATH or module in without_files
