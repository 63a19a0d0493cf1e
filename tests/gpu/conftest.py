"""What every test on a card begins and ends with."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(autouse=True)
def clean_card() -> Iterator[None]:
    """Let waits pass again after a test that forbade them, and free what it held."""
    yield
    torch.cuda.set_sync_debug_mode("default")
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
