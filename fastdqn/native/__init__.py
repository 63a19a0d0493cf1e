"""Acting and updating multilayer perceptrons in C on one core, and in CUDA C on a card."""

from fastdqn.native.c_actor import NativeActor
from fastdqn.native.c_library import load_library, why_no_library
from fastdqn.native.c_update import NativeUpdate
from fastdqn.native.cuda_update import CudaActor, CudaUpdate
from fastdqn.native.support import Learned, refuse_sampler, why_not_act, why_not_native

__all__ = [
    "CudaActor",
    "CudaUpdate",
    "Learned",
    "NativeActor",
    "NativeUpdate",
    "load_library",
    "refuse_sampler",
    "why_no_library",
    "why_not_act",
    "why_not_native",
]
