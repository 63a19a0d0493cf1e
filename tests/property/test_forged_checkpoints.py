"""Whatever a stranger wrote into a checkpoint, it is read or refused, and nothing else happens."""

from __future__ import annotations

import copy
import json
import os
import pickle
import random
import resource
import shutil
import socket
import sys
import tracemalloc
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from fastdqn.checkpoint.reader import newest_training
from fastdqn.errors import CheckpointError
from fastdqn.training.checkpoint import load_policy
from tests.checkpoints import Training, files_of, names, newest, rehashed, unshared, write_state
from tests.forged import HOSTILE
from tests.ring_histories import Sizes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Change = Callable[[dict[str, Any]], object]

SIZES = Sizes(capacity=60, chunk_bytes=600)
MEGABYTES = 64


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with a ring that is partly written."""
    training = Training(tmp_path_factory.mktemp("whole"), SIZES)
    training.save(10)
    return unshared(newest(training.run).folder)


@pytest.fixture
def forged(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of it, beside a module that must not be imported, and far from the working folder."""
    (tmp_path / "forged_module.py").write_text("raise SystemExit('a file had a module imported')")
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    shutil.copytree(whole, tmp_path / "forged")
    yield tmp_path / "forged"
    assert "forged_module" not in sys.modules
    assert names(tmp_path / "here") == []


def read_or_refuse(folder: Path) -> str:
    """Read all of a checkpoint, and return what was said where it was refused."""
    modules = set(sys.modules)
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    tracemalloc.start()
    try:
        saved = newest_training(folder)
        if saved.has_replay:
            saved.fill(SIZES.chunks(SIZES.ring()))
        said = ""
    except CheckpointError as error:
        said = str(error)
        assert len(said) < 3000
        assert said.isprintable()
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < MEGABYTES * 2**20
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - used < 2 * MEGABYTES * 1024
    assert not [name for name in set(sys.modules) - modules if name.startswith("forged")]
    return said


def test_what_is_unchanged_is_read(forged: Path) -> None:
    assert read_or_refuse(forged) == ""


# state.json


def names_of_files(change: Change) -> Change:
    return lambda told: change(told["files"])


def renamed(name: str) -> Change:
    """Let state.json name a file in the place of another, with the same size and hash."""
    return names_of_files(lambda files: files.update({name: files.pop("state.safetensors")}))


def entry(name: str, **about: Any) -> Change:
    return names_of_files(lambda files: files[name].update(about))


def ring(**about: Any) -> Change:
    return lambda told: told["replay"].update(about)


def nested(depth: int) -> Any:
    value: Any = 0
    for _ in range(depth):
        value = [value]
    return value


CLAIMS: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "a file above": (renamed("../state.safetensors"), r"it names a file '\.\./state"),
    "a file at the root": (renamed("/etc/passwd"), "it names a file '/etc/passwd'"),
    "a file of a home": (renamed("~/x"), "it names a file '~/x'"),
    "a device": (renamed("/dev/zero"), "it names a file '/dev/zero'"),
    "a file of zeros": (renamed("a\x00b"), "it names a file"),
    "one more file": (
        names_of_files(lambda files: files.update({"x.pkl": files["state.safetensors"]})),
        "it names a file 'x.pkl'",
    ),
    "a file less": (names_of_files(lambda files: files.pop("policy.json")), "lacks the file polic"),
    "no files": (lambda told: told.update(files={}), "it lacks the file model.safetensors"),
    "files in a list": (lambda told: told.update(files=[]), r"its files is \[\], no mapping"),
    "a negative size": (entry("policy.json", bytes=-1), "'policy.json' is of -1 bytes"),
    "a size beyond all": (entry("policy.json", bytes=2**70), "is of a number of 71 bits bytes"),
    "half a byte": (entry("policy.json", bytes=0.5), "is of 0.5 bytes"),
    "a true size": (entry("policy.json", bytes=True), "is of True bytes"),
    "another size": (entry("policy.json", bytes=7), "policy.json takes [0-9]+ bytes, not 7"),
    "another hash": (entry("policy.json", sha256="0" * 64), "its sha256 is not the saved one"),
    "a hash that is none": (entry("policy.json", sha256="x"), "has the sha256 'x'"),
    "a hash more": (entry("policy.json", md5="x"), "is not described by bytes and sha256"),
    "no chunks": (ring(chunks=[]), r"the chunks of its replay are \[\]"),
    "chunks beyond all": (ring(chunks=[0] * 100_001), "the chunks of its replay are"),
    "a negative version": (ring(chunks=[-1]), "has the version -1"),
    "a version in words": (ring(chunks=["x"]), "has the version 'x'"),
    "chunks less": (ring(chunks=[None]), "it names a file 'replay/chunk"),
    "another shard": (ring(shard=1), "its replay is shard 1 of 1"),
    "true shards": (ring(num_shards=True), "its replay is shard 0 of True"),
    "a ring in words": (lambda told: told.update(replay="x"), "its replay is not described"),
    "another process": (lambda told: told.update(rank=-1), "it is of process -1 of 1"),
    "a state in a list": (lambda told: told.update(state=[]), r"its state is \[\], no mapping"),
    "versions in numbers": (lambda told: told.update(versions={"x": 1}), "are no short texts"),
    "an entry more": (lambda told: told.update(module="os"), "it has an entry 'module'"),
    "an entry less": (lambda told: told.pop("replay"), "it lacks replay"),
    "an older schema": (lambda told: told.update(schema=1), "its schema is 1, not 2"),
    "a true schema": (lambda told: told.update(schema=True), "its schema is True"),
    "deep values": (lambda told: told.update(state={"x": nested(80)}), "more than 64 deep"),
    "very deep values": (
        lambda told: told.update(state={"x": nested(700)}),
        "nested (more than 64 deep|too deeply)",
    ),
    "NaN": (lambda told: told.update(state={"x": float("nan")}), "NaN is no number of JSON"),
    "infinity": (lambda told: told.update(state={"x": float("-inf")}), "Infinity is no number"),
}


