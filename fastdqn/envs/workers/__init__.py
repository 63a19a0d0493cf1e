"""Worker processes that host environments over one shared block."""
