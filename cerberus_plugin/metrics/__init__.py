"""Evaluation metrics as pure functions of tensors: re-identification (reID), attribute recognition (PAR), search (APS).
"""
