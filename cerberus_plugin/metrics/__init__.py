"""Evaluation figures as pure functions of tensors: ranking (reID), recognition (PAR) and search (APS)."""