@pytest.mark.parametrize("name", CLAIMS)
def test_what_state_json_cannot_say_is_refused(name: str, forged: Path) -> None:
    change, words = CLAIMS[name]
    rehashed(forged, change)
    with pytest.raises(CheckpointError, match=words):
        newest_training(forged)


TEXTS = {
    "a name twice": (b'"schema": 2,', b'"schema": 2, "schema": 2,', "a name stands in it twice"),
    "two hashes": (b'"schema": 2,', b'"sha256": "x", "schema": 2,', "a name stands in it twice"),
    "a list": (b'"schema": 2,', b"]", "it is no JSON"),
    "deep": (b'"schema": 2,', b'"x": ' + b"[" * 100_000, "nested too deeply"),
    "digits": (b'"schema": 2,', b'"x": ' + b"1" * 10_000 + b",", "it is no JSON"),
    "no text": (b'"schema": 2,', b"\xff\xfe", "it is no JSON"),
    "an exponent": (b'"schema": 2,', b'"schema": 2e999,', "too large a number"),
    "a half letter": (b'"rank"', b'"\\ud800"', "it has an entry|it lacks"),
}


@pytest.mark.parametrize("name", TEXTS)
def test_text_that_no_parser_should_be_given_is_refused(name: str, forged: Path) -> None:
    old, new, words = TEXTS[name]
    rehashed(forged)
    rest = (forged / "state.json").read_bytes().partition(b"\n")[2]
    assert old in rest
    write_state(forged, rest.replace(old, new, 1))
    with pytest.raises(CheckpointError, match=words):
        newest_training(forged)


def test_a_state_of_millions_of_lists_is_not_parsed(forged: Path) -> None:
    """Each of four bytes would take sixty."""
    rehashed(forged, lambda told: told["state"].update(lists=[[]] * 1_100_000))
    assert "values, more than 2,000,000" in read_or_refuse(forged)


def test_a_state_of_gigabytes_is_not_read(forged: Path) -> None:
    os.truncate(forged / "state.json", 2**33)
    assert "state.json takes 8,589,934,592 bytes, more than" in read_or_refuse(forged)


# Files


@pytest.mark.parametrize("name", ["optimizer.safetensors", "replay/chunk-00000.safetensors"])
@pytest.mark.parametrize("kind", ["link", "pipe", "socket", "folder", "device", "missing"])
def test_what_is_no_file_is_not_read(kind: str, name: str, forged: Path) -> None:
    path, elsewhere = forged / name, forged.parent / "elsewhere"
    path.rename(elsewhere)
    if kind == "link":
        path.symlink_to(elsewhere)
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        bound = socket.socket(socket.AF_UNIX)
        os.chdir(path.parent)
        bound.bind(path.name)
        os.chdir(forged.parent / "here")
        bound.close()
    elif kind == "folder":
        path.mkdir()
    elif kind == "device":
        path.symlink_to("/dev/zero")
    said = read_or_refuse(forged)
    assert path.name in said
    if kind == "link":
        assert "link" in said


def test_a_folder_of_chunks_that_is_a_link_is_not_followed(forged: Path) -> None:
    (forged / "replay").rename(forged.parent / "elsewhere")
    (forged / "replay").symlink_to(forged.parent / "elsewhere")
    assert "lies behind a link" in read_or_refuse(forged)


