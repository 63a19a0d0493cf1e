"""A batch becomes weights."""
