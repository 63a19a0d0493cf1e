"""Benchmarks: every speed as a ratio of two things timed in one run."""