class _Bomb:
    def __reduce__(self) -> Any:
        return os.mkdir, ("exploded",)


@pytest.mark.parametrize("name", ["optimizer", "state", "replay/chunk-00000", "model"])
def test_a_pickle_in_the_place_of_tensors_is_refused_and_not_run(name: str, forged: Path) -> None:
    (forged / f"{name}.safetensors").write_bytes(pickle.dumps(_Bomb()))
    rehashed(forged)
    assert read_or_refuse(forged) != ""


def test_nothing_is_unpickled(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unpickle(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("something was unpickled")

    for target, name in (
        (pickle, "load"),
        (pickle, "loads"),
        (pickle, "Unpickler"),
        (torch, "load"),
    ):
        monkeypatch.setattr(target, name, unpickle)
    assert read_or_refuse(whole) == ""


# Headers of tensors

Header = dict[str, Any]


def header_of(path: Path) -> tuple[Header, bytes]:
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def write_tensors(path: Path, header: bytes, data: bytes) -> None:
    path.write_bytes(len(header).to_bytes(8, "little") + header + data)


def first(**about: Any) -> Callable[[Header], object]:
    return lambda header: next(iter(header.values())).update(about)


HEADERS: dict[str, tuple[Callable[[Header], object], str]] = {
    "a negative shape": (first(shape=[-4]), "is of shape"),
    "a shape beyond all": (first(shape=[2**62, 2**62]), "is of shape"),
    "an empty shape beyond all": (first(shape=[2**62, 2**62, 0]), "is of shape"),
    "a large shape": (first(shape=[2**40]), "takes 8,796,093,022,208 bytes, and lies at"),
    "a shape in words": (first(shape=["4"]), "is of shape"),
    "a true shape": (first(shape=[True]), "is of shape"),
    "many dimensions": (first(shape=[1] * 65), "is of shape"),
    "another dtype": (first(dtype="F64", shape=[3]), r"state\.bits|its|holds|dtype|torch"),
    "a dtype of objects": (first(dtype="O"), "is of dtype 'O'"),
    "a dtype in a list": (first(dtype=["I64"]), r"is of dtype \['I64'\]"),
    "offsets beyond the file": (first(data_offsets=[0, 2**40]), "bytes, and lies at"),
    "negative offsets": (first(data_offsets=[-8, 16]), "lies at"),
    "offsets backwards": (first(data_offsets=[24, 0]), "lies at"),
    "one offset": (first(data_offsets=[0]), "lies at"),
    "an entry more": (first(module="os"), "is not described by"),
    "overlap": (lambda h: h.update(copy=next(iter(h.values()))), "bytes, and lies at"),
    "no tensors": (lambda h: h.clear(), "its tensors take 0 bytes, and it has"),
    "an odd name": (lambda h: h.update({"\x1b[31m": h.popitem()[1]}), "a tensor of the name"),
    "a long name": (lambda h: h.update({"x" * 2000: h.popitem()[1]}), "a tensor of the name"),
    "a tensor in a list": (lambda h: h.update(x=[]), "is not described by"),
}


@pytest.mark.parametrize("name", HEADERS)
def test_headers_that_do_not_describe_their_file_are_refused(name: str, forged: Path) -> None:
    change, words = HEADERS[name]
    path = forged / "state.safetensors"
    header, data = header_of(path)
    change(header)
    write_tensors(path, json.dumps(header).encode(), data)
    rehashed(forged)
    if name == "another dtype":  # of as many bytes: for the part that reads it to refuse
        bits = newest_training(forged).state.part("other")
        with pytest.raises(CheckpointError, match="its bits is"):
            bits.tensor("bits", torch.arange(3))
        return
    with pytest.raises(CheckpointError, match=words):
        newest_training(forged)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "ends within its first 8 bytes"),
        (b"\xff" * 8, "its header takes"),
        (b"\xff" * 64, "its header takes"),
        ((2**23).to_bytes(8, "little") + b" " * 2**23, "its header takes 8,388,608 bytes of"),
        ((2).to_bytes(8, "little") + b"[]", "its header is no mapping"),
        ((4).to_bytes(8, "little") + b"\xff\xfe{}", "its header is no JSON"),
        ((90_000).to_bytes(8, "little") + b"[" * 90_000, "its header is no JSON"),
    ],
    ids=["empty", "length", "long", "huge", "list", "bytes", "deep"],
)
def test_headers_that_are_none_are_refused(content: bytes, words: str, forged: Path) -> None:
    (forged / "optimizer.safetensors").write_bytes(content)
    rehashed(forged)
    assert words in read_or_refuse(forged)


