"""With how many bits networks are computed: float32, its short product on CUDA, or bfloat16.

Parameters, losses, gradients and moments are float32 in every one of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch

from fastdqn.errors import UsageError

__all__ = ["PRECISIONS", "float32_products", "refuse_precision"]

PRECISIONS = ("float32", "tf32", "bf16")


def refuse_precision(precision: str, device: torch.device) -> None:
    """Refuse a precision that does not exist, or not on this device.

    Raises:
        UsageError: Names the precision, the device and the way out.
    """
    if precision not in PRECISIONS:
        got, reason = f"--precision {precision}", "there is no such precision"
        raise UsageError(got, reason, f"Choose {', '.join(PRECISIONS)}.")
    reasons = {
        "tf32": ({"cuda"}, "only CUDA cards multiply in TF32"),
        "bf16": ({"cuda", "cpu"}, "bfloat16 runs on CUDA and the CPU only"),
    }
    devices, reason = reasons.get(precision, ({device.type}, ""))
    if device.type not in devices:
        got = f"--precision {precision} on {device}"
        raise UsageError(got, reason, "Use --precision float32, or another --device.")


def float32_products(precision: str, device: torch.device) -> AbstractContextManager[None]:
    """Let CUDA multiply float32 matrices with all their bits, or only those of TF32.

    PyTorch has one such setting for the whole process, and by default lets convolutions drop bits.
    The former settings are restored afterwards. Other devices are left alone.

    Args:
        precision: `tf32` drops bits, everything else keeps them.
        device: Where the products are made.
    """
    return _products(precision) if device.type == "cuda" else nullcontext()


@contextmanager
def _products(precision: str) -> Iterator[None]:
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    _set("high" if precision == "tf32" else "highest", precision == "tf32")
    try:
        yield
    finally:
        _set(*before)


def _set(products: str, convolutions: bool) -> None:
    if torch.get_float32_matmul_precision() != products:
        torch.set_float32_matmul_precision(products)
    if torch.backends.cudnn.allow_tf32 != convolutions:
        torch.backends.cudnn.allow_tf32 = convolutions
