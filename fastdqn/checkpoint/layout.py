"""What the files of a checkpoint are called, and which folders lie beside it.

checkpoints/step-<12 digits>/       whole checkpoints, by env steps
checkpoints/best/                   the best policy, which is never rotated away
checkpoints/.tmp-<name>-<pid>/      what a process is writing, or was when it died
checkpoints/.replaced-<name>/       the folder that another one takes the place of
"""

from __future__ import annotations

import os
import re
import shutil
import time
from pathlib import Path

from fastdqn.checkpoint.disk import sync
from fastdqn.foundation.policy_folders import aside

__all__ = [
    "DESCRIPTION",
    "MODEL",
    "OPTIMIZER",
    "PARTS",
    "REPLAY",
    "STATE",
    "chunk_file",
    "draft_of",
    "foreign_entry",
    "put_in_place",
    "remove_stale",
    "rotate",
    "steps",
]

MODEL, DESCRIPTION = "model.safetensors", "policy.json"
OPTIMIZER, PARTS, STATE = "optimizer.safetensors", "state.safetensors", "state.json"
REPLAY = "replay"
NAMES = {MODEL, DESCRIPTION, OPTIMIZER, PARTS, STATE, REPLAY}
STEP = re.compile(r"step-[0-9]{12}")
DRAFT = re.compile(r"\.tmp-.+-([0-9]{1,10})")
SLACK_S = 3.0
"""The system's clock at its start is known to a second."""


def chunk_file(number: int) -> str:
    """Return the name of the file of a chunk of the ring, within the checkpoint."""
    return f"{REPLAY}/chunk-{number:05d}.safetensors"


def draft_of(folder: Path) -> Path:
    """Return where this process writes what will become `folder`."""
    return folder.with_name(f".tmp-{folder.name}-{os.getpid()}")


def foreign_entry(folder: Path) -> str | None:
    """Return the name of something in a folder that is no file of a checkpoint, or None."""
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else {folder.name}
    return min(names - NAMES, default=None)


def steps(checkpoints: Path) -> list[Path]:
    """Return the folders of checkpoints, oldest first, as they or a crash left them."""
    if not checkpoints.is_dir():
        return []
    folders = {path.name: path for path in checkpoints.iterdir() if _is_folder(path)}
    found = {name: path for name, path in folders.items() if STEP.fullmatch(name)}
    for name, path in folders.items():
        step = name.removeprefix(".replaced-")
        if step != name and STEP.fullmatch(step):
            found.setdefault(step, path)
    return [found[name] for name in sorted(found)]


def put_in_place(draft: Path, folder: Path) -> None:
    """Move a draft to its folder; an old folder is moved aside until that is done.

    Raises:
        OSError: It cannot be moved; the old folder is there.
    """
    old = aside(folder)
    if folder.exists():
        shutil.rmtree(old, ignore_errors=True)
        folder.rename(old)
    try:
        draft.rename(folder)
    except BaseException:
        if old.exists():
            old.rename(folder)
        raise
    sync(folder.parent)
    shutil.rmtree(old, ignore_errors=True)


def rotate(newest: Path, keep_last: int) -> None:
    """Remove the oldest checkpoints beside `newest`; those with more env steps are not counted."""
    older = [path for path in steps(newest.parent) if _step(path) <= newest.name]
    for path in older[:-keep_last]:
        going = draft_of(path)  # half of a checkpoint must not look like one
        try:
            path.rename(going)
        except OSError:
            going = path
        shutil.rmtree(going, ignore_errors=True)


def remove_stale(checkpoints: Path) -> None:
    """Remove what dead processes left: drafts, and folders that were replaced by others.

    What holds anything else than files of a checkpoint is not ours, whatever it is called.
    """
    for path in checkpoints.iterdir() if checkpoints.is_dir() else ():
        if not _is_folder(path) or _foreign(path):
            continue
        draft, step = DRAFT.fullmatch(path.name), path.name.removeprefix(".replaced-")
        replaced = step != path.name and STEP.fullmatch(step) and (path.parent / step).is_dir()
        if replaced or (draft and not _is_alive(int(draft[1]), path)):
            shutil.rmtree(path, ignore_errors=True)


def _foreign(folder: Path) -> bool:
    try:
        return foreign_entry(folder) is not None
    except OSError:  # of another user, or gone meanwhile
        return True


def _step(path: Path) -> str:
    return path.name.removeprefix(".replaced-")


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def _is_alive(pid: int, draft: Path) -> bool:
    """Return whether a process is there that may have written a draft.

    One that started after the draft was changed has only the same number.
    """
    if os.name != "posix":
        return True
    try:
        os.kill(pid, 0)
        changed_s = draft.stat().st_mtime
    except (ProcessLookupError, OverflowError, FileNotFoundError):
        return False
    except OSError:  # another user's
        return True
    started_s = _started_s(pid)
    return started_s is None or started_s <= changed_s + SLACK_S


def _started_s(pid: int) -> float | None:
    """Return when a process started, seconds since 1970, or None where that is not known."""
    try:
        ticks = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
        up_s = float(Path("/proc/uptime").read_text().split()[0])
    except (OSError, ValueError, IndexError):
        return None
    return time.time() - up_s + ticks / os.sysconf("SC_CLK_TCK")
