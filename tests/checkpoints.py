"""A training that consists of a ring and a few values, and its checkpoints."""

from __future__ import annotations

import copy
import hashlib
import json
import shutil
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from fastdqn.checkpoint.reader import SavedTraining, newest_training
from fastdqn.checkpoint.writer import CheckpointWriter
from fastdqn.foundation.state import PartState
from tests.ring_histories import AnyRing, Sizes, cells_of, same

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from fastdqn.replay.chunks import RingChunks
    from tests.ring_histories import History


@dataclass
class Training:
    """Writes a ring, counts, and says what it consists of.

    Args:
        run: Folder of the run.
        sizes: Of the ring.
        seed: Of what is written.
        keep_last: Checkpoints to keep.
    """

    run: Path
    sizes: Sizes = field(default_factory=Sizes)
    seed: int = 0
    keep_last: int | None = 3
    step: int = 0
    history: History = field(init=False)
    chunks: RingChunks = field(init=False)
    writer: CheckpointWriter = field(init=False)
    moments: dict[str, AnyRing] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.history = self.sizes.history(self.seed)
        self.chunks = self.sizes.chunks(self.history.ring)
        self.writer = CheckpointWriter(self.run / "checkpoints", keep_last=self.keep_last)

    def go_on(self, steps: int) -> None:
        for _ in range(steps):
            self.writer.advance()
            self.history.step()
            self.step += 1

    @property
    def name(self) -> str:
        return f"step-{self.step:012d}"

    @property
    def last(self) -> str:
        """The checkpoint that was begun last."""
        return list(self.moments)[-1]

    def state(self) -> PartState:
        moments = torch.arange(4.0) + self.step
        learner = PartState({"updates": self.step}, {"moments": moments, "flags": moments > 5})
        other = PartState({"share": 0.5, "list": [1, None]}, {"bits": torch.arange(3)})
        return PartState.of_parts({"learner": learner, "other": other})

    def policy(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        weights = {"weight": torch.full((2, 3), float(self.step)), "bias": torch.zeros(2)}
        return weights, {"config": {"env_id": "CartPole-v1"}, "env_steps": self.step}

    def begin(self, *, replay: bool = True) -> None:
        self.moments[self.name] = copy.deepcopy(self.history.ring)
        chunks = self.chunks if replay else None
        self.writer.begin(self.name, self.policy(), self.state(), chunks)

    def save(self, steps: int = 0, *, replay: bool = True) -> None:
        """Train, and save the state of this moment while training goes on for two steps."""
        self.go_on(steps)
        self.begin(replay=replay)
        self.go_on(2)
        self.writer.finish()

    def refuse_other(self, saved: SavedTraining) -> None:
        """Compare what was read with the moment of its `begin`."""
        step = int(saved.folder.name.removeprefix("step-"))
        twin = Training(self.run, self.sizes, step=step)
        weights, description = twin.policy()
        assert saved.policy.description == description
        assert same(saved.policy.parameters, weights)
        assert saved.state.values == twin.state().values
        assert same(saved.state.tensors, twin.state().tensors)
        ring = self.sizes.ring()
        if saved.has_replay:
            saved.fill(self.sizes.chunks(ring))
            assert same(cells_of(ring), cells_of(self.moments[saved.folder.name]))


def newest(run: Path, skipped: int = 0) -> SavedTraining:
    saved = newest_training(run)
    assert len(saved.skipped) == skipped, saved.skipped
    return saved


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def files_of(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def rehashed(folder: Path, change: Callable[[dict[str, Any]], object] | None = None) -> None:
    """Make the hashes and sizes in state.json those of the files, as a stranger would.

    Args:
        folder: Of a checkpoint; written.
        change: Changes what state.json says, after that.
    """
    told = json.loads((folder / "state.json").read_bytes())
    for name, entry in told["files"].items():
        if (folder / name).is_file():
            content = (folder / name).read_bytes()
            entry |= {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    if change is not None:
        change(told)
    del told["sha256"]
    write_state(folder, json.dumps(told).encode()[1:])


def write_state(folder: Path, rest: bytes) -> None:
    """Write state.json with the right hash of what comes after its first line."""
    digest = hashlib.sha256(rest).hexdigest().encode()
    (folder / "state.json").write_bytes(b'{"sha256": "%s",\n' % digest + rest)


def unshared(folder: Path) -> Path:
    """Let the files of a checkpoint be its own, so that a change in place changes no other."""
    for path in files_of(folder):
        content = path.read_bytes()
        path.unlink()
        path.write_bytes(content)
    return folder


def copied_to(folder: Path, target: Path) -> Path:
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(folder, target)
    return target
