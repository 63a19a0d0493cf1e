"""Checkpoints on disk: whole or absent, verified, and read as data of a stranger.

The format is described in docs/checkpoints.md.
"""
