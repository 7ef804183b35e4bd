"""Import checkpoints of other reID packages as runs, and export runs for other packages."""
