"""The loop: act, step, write, learn, look."""
