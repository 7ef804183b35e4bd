"""A trained model in use: galleries, calibration, models that run without torch, their export, and the web page."""
