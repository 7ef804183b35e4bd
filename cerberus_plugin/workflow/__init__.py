"""Whole jobs on people's own data: from a recipe to a trained, calibrated run with its report, and runs on other data.
"""
