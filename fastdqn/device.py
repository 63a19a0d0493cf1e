"""Devices, and how much memory they have left."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from fastdqn.errors import UsageError

__all__ = ["available_bytes", "available_cores", "resolve_device", "synchronize"]


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
    """Return the bytes that can still be allocated on the device, by the system's count."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
    return _available_host_bytes()


def _available_host_bytes() -> int:
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
