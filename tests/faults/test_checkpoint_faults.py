"""Full disks, failing disks, kills and flipped bytes: the last whole checkpoint loads."""

from __future__ import annotations

import errno
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fastdqn.checkpoint.layout import remove_stale, steps
from fastdqn.checkpoint.reader import newest_training
from fastdqn.errors import CheckpointError
from tests.checkpoints import Training, files_of, names, newest
from tests.faults import saving_forever
from tests.ring_histories import Sizes, cells_of, same

SMALL = Sizes(capacity=24, chunk_bytes=1000)
TOUCHES = ((os, "open"), (os, "write"), (os, "fsync"), (os, "link"), (Path, "mkdir"))
MOVES = ((Path, "rename"),)


class Saboteur:
    """Lets the n-th touch of the disk fail; a write first writes a half.

    Args:
        patch: Undoes it.
        number: Of the touch that fails, from 1; 0 counts only.
        code: Of the error.
        targets: Functions that are counted.
    """

    def __init__(
        self,
        patch: pytest.MonkeyPatch,
        number: int,
        code: int,
        targets: tuple[tuple[Any, str], ...] = (*TOUCHES, *MOVES),
    ) -> None:
        self.number, self.code, self.count = number, code, 0
        for target, name in targets:
            patch.setattr(target, name, self._failing(getattr(target, name)))

    def _failing(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def touch(*args: Any, **kwargs: Any) -> Any:
            self.count += 1
            if self.count == self.number:
                if function.__name__ == "write":
                    function(args[0], args[1][: len(args[1]) // 2])
                raise OSError(self.code, os.strerror(self.code))
            return function(*args, **kwargs)

        return touch


def save_with(training: Training, number: int, code: int, **more: Any) -> tuple[int, str]:
    """Save while the n-th touch fails; return how many there were, and what was said."""
    said = ""
    with pytest.MonkeyPatch.context() as patch:
        saboteur = Saboteur(patch, number, code, **more)
        training.go_on(3)
        training.begin()
        training.go_on(2)
        try:
            training.writer.finish()
        except OSError as error:
            said = str(error)
            assert error.errno == code  # noqa: PT017 - it may also not be raised at all
            place = str(training.run / "checkpoints" / training.last)
            assert error.filename == place  # noqa: PT017
    return saboteur.count, said


@pytest.mark.parametrize(
    "code",
    [errno.ENOSPC, pytest.param(errno.EIO, marks=pytest.mark.slow)],
    ids=["full", "failing"],
)
def test_a_disk_that_fails_at_any_touch_costs_the_new_checkpoint_alone(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    training = Training(tmp_path / "dry", SMALL)
    for _ in range(2):
        training.save(5)
    touches, _ = save_with(training, 0, code)
    assert touches >= 40
    training, failed = Training(tmp_path / "run", SMALL), 0
    training.save(1)
    training.save(1)
    for number in range(1, touches + 1):
        last = newest(training.run).folder
        _, said = save_with(training, number, code)
        failed += bool(said)
        saved = newest(training.run)
        assert saved.folder == last or saved.folder.name == training.last
        training.refuse_other(saved)
        kept = names(training.run / "checkpoints")
        assert len(kept) <= 4
        assert all(name.startswith("step-") for name in kept)
        if said:
            assert "the checkpoint was not saved: " in said
    assert failed > touches * 0.9
    training.save(1)
    assert newest(training.run).folder.name == training.last


def test_a_run_whose_folder_cannot_be_written_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = Training(tmp_path, SMALL)
    training.save(5)

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Path, "mkdir", refuse)
    training.go_on(3)
    training.begin()
    training.go_on(60)
    assert training.writer._save is not None
    training.writer._save.wait()
    (error,) = training.writer.poll()
    assert isinstance(error, OSError)
    assert "not saved: Read-only file system" in str(error)
    training.refuse_other(newest(tmp_path))


# Flipped bytes


def damage(path: Path, rng: random.Random) -> None:
    """Flip a bit or cut the end off, in place."""
    size = path.stat().st_size
    if rng.random() < 0.3:
        os.truncate(path, rng.randrange(size))
        return
    with path.open("r+b") as file:
        place = rng.randrange(size)
        file.seek(place)
        old = file.read(1)[0]
        file.seek(place)
        file.write(bytes([old ^ (1 << rng.randrange(8))]))


@pytest.mark.parametrize("number", [50, pytest.param(1_000, marks=pytest.mark.slow)])
def test_every_flipped_byte_and_truncation_is_found_and_an_older_one_loads(
    number: int, tmp_path: Path
) -> None:
    training, rng = Training(tmp_path, Sizes(capacity=400)), random.Random(number)
    for _ in range(4):
        training.save(30)
    last, before = steps(tmp_path / "checkpoints")[-1], steps(tmp_path / "checkpoints")[-2]
    files = files_of(last)
    assert any(path.stat().st_nlink > 1 for path in files)  # some are shared
    for _ in range(number):
        path = rng.choice(files)
        content = path.read_bytes()
        damage(path, rng)
        saved = newest(tmp_path, skipped=1)
        assert saved.folder == before
        assert str(last) in saved.skipped[0]
        path.write_bytes(content)
    training.refuse_other(newest(tmp_path))


# Kills


def moment(seed: int, step: int) -> dict[str, Any]:
    """Return the ring of a training after so many steps."""
    history = saving_forever.SIZES.history(seed)
    for _ in range(step):
        history.step()
    return cells_of(history.ring)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("kills", [int(os.environ.get("FASTDQN_TEST_KILLS", "60"))])
def test_a_kill_at_any_moment_leaves_the_last_whole_checkpoint(kills: int, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.faults.saving_forever", str(tmp_path), str(kills)]
    subprocess.run(command, check=True, timeout=1100, cwd=Path(__file__).parents[2])
    inside = loaded = 0
    for seed in range(kills):
        checkpoints = tmp_path / str(seed) / "checkpoints"
        before = names(checkpoints) if checkpoints.is_dir() else []
        inside += any(name.startswith(".tmp-") for name in before)
        if not steps(checkpoints):
            with pytest.raises(CheckpointError):
                newest_training(tmp_path / str(seed))
            continue
        saved, ring = newest(tmp_path / str(seed)), saving_forever.SIZES.ring()
        loaded += 1
        step = int(saved.folder.name.removeprefix("step-"))
        saved.fill(saving_forever.SIZES.chunks(ring))
        assert same(cells_of(ring), moment(seed, step))
        assert saved.state.part("learner").values == {"updates": step}
        remove_stale(checkpoints)
        assert all(name.startswith("step-") for name in names(checkpoints))
        shutil.rmtree(checkpoints)
    assert inside >= 0.25 * kills
    assert loaded >= 0.5 * kills
