"""Weights become actions."""
