"""Compiling the C: once per machine, whole or not at all, and refused where it cannot be done."""

from __future__ import annotations

import stat
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fastdqn.algorithms.objectives import DoubleDQNObjective
from fastdqn.algorithms.optimizers import Adam
from fastdqn.errors import UsageError
from fastdqn.native import c_library, why_no_library, why_not_native
from fastdqn.networks.flat_network import FlatNetwork
from fastdqn.networks.mlp import MLP
from fastdqn.toolchain import cc
from tests.small_learners import Branches, Descent


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty cache, nothing loaded, and a compiler that does not optimize, which is quick."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(cc, "FLAGS", ("-O0", *cc.FLAGS[1:]))
    c_library.load_library.cache_clear()
    yield tmp_path
    c_library.load_library.cache_clear()


def compiler(path: Path, script: str) -> str:
    """Write a program in a compiler's place that answers --version as one does."""
    path.write_text(f'#!/bin/sh\n[ "$1" = --version ] && echo 1 && exit\n{script}\n')
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


def test_it_is_compiled_once_and_found_by_the_next_run(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    c_library.load_library()
    (kept,) = (home / "fastdqn").iterdir()
    assert kept.suffix == ".so"
    c_library.load_library.cache_clear()
    monkeypatch.setattr(cc, "compile_c", lambda *_: pytest.fail("compiled again"))
    assert c_library.load_library().fastdqn_update


def test_several_runs_that_compile_at_once_leave_one_library(home: Path) -> None:
    uncached: Any = c_library.load_library.__wrapped__
    with ThreadPoolExecutor(4) as pool:
        assert all(found.fastdqn_act for found in pool.map(lambda _: uncached(), range(4)))
    assert [path.suffix for path in (home / "fastdqn").iterdir()] == [".so"]


def test_who_needs_it_waits_for_the_compile_that_has_begun(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, compiles = cc.compile_c, list[Path]()

    def compile_c(source: Path, path: Path) -> None:
        compiles.append(path)
        time.sleep(0.3)
        real(source, path)

    monkeypatch.setattr(cc, "compile_c", compile_c)
    cc.begin_to_compile(cc.MLP)
    while not compiles:
        time.sleep(0.001)
    assert c_library.load_library().fastdqn_open
    assert len(compiles) == 1
    assert [path.suffix for path in (home / "fastdqn").iterdir()] == [".so"]


def test_a_compile_that_begins_in_vain_says_nothing(
    home: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(home))
    monkeypatch.delenv("CC", raising=False)
    cc.begin_to_compile(cc.MLP)
    for thread in threading.enumerate():
        if thread.name == "compile mlp.c":
            thread.join()
    assert capfd.readouterr() == ("", "")
    assert not (home / "fastdqn").exists()


def test_a_cache_that_cannot_be_written_costs_a_compile_and_nothing_else(home: Path) -> None:
    (home / "fastdqn").write_text("a file where the folder should be")
    assert c_library.load_library().fastdqn_open


def test_a_broken_library_in_the_cache_is_not_the_end(home: Path) -> None:
    c_library.load_library()
    (kept,) = (home / "fastdqn").iterdir()
    kept.unlink()  # it is mapped in this process
    kept.write_bytes(b"\0" * 10)
    c_library.load_library.cache_clear()
    assert c_library.load_library().fastdqn_open


def test_without_a_compiler_the_way_out_is_reported(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(home))
    monkeypatch.delenv("CC", raising=False)
    with pytest.raises(UsageError, match=r"none is on the PATH\. Install gcc or clang"):
        c_library.load_library()
    assert why_no_library() == "it is compiled by a C compiler, and none is on the PATH"


def test_a_compiler_that_fails_is_named_with_its_first_line(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = compiler(home / "odd-cc", 'echo "mlp.c:1: no such thing" >&2; exit 1')
    monkeypatch.setenv("CC", path)
    with pytest.raises(UsageError, match=r"odd-cc cannot compile it: mlp\.c:1: no such thing"):
        c_library.load_library()
    assert not list((home / "fastdqn").iterdir())


def test_a_compiler_that_knows_no_native_tuning_compiles_without(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = cc.find_compiler()
    script = f'case "$*" in *=native*) exit 1;; esac\nexec {real} "$@"'
    monkeypatch.setenv("CC", compiler(home / "old-cc", script))
    assert c_library.load_library().fastdqn_open


def test_what_the_c_does_not_know_is_named() -> None:
    def why(module: nn.Module, optimizer: Any = None) -> str | None:
        return why_not_native(FlatNetwork(module), DoubleDQNObjective(), optimizer or Adam())

    assert why(MLP((4,), 2, (8,))) is None
    assert "Branches" in str(why(Branches()))
    assert "Descent" in str(why(MLP((4,), 2, (8,)), Descent()))
    assert "16 layers" in str(why(MLP((4,), 2, (2,) * 16)))
    meta = FlatNetwork(MLP((4,), 2, ()), "meta")
    assert "meta" in str(why_not_native(meta, DoubleDQNObjective(), Adam()))


class Doubled(MLP):
    """A subclass with a forward pass of its own."""

    def forward(self, obs: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return 2 * super().forward(obs)


def test_a_subclass_of_the_mlp_is_not_taken_for_one() -> None:
    doubled = FlatNetwork(Doubled((4,), 2, (8,)))
    assert "Doubled" in str(why_not_native(doubled, DoubleDQNObjective(), Adam()))
