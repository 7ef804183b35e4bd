"""Search with trained models: galleries, calibration, ONNX export, inference without torch, and the web page."""
