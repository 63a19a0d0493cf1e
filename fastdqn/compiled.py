"""A step compiled whole by torch.compile, from outside."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch._dynamo import config as dynamo_config

__all__ = ["Compiled"]

MANY = 10_000
"""Variants of one step that a process may compile; PyTorch's own limit of 8 is for accidents."""


class Compiled:
    """A step compiled whole, once for each shape of its last argument.

    Args:
        step: What to compile; its other arguments keep their shapes.
        device: Where its tensors live; on the CPU the C++ wrapper is used.

    Attributes:
        compile_s: Seconds spent compiling so far.
    """

    def __init__(self, step: Callable[..., None], device: torch.device) -> None:
        options: dict[str, Any] = {"cpp_wrapper": True} if device.type == "cpu" else {}
        self._compiled = torch.compile(step, fullgraph=True, dynamic=False, options=options)
        self._seen: set[torch.Size] = set()
        self.compile_s = 0.0

    def __call__(self, *args: Any) -> None:
        """Run the step; compiles first where the shape is new."""
        shape = args[-1].shape
        if shape in self._seen:
            self._compiled(*args)
            return
        start = time.perf_counter()
        with dynamo_config.patch(trace_autograd_ops=True, recompile_limit=MANY):
            self._compiled(*args)
        self._seen.add(shape)
        self.compile_s += time.perf_counter() - start
