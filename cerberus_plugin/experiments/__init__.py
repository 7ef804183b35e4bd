"""Experiments on models. Each module is a command: python -m cerberus_plugin.experiments.NAME --help."""
