"""The values that a learner's settings may have, and with how many bits networks are computed.

Parameters, losses, gradients and moments are float32 in every precision.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch

from fastdqn.errors import UsageError
from fastdqn.foundation.scalars import refuse_unless_finite

__all__ = [
    "PRECISIONS",
    "TARGETS",
    "float32_products",
    "refuse_optimizer",
    "refuse_precision",
    "refuse_settings",
]

TARGETS = ("soft", "hard", "none")
PRECISIONS = ("float32", "tf32", "bf16")


def refuse_settings(
    *,
    gamma: float,
    learning_rate: float,
    target: str,
    tau: float,
    clip_norm: float | None,
    clip_value: float | None,
) -> None:
    """Refuse settings that cannot be used; see `fastdqn.learner.learner.Learner`.

    Raises:
        UsageError: Names the flag.
    """
    bounded = {"--clip-norm": (clip_norm, "Try 10."), "--clip-value": (clip_value, "Try 1.")}
    refuse_unless_finite("--gamma", gamma, "Try 0.99.")
    refuse_unless_finite("--learning-rate", learning_rate, "Try 5e-4.")
    refuse_unless_finite("--tau", tau, "Try 0.005.")
    for flag, (bound, way_out) in bounded.items():
        if bound is not None:
            refuse_unless_finite(flag, bound, "None leaves the gradient as it is.")
            _refuse_unless(bound > 0, f"{flag} {bound}", "not positive", way_out)
    way_out = f"Choose {', '.join(TARGETS)}."
    _refuse_unless(target in TARGETS, f"--target {target}", "there is no such target", way_out)
    rate = f"--learning-rate {learning_rate}"
    _refuse_unless(0 <= gamma <= 1, f"--gamma {gamma}", "it is a discount in [0, 1]", "Try 0.99.")
    _refuse_unless(learning_rate >= 0, rate, "it is negative", "Try 5e-4.")
    _refuse_unless(0 < tau <= 1, f"--tau {tau}", "it is a fraction in (0, 1]", "Try 0.005.")


def _refuse_unless(fine: bool, got: str, reason: str, way_out: str) -> None:
    if not fine:
        raise UsageError(got, reason, way_out)


def refuse_optimizer(optimizer: object) -> None:
    """Refuse what is no optimizer, a name or a class among them.

    Raises:
        UsageError: Names it.
    """
    fine = not isinstance(optimizer, type) and callable(optimizer)
    _refuse_unless(
        fine and hasattr(optimizer, "num_slots"),
        f"optimizer {optimizer!r}",
        "it is no object with num_slots that turns a gradient into parameters",
        "Pass Adam(), AdamW() or RMSprop() of fastdqn.",
    )


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
