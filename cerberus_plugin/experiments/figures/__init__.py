"""Figures of the paper for a trained run: images, captions and a record of how they were made."""
