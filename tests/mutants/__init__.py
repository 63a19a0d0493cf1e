"""Bugs that are planted on purpose, and what runs the tests that must find them."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when PyTorch is loaded
