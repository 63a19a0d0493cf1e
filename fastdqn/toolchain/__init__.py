"""Compilers of C and CUDA C, and where their output is kept."""
