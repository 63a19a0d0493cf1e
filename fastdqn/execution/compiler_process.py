"""The process in which steps are compiled; see `fastdqn.execution.compiler`.

Requests come in on what was standard input, and answers go out on what was standard output;
neither the compiler nor what it starts can write there.
"""

from __future__ import annotations

import json
import os
import pickle
import signal
import sys
import tempfile
import threading
import time
import warnings
from pathlib import Path
from typing import BinaryIO, NoReturn

import torch
from torch import Tensor, nn
from torch._inductor import aoti_compile_and_package
from torch._subclasses.fake_tensor import FakeTensorMode

from fastdqn.execution.compiler import LOOK_INTERVAL_S, Request
from fastdqn.execution.step import in_one_line

__all__ = ["build", "main"]

GPU_SHARE = 0.05
"""Part of a GPU's memory that compiling may take from the trainer."""
LONGEST_REASON = 500


class _Step(nn.Module):
    """A trace, repeated over rows of one of its inputs if requested."""

    def __init__(self, request: Request) -> None:
        super().__init__()
        self.operations = request.source.function()
        self.num_rows, self.last = request.num_rows, request.last

    def forward(self, *tensors: Tensor) -> tuple[()]:
        if not self.num_rows:
            self.operations(*tensors)
            return ()
        before, after = tensors[: self.last], tensors[self.last + 1 :]
        for row in torch.split(tensors[self.last], 1):
            self.operations(*before, row, *after)
        return ()


def build(request: Request) -> None:
    """Compile a request and write the library atomically."""
    request.numerics.apply()
    device = torch.device(request.specs[0].device)
    if device.type == "cuda":
        torch.cuda.set_per_process_memory_fraction(GPU_SHARE, device)
    with FakeTensorMode():
        inputs = tuple(spec.empty() for spec in request.specs)
    program = torch.export.export(_Step(request), inputs)
    request.path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=request.path.parent) as folder:
        package = Path(folder) / request.path.name
        aoti_compile_and_package(program, package_path=str(package))
        package.replace(request.path)


def main() -> int:
    """Serve requests until the parent closes the pipe, or ends."""
    source, answers = _private_pipes()
    threading.Thread(target=_watch, args=(os.getppid(),), daemon=True).start()
    os.nice(int(sys.argv[1]))
    warnings.simplefilter("ignore")
    while True:
        try:
            request: Request = pickle.load(source)  # noqa: S301 - our own parent's
        except EOFError:
            _end()
        os.write(answers, json.dumps(_attempt(request)).encode() + b"\n")


def _private_pipes() -> tuple[BinaryIO, int]:
    """Return the pipes from and to the parent, and take them away from everything else."""
    source, answers = os.fdopen(os.dup(0), "rb"), os.dup(1)
    silence = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1):
        os.dup2(silence, standard)
    return source, answers


def _attempt(request: Request) -> str:
    """Build; return what went wrong in one line, or nothing."""
    try:
        build(request)
    except Exception as error:  # of any kind; the parent goes on without the library
        return in_one_line(error)[:LONGEST_REASON]
    return ""


def _watch(parent: int) -> None:
    """Notice that the parent has ended, even where its children hold the pipe open."""
    while os.getppid() == parent:
        time.sleep(LOOK_INTERVAL_S)
    _end()


def _end() -> NoReturn:
    """End this process and all that it has started, at once."""
    if os.getpgid(0) == os.getpid():
        os.killpg(0, signal.SIGKILL)
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
