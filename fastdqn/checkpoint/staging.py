"""Memory on the host into which tensors are copied before the training changes them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from fastdqn.checkpoint.tensor_file import bytes_of, contents, in_order

__all__ = ["Slot", "copies_of"]


class Slot:
    """Memory for one chunk, used again for every next one; pinned beside a card.

    Args:
        size: Bytes of the largest chunk.
        device: Where the chunks are.
    """

    def __init__(self, size: int, device: torch.device) -> None:
        pinned, self._device = device.type == "cuda", device
        self._memory = torch.empty(size, dtype=torch.uint8, pin_memory=pinned)
        self._copied = torch.cuda.Event() if pinned else None  # type: ignore[no-untyped-call]
        self._tensors: dict[str, Tensor] = {}

    def fill(self, tensors: Mapping[str, Tensor]) -> None:
        """Copy a chunk; on a card the copy is queued behind what writes the ring."""
        start, self._tensors = 0, {}
        for name, tensor in in_order(tensors):
            stop = start + bytes_of(tensor)
            twin = self._memory[start:stop].view(tensor.dtype).reshape(tensor.shape)
            self._tensors[name] = twin.copy_(tensor, non_blocking=self._copied is not None)
            start = stop
        if self._copied is not None:
            self._copied.record(torch.cuda.current_stream(self._device))

    def contents(self) -> list[memoryview]:
        """Return the contents of the chunk's file, once the copy is done."""
        if self._copied is not None:
            self._copied.synchronize()
        return contents(self._tensors)


def copies_of(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copy small tensors to the host, at once."""
    host = torch.device("cpu")
    return {
        name: tensor.detach().to(host, copy=True).contiguous() for name, tensor in tensors.items()
    }
