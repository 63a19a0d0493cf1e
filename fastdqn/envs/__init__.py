"""Environments: worker processes, the shared block and the sources that the rollout reads.

Light on purpose: worker processes import it, and they must not load PyTorch.
"""
