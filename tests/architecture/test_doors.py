"""The shape of the package: doors, names, sizes, and what is public."""

from __future__ import annotations

import ast
import importlib
import inspect
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import fastdqn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PACKAGE = Path(fastdqn.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
MAX_FILE_LINES, MAX_FUNCTION_LINES = 300, 50
NAMES_THAT_SAY_NOTHING = {"utils", "util", "misc", "common", "helpers", "helper", "tools", "core"}

Function = ast.FunctionDef | ast.AsyncFunctionDef


def name_of(path: Path) -> str:
    return str(path.relative_to(PACKAGE))


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def public_definitions(body: list[ast.stmt]) -> Iterator[Function | ast.ClassDef]:
    """Find public functions and classes, and the public methods of public classes."""
    for node in body:
        if isinstance(node, Function | ast.ClassDef) and not node.name.startswith("_"):
            yield node
            if isinstance(node, ast.ClassDef):
                yield from public_definitions(node.body)


# Doors


def test_the_doors_are_kept() -> None:
    command = [str(Path(sys.executable).parent / "lint-imports"), "--no-cache", "--no-logo"]
    done = subprocess.run(
        command, cwd=PACKAGE.parent, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 broken" in done.stdout


@pytest.mark.parametrize(
    ("module", "known"),
    [
        ("errors", set()),
        ("foundation/scalars", {"fastdqn.errors"}),
        ("foundation/objective_checks", {"fastdqn.errors"}),
        ("foundation/durations", set()),
        (
            "foundation/setting_checks",
            {"fastdqn.errors", "fastdqn.foundation.durations", "fastdqn.foundation.scalars"},
        ),
        (
            "foundation/pair_checks",
            {
                "fastdqn.errors",
                "fastdqn.foundation.idle_settings",
                "fastdqn.foundation.objective_checks",
                "fastdqn.foundation.setting_checks",
            },
        ),
        (
            "config",
            {
                "fastdqn.foundation.idle_settings",
                "fastdqn.foundation.pair_checks",
                "fastdqn.foundation.setting_checks",
            },
        ),
        ("presets", {"fastdqn.config", "fastdqn.errors"}),
        ("cli/arguments", {"fastdqn.config", "fastdqn.errors", "fastdqn.foundation.scalars"}),
        ("training/signals", set()),
    ],
)
def test_who_comes_first_knows_only_what_came_before(module: str, known: set[str]) -> None:
    imported = {
        node.module
        for node in ast.walk(tree_of(PACKAGE / f"{module}.py"))
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("fastdqn")
    }
    assert imported == known


@pytest.mark.parametrize(
    "module", ["fastdqn", "fastdqn.cli.commands", "fastdqn.envs.workers.worker"]
)
def test_pytorch_is_not_loaded_before_it_is_needed(module: str) -> None:
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0


# Names and sizes


def refused(check: Callable[[Path], Iterator[str]]) -> list[str]:
    """Return what a check finds in all files of the package, each with the name of its file."""
    return [f"{name_of(path)}: {found}" for path in FILES for found in check(path)]


def says_why_it_is_long(path: Path) -> bool:
    return "longer than" in " ".join((ast.get_docstring(tree_of(path)) or "").split())


def test_a_file_is_named_after_what_is_in_it() -> None:
    names = {name for path in FILES for name in (path.stem, path.parent.name)}
    assert not names & NAMES_THAT_SAY_NOTHING


def test_a_file_is_short_or_says_at_its_top_why_it_is_not() -> None:
    def check(path: Path) -> Iterator[str]:
        lines = path.read_text(encoding="utf-8").count("\n")
        if lines > MAX_FILE_LINES and not says_why_it_is_long(path):
            yield f"{lines} lines"

    assert refused(check) == []


def test_functions_are_short() -> None:
    def check(path: Path) -> Iterator[str]:
        for node in ast.walk(tree_of(path)):
            if isinstance(node, Function):
                lines = (node.end_lineno or 0) - node.lineno + 1
                if lines > MAX_FUNCTION_LINES and not says_why_it_is_long(path):
                    yield f"{node.name} has {lines} lines"

    assert refused(check) == []


def test_nothing_is_printed_but_by_a_console() -> None:
    def check(path: Path) -> Iterator[str]:
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "print":
                yield f"line {node.lineno}"

    assert refused(check) == []


def test_names_of_execution_modes_are_compared_in_one_file() -> None:
    """Others read the facts of a `Mode`, so that a new mode is a line of one table."""
    names = {"eager", "native", "compile", "cudagraph", "compile+cudagraph", "cpu copy"}

    def check(path: Path) -> Iterator[str]:
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.Compare):
                said = {part.value for part in ast.walk(node) if isinstance(part, ast.Constant)}
                if said & names:
                    yield ast.unparse(node)

    found = {line.partition(":")[0] for line in refused(check)}
    assert found <= {"execution/modes.py"}


# What is public


def test_everything_public_is_documented() -> None:
    def check(path: Path) -> Iterator[str]:
        tree = tree_of(path)
        if not ast.get_docstring(tree):
            yield "the file has no docstring"
        for node in public_definitions(tree.body):
            if not ast.get_docstring(node):
                yield f"{node.name} has no docstring"

    assert refused(check) == []


def test_everything_public_is_annotated() -> None:
    def check(path: Path) -> Iterator[str]:
        for node in public_definitions(tree_of(path).body):
            if isinstance(node, Function):
                given = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
                bare = {arg.arg for arg in given if arg.annotation is None} - {"self", "cls"}
                if bare or node.returns is None:
                    yield f"{node.name}: {bare or 'returns something unsaid'}"

    assert refused(check) == []


def test_a_file_lists_what_it_offers_once_and_all_of_it_exists() -> None:
    def check(path: Path) -> Iterator[str]:
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        if parts[-1] != "__init__":
            module = importlib.import_module(".".join(parts))
            names = module.__all__
            if not names or len(set(names)) < len(names):
                yield f"offers nothing or a name twice: {names}"
            yield from (f"{name} does not exist" for name in names if not hasattr(module, name))

    assert refused(check) == []


def imports_between_files() -> Iterator[tuple[str, str, str]]:
    """Find (importing file, module, name) for every import of one file of ours from another."""
    for path in FILES:
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.ImportFrom) and str(node.module).startswith("fastdqn."):
                for alias in node.names:
                    yield name_of(path), str(node.module), alias.name


