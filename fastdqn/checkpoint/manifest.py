"""state.json: every file of a checkpoint with its size and hash, and the plain values of the parts.

Its first line holds the sha256 of all bytes after that line, so that any change is found:

    {"sha256": "<64 digits>",
    "schema": 2,
    ...

A stranger may have written it, with the right hash: names, types and ranges are checked.
"""

from __future__ import annotations

import hashlib
import json
import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from fastdqn.checkpoint.disk import Entry
from fastdqn.checkpoint.layout import DESCRIPTION, MODEL, OPTIMIZER, PARTS, chunk_file
from fastdqn.checkpoint.tensor_file import NAMES, brief
from fastdqn.errors import CheckpointError, UsageError, first_line
from fastdqn.foundation.saved_files import parse_json
from fastdqn.foundation.state import PartState

__all__ = [
    "MAX_STATE_BYTES",
    "Manifest",
    "Version",
    "parsed",
    "refuse_unsavable",
    "why_too_large",
    "written",
]

SCHEMA = 2
"""1 is that of folders with a policy alone."""
MAX_STATE_BYTES = 64 * 2**20
MAX_VALUES = 2_000_000
"""In memory an empty list of two bytes takes sixty."""
MAX_CHUNKS, MAX_DEPTH, MAX_VERSION, MAX_BYTES = 100_000, 64, 2**127, 2**62
PACKAGES = ("fastdqn", "torch", "numpy", "gymnasium", "safetensors")
FIRST_LINE = re.compile(rb'\{"sha256": "([0-9a-f]{64})",\n')
HASH = re.compile(r"[0-9a-f]{64}")
KEYS = {"sha256", "schema", "rank", "world_size", "versions", "files", "replay", "state"}

Version = int | None
"""Of a chunk: 0 is as allocated, and has no file; None may have changed without a new version."""


@dataclass(frozen=True)
class Manifest:
    """What state.json says.

    Attributes:
        files: Size and hash of every other file by name.
        versions: Of the chunks of the ring; None without a ring.
        values: Plain values of the parts; see `PartState`.
        packages: Versions of the packages that wrote it, by name.
    """

    files: Mapping[str, Entry]
    versions: Sequence[Version] | None
    values: dict[str, Any]
    packages: Mapping[str, str]

    @property
    def chunk_files(self) -> dict[int, str]:
        """Return the files of chunks by number; chunks as allocated have none."""
        numbers = range(len(self.versions or ()))
        return {n: chunk_file(n) for n in numbers if chunk_file(n) in self.files}


def written(files: Mapping[str, Entry], versions: Sequence[Version] | None, values: str) -> bytes:
    """Return the contents of state.json.

    Args:
        files: Of every other file.
        versions: Of the chunks of the ring; None without a ring.
        values: Plain values of the parts, in JSON.
    """
    listed = {name: {"bytes": e.bytes, "sha256": e.sha256} for name, e in sorted(files.items())}
    ring = None if versions is None else {"shard": 0, "num_shards": 1, "chunks": list(versions)}
    entries = {
        "schema": SCHEMA,
        "rank": 0,
        "world_size": 1,
        "versions": _packages(),
        "files": listed,
        "replay": ring,
    }
    lines = [f"{json.dumps(name)}: {json.dumps(value)}" for name, value in entries.items()]
    rest = ",\n".join([*lines, f'"state": {values}']).encode() + b"}\n"
    return b'{"sha256": "%s",\n' % hashlib.sha256(rest).hexdigest().encode() + rest