def test_flags_that_are_neither_true_nor_false_are_refused(forged: Path) -> None:
    path = forged / "optimizer.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[:-1] + b"\x02")
    rehashed(forged)
    assert "holds flags that are neither 0 nor 1" in read_or_refuse(forged)


def test_a_name_that_stands_twice_in_a_header_is_refused(forged: Path) -> None:
    path = forged / "state.safetensors"
    header, data = header_of(path)
    text = json.dumps(header)
    write_tensors(path, f"{text[:-1]}, {text[1:]}".encode(), data)
    rehashed(forged)
    assert "a name stands in it twice" in read_or_refuse(forged)


CHUNKS: dict[str, tuple[Callable[[dict[str, torch.Tensor]], object], str]] = {
    "next observations behind the ring": (lambda t: t["next_index"].add_(10**9), "next_index"),
    "next observations before it": (lambda t: t["next_index"].sub_(10**9), "next_index"),
    "unknown actions": (lambda t: t["action"].add_(3), "its action holds a number outside"),
}


@pytest.mark.parametrize("name", CHUNKS)
def test_chunks_that_would_be_read_beyond_the_ring_are_refused(name: str, forged: Path) -> None:
    from safetensors.torch import load_file, save_file  # noqa: PLC0415

    path = forged / "replay" / "chunk-00000.safetensors"
    tensors = load_file(path)
    change, words = CHUNKS[name]
    change(tensors)
    save_file(tensors, path)
    rehashed(forged)
    assert words in read_or_refuse(forged)


# Mutations


def mutated(value: Any, rng: random.Random) -> Any:
    """Change one random place of a JSON value."""
    places = list(places_in(value))
    holder, key = rng.choice(places)
    kind = rng.random()
    if kind < 0.15:
        del holder[key]
    elif kind < 0.3 and isinstance(holder, dict):
        holder[rng.choice(["x", "", "../x", str(key) + "0"])] = copy.deepcopy(holder[key])
    elif kind < 0.5 and type(holder[key]) is int:
        holder[key] += rng.choice([-1, 1, 8, -8, 2**31, 2**63])
    else:
        holder[key] = copy.deepcopy(rng.choice(HOSTILE))
    return value


def places_in(value: Any) -> Iterator[tuple[Any, Any]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value)
    for key, each in inner:
        yield value, key
        if isinstance(each, dict | list):
            yield from places_in(each)


def scrambled(content: bytes, rng: random.Random) -> bytes:
    """Change a few bytes, or leave some out."""
    changed = bytearray(content)
    for _ in range(rng.randint(1, 3)):
        place = rng.randrange(len(changed))
        if rng.random() < 0.3:
            del changed[place : place + rng.randint(1, 5)]
        else:
            changed[place] = rng.choice(
                b'{}[]",:0123456789-eE.\x00\xff\\u' + bytes([rng.randrange(256)])
            )
        changed = changed or bytearray(b"0")
    return bytes(changed)


def forge_one(folder: Path, whole: Path, rng: random.Random) -> list[Path]:
    """Forge one file of a checkpoint and make all hashes right; return what was written."""
    which = rng.choice(["state.json", *(str(p.relative_to(whole)) for p in files_of(whole))])
    path = folder / which
    if which == "policy.json":
        path.write_bytes(scrambled(path.read_bytes(), rng))
    elif which == "state.json":
        rest = b"{" + path.read_bytes().partition(b"\n")[2]
        text = json.dumps(mutated(json.loads(rest), rng)).encode() if rng.random() < 0.7 else None
        write_state(folder, (text or scrambled(rest, rng))[1:])
        return [path]
    else:
        header, data = header_of(path)
        text = json.dumps(header).encode()
        if rng.random() < 0.7:
            text = json.dumps(mutated(header, rng)).encode() if header else b"{]"
        else:
            text = scrambled(text, rng)
        write_tensors(path, text, data if rng.random() < 0.8 else data[:-1] + b"\x05")
    rehashed(folder)
    return [path, folder / "state.json"]


MANY = int(os.environ.get("FASTDQN_TEST_HEADERS", "2000"))
"""Mutated files of the slow test; 10,000 of them take minutes."""


@pytest.mark.parametrize(
    "number", [60, pytest.param(MANY, marks=[pytest.mark.slow, pytest.mark.timeout(1200)])]
)
def test_mutated_json_and_headers_are_read_or_refused_by_name(
    number: int, whole: Path, forged: Path
) -> None:
    rng, refused = random.Random(number), 0
    for _ in range(number):
        written = forge_one(forged, whole, rng)
        refused += bool(read_or_refuse(forged))
        with suppress(CheckpointError):
            load_policy(forged)
        for path in written:
            shutil.copyfile(whole / path.relative_to(forged), path)
    assert number / 2 < refused < number
    assert read_or_refuse(forged) == ""
