"""Trained models as encoders of galleries: run by torch, or exported to ONNX."""
