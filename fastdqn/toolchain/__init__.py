"""Compilers of C and CUDA C, and the cache of their output."""
