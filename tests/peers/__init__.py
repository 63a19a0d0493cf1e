"""Comparisons with other libraries over random inputs, by `make oracles`."""
