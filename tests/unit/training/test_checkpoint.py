"""Saved policies: whole or absent, checked when read, never unpickled."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import pickle
import shutil
import tracemalloc
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import save

from fastdqn.checkpoint import layout
from fastdqn.checkpoint.saved_policy import policy_digest
from fastdqn.errors import CheckpointError, UsageError
from fastdqn.training import checkpoint
from fastdqn.training.checkpoint import (
    KEEP_LAST,
    SavedPolicy,
    load_policy,
    newest_checkpoint,
    save_checkpoint,
    save_policy,
)

if TYPE_CHECKING:
    from collections.abc import Callable

OLD, NEW, NEWER = 1.0, 2.0, 3.0


def parameters(value: float) -> dict[str, torch.Tensor]:
    """Return views of one flat vector, as a network's parameters are."""
    flat = torch.arange(6.0) + value
    return {"weight": flat[:4].view(2, 2), "bias": flat[4:]}


def description(value: float) -> dict[str, Any]:
    return {"env_id": "CartPole-v1", "value": value, "config": {"env_id": "CartPole-v1"}}


def write(folder: Path, value: float) -> None:
    save_policy(folder, parameters(value), description(value))


def value_of(saved: SavedPolicy) -> float:
    """Return which policy was read, after a look at every number of it."""
    value: float = saved.description["value"]
    assert saved.description == description(value)
    assert saved.parameters.keys() == parameters(value).keys()
    for name, tensor in parameters(value).items():
        assert torch.equal(saved.parameters[name], tensor)
    return value


