"""Experiments on trained and untrained models, each a command: python -m cerberus_plugin.experiments.<name> --help."""
