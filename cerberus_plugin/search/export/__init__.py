"""Trained models as encoders of galleries, run by torch, and their export to ONNX."""