def entries(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


# Whole or absent


def test_what_was_saved_is_read_back(tmp_path: Path) -> None:
    write(tmp_path / "policy", OLD)
    assert value_of(load_policy(tmp_path / "policy")) == OLD
    assert entries(tmp_path) == {"policy"}
    assert entries(tmp_path / "policy") == {"model.safetensors", "policy.json"}


def test_a_saved_policy_is_replaced_and_nothing_is_left_beside_it(tmp_path: Path) -> None:
    write(tmp_path / "policy", OLD)
    write(tmp_path / "policy", NEW)
    assert value_of(load_policy(tmp_path / "policy")) == NEW
    assert entries(tmp_path) == {"policy"}


class Saboteur:
    """Counts what a save does to the disk, and lets the n-th touch fail.

    At that touch it first keeps a copy of the folder: what a crash at this moment would leave.
    """

    def __init__(self, folder: Path, copy: Path, fails_at: int) -> None:
        self.folder, self.copy, self.fails_at, self.touches = folder, copy, fails_at, 0

    def watch(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for target, name in (
            (Path, "mkdir"),
            (Path, "write_bytes"),
            (Path, "write_text"),
            (os, "fsync"),
            (Path, "rename"),
        ):
            monkeypatch.setattr(target, name, self._failing(getattr(target, name)))
        monkeypatch.setattr(shutil, "rmtree", self._surviving(shutil.rmtree))

    def _failing(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def touch(*args: Any, **kwargs: Any) -> Any:
            if self._count():
                if function.__name__ in {"write_bytes", "write_text"}:
                    _tear(function, *args)
                self._keep()
                raise OSError(errno.ENOSPC, "No space left on device")
            return function(*args, **kwargs)

        return touch

    def _surviving(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def touch(path: Path, ignore_errors: bool = False) -> None:
            assert ignore_errors, "cleaning up must not fail a save"
            if self._count():
                self._keep()
            function(path, ignore_errors=True)

        return touch

    def _count(self) -> bool:
        self.touches += 1
        return self.touches == self.fails_at

    def _keep(self) -> None:
        if self.folder.exists():
            shutil.copytree(self.folder, self.copy)
        else:
            self.copy.mkdir()


def _tear(function: Callable[..., Any], *args: Any) -> None:
    """Write a file, but only the first half of it."""
    path, content = args
    function(path, content[: len(content) // 2])


def sabotage(folder: Path, copy: Path, fails_at: int, action: Callable[[], object]) -> int:
    """Run an action whose n-th touch of the disk fails; return how many touches it made."""
    saboteur = Saboteur(folder, copy, fails_at)
    with pytest.MonkeyPatch.context() as patch:
        saboteur.watch(patch)
        try:
            action()
        except OSError as error:
            assert error.errno == errno.ENOSPC  # noqa: PT017 - it may also not be raised at all
    return saboteur.touches


def touches_of_a_save(tmp_path: Path, prepare: Callable[[Path], object]) -> int:
    folder = tmp_path / "dry"
    prepare(folder)
    return sabotage(folder, tmp_path / "unused", 0, lambda: write(folder / "policy", NEW))


def test_a_first_save_that_fails_or_crashes_leaves_a_whole_policy_or_none(tmp_path: Path) -> None:
    touches = touches_of_a_save(tmp_path, lambda folder: None)
    assert touches >= 10
    for fails_at in range(1, touches + 1):
        folder, crashed = tmp_path / f"failed-{fails_at}", tmp_path / f"crashed-{fails_at}"
        sabotage(folder, crashed, fails_at, lambda to=folder: write(to / "policy", NEW))  # type: ignore[misc]
        for place in (folder / "policy", crashed / "policy"):
            if place.exists():
                assert value_of(load_policy(place)) == NEW
            else:
                with pytest.raises(CheckpointError):
                    load_policy(place)
        write(folder / "policy", NEWER)
        assert value_of(load_policy(folder / "policy")) == NEWER
        assert entries(folder) == {"policy"}


def test_a_replacement_that_fails_or_crashes_leaves_the_old_policy_or_the_new_one(
    tmp_path: Path,
) -> None:
    touches = touches_of_a_save(tmp_path, lambda folder: write(folder / "policy", OLD))
    assert touches >= 11
    read = set()
    for fails_at in range(1, touches + 1):
        folder, crashed = tmp_path / f"failed-{fails_at}", tmp_path / f"crashed-{fails_at}"
        write(folder / "policy", OLD)
        sabotage(folder, crashed, fails_at, lambda to=folder: write(to / "policy", NEW))  # type: ignore[misc]
        for place in (folder / "policy", crashed / "policy"):
            read.add(value_of(load_policy(place)))
        assert (folder / "policy").exists()
        write(folder / "policy", NEWER)
        assert value_of(load_policy(folder / "policy")) == NEWER
        assert entries(folder) == {"policy"}
    assert read == {OLD, NEW}


def test_a_checkpoint_that_fails_or_crashes_leaves_the_older_one_readable(tmp_path: Path) -> None:
    def save_step(run: Path, step: int, value: float) -> None:
        save_checkpoint(run / "checkpoints", step, parameters(value), description(value))

    save_step(tmp_path / "dry", 100, OLD)
    dry = tmp_path / "dry"
    touches = sabotage(dry, tmp_path / "unused", 0, lambda: save_step(dry, 200, NEW))
    read = []
    for fails_at in range(1, touches + 1):
        run, crashed = tmp_path / f"failed-{fails_at}", tmp_path / f"crashed-{fails_at}"
        save_step(run, 100, OLD)
        sabotage(run, crashed, fails_at, lambda to=run: save_step(to, 200, NEW))  # type: ignore[misc]
        for place in (run, crashed):
            saved = newest_checkpoint(place)
            assert saved.skipped == ()
            read.append(value_of(saved))
        save_step(run, 300, NEWER)
        assert value_of(newest_checkpoint(run)) == NEWER
    assert set(read) == {OLD, NEW}


def test_everything_is_on_the_disk_before_it_takes_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tape: list[str] = []
    rename = Path.rename

    def sync(path: Path) -> None:
        tape.append(f"sync {path.name.partition('-')[0]}")

    def take_place(draft: Path, target: Path) -> Path:
        tape.append(f"rename {target.name}")
        return rename(draft, target)

    monkeypatch.setattr(checkpoint, "sync", sync)
    monkeypatch.setattr(layout, "sync", sync)
    monkeypatch.setattr(Path, "rename", take_place)
    write(tmp_path / "runs" / "policy", OLD)
    assert tape == [
        "sync model.safetensors",
        "sync policy.json",
        "sync .tmp",
        "rename policy",
        "sync runs",
    ]


def test_a_folder_that_holds_something_else_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "thesis.tex").write_text("years of it")
    (tmp_path / "file").write_text("text")
    for place in (tmp_path / "work", tmp_path / "file", tmp_path / "work" / ".."):
        with pytest.raises(UsageError, match="something else than a saved policy"):
            write(place, NEW)
    assert (tmp_path / "work" / "thesis.tex").read_text() == "years of it"
    assert (tmp_path / "file").read_text() == "text"
    assert entries(tmp_path) == {"work", "file"}


def test_an_empty_folder_becomes_the_policy(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    write(tmp_path / "empty", NEW)
    assert value_of(load_policy(tmp_path / "empty")) == NEW


# Checked when read


def step(run: Path, env_steps: int, value: float) -> Path:
    return save_checkpoint(run / "checkpoints", env_steps, parameters(value), description(value))


def test_every_flipped_byte_sends_the_loader_to_the_older_one(tmp_path: Path) -> None:
    step(tmp_path, 100, OLD)
    newest = step(tmp_path, 200, NEW)
    seen = set()
    for path in newest.iterdir():
        content = path.read_bytes()
        for position in range(len(content)):
            flipped = bytearray(content)
            flipped[position] ^= 0x10
            path.write_bytes(flipped)
            saved = newest_checkpoint(tmp_path)
            if value_of(saved) == NEW:
                assert bytes(content[position : position + 1]).isspace()
                continue
            (reason,) = saved.skipped
            assert str(newest) in reason
            seen.add(reason.removeprefix(str(newest)).split(":")[0])
        path.write_bytes(content)
    assert seen >= {" is damaged", " holds no readable policy"}
    assert value_of(newest_checkpoint(tmp_path)) == NEW


@pytest.mark.parametrize("name", ["model.safetensors", "policy.json"])
def test_every_truncation_sends_the_loader_to_the_older_one(tmp_path: Path, name: str) -> None:
    step(tmp_path, 100, OLD)
    torn = step(tmp_path, 200, NEW) / name
    content = torn.read_bytes()
    for length in range(len(content.rstrip())):
        torn.write_bytes(content[:length])
        saved = newest_checkpoint(tmp_path)
        assert value_of(saved) == OLD
        assert len(saved.skipped) == 1


@pytest.mark.parametrize("name", ["model.safetensors", "policy.json"])
def test_a_missing_file_sends_the_loader_to_the_older_one(tmp_path: Path, name: str) -> None:
    step(tmp_path, 100, OLD)
    (step(tmp_path, 200, NEW) / name).unlink()
    saved = newest_checkpoint(tmp_path)
    assert value_of(saved) == OLD
    assert "holds no readable policy" in saved.skipped[0]


@pytest.mark.parametrize("content", ["{}", "[1]", '{"schema": 2}', '{"schema": null}', "[" * 5000])
def test_another_schema_is_refused(tmp_path: Path, content: str) -> None:
    write(tmp_path / "policy", OLD)
    (tmp_path / "policy" / "policy.json").write_text(content)
    with pytest.raises(
        CheckpointError, match=r"policy\.json is not of schema 1|no readable policy"
    ):
        load_policy(tmp_path / "policy")


def test_all_that_cannot_be_read_is_named_newest_first(tmp_path: Path) -> None:
    for env_steps in (100, 200):
        (step(tmp_path, env_steps, NEW) / "model.safetensors").write_bytes(b"torn")
    with pytest.raises(CheckpointError) as refused:
        newest_checkpoint(tmp_path)
    message = str(refused.value)
    assert 0 < message.index("step-000000000200") < message.index("step-000000000100")


@pytest.mark.parametrize("made", [False, True])
def test_a_run_without_checkpoints_is_refused(tmp_path: Path, made: bool) -> None:
    if made:
        (tmp_path / "checkpoints").mkdir()
    with pytest.raises(CheckpointError, match="there is no checkpoints/step-"):
        newest_checkpoint(tmp_path)


def test_foreign_entries_are_neither_read_nor_deleted(tmp_path: Path) -> None:
    step(tmp_path, 100, OLD)
    folder = tmp_path / "checkpoints"
    foreign = ["step-000000000200.bak", "step-2", ".tmp-step-000000000300-1", "best", "step-x"]
    for name in foreign:
        shutil.copytree(folder / "step-000000000100", folder / name)
    (folder / "step-000000000900").write_text("a file, not a folder")
    for env_steps in range(101, 106):
        step(tmp_path, env_steps, NEW)
    assert newest_checkpoint(tmp_path).folder == folder / "step-000000000105"
    assert entries(folder) >= {*foreign, "step-000000000900"}


class _Bomb:
    def __reduce__(self) -> Any:
        return os.mkdir, ("exploded",)


def test_a_pickle_in_the_tensors_place_is_refused_and_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "policy", OLD)
    bomb = pickle.dumps(_Bomb())
    digest = policy_digest(bomb, description(OLD))
    (tmp_path / "policy" / "model.safetensors").write_bytes(bomb)
    message = {**description(OLD), "schema": 1, "sha256": digest}
    (tmp_path / "policy" / "policy.json").write_text(json.dumps(message))
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_policy(tmp_path / "policy")
    assert entries(tmp_path) == {"policy"}


def test_loading_never_unpickles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "policy", OLD)

    def unpickle(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a policy was unpickled")

    for target, name in (
        (pickle, "load"),
        (pickle, "loads"),
        (pickle, "Unpickler"),
        (torch, "load"),
    ):
        monkeypatch.setattr(target, name, unpickle)
    assert value_of(load_policy(tmp_path / "policy")) == OLD


@pytest.mark.parametrize("shape", ["[-1]", "[1099511627776]", "[2, 2]"])
def test_shapes_that_do_not_fit_the_file_are_refused(tmp_path: Path, shape: str) -> None:
    write(tmp_path / "policy", OLD)
    content = save(parameters(OLD)).replace(b'"shape":[2]', f'"shape":{shape}'.encode())
    content = (len(content) - 8 - 24).to_bytes(8, "little") + content[8:]
    message = {
        **description(OLD),
        "schema": 1,
        "sha256": policy_digest(content, description(OLD)),
    }
    (tmp_path / "policy" / "model.safetensors").write_bytes(content)
    (tmp_path / "policy" / "policy.json").write_text(json.dumps(message))
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_policy(tmp_path / "policy")


# The newest few


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    for env_steps in (100, 9, 2000, 30, 400):
        step(tmp_path, env_steps, float(env_steps))
    kept = sorted((100, 400, 2000))[-KEEP_LAST:]
    assert entries(tmp_path / "checkpoints") == {f"step-{number:012d}" for number in kept}
    assert value_of(newest_checkpoint(tmp_path)) == 2000.0


def test_a_step_that_is_saved_already_is_kept_as_it_is(tmp_path: Path) -> None:
    first = step(tmp_path, 100, OLD)
    assert step(tmp_path, 100, NEW) == first
    assert value_of(load_policy(first)) == OLD


# Into a network


def saved(value: float, folder: Path = Path("somewhere")) -> SavedPolicy:
    return SavedPolicy(parameters(value), description(value), folder)


def test_parameters_are_copied_in_place() -> None:
    own = parameters(OLD)
    pointers = {name: tensor.data_ptr() for name, tensor in own.items()}
    saved(NEW).copy_into(own)
    assert {name: tensor.data_ptr() for name, tensor in own.items()} == pointers
    for name, tensor in parameters(NEW).items():
        assert torch.equal(own[name], tensor)


@pytest.mark.parametrize(
    ("name", "other", "words"),
    [
        ("bias", None, r"its bias is of shape \(2,\), this network's is missing"),
        ("extra", torch.zeros(1), r"its extra is missing, this network's is of shape \(1,\)"),
        ("bias", torch.zeros(5, 2), r"of shape \(2,\), this network's is of shape \(5, 2\)"),
    ],
    ids=["one missing", "one too many", "one that would broadcast"],
)
def test_parameters_of_another_network_are_refused_and_nothing_is_written(
    name: str, other: torch.Tensor | None, words: str
) -> None:
    own = parameters(OLD)
    del_or_set = {name: other} if other is not None else {}
    own = {key: tensor for key, tensor in own.items() if key != name} | del_or_set
    before = {key: tensor.clone() for key, tensor in own.items()}
    with pytest.raises(CheckpointError, match=words):
        saved(NEW).copy_into(own)
    assert all(torch.equal(own[key], before[key]) for key in own)


def test_a_hash_takes_no_copy_of_the_tensors() -> None:
    content = bytes(10_000_000)
    whole = hashlib.sha256(content + b'{"a": 1}').hexdigest()
    tracemalloc.start()
    assert policy_digest(content, {"a": 1}) == whole
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < len(content) / 10
