"""A check, once per run, that a device computes what the CPU computes.

Some versions of PyTorch and macOS have returned wrong numbers on MPS without an error. The
operations that a training depends on are compared on fixed numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from fastdqn.errors import UsageError

__all__ = ["OPERATIONS", "check_device"]

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


def _values(device: torch.device) -> Tensor:
    return torch.tensor(VALUES, dtype=torch.float32, device=device)


def _places(device: torch.device) -> Tensor:
    return torch.tensor(PLACES, device=device)


def _argmax(device: torch.device) -> Tensor:
    return _values(device).argmax(1)


def _gather(device: torch.device) -> Tensor:
    return _values(device).gather(1, _places(device).unsqueeze(1)).squeeze(1)


def _index(device: torch.device) -> Tensor:
    return _values(device)[_places(device)]


def _index_copy(device: torch.device) -> Tensor:
    return torch.zeros(4, 4, device=device).index_copy_(0, _places(device), _values(device))


def _lerp(device: torch.device) -> Tensor:
    return _values(device).lerp_(_values(device).flip(0), torch.tensor(0.25, device=device))


def _remainder(device: torch.device) -> Tensor:
    return torch.tensor(LARGE, device=device).remainder_(1_000_003)


OPERATIONS: Mapping[str, Operation] = {
    "argmax": _argmax,
    "gather": _gather,
    "indexing": _index,
    "index_copy_": _index_copy,
    "lerp_": _lerp,
    "remainder_ on int64": _remainder,
}
"""The operations of acting, drawing, learning and writing."""


def check_device(device: torch.device, operations: Mapping[str, Operation] = OPERATIONS) -> None:
    """Compare operations on the device with the CPU's. Waits for the device.

    Args:
        device: Is checked.
        operations: Name -> makes its inputs on a device, and the result from them.

    Raises:
        UsageError: A result differs; names the operation and both results.
    """
    for name, operation in operations.items():
        found = operation(device).cpu()
        wanted = operation(torch.device("cpu"))
        exact = not wanted.is_floating_point()
        same = torch.equal(found, wanted) if exact else torch.allclose(found, wanted, rtol=1e-6)
        if not same:
            raise UsageError(
                f"--device {device}",
                f"{name} gives {found.tolist()} there and {wanted.tolist()} on the CPU "
                f"(PyTorch {torch.__version__})",
                "Use --device cpu, or another version of PyTorch.",
            )
