"""How a pure step is run: as it is, compiled, or as a CUDA graph."""
