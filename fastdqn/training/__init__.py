"""The training loop: act, step, write, learn, report."""
