"""Training on environments that speak NumPy: workers, and any VectorEnv."""
