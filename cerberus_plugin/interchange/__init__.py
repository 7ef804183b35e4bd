"""Models that other packages train or load: checkpoints of theirs as runs, and runs as folders of theirs."""