def refuse_unsavable(state: PartState, what: str) -> PartState:
    """Refuse the state of a part of the caller's own where no checkpoint can hold it.

    Args:
        state: Of the part.
        what: The part, in words.

    Returns:
        The state.

    Raises:
        UsageError: A value is none of JSON's, or a tensor has an unusual dtype.
    """
    try:
        json.dumps(state.values, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        reason = f"its state() cannot be written as JSON: {first_line(error)}"
        way_out = "Return plain numbers, texts, lists and mappings; None for what is not finite."
        raise UsageError(what, reason, way_out) from None
    for name, tensor in state.tensors.items():
        if tensor.dtype not in NAMES:
            reason = f"{name!r} of its state() has dtype {tensor.dtype}"
            raise UsageError(what, reason, f"Return one of {', '.join(NAMES.values())}.")
    return state


def _packages() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "unknown"
    return found


def why_too_large(content: bytes) -> str:
    """Return why state.json would not be read for its size; empty if it would."""
    if len(content) > MAX_STATE_BYTES:
        return f"takes {len(content):,} bytes, more than {MAX_STATE_BYTES:,}"
    values = sum(content.count(mark) for mark in (b",", b"[", b"{"))
    return f"holds some {values:,} values, more than {MAX_VALUES:,}" if values > MAX_VALUES else ""


def parsed(content: bytes) -> Manifest:
    """Check the contents of state.json.

    Raises:
        CheckpointError: They are damaged, of another schema, or name what cannot be.
    """
    first = FIRST_LINE.match(content)
    if first is None:
        raise CheckpointError("its first line is not that of a checkpoint")
    if hashlib.sha256(memoryview(content)[first.end() :]).hexdigest().encode() != first[1]:
        raise CheckpointError("it is damaged: its sha256 is not the saved one")
    if too_large := why_too_large(content):
        raise CheckpointError(f"it {too_large}")
    try:
        found = parse_json(content)
    except ValueError as error:
        raise CheckpointError(f"it is no JSON: {error}") from None
    _refuse_other_schema(found)
    _refuse_deep(found)
    files = {name: _entry(name, about) for name, about in _mapping(found, "files").items()}
    versions = _versions(found["replay"])
    _refuse_other_files(files, versions)
    packages = _mapping(found, "versions")
    if not all(isinstance(text, str) and len(text) <= 100 for text in packages.values()):
        raise CheckpointError("its versions are no short texts")
    return Manifest(files, versions, _mapping(found, "state"), packages)


def _refuse_other_schema(found: dict[str, Any]) -> None:
    schema = found.get("schema")
    if type(schema) is not int or schema != SCHEMA:
        newer = " A newer fastdqn may read it." if type(schema) is int and schema > SCHEMA else ""
        raise CheckpointError(f"its schema is {brief(schema)}, not {SCHEMA}.{newer}")
    if found.keys() != KEYS:
        odd = min(found.keys() ^ KEYS)
        raise CheckpointError(f"it lacks {odd}" if odd in KEYS else f"it has an entry {brief(odd)}")
    place = found["rank"], found["world_size"]
    if [*map(type, place)] != [int, int] or place != (0, 1):
        raise CheckpointError(
            f"it is of process {brief(place[0])} of {brief(place[1])}, and one process reads "
            "checkpoints of one"
        )


def _refuse_deep(value: Any) -> None:
    """Refuse what nests so deeply that functions which call themselves would fail on it."""
    level = [value]
    for _ in range(MAX_DEPTH):
        inner: list[Any] = []
        for each in level:
            if isinstance(each, dict | list):
                inner += each.values() if isinstance(each, dict) else each
        if not inner:
            return
        level = [each for each in inner if isinstance(each, dict | list)]
    raise CheckpointError(f"its values are nested more than {MAX_DEPTH} deep")


def _mapping(found: dict[str, Any], name: str) -> dict[str, Any]:
    value = found[name]
    if not isinstance(value, dict):
        raise CheckpointError(f"its {name} is {brief(value)}, no mapping")
    return value


def _entry(name: str, about: Any) -> Entry:
    if not isinstance(about, dict) or about.keys() != {"bytes", "sha256"}:
        raise CheckpointError(f"its file {brief(name)} is not described by bytes and sha256")
    size, digest = about["bytes"], about["sha256"]
    if type(size) is not int or not 0 <= size <= MAX_BYTES:
        raise CheckpointError(f"its file {brief(name)} is of {brief(size)} bytes")
    if not isinstance(digest, str) or not HASH.fullmatch(digest):
        raise CheckpointError(f"its file {brief(name)} has the sha256 {brief(digest)}")
    return Entry(size, digest)


def _versions(ring: Any) -> tuple[Version, ...] | None:
    if ring is None:
        return None
    if not isinstance(ring, dict) or ring.keys() != {"shard", "num_shards", "chunks"}:
        raise CheckpointError("its replay is not described by shard, num_shards and chunks")
    shard = ring["shard"], ring["num_shards"]
    if [*map(type, shard)] != [int, int] or shard != (0, 1):
        raise CheckpointError(f"its replay is shard {brief(shard[0])} of {brief(shard[1])}")
    chunks = ring["chunks"]
    if not isinstance(chunks, list) or not 0 < len(chunks) <= MAX_CHUNKS:
        raise CheckpointError(f"the chunks of its replay are {brief(chunks)}")
    for value in chunks:
        if value is not None and not (type(value) is int and 0 <= value <= MAX_VERSION):
            raise CheckpointError(f"a chunk of its replay has the version {brief(value)}")
    return tuple(chunks)


def _refuse_other_files(files: Mapping[str, Entry], versions: Sequence[Version] | None) -> None:
    """Refuse names beside those of the format, so that none leads elsewhere."""
    chunks = {chunk_file(n) for n, value in enumerate(versions or ()) if value != 0}
    wanted = {MODEL, DESCRIPTION, OPTIMIZER, PARTS} | chunks
    for name in sorted(files.keys() - wanted):
        raise CheckpointError(f"it names a file {brief(name)}")
    for name in sorted(wanted - files.keys()):
        raise CheckpointError(f"it lacks the file {name}")
