"""Training on environments that return NumPy arrays: workers, and any VectorEnv."""
