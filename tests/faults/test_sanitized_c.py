"""The C, and the card's kernels as C++, under the address and undefined-behaviour sanitizers.

Other tests run again, in a process in which whatever reads or writes beyond its memory, also
between the parts of a plan's own memory, ends the process with a report.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NATIVE = "tests/equivalence/test_native.py"
NETWORKS = "tests/equivalence/test_native_networks.py"
TREE = "tests/unit/replay/test_sum_tree.py"
PRIORITIZED = "tests/unit/replay/test_prioritized.py"
OPTIONS = "tests/equivalence/test_replay_options.py"
BINDING = "tests/unit/native/test_binding.py"
CARD = "tests/equivalence/test_native_card.py"
WRITER = "tests/equivalence/test_row_writer.py"
FLAGS = "-fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer -g -O1"
ASAN = "detect_leaks=0:detect_stack_use_after_return=0"
LIBRARIES = ("libasan.so", "libubsan.so", "libstdc++.so.6")

pytestmark = pytest.mark.slow


def found(library: str) -> str | None:
    """Return where the compiler keeps a library, or None."""
    if shutil.which("gcc") is None:
        return None
    asked = ["gcc", f"-print-file-name={library}"]
    path = subprocess.run(asked, capture_output=True, check=True, text=True).stdout.strip()
    return path if Path(path).is_absolute() else None


PRELOADED = [found(library) for library in LIBRARIES]
needs_sanitizers = pytest.mark.skipif(None in PRELOADED, reason="no gcc with its sanitizers")


def sanitized(
    folder: Path, *asked: str, mutant: str = "", seconds: int = 800
) -> subprocess.CompletedProcess[str]:
    """Run tests in a process whose C is compiled with the sanitizers.

    Args:
        folder: Takes the compiler and what it compiles.
        asked: Files and options of the tests.
        mutant: A bug to plant there first; see `tests.mutants`.
        seconds: To wait at most.
    """
    compiler = folder / "gcc"
    compiler.write_text(f'#!/bin/sh\nexec {shutil.which("gcc")} "$@" {FLAGS}\n')
    compiler.chmod(compiler.stat().st_mode | stat.S_IXUSR)
    given = {
        "CC": str(compiler),
        "XDG_CACHE_HOME": str(folder / "cache"),
        "LD_PRELOAD": " ".join(map(str, PRELOADED)),
        "ASAN_OPTIONS": ASAN,
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "FASTDQN_SANITIZED": "1",
        "FASTDQN_MUTANT": mutant or os.environ.get("FASTDQN_MUTANT", ""),
        "FASTDQN_MUTANT_RED": "",
        "OMP_NUM_THREADS": "1",
    }
    plain = (
        "-q",
        "--capture=sys",
        "-p",
        "no:cacheprovider",
        "-p",
        "tests.mutants.plugin",
        "-m",
        "not cuda",
    )
    command = [sys.executable, "-m", "pytest", *plain, "--timeout=600", *asked]
    return subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, **given},
        capture_output=True,
        check=False,
        text=True,
        timeout=seconds,
    )


def report(done: subprocess.CompletedProcess[str]) -> str:
    return (done.stdout + done.stderr)[-6000:]


@needs_sanitizers
@pytest.mark.timeout(900)
def test_the_c_stays_within_its_memory(tmp_path: Path) -> None:
    files = NATIVE, NETWORKS, BINDING, TREE, PRIORITIZED, OPTIONS
    done = sanitized(tmp_path, *files, "-k", "not cuda and not card and not compile")
    assert done.returncode == 0, report(done)
    assert int(re.findall(r"(\d+) passed", done.stdout)[0]) > 150
    (library,) = (tmp_path / "cache/fastdqn").glob("mlp-*.so")
    assert b"__asan" in library.read_bytes()
    assert len(list((tmp_path / "cache/fastdqn").glob("sum_tree-*.so"))) == 1


@needs_sanitizers
@pytest.mark.timeout(900)
def test_the_kernels_of_the_card_stay_within_their_memory(tmp_path: Path) -> None:
    some = "any_size or one_hot or does_not_lie or kernel_writes or not_know"
    done = sanitized(tmp_path, CARD, WRITER, "-k", some)
    assert done.returncode == 0, report(done)
    assert int(re.findall(r"(\d+) passed", done.stdout)[0]) > 15


@needs_sanitizers
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("mutant", "message"),
    [
        ("native: an observation read beyond its end", "AddressSanitizer: heap-buffer-overflow"),
        ("native: a part of the memory too small", "AddressSanitizer: use-after-poison"),
        ("native: a draw that no number bounds", "runtime error|AddressSanitizer"),
        ("native: no memory for the value", "AddressSanitizer: use-after-poison"),
    ],
)
def test_the_sanitizers_see_what_goes_beyond_it(mutant: str, message: str, tmp_path: Path) -> None:
    file, some = NATIVE, "schedule_of_the_learning_rate"
    if "draw" in mutant:
        file, some = BINDING, "outside_its_range"
    if "value" in mutant:
        file, some = NETWORKS, "one_hot"
    done = sanitized(tmp_path, file, "-k", f"({some}) and not cuda", mutant=mutant)
    assert done.returncode != 0, report(done)
    assert re.search(message, done.stdout + done.stderr), report(done)
