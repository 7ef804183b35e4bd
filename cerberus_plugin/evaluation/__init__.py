"""One pass over a test set: embeddings, the three tasks, result tables and the manifest of what was evaluated."""
