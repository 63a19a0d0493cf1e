"""The command line: words of a command become a run."""
