"""Devices: which there are, what memory they have left, and whether they compute rightly."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn import functional

from fastdqn.errors import UsageError
from fastdqn.foundation.host_memory import available_host_bytes

__all__ = [
    "OPERATIONS",
    "available_bytes",
    "available_cores",
    "check_device",
    "resolve_device",
    "synchronize",
    "threads",
]

Operation = Callable[[torch.device], Tensor]

VALUES = [
    [-1.5, 2.0, 0.25, 2.0],
    [7.0, -3.0, 6.5, 0.0],
    [-9.0, -8.5, -8.75, -8.25],
    [0.0, 0.0, 1e-6, 0.0],
]
PLACES = [3, 0, 2, 1]
LARGE = [2**61 + 12_345, 2**40 + 7, 2**32 + 1, 99]
"""As large as the random numbers that indices are made of."""


def resolve_device(name: str) -> torch.device:
    """Turn `auto`, `cpu`, `cuda`, `cuda:1` or `mps` into a device of this machine.

    `auto` is CUDA where there is a card and the CPU elsewhere: on a Mac every operation on MPS
    costs 25 us and more, so that networks of the usual size are faster on its CPU.

    Raises:
        UsageError: The name is unknown or the machine has no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in {"cpu", "cuda", "mps"}:
        raise UsageError(
            f"--device {name}",
            "fastdqn does not run on such a device",
            "Choose auto, cpu, cuda, cuda:N or mps.",
        )
    _refuse_missing(name, device)
    return device


def _refuse_missing(name: str, device: torch.device) -> None:
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (device.index or 0) >= count:
            raise UsageError(
                f"--device {name}",
                f"this machine shows {count} CUDA devices to PyTorch {torch.__version__}",
                "Use --device auto or cpu, or look at `fastdqn doctor`.",
            )
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise UsageError(
            f"--device {name}", "this machine has no MPS device", "Use --device auto or cpu."
        )


def synchronize(device: torch.device) -> None:
    """Wait until the device has done all queued work; returns at once on the CPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def available_cores() -> int:
    """Return the CPU cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def available_bytes(device: torch.device) -> int:
    """Return the bytes that can still be allocated on the device, by the system's count.

    On the CPU the limits of control groups (containers) and of this process (ulimit) count, too.
    """
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
    return available_host_bytes()


# The check of a device


def _values(device: torch.device) -> Tensor:
    return torch.tensor(VALUES, dtype=torch.float32, device=device)


def _places(device: torch.device) -> Tensor:
    return torch.tensor(PLACES, device=device)


OPERATIONS: Mapping[str, Operation] = {
    "argmax": lambda at: _values(at).argmax(1),
    "gather": lambda at: _values(at).gather(1, _places(at).unsqueeze(1)).squeeze(1),
    "indexing": lambda at: _values(at)[_places(at)],
    "index_copy_": lambda at: _values(at).zero_().index_copy_(0, _places(at), _values(at)),
    "lerp_": lambda at: _values(at).lerp_(_values(at).flip(0), torch.tensor(0.25, device=at)),
    "remainder_ on int64": lambda at: torch.tensor(LARGE, device=at).remainder_(1_000_003),
    "erfinv": lambda at: (_values(at) / 9.5).erfinv(),
    "cos": lambda at: (_values(at) * torch.pi / 4).cos(),
    "layer_norm": lambda at: functional.layer_norm(_values(at), (4,)),
    "logsumexp": lambda at: _values(at).logsumexp(1),
    "log_softmax": lambda at: (_values(at) / 0.03).log_softmax(1),
}
"""The operations of acting, drawing, learning and writing; of noise, LayerNorm and objectives."""
APPROXIMATE = frozenset({"erfinv", "cos", "layer_norm", "logsumexp", "log_softmax"})
"""Those that a card may compute by formulas of its own, and not to the last digits."""


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Give PyTorch's CPU operations so many threads within this context."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def check_device(device: torch.device, operations: Mapping[str, Operation] = OPERATIONS) -> None:
    """Compare operations on the device with the CPU's, on fixed numbers. Waits for the device.

    Some versions of PyTorch and macOS have returned wrong numbers on MPS without an error.

    Args:
        device: Is checked.
        operations: Name -> makes its inputs on a device, and the result from them.

    Raises:
        UsageError: A result differs; names the operation and both results.
    """
    for name, operation in operations.items():
        found = operation(device).cpu()
        wanted = operation(torch.device("cpu"))
        if not _alike(found, wanted, approximate=name in APPROXIMATE):
            raise UsageError(
                f"--device {device}",
                f"{name} gives {found.tolist()} there and {wanted.tolist()} on the CPU "
                f"(PyTorch {torch.__version__})",
                "Use --device cpu, or another version of PyTorch.",
            )


def _alike(found: Tensor, wanted: Tensor, *, approximate: bool) -> bool:
    if not wanted.is_floating_point():
        return torch.equal(found, wanted)
    rtol, atol = (1e-3, 1e-3) if approximate else (1e-6, 1e-8)
    return torch.allclose(found, wanted, rtol=rtol, atol=atol)
