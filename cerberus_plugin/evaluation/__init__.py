"""Evaluation: embeddings of a test set, the tasks reID, PAR and APS, result tables and manifests."""
