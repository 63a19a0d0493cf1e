"""Acting and updating multilayer perceptrons in C on one core, and in CUDA C on a card."""

from fastdqn.native.actor import NativeActor
from fastdqn.native.cuda_update import CudaActor, CudaUpdate
from fastdqn.native.library import load_library, why_no_library
from fastdqn.native.settings import Learned, why_not_act, why_not_native
from fastdqn.native.update import NativeUpdate

__all__ = [
    "CudaActor",
    "CudaUpdate",
    "Learned",
    "NativeActor",
    "NativeUpdate",
    "load_library",
    "why_no_library",
    "why_not_act",
    "why_not_native",
]
