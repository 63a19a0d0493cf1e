"""The files of a run and its output on the terminal."""