def test_files_import_from_each_other_only_what_is_offered() -> None:
    seen = list(imports_between_files())
    assert len(seen) > 100
    for path, module, name in seen:
        assert name in importlib.import_module(module).__all__, f"{path} imports {module}.{name}"


def test_the_public_names_are_those_of_the_table_and_of_the_type_checker() -> None:
    table = {name for names in fastdqn._HOMES.values() for name in names}
    assert {*table, "__version__"} == set(fastdqn.__all__)
    checked = {
        (node.module, alias.name)
        for node in ast.walk(tree_of(PACKAGE / "__init__.py"))
        if isinstance(node, ast.ImportFrom) and node.module != "__future__"
        for alias in node.names
        if alias.name not in {"TYPE_CHECKING", "Any"}
    }
    assert checked == {(home, name) for home, names in fastdqn._HOMES.items() for name in names}


@pytest.mark.parametrize("name", sorted(set(fastdqn.__all__) - {"__version__"}))
def test_a_public_name_can_be_imported_is_offered_at_home_and_documented(name: str) -> None:
    thing: Any = getattr(fastdqn, name)
    home = importlib.import_module(fastdqn._HOME_OF[name])
    assert thing is getattr(home, name)
    assert name in home.__all__
    assert name in dir(fastdqn)
    if inspect.isclass(thing) or inspect.isfunction(thing):
        assert thing.__doc__
        assert not thing.__doc__.startswith(f"{name}("), "the docstring is a dataclass's own"


def test_a_name_that_is_not_public_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'HostTrainer'"):
        _ = fastdqn.HostTrainer


def test_the_package_is_typed_for_others() -> None:
    assert (PACKAGE / "py.typed").exists()


def test_a_run_starts_without_what_takes_seconds_to_load() -> None:
    """Compilers, TensorDict and matplotlib are loaded when they are needed."""
    program = (
        "import sys, torch; before = set(sys.modules); import fastdqn.cli.train;"
        "print(*set(sys.modules) - before)"
    )
    message = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    loaded = {name.partition(".")[0] for name in message.stdout.split()}
    assert "fastdqn" in loaded
    assert not loaded & {"tensordict", "matplotlib", "sympy", "pygame", "Box2D"}
    slow = ("torch._dynamo", "torch._inductor", "torch.distributed.fsdp")
    assert not [name for name in message.stdout.split() if name.startswith(slow)]
