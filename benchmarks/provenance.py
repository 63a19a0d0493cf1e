"""Where, when and with what a figure was taken."""

from __future__ import annotations

import json
import sys
import time
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from fastdqn.device import available_cores, resolve_device
from fastdqn.reporting.run_directory import commit, describe_machine, versions

__all__ = ["RESULTS", "as_markdown", "provenance", "save_result"]

RESULTS = Path(__file__).parent / "results"


def provenance(command: str) -> dict[str, Any]:
    """Return date, machine, versions, commit and the command with its arguments."""
    device = resolve_device("auto")
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    return {
        "date": time.strftime("%Y-%m-%d"),
        "machine": describe_machine(),
        "cores": available_cores(),
        "gpu": gpu,
        "versions": {**versions(), **_peers()},
        "commit": commit(),
        "command": " ".join([command, *sys.argv[1:]]),
    }


def _peers() -> dict[str, str]:
    """Return the versions of what fastdqn is timed beside, where it is installed."""
    with suppress(PackageNotFoundError):
        return {"torchrl": version("torchrl")}
    return {}


def as_markdown(header: dict[str, Any]) -> str:
    """Return the provenance as one paragraph."""
    packages = ", ".join(f"{name} {found}" for name, found in header["versions"].items())
    gpu = f", {header['gpu']}" if header["gpu"] else ""
    return (
        f"{header['date']}, {header['machine']}, {header['cores']} cores{gpu}; {packages}; "
        f"commit {header['commit']}; `{header['command']}`."
    )


def save_result(name: str, content: dict[str, Any], text: str) -> None:
    """Write benchmarks/results/NAME.json and NAME.md; an empty name writes nothing."""
    if not name:
        return
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(content, indent=2) + "\n")
    (RESULTS / f"{name}.md").write_text(text + "\n")
