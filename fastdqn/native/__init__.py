"""Acting and updating in C, for multilayer perceptrons on one core of the CPU."""

from fastdqn.native.actor import NativeActor
from fastdqn.native.library import cache_dir, load_library, why_no_library
from fastdqn.native.update import NativeUpdate, why_not_native

__all__ = [
    "NativeActor",
    "NativeUpdate",
    "cache_dir",
    "load_library",
    "why_no_library",
    "why_not_native",
]
